package etcd_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/race"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// longest bounds every wait of the tests with processes.
const longest = time.Minute

// command returns a command of keysvc.
func command(t *testing.T, arguments ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	run := exec.Command(keysvcProgram, arguments...)
	output := &bytes.Buffer{}
	run.Stdout, run.Stderr = output, output
	return run, output
}

// must runs a command of keysvc, and returns what it printed.
func must(t *testing.T, arguments ...string) string {
	t.Helper()
	run, output := command(t, arguments...)
	if err := run.Run(); err != nil {
		t.Fatalf("keysvc %v: %v\n%s", arguments, err, output)
	}
	return output.String()
}

// keysvcServer is a keysvc in a process of its own, with its settings in a file.
type keysvcServer struct {
	t        *testing.T
	socket   string
	settings string // path of the file
	lines    []string
	process  *exec.Cmd
	output   *bytes.Buffer
	ended    chan error
	conn     *grpc.ClientConn
}

// startKeysvc starts keysvc with lines of its settings and waits until it serves.
func startKeysvc(t *testing.T, readOnly bool, lines []string, flags ...string) *keysvcServer {
	t.Helper()
	folder, err := os.MkdirTemp("", "keysvc-") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	s := &keysvcServer{
		t: t, socket: "unix://" + filepath.Join(folder, "s"), settings: filepath.Join(folder, "keysvc.yaml"),
		ended: make(chan error, 1),
	}
	s.lines = append([]string{"listen: " + s.socket, "log-level: warn"}, lines...)
	s.write(readOnly)
	s.process, s.output = command(t, append([]string{"serve", "--config", s.settings}, flags...)...)
	if err := s.process.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { s.ended <- s.process.Wait() }()
	t.Cleanup(func() { _ = s.process.Process.Kill() })
	if s.conn, err = grpc.NewClient(s.socket, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.conn.Close() })
	if _, err := grpc_health_v1.NewHealthClient(s.conn).Check(s.context(), &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Fatalf("it does not serve: %v\n%s", err, s.output)
	}
	return s
}

// write writes the file with the settings.
func (s *keysvcServer) write(readOnly bool) {
	s.t.Helper()
	lines := append(slices.Clone(s.lines), fmt.Sprintf("read-only: %t", readOnly))
	if err := os.WriteFile(s.settings, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *keysvcServer) context() context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.t.Context()), longest)
	s.t.Cleanup(cancel)
	return ctx
}

// setReadOnly switches read-only on or off, and waits until the status says so.
func (s *keysvcServer) setReadOnly(on bool) {
	s.t.Helper()
	s.write(on)
	if err := s.process.Process.Signal(syscall.SIGHUP); err != nil {
		s.t.Fatal(err)
	}
	for ctx := s.context(); s.isReadOnly(ctx) != on; { // the deadline of the calls ends this
	}
	if !on {
		return
	}
	if _, err := s.members().PutMember(s.context(), putMember("acme", "late")); status.Code(err) != codes.Unavailable {
		s.t.Errorf("a change of a read-only server: %v", err)
	}
}

func (s *keysvcServer) isReadOnly(ctx context.Context) bool {
	s.t.Helper()
	got, err := keysvcv1.NewStatusServiceClient(s.conn).GetStatus(ctx, &keysvcv1.GetStatusRequest{})
	if err != nil {
		s.t.Fatal(err)
	}
	return slices.ContainsFunc(got.GetProblems(), func(problem *keysvcv1.StatusProblem) bool { return problem.GetProblemId() == "read-only" })
}

// stop ends the process.
func (s *keysvcServer) stop() {
	s.t.Helper()
	if err := s.process.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	select {
	case err := <-s.ended:
		if err != nil {
			s.t.Errorf("its end: %v\n%s", err, s.output)
		}
	case <-s.context().Done():
		s.t.Fatal("it does not end")
	}
}

func (s *keysvcServer) keys() keysvcv1.KeyServiceClient { return keysvcv1.NewKeyServiceClient(s.conn) }

func (s *keysvcServer) members() keysvcv1.MemberServiceClient {
	return keysvcv1.NewMemberServiceClient(s.conn)
}

func (s *keysvcServer) create(name string) *keysvcv1.CreateKeyResponse {
	s.t.Helper()
	created, err := s.keys().CreateKey(s.context(), creation(name))
	if err != nil {
		s.t.Fatal(err)
	}
	return created
}

func creation(name string) *keysvcv1.CreateKeyRequest {
	return &keysvcv1.CreateKeyRequest{
		WorkspaceId: "acme", MemberId: "ann", Name: name, Scopes: []string{scope}, RequestId: proto.String("create-" + name),
	}
}

func (s *keysvcServer) revoke(keyID string) {
	s.t.Helper()
	if _, err := s.keys().RevokeKey(s.context(), &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: keyID}); err != nil {
		s.t.Fatal(err)
	}
}

