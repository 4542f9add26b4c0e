package cli_test

import (
	"context"
	"encoding/json"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/cli"
)

// replica is a server that knows some schema.
type replica struct {
	keysvcv1.UnimplementedStatusServiceServer
	keysvcv1.UnimplementedSettingsServiceServer

	status *keysvcv1.GetStatusResponse
	// finish answers FinishUpgrade, and finished has what it was asked for last.
	finish   func() (*keysvcv1.FinishUpgradeResponse, error)
	finished atomic.Pointer[keysvcv1.FinishUpgradeRequest]
}

func (r *replica) GetStatus(context.Context, *keysvcv1.GetStatusRequest) (*keysvcv1.GetStatusResponse, error) {
	if r.status == nil {
		return nil, status.Error(codes.PermissionDenied, "not you")
	}
	return r.status, nil
}

func (r *replica) FinishUpgrade(_ context.Context, request *keysvcv1.FinishUpgradeRequest) (*keysvcv1.FinishUpgradeResponse, error) {
	r.finished.Store(request)
	return r.finish()
}

// startReplica starts a server over etcd, whose store has schema 3.
func startReplica(t *testing.T, version string, newest int32) (*replica, string) {
	t.Helper()
	r := &replica{
		status: &keysvcv1.GetStatusResponse{Version: version, Epoch: "epoch", Schema: 3, NewestSchema: newest, StoreKind: "etcd"},
		finish: func() (*keysvcv1.FinishUpgradeResponse, error) {
			return &keysvcv1.FinishUpgradeResponse{ReplacedSchema: 3, Schema: newest, Revision: 7, Epoch: "epoch"}, nil
		},
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveServices(t, listener, func(server *grpc.Server) {
		keysvcv1.RegisterStatusServiceServer(server, r)
		keysvcv1.RegisterSettingsServiceServer(server, r)
	})
	return r, listener.Addr().String()
}

// closedAddress returns an address at which nothing listens.
func closedAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer closeIt(t, listener)
	return listener.Addr().String()
}

func TestUpgradeFinishAsksEveryServerFirst(t *testing.T) {
	first, a := startReplica(t, "v2", 4)
	second, b := startReplica(t, "v2", 4)
	c := command{addr: a + "," + b}
	c.run(t, "upgrade", "finish", "--yes", "--actor", "ann").want(t, cli.ExitOK, "SERVER"+strings.Repeat(" ", len(a)-4)+`SCHEMA  NEWEST  VERSION
`+a+`  3       4       v2
`+b+strings.Repeat(" ", len(a)-len(b))+`  3       4       v2
The store has schema 4 now; it was 3. Servers that do not know it end, and do not start.
`, "")
	got := first.finished.Load()
	if got.GetSchema() != 4 || got.GetActorMemberId() != "ann" || second.finished.Load() != nil {
		t.Errorf("FinishUpgrade was called with %v, and at the second server with %v", got, second.finished.Load())
	}
	var answer struct {
		Servers      []struct{ Address, Version, Error string }
		Schema       int32
		NewestSchema int32 `json:"newest_schema"`
		Finished     struct {
			Schema   int32
			Revision string
		}
	}
	result := c.run(t, "upgrade", "finish", "--yes", "-o", "json")
	if err := json.Unmarshal([]byte(result.stdout), &answer); err != nil || result.status != cli.ExitOK {
		t.Fatalf("%+v, %v", result, err)
	}
	if len(answer.Servers) != 2 || answer.Servers[1].Address != b || answer.Schema != 4 || answer.NewestSchema != 4 || answer.Finished.Revision != "7" {
		t.Errorf("the answer is %+v", answer)
	}
	first.status.Schema, second.status.Schema = 4, 4
	first.finished.Store(nil)
	again := c.run(t, "upgrade", "finish")
	if again.status != cli.ExitOK || !strings.Contains(again.stdout, "The store has schema 4 already: nothing is to be done.") || first.finished.Load() != nil {
		t.Errorf("once more: %+v", again)
	}
}

