package etcdstore

import (
	"context"
	"errors"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestUnusableEtcdIsToldInOneLine has what no etcd of the tests does by itself, such as an old version.
func TestUnusableEtcdIsToldInOneLine(t *testing.T) {
	at := func(host string) string { return host + ":2379" }
	good := memberState{endpoint: at("a"), version: "3.7.3", hasLeader: true}
	with := func(edit func(*memberState)) memberState {
		state := good
		state.endpoint = at("b")
		edit(&state)
		return state
	}
	refused := status.Error(codes.Unavailable, "connection error: desc = \"transport: Error while dialing: dial tcp: refused\"")
	for name, test := range map[string]struct {
		state clusterState
		want  string // "" if it can be used
	}{
		"good":              {clusterState{good}, ""},
		"newer":             {clusterState{with(func(m *memberState) { m.version = "3.10.0" })}, ""},
		"one is down":       {clusterState{good, with(func(m *memberState) { m.err = refused })}, ""},
		"one is cut off":    {clusterState{good, with(func(m *memberState) { m.hasLeader = false })}, ""},
		"out of quota":      {clusterState{with(func(m *memberState) { m.isFull = true })}, ""},
		"old":               {clusterState{good, with(func(m *memberState) { m.version = "3.6.11" })}, `etcd at b:2379 has version "3.6.11"; at least 3.7.0 is needed`},
		"old as text only":  {clusterState{with(func(m *memberState) { m.version = "3.10.0-alpha.0" })}, ""},
		"no version":        {clusterState{with(func(m *memberState) { m.version = "" })}, `etcd at b:2379 has version ""`},
		"not a version":     {clusterState{with(func(m *memberState) { m.version = "new" })}, `etcd at b:2379 has version "new"`},
		"no quorum":         {clusterState{with(func(m *memberState) { m.hasLeader = false }), {endpoint: at("c"), err: refused}}, "etcd has no quorum, so nothing can be read: b:2379: it answers, and has no leader, c:2379: Error while dialing: dial tcp: refused; start "},
		"nobody":            {clusterState{{endpoint: at("c"), err: refused}}, "no member of etcd answers: c:2379: Error while dialing: dial tcp: refused; check etcd-endpoints"},
		"silent":            {clusterState{{endpoint: at("c"), err: context.DeadlineExceeded}}, "no member of etcd answers: c:2379: no answer in 3s"},
		"wrong password":    {clusterState{good, {endpoint: at("c"), err: rpctypes.ErrAuthFailed}}, "etcd at c:2379 refuses the user or the password"},
		"no user":           {clusterState{good, {endpoint: at("c"), err: rpctypes.ErrUserEmpty}}, "etcd at c:2379 has authentication switched on"},
		"several lines":     {clusterState{{endpoint: at("c"), err: errors.New("a\nb")}}, "no member of etcd answers: c:2379: a b"},
		"a very long error": {clusterState{{endpoint: at("c"), err: errors.New(strings.Repeat("x", 4000))}}, "no member of etcd answers: c:2379: xxx"},
	} {
		err := test.state.unusable()
		if test.want == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err == nil || !strings.HasPrefix(err.Error(), test.want) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 600 {
			t.Errorf("%s: got %v, want %q…", name, err, test.want)
		}
	}
}
