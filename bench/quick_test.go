package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/token"
)

// The variables that name the binaries for TestMeasureQuick. `make bench-quick` builds the
// present version; the other binary is an older version to compare it with.
const (
	afterVariable  = "BENCH_AFTER"
	beforeVariable = "BENCH_BEFORE"
)

const (
	quickWorkspace, quickMember, quickRole = "bench", "ann", "owner"

	quickScope   = "signatures:read"
	quickKeys    = 200
	quickCallers = 16
	quickPairs   = 20
	// quickTime is how long all pairs take.
	quickTime = 90 * time.Second
	// quickRounds is how many slices of each server make a pair. Every second round asks the
	// servers in the opposite order, so that a machine that becomes slower or faster does so
	// for all of them.
	quickRounds = 32
)

// TestMeasureQuick prints what a validation costs the server and the client in processor time,
// beside a call that does nothing and, if one is given, beside an older keysvc. Each server is
// a process of its own, and they are asked in turn. No figure is judged. When nobody measures,
// the test only runs the code once.
func TestMeasureQuick(t *testing.T) {
	after, before := os.Getenv(afterVariable), os.Getenv(beforeVariable)
	if after == "" {
		if testing.Short() {
			t.Skip("starts processes")
		}
		servers := []*quickServer{newQuickServer(t, "empty", startServer(t, emptyServer)), newQuickServer(t, "keysvc", startServer(t, realServer))}
		measureQuick(t, servers, 2, 5*time.Millisecond)
		t.Log(describeQuick(servers))
		return
	}
	servers := []*quickServer{newQuickServer(t, "empty", startServer(t, emptyServer)), newQuickServer(t, "keysvc", startBinary(t, after, "serve", "--dev"))}
	if before != "" {
		servers = append(servers, newQuickServer(t, "before", startBinary(t, before, "serve", "--dev")))
	}
	for _, server := range servers { // not counted: caches and heaps grow to their usual size
		server.ask(t, time.Second)
	}
	measureQuick(t, servers, quickPairs, quickTime/time.Duration(quickPairs*len(servers)*quickRounds))
	t.Log(describeQuick(servers))
}

// quickServer is a server to measure.
type quickServer struct {
	name      string
	pid       int
	client    keysvcv1.ValidationServiceClient
	questions []*keysvcv1.ValidateKeyRequest
	// callers is how many ask at a time.
	callers int
	pairs   []quickCost
}

// quickCost is the cost of a number of calls: processor time of either side, and time.
type quickCost struct {
	calls                int64
	server, client, time time.Duration
}

func (c quickCost) plus(other quickCost) quickCost {
	c.calls += other.calls
	c.server += other.server
	c.client += other.client
	c.time += other.time
	return c
}

// newQuickServer connects to a server, and creates the keys that it is asked about.
func newQuickServer(t *testing.T, name string, server *worker) *quickServer {
	t.Helper()
	return connectQuickServer(t, name, server, dial(t, server.address))
}

// connectQuickServer is newQuickServer over a connection.
func connectQuickServer(t *testing.T, name string, server *worker, connection *grpc.ClientConn) *quickServer {
	t.Helper()
	added := &quickServer{name: name, pid: server.Process.Pid, client: keysvcv1.NewValidationServiceClient(connection), callers: quickCallers}
	question := func(text string) {
		asked := &keysvcv1.ValidateKeyRequest{Token: text, RequiredScope: quickScope}
		if name == "keysvc" { // as clients ask; a server of before may know tokens only
			asked.Token = ""
			asked.TokenDigest, asked.KeyId = digestOf(t, text)
		}
		added.questions = append(added.questions, asked)
	}
	if name == "empty" {
		question("scribe_ksk1_" + strings.Repeat("0", 16) + "_" + strings.Repeat("0", 49))
		return added
	}
	if _, err := keysvcv1.NewMemberServiceClient(connection).PutMember(t.Context(), &keysvcv1.PutMemberRequest{
		WorkspaceId: quickWorkspace, MemberId: quickMember, Role: quickRole, State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
	}); err != nil {
		t.Fatal(err)
	}
	for range quickKeys {
		made, err := keysvcv1.NewKeyServiceClient(connection).CreateKey(t.Context(), &keysvcv1.CreateKeyRequest{
			WorkspaceId: quickWorkspace, MemberId: quickMember, Name: "k", Scopes: []string{quickScope},
		})
		if err != nil {
			t.Fatal(err)
		}
		question(made.GetToken())
	}
	answer, err := added.client.ValidateKey(t.Context(), added.questions[0])
	if err != nil {
		t.Fatal(err)
	}
	if got, want := proto.Size(answer), proto.Size(emptyAnswer); got < want-16 || got > want+16 {
		t.Errorf("keysvc answers with %d bytes, the empty server with %d: they are no longer comparable", got, want)
	}
	return added
}

// digestOf returns the digest of a token and the id of its key.
func digestOf(t *testing.T, text string) (digest []byte, keyID string) {
	t.Helper()
	parsed, err := token.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	sum := parsed.Digest()
	return sum[:], parsed.ID()
}

// measureQuick asks the servers in turn and adds a number of pairs to each.
func measureQuick(t *testing.T, servers []*quickServer, pairs int, slice time.Duration) {
	t.Helper()
	order := slices.Clone(servers)
	for range pairs {
		for _, server := range servers {
			server.pairs = append(server.pairs, quickCost{})
		}
		for range quickRounds {
			for _, server := range order {
				pair := &server.pairs[len(server.pairs)-1]
				*pair = pair.plus(server.ask(t, slice))
			}
			slices.Reverse(order)
		}
	}
}

