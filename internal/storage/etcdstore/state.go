package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-semver/semver"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// minEtcdVersion is the oldest etcd that the store works with: it is the first that streams a whole
// folder at one revision, without which a large store takes minutes to load.
var minEtcdVersion = semver.Version{Major: 3, Minor: 7}

// memberTimeout bounds how long a member is asked how it is.
const memberTimeout = 3 * time.Second

// memberState is what a member says of itself.
type memberState struct {
	endpoint string
	version  string
	// hasLeader reports whether the member knows a leader, and so belongs to a majority.
	hasLeader bool
	// isFull is set if etcd has used up its quota.
	isFull bool
	// err is why the member did not answer.
	err error
}

// clusterState is what the members of a cluster say of themselves.
type clusterState []memberState

// askMembers asks all members how they are, at once.
func askMembers(ctx context.Context, endpoints []string, members []*clientv3.Client) clusterState {
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	states := make(clusterState, len(members))
	var group sync.WaitGroup
	for index, member := range members {
		group.Go(func() { states[index] = askMember(ctx, endpoints[index], member) })
	}
	group.Wait()
	return states
}

func askMember(ctx context.Context, endpoint string, member *clientv3.Client) memberState {
	state := memberState{endpoint: endpoint}
	// The client's own method would make another connection, and wait for it.
	answer, err := etcdserverpb.NewMaintenanceClient(member.ActiveConnection()).Status(ctx, &etcdserverpb.StatusRequest{})
	if err != nil {
		state.err = rpctypes.Error(err)
		return state
	}
	state.version, state.hasLeader = answer.Version, answer.Leader != 0
	if alarms, err := member.AlarmList(ctx); err == nil {
		for _, alarm := range alarms.Alarms {
			state.isFull = state.isFull || alarm.GetAlarm() == etcdserverpb.AlarmType_NOSPACE
		}
	}
	return state
}

// unusable returns nil, or why no store can be opened. The error is one line, names the members, and says
// what to do.
func (c clusterState) unusable() error {
	answered, led := 0, 0
	for _, member := range c {
		if refusesUser(member.err) {
			return fmt.Errorf("etcd at %s refuses the user or the password; check etcd-user and etcd-password-file", member.endpoint)
		}
		if errors.Is(member.err, rpctypes.ErrUserEmpty) {
			return fmt.Errorf("etcd at %s has authentication switched on: give etcd-user and etcd-password-file, or a certificate with the name of a user", member.endpoint)
		}
		if member.err != nil {
			continue
		}
		answered++
		if member.hasLeader {
			led++
		}
		if version, err := semver.NewVersion(member.version); err != nil || version.LessThan(minEtcdVersion) {
			return fmt.Errorf("etcd at %s has version %q; at least %s is needed: upgrade etcd, one member after the other", member.endpoint, member.version, minEtcdVersion.String())
		}
	}
	switch {
	case answered == 0:
		return fmt.Errorf("no member of etcd answers: %s%s", c.problems(), c.advice())
	case led == 0:
		return fmt.Errorf("etcd has no quorum, so nothing can be read: %s; start the members that are down, or connect them again", c.problems())
	}
	return nil
}

// warn logs what does not keep the store from being opened.
func (c clusterState) warn(ctx context.Context, log *slog.Logger) {
	for _, member := range c {
		switch {
		case member.err != nil:
			log.WarnContext(ctx, "a member of etcd does not answer", "member", member.endpoint, "error", whyNot(member.err))
		case !member.hasLeader:
			log.WarnContext(ctx, "a member of etcd has no connection to the others", "member", member.endpoint)
		}
	}
	if c.isFull() {
		log.ErrorContext(ctx, "etcd is out of quota: validations go on, and no change is made", "advice", fullAdvice)
	}
}

const fullAdvice = "compact and defragment etcd, or raise its quota; then etcdctl alarm disarm"

func (c clusterState) isFull() bool {
	for _, member := range c {
		if member.isFull {
			return true
		}
	}
	return false
}

// hint returns what to do about an error of the store, after a semicolon; "" if nothing is known.
func (c clusterState) hint(err error) string {
	switch text := err.Error(); {
	case c.isFull():
		return "; etcd is out of quota: " + fullAdvice
	case errors.Is(err, storage.ErrAbsent):
		return "; etcd-prefix names where a store begins"
	case strings.Contains(text, rpctypes.ErrPermissionDenied.Error()):
		return "; the user of etcd needs the right to read and write under etcd-prefix"
	}
	return ""
}

// problems says of each member what is wrong with it.
func (c clusterState) problems() string {
	var each []string
	for _, member := range c {
		switch {
		case member.err != nil:
			each = append(each, fmt.Sprintf("%s: %s", member.endpoint, whyNot(member.err)))
		case !member.hasLeader:
			each = append(each, fmt.Sprintf("%s: it answers, and has no leader", member.endpoint))
		}
	}
	return strings.Join(each, ", ")
}

// advice returns what to do if no member answers.
func (c clusterState) advice() string {
	for _, member := range c {
		text := whyNot(member.err)
		switch {
		case strings.Contains(text, "first record does not look like a TLS handshake"), strings.Contains(text, "handshake failed: EOF"):
			return "; etcd does not speak TLS there, and etcd-ca asks for it"
		case strings.Contains(text, "x509:"):
			return "; etcd-ca must have the authority of etcd's certificate, and the certificate the name in etcd-endpoints"
		// A member that misses a certificate may close the connection before its alert is read.
		case strings.Contains(text, "tls:"), strings.Contains(text, "broken pipe"), strings.Contains(text, "connection reset"):
			return "; etcd may ask for a certificate that it trusts: check etcd-cert and etcd-key"
		case strings.Contains(text, "server preface"), strings.Contains(text, "connection closed"), strings.Contains(text, "EOF"):
			return "; etcd may speak TLS there: give etcd-ca"
		}
	}
	return "; check etcd-endpoints, and that etcd runs"
}

// refusesUser reports whether etcd refuses a name or password.
func refusesUser(err error) bool {
	return errors.Is(err, rpctypes.ErrAuthFailed) || errors.Is(err, rpctypes.ErrInvalidAuthToken)
}

// whyNot returns the text of an error of etcd's client in one line, without grpc's words around it.
func whyNot(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("no answer in %s", memberTimeout)
	}
	text := err.Error()
	if told, ok := status.FromError(err); ok {
		text = told.Message()
	}
	for _, cut := range []string{"connection error: desc = ", `"transport: `} {
		text = strings.Replace(text, cut, "", 1)
	}
	text = strings.TrimSuffix(strings.ReplaceAll(text, "\n", " "), `"`)
	if len(text) > 300 {
		text = text[:300] + "…"
	}
	return text
}