// expect asks a server without any cache.
func (s *keysvcServer) expect(token string, want keysvcv1.Reason) {
	s.t.Helper()
	got, err := keysvcv1.NewValidationServiceClient(s.conn).ValidateKey(s.context(), &keysvcv1.ValidateKeyRequest{Token: token, RequiredScope: scope})
	if err != nil || got.GetReason() != want {
		s.t.Errorf("it answers %v, %v; want %v", got.GetReason(), err, want)
	}
}

const scope = "signatures:read"

// product validates all the time, as a product does, with the client that it has at the moment.
type product struct {
	t *testing.T
	// clients are one with a near-cache and one without.
	clients [2]atomic.Pointer[keyclient.Client]
	mutex   sync.RWMutex // held for reading during a question, so that no client is closed under one
	answers atomic.Int64
	// answered gets a value for an answer, if goesOn waits.
	answered chan struct{}
	group    sync.WaitGroup
	end      chan struct{}
	stopOnce sync.Once
}

// startProduct asks about tokens: those that are live, and those that were revoked.
func startProduct(t *testing.T, at *keysvcServer, live, revoked []string) *product {
	t.Helper()
	p := &product{t: t, end: make(chan struct{}), answered: make(chan struct{})}
	p.pointTo(at)
	t.Cleanup(p.stop)
	ask := func(client int, token string, want keysvcv1.Reason) {
		p.mutex.RLock()
		defer p.mutex.RUnlock()
		answer, err := p.clients[client].Load().Validate(context.WithoutCancel(t.Context()), keyauth.Question{Token: token, Requirement: keyauth.AllOf(scope)})
		if err != nil || answer.Reason != want {
			t.Errorf("a validation: %v, %v; want %v", answer.Reason, err, want)
		}
		p.answers.Add(1)
		select {
		case p.answered <- struct{}{}:
		default:
		}
	}
	for worker := range 4 {
		p.group.Go(func() {
			pace := time.NewTicker(2 * time.Millisecond)
			defer pace.Stop()
			for number := worker; ; number++ {
				select {
				case <-p.end:
					return
				case <-pace.C:
				}
				ask(worker%2, live[number%len(live)], keysvcv1.Reason_REASON_UNSPECIFIED)
				ask(worker%2, revoked[number%len(revoked)], keysvcv1.Reason_REASON_KEY_REVOKED)
			}
		})
	}
	return p
}

// pointTo lets the product ask another server.
func (p *product) pointTo(at *keysvcServer) {
	p.t.Helper()
	var before [2]*keyclient.Client
	for index := range p.clients {
		client, err := keyclient.New(at.socket, keyclient.Config{AllowPlaintext: true, ValidationTimeout: 10 * time.Second, WithoutNearCache: index == 1})
		if err != nil {
			p.t.Fatal(err)
		}
		before[index] = p.clients[index].Swap(client)
	}
	p.mutex.Lock()
	defer p.mutex.Unlock()
	for _, client := range before {
		if client != nil {
			_ = client.Close()
		}
	}
}

// goesOn waits until so many more questions were answered.
func (p *product) goesOn() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), longest)
	defer cancel()
	for range 50 {
		select {
		case <-p.answered:
		case <-ctx.Done():
			p.t.Fatal("nobody is answered any more")
		}
	}
}

// stop ends the product; stopping it again does nothing.
func (p *product) stop() {
	p.stopOnce.Do(func() {
		close(p.end)
		p.group.Wait()
		for index := range p.clients {
			_ = p.clients[index].Load().Close()
		}
		p.t.Logf("%d validations", p.answers.Load())
	})
}

