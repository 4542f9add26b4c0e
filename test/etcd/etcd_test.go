// Package etcd_test has the tests that need an etcd: the conformance suite
// of storage, the model test of keys, and the store's own tests.
package etcd_test

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/race"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
	"github.com/scribe-mail/keysvc/test/trio"
)

// parallel is how many tests run at a time, at least.
const parallel = 4

// cluster is the cluster of three members that this test binary runs. Tests that break a member have one of their own.
var cluster *trio.Trio

// endpoints are the addresses of its members, and endpoint is the first one.
var (
	endpoints []string
	endpoint  string
)

func TestMain(m *testing.M) {
	// Most of these tests wait for etcd or for a clock, so more of them run at a time than there
	// are processors.
	flag.Parse()
	if err := flag.Set("test.parallel", strconv.Itoa(max(parallel, runtime.GOMAXPROCS(0)))); err != nil {
		log.Fatal(err)
	}
	code, err := run(m)
	if err != nil {
		log.Print(err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	folder, err := os.MkdirTemp("", "keysvc-etcd-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(folder)
	program, keysvcProgram = filepath.Join(folder, "etcd"), filepath.Join(folder, "keysvc")
	if err := build(program, ".", "../trio/etcd"); err != nil {
		return 0, err
	}
	if !race.Enabled() { // the tests that run it are left out then
		if err := build(keysvcProgram, "../..", "./cmd/keysvc"); err != nil {
			return 0, err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if cluster, err = trio.Start(ctx, trio.Config{Programs: &trio.Programs{Etcd: program}}); err != nil {
		return 0, err
	}
	source, err := cluster.Source("tests")
	if err == nil {
		endpoints = source.Endpoints()
		endpoint = endpoints[0]
		code = m.Run()
	}
	if err := errors.Join(err, cluster.Close()); err != nil {
		return 0, err
	}
	return code, goleak.Find()
}

// program is the path of the etcd that the tests run, and keysvcProgram that of the keysvc.
var program, keysvcProgram string

// build builds a program. It is called before the servers of this process listen: a socket is made with another umask, which a
// program that is built at that moment would get as well.
func build(path, folder, source string) error {
	command := exec.Command("go", "build", "-o", path, source)
	command.Dir = folder
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", source, err, output)
	}
	return nil
}

// server is an etcd in a process of its own.
type server struct {
	folder  string
	process *exec.Cmd
	input   io.Closer
}

// startServer starts etcd on sockets in a folder, or starts it again. quota is the max size of its
// database in bytes; 0 is etcd's default.
func startServer(folder string, quota int64, arguments ...string) (*server, error) {
	process := exec.Command(program, append([]string{"-quota", strconv.FormatInt(quota, 10)}, arguments...)...)
	process.Dir = folder
	process.Stderr = os.Stderr
	input, err := process.StdinPipe()
	if err != nil {
		return nil, err
	}
	output, err := process.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := process.Start(); err != nil {
		return nil, err
	}
	started := &server{folder, process, input}
	if line, err := bufio.NewReader(output).ReadString('\n'); err != nil || line != "ready\n" {
		started.stop()
		return nil, fmt.Errorf("etcd did not start: %q, %w", line, err)
	}
	return started, nil
}

// endpoint returns the address of etcd.
func (s *server) endpoint() string { return "unix://" + filepath.Join(s.folder, "client") }

// stop stops etcd; stopping it again does nothing.
func (s *server) stop() {
	s.input.Close()
	_ = s.process.Wait() // an error says that it was stopped before
}

// dial returns a client of one member, as the server has it.
func dial(endpoint string, options ...grpc.DialOption) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop(), MaxUnaryRetries: 1, DialOptions: options})
}

// newClient returns a client of the first member that is closed at the end of the test.
func newClient(t testing.TB) *clientv3.Client {
	t.Helper()
	return clientOf(t, endpoint)
}

// newClients returns a client of each member.
func newClients(t testing.TB) []*clientv3.Client {
	t.Helper()
	clients := make([]*clientv3.Client, len(endpoints))
	for index, endpoint := range endpoints {
		clients[index] = clientOf(t, endpoint)
	}
	return clients
}

func clientOf(t testing.TB, endpoint string, options ...grpc.DialOption) *clientv3.Client {
	t.Helper()
	client, err := dial(endpoint, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Errorf("closing the client: %v", err)
		}
	})
	return client
}

// connect is etcdstore.Config.Connect.
func connect(member int) (*clientv3.Client, error) { return dial(endpoints[member]) }

// sequential skips a test under the race detector whose calls come one after the other: it takes long there and
// shows no race that the others do not show. `make test` runs it.
func sequential(t *testing.T) {
	t.Helper()
	if race.Enabled() {
		t.Skip("its calls come one after the other")
	}
}

// eventually waits until something holds that nothing announces. It fails the test with what says if that takes too long.
func eventually(t testing.TB, within time.Duration, holds func() bool, says func() string) {
	t.Helper()
	for end := time.Now().Add(within); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(says())
		}
	}
}

var prefixes atomic.Int64

// newPrefix returns an unused prefix.
func newPrefix() string { return fmt.Sprintf("/test/%d/", prefixes.Add(1)) }

// open opens a store that is closed at the end of the test.
func open(t testing.TB, config etcdstore.Config) *etcdstore.Store {
	t.Helper()
	store, err := etcdstore.New(t.Context(), config)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return store
}

// backend is one store for the suites. It has new clients each time it is opened, as after
// a restart.
type backend struct{ prefix string }

// Open implements keystest.Backend, which expects of a restart that it forgets no use.
func (b backend) Open(t testing.TB) storage.Store {
	t.Helper()
	return open(t, etcdstore.Config{Members: newClients(t), Connect: connect, Prefix: b.prefix, UsageGranularity: -1})
}

// Check implements keystest.Backend.
func (b backend) Check(t testing.TB) {
	t.Helper()
	mustBeSound(t, b.prefix)
}

// mustBeSound fails the test if Check finds a problem.
func mustBeSound(t testing.TB, prefix string) {
	t.Helper()
	// Also from clean-ups, when the test's context has ended.
	ctx := context.WithoutCancel(t.Context())
	client, err := dial(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	report, err := etcdstore.Check(ctx, etcdstore.Config{Members: []*clientv3.Client{client}, Prefix: prefix})
	if err != nil {
		t.Fatalf("Check: %v", err)
	}
	for _, problem := range report.Problems {
		t.Errorf("Check: %s", problem)
	}
}

func TestConformance(t *testing.T) {
	storagetest.Run(t, func(testing.TB) storagetest.Backend {
		backend := backend{newPrefix()}
		return storagetest.Backend{Open: func(t testing.TB) storage.Store {
			return open(t, etcdstore.Config{Members: []*clientv3.Client{newClient(t)}, Prefix: backend.prefix})
		}, Check: backend.Check}
	})
}

// TestBoltAndEtcdAnswerAlike makes the same calls over bbolt and over etcd, and compares
// the answers.
func TestBoltAndEtcdAnswerAlike(t *testing.T) {
	sequential(t)
	const seed = 1
	operations := race.Rounds(2000, 500)
	want := keystest.Run(t, keystest.NewBolt(t), seed, operations)
	got := keystest.Run(t, backend{newPrefix()}, seed, operations)
	if got != want {
		t.Errorf("the answers over etcd have the digest %s, over bbolt %s", got, want)
	}
}