// ask lets several callers ask over one connection for some time.
func (s *quickServer) ask(t *testing.T, slice time.Duration) quickCost {
	t.Helper()
	server, client, began := processorTime(t, s.pid), processorTime(t, os.Getpid()), time.Now()
	var calls, failed atomic.Int64
	var callers sync.WaitGroup
	for caller := range s.callers {
		callers.Go(func() {
			ctx := context.Background()
			for next := caller; ; next += s.callers { // at least one call, however slow the machine
				answer, err := s.client.ValidateKey(ctx, s.questions[next%len(s.questions)])
				if err != nil || answer.GetDecision() != keysvcv1.Decision_DECISION_ALLOWED {
					if failed.Add(1) == 1 {
						t.Errorf("%s: %v %v", s.name, answer.GetReason(), err)
					}
					return
				}
				calls.Add(1)
				if time.Since(began) >= slice {
					return
				}
			}
		})
	}
	callers.Wait()
	cost := quickCost{calls: calls.Load(), time: time.Since(began)}
	cost.server, cost.client = processorTime(t, s.pid)-server, processorTime(t, os.Getpid())-client
	if cost.calls == 0 {
		t.FailNow() // the first failure is in the log
	}
	return cost
}

// The figures to compare: microseconds of processor time per call, and calls per second.
func (c quickCost) serverCall() float64 { return float64(c.server) / float64(c.calls) / 1e3 }
func (c quickCost) clientCall() float64 { return float64(c.client) / float64(c.calls) / 1e3 }
func (c quickCost) rate() float64       { return float64(c.calls) / c.time.Seconds() }

// describeQuick returns the table of figures. Ratios are computed within pairs, and the median
// of the ratios is not the ratio of the medians.
func describeQuick(servers []*quickServer) string {
	var text strings.Builder
	fmt.Fprintf(&text, "one connection, %d callers; median of %d pairs (it lies between these 19 times of 20; all pairs)\n",
		quickCallers, len(servers[0].pairs))
	row := func(name string, units [3]string, value func(pair int, of func(quickCost) float64) float64) {
		for index, of := range []func(quickCost) float64{quickCost.serverCall, quickCost.clientCall, quickCost.rate} {
			var values []float64
			for pair := range servers[0].pairs {
				values = append(values, value(pair, of))
			}
			fmt.Fprintf(&text, "%-15s %-15s %s\n", name, units[index], spread(values))
		}
	}
	for _, server := range servers {
		row(server.name, [3]string{"server µs", "client µs", "calls/s"},
			func(pair int, of func(quickCost) float64) float64 { return of(server.pairs[pair]) })
	}
	ratio := func(name string, over, under *quickServer) {
		row(name, [3]string{"server time", "client time", "throughput"},
			func(pair int, of func(quickCost) float64) float64 {
				return of(over.pairs[pair]) / of(under.pairs[pair])
			})
	}
	ratio("keysvc ÷ empty", servers[1], servers[0])
	if len(servers) > 2 {
		ratio("before ÷ after", servers[2], servers[1])
	}
	return text.String()
}

// spread describes a sample: its median; the two values between which the true median lies 19
// times of 20 (by rank, for any distribution); the minimum and the maximum.
func spread(sample []float64) string {
	slices.Sort(sample)
	count := len(sample)
	rank := max(0, int(float64(count)/2-0.98*math.Sqrt(float64(count))))
	median := (sample[(count-1)/2] + sample[count/2]) / 2
	digits := 3
	if median > 1000 {
		digits = 0
	}
	return fmt.Sprintf("%8.*f (%.*f to %.*f; %.*f to %.*f)", digits, median,
		digits, sample[rank], digits, sample[count-1-rank], digits, sample[0], digits, sample[count-1])
}

// startBinary starts a keysvc of any version on a new file, and stops it when the test ends.
// Every version takes --dev as "create the store".
func startBinary(t *testing.T, path string, arguments ...string) *worker {
	t.Helper()
	started := runBinary(t, path, append(arguments, "--listen", "127.0.0.1:0", "--data", t.TempDir(), "--log-level", "error")...)
	t.Cleanup(func() { started.terminate(t) })
	started.address, _, _ = strings.Cut(started.line(t, "keysvc serves on"), ",")
	return started
}

// runBinary starts a keysvc, without the settings of this process's environment.
func runBinary(t *testing.T, path string, arguments ...string) *worker {
	t.Helper()
	started := &worker{Cmd: exec.CommandContext(context.WithoutCancel(t.Context()), path, arguments...)}
	started.Stderr = os.Stderr
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "KEYSVC_") {
			started.Env = append(started.Env, variable)
		}
	}
	var err error
	if started.stdout, err = started.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := started.Start(); err != nil {
		t.Fatal(err)
	}
	started.lines = bufio.NewScanner(started.stdout)
	return started
}

// terminate stops a keysvc in order.
func (w *worker) terminate(t *testing.T) {
	t.Helper()
	_ = w.Process.Signal(syscall.SIGTERM)
	_, _ = io.Copy(io.Discard, w.stdout)
	if err := w.Wait(); err != nil {
		t.Errorf("%s: %v", w.Path, err)
	}
}