// TestProcedureFromAFileToEtcdAndBack plays docs/operations.md#from-a-file-to-etcd-and-back with a product that
// validates all the time.
func TestProcedureFromAFileToEtcdAndBack(t *testing.T) {
	if race.Enabled() {
		t.Skip("its servers are programs that are built without the race detector")
	}
	t.Parallel()
	folder, prefix := t.TempDir(), newPrefix()
	inEtcd := []string{"store: etcd", "etcd-prefix: " + prefix, "etcd-endpoints: [" + endpoint + "]"}
	etcdFlags := []string{"--etcd-prefix", prefix, "--etcd-endpoints", endpoint}
	one := startKeysvc(t, false, []string{"data: " + filepath.Join(folder, "one")}, "--init")
	if _, err := one.members().PutMember(one.context(), owner("acme", "ann")); err != nil {
		t.Fatal(err)
	}
	var live, revoked []string
	first := one.create("first")
	for number := range 10 {
		created := one.create(fmt.Sprint("key-", number))
		if number%3 == 0 {
			one.revoke(created.GetKey().GetKeyId())
			revoked = append(revoked, created.GetToken())
		} else {
			live = append(live, created.GetToken())
		}
	}
	product := startProduct(t, one, live, revoked)
	product.goesOn()

	// To etcd.
	one.setReadOnly(true)
	backup := filepath.Join(folder, "backup.db")
	must(t, "backup", "--addr", one.socket, backup)
	said := must(t, append([]string{"migrate", "--from", backup, "--to", "etcd"}, etcdFlags...)...)
	if !strings.Contains(said, "11 keys") || !strings.Contains(said, "with the new epoch") {
		t.Errorf("it says:\n%s", said)
	}
	two := startKeysvc(t, true, append([]string{"data: " + filepath.Join(folder, "two")}, inEtcd...))
	three := startKeysvc(t, true, append([]string{"data: " + filepath.Join(folder, "three")}, inEtcd...))
	product.goesOn()
	product.pointTo(two)
	product.goesOn()
	one.stop()
	two.setReadOnly(false)
	three.setReadOnly(false)
	product.goesOn()
	for _, server := range []*keysvcServer{two, three} {
		server.expect(first.GetToken(), keysvcv1.Reason_REASON_UNSPECIFIED)
		server.expect(revoked[0], keysvcv1.Reason_REASON_KEY_REVOKED)
	}
	// Request ids and etags are those of before, and changes are made again.
	_, err := two.keys().CreateKey(two.context(), creation("first"))
	if status.Code(err) != codes.AlreadyExists || !strings.Contains(err.Error(), first.GetKey().GetKeyId()) {
		t.Errorf("repeated with its request id: %v", err)
	}
	if key, err := two.keys().GetKey(two.context(), &keysvcv1.GetKeyRequest{WorkspaceId: "acme", KeyId: first.GetKey().GetKeyId()}); err != nil || key.GetKey().GetEtag() != first.GetKey().GetEtag() {
		t.Errorf("it is %v, %v; before %v", key, err, first.GetKey())
	}
	two.revoke(first.GetKey().GetKeyId())
	three.expect(first.GetToken(), keysvcv1.Reason_REASON_KEY_REVOKED)
	later := three.create("later")

	// And back.
	two.setReadOnly(true)
	three.setReadOnly(true)
	file := filepath.Join(folder, "four", "keysvc.db")
	must(t, append([]string{"migrate", "--from", "etcd", "--to", file}, etcdFlags...)...)
	four := startKeysvc(t, true, []string{"data: " + filepath.Dir(file)})
	product.goesOn()
	product.pointTo(four)
	product.goesOn()
	two.stop()
	three.stop()
	four.setReadOnly(false)
	product.goesOn()
	four.expect(first.GetToken(), keysvcv1.Reason_REASON_KEY_REVOKED)
	four.expect(later.GetToken(), keysvcv1.Reason_REASON_UNSPECIFIED)
	four.revoke(later.GetKey().GetKeyId())
	four.expect(later.GetToken(), keysvcv1.Reason_REASON_KEY_REVOKED)
	product.stop()
	four.stop()
	must(t, "check", file)
	must(t, "audit", "verify", file)
	mustBeSound(t, prefix)
}

// TestKilledMigrationGoesOn kills keysvc migrate with SIGKILL at random moments, again and again, in both
// directions.
func TestKilledMigrationGoesOn(t *testing.T) {
	if race.Enabled() {
		t.Skip("its servers are programs that are built without the race detector")
	}
	t.Parallel()
	path, prefix, back := newFile(t, 800), newPrefix(), filepath.Join(t.TempDir(), "keysvc.db")
	flags := []string{"--etcd-prefix", prefix, "--etcd-endpoints", endpoint, "-o", "json"}
	for _, direction := range [][]string{{"--from", path, "--to", "etcd"}, {"--from", "etcd", "--to", back}} {
		arguments := append(append([]string{"migrate"}, direction...), flags...)
		began := time.Now()
		kills, resumed := 0, int64(0)
		for upTo := 100 * time.Millisecond; ; upTo += 50 * time.Millisecond {
			run, output := command(t, arguments...)
			if err := run.Start(); err != nil {
				t.Fatal(err)
			}
			kill := time.AfterFunc(rand.N(upTo), func() { _ = run.Process.Kill() })
			err := run.Wait()
			kill.Stop()
			if err == nil {
				var answer struct{ Resumed int64 }
				if err := json.Unmarshal(output.Bytes(), &answer); err != nil {
					t.Fatal(err)
				}
				resumed = answer.Resumed
				break
			}
			if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("after %d kills: %v\n%s", kills, err, output)
			}
			kills++
		}
		t.Logf("%v: %d kills, the last run went on from part %d, %v", direction, kills, resumed, time.Since(began).Round(time.Millisecond))
	}
	mustBeSound(t, prefix)
	mustBeSoundFile(t, back)
	if want, got := exportedFile(t, path, storage.PortableRefusal), exportedFile(t, back); !slices.Equal(want, got) {
		t.Errorf("%d parts became %d others", len(want), len(got))
	}
}

// owner is putMember with a role that may do everything.
func owner(workspaceID, memberID string) *keysvcv1.PutMemberRequest {
	request := putMember(workspaceID, memberID)
	request.Role = "owner"
	return request
}