// TestUpgradeFinishIsRefused: in each case nothing is changed, and the server that is in the way is named.
func TestUpgradeFinishIsRefused(t *testing.T) {
	gone := closedAddress(t)
	for name, test := range map[string]struct {
		spoil func(second *replica, addresses *[]string)
		yes   bool
		exit  int
		// words are what standard error has; SECOND stands for the second server's address.
		words []string
	}{
		"one server knows less": {
			func(r *replica, _ *[]string) { r.status.NewestSchema, r.status.Version = 3, "v1, old" }, true, cli.ExitRefused,
			[]string{"not every server knows schema 4", "SECOND (v1, old) knows up to 3"},
		},
		"one server does not say": {
			func(r *replica, _ *[]string) { r.status.Schema, r.status.NewestSchema, r.status.StoreKind = 0, 0, "" }, true, cli.ExitRefused,
			[]string{"SECOND", "does not say which schemas it knows"},
		},
		"one server is gone": {
			func(_ *replica, addresses *[]string) { *addresses = append(*addresses, gone) }, true, cli.ExitUnreachable,
			[]string{"connection refused", "this server did not answer: " + gone},
		},
		"one server does not know the caller": {
			func(r *replica, _ *[]string) { r.status = nil }, true, cli.ExitRefused, []string{"not you", "this server did not answer: SECOND"},
		},
		"one server has another store": {
			func(r *replica, _ *[]string) { r.status.Epoch = "other" }, true, cli.ExitRefused,
			[]string{"SECOND do not have the same store", "epoch and other"},
		},
		"one server has its store in a file": {
			func(r *replica, _ *[]string) { r.status.StoreKind = "bbolt" }, true, cli.ExitRefused, []string{"the store of SECOND is a file"},
		},
		"nobody confirms it": {
			func(*replica, *[]string) {}, false, cli.ExitRefused, []string{"--yes"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			first, a := startReplica(t, "v2", 4)
			second, b := startReplica(t, "v2", 4)
			addresses := []string{a, b}
			test.spoil(second, &addresses)
			arguments := []string{"upgrade", "finish"}
			if test.yes {
				arguments = append(arguments, "--yes")
			}
			c := command{addr: strings.Join(addresses, ",")}
			result := c.run(t, arguments...)
			for _, each := range test.words {
				if each = strings.ReplaceAll(each, "SECOND", b); !strings.Contains(result.stderr, each) {
					t.Errorf("%q is not in what it says:\n%s", each, result.stderr)
				}
			}
			if result.status != test.exit {
				t.Errorf("status %d, want %d", result.status, test.exit)
			}
			if first.finished.Load() != nil || second.finished.Load() != nil {
				t.Error("FinishUpgrade was called")
			}
			looked := c.run(t, "upgrade", "status")
			want := cli.ExitOK
			if strings.Contains(result.stderr, "did not answer") {
				want = test.exit
			}
			if looked.status != want || !strings.Contains(looked.stdout, a+" ") || !strings.Contains(looked.stdout, b+" ") {
				t.Errorf("upgrade status: %+v, want status %d", looked, want)
			}
		})
	}
}

// TestUpgradeFinishDoesNotRaiseTooFar: the server that is asked to raise the schema has become another one.
func TestUpgradeFinishDoesNotRaiseTooFar(t *testing.T) {
	first, a := startReplica(t, "v2", 4)
	first.finish = func() (*keysvcv1.FinishUpgradeResponse, error) {
		return &keysvcv1.FinishUpgradeResponse{ReplacedSchema: 3, Schema: 5}, nil
	}
	result := command{addr: a}.run(t, "upgrade", "finish", "--yes")
	if result.status != cli.ExitFailure || !strings.Contains(result.stderr, "is 5 now, and not 4") {
		t.Errorf("%+v", result)
	}
	first.finish = func() (*keysvcv1.FinishUpgradeResponse, error) { return nil, status.Error(codes.Canceled, "gone") }
	result = command{addr: a}.run(t, "upgrade", "finish", "--yes")
	if result.status != cli.ExitFailure || !strings.Contains(result.stderr, "keysvc upgrade status shows which schema is in force") {
		t.Errorf("%+v", result)
	}
}

// TestUpgradeStatusSaysWhatCanBeDone shows the last line of the command.
func TestUpgradeStatusSaysWhatCanBeDone(t *testing.T) {
	first, a := startReplica(t, "v2", 4)
	c := command{addr: a}
	for want, spoil := range map[string]func(){
		"All of these servers know schema 4. keysvc upgrade finish raises the schema of the store to it.": func() {},
		"The store has schema 4, the newest one that these servers know.":                                 func() { first.status.Schema = 4 },
		"The schema cannot be raised: the store of " + a + " is a file, whose schema is raised when it is opened.": func() {
			first.status.StoreKind = "bbolt"
		},
	} {
		first.status = &keysvcv1.GetStatusResponse{Version: "v2", Epoch: "epoch", Schema: 3, NewestSchema: 4, StoreKind: "etcd"}
		spoil()
		result := c.run(t, "upgrade", "status")
		if result.status != cli.ExitOK || !strings.HasSuffix(result.stdout, "\n"+want+"\n") {
			t.Errorf("%+v, want %q", result, want)
		}
	}
	if result := c.run(t, "upgrade", "finnish"); result.status != cli.ExitUsage {
		t.Errorf("%+v", result)
	}
}
