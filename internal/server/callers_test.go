package server_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/config"
)

// callersBench is a server with a callers file, which a test rewrites.
type callersBench struct {
	*bench
	callers string
	ticks   chan time.Time
}

// startCallers starts a server with the callers of a callers file.
func startCallers(t *testing.T, list string) *callersBench {
	t.Helper()
	b := &callersBench{callers: filepath.Join(t.TempDir(), "callers.yaml"), ticks: make(chan time.Time)}
	b.write(t, list)
	b.bench = start(t, options{ticks: b.ticks, settings: func(settings *config.Settings) { settings.Callers = b.callers }})
	return b
}

// write replaces the callers of the file.
func (b *callersBench) write(t *testing.T, list string) {
	t.Helper()
	b.replace(t, "version: 1\ncallers:\n"+list)
}

// replace replaces the file at once. The server may be reading it.
func (b *callersBench) replace(t *testing.T, text string) {
	t.Helper()
	next := b.callers + ".next"
	if err := errors.Join(os.WriteFile(next, []byte(text), 0o600), os.Rename(next, b.callers)); err != nil {
		t.Fatal(err)
	}
}

// change replaces the callers of the file, and waits until they are in force.
func (b *callersBench) change(t *testing.T, list string) {
	t.Helper()
	b.write(t, list)
	b.tick(t)
}

// tick has the files looked at.
func (b *callersBench) tick(t *testing.T) {
	t.Helper()
	for range 2 { // the second is taken when the first is done
		select {
		case b.ticks <- time.Time{}:
		case <-time.After(patience):
			t.Fatal("nobody looks at the files")
		}
	}
}

// The callers of these tests come over bufconn, which counts as plaintext from this machine.
const (
	mayAll      = "- {name: all, loopback: true, rights: [validate, read, issue, revoke, report, directory, audit, administer]}\n"
	mayValidate = "- {name: gateway, loopback: true, rights: [validate]}\n"
	mayRead     = "- {name: reader, loopback: true, rights: [read]}\n"
	nobody      = "- {name: cron, uid: [4711], rights: [read]}\n"
)

func TestCallersMayDoWhatTheFileSays(t *testing.T) {
	b := startCallers(t, mayValidate)
	ctx := testContext(t)
	_, err := b.keys.ListKeys(ctx, &keysvcv1.ListKeysRequest{})
	expectError(t, err, codes.PermissionDenied, "CALLER_NOT_ALLOWED")
	if _, err := b.validation.ValidateKey(ctx, &keysvcv1.ValidateKeyRequest{Token: "x", RequiredScope: "emails:read"}); err != nil {
		t.Error(err)
	}
	who, err := keysvcv1.NewCallerServiceClient(b.conn).WhoAmI(ctx, &keysvcv1.WhoAmIRequest{})
	if err != nil || who.GetName() != "gateway" || who.GetRule() != b.callers+":3" || len(who.GetRights()) != 1 {
		t.Errorf("got %v, %v", who, err)
	}
}

// TestAChangedFileIsInForceForConnectionsThatAreOpen: no client connects again for this.
func TestAChangedFileIsInForceForConnectionsThatAreOpen(t *testing.T) {
	b := startCallers(t, mayAll)
	ctx := testContext(t)
	list := func() error {
		_, err := b.keys.ListKeys(ctx, &keysvcv1.ListKeysRequest{})
		return err
	}
	if err := list(); err != nil {
		t.Fatal(err)
	}
	b.change(t, mayValidate)
	expectError(t, list(), codes.PermissionDenied, "CALLER_NOT_ALLOWED")
	// A wrong file is logged with its line, and what was in force stays.
	b.change(t, mayAll+"- {name: all, uid: [1], rights: [reed]}\n")
	expectError(t, list(), codes.PermissionDenied, "CALLER_NOT_ALLOWED")
	if lines := b.log.lines(b.callers + ":4:"); len(lines) != 1 {
		t.Errorf("the log has %q", b.log.lines("callers file"))
	}
	b.change(t, mayAll)
	if err := list(); err != nil {
		t.Errorf("after a good file: %v", err)
	}
	b.change(t, nobody)
	if err := list(); status.Code(err) != codes.Unauthenticated && status.Code(err) != codes.Unavailable {
		t.Errorf("a removed caller gets %v", err)
	}
}

// streams opens one stream of each kind that stays open, and returns what each ends with.
func (b *callersBench) streams(t *testing.T) map[string]<-chan error {
	t.Helper()
	ctx := testContext(t)
	ended := map[string]<-chan error{}
	follow := func(name string, receive func() error) {
		first, last := make(chan error, 1), make(chan error, 1)
		go func() {
			err := receive()
			first <- err
			for err == nil {
				err = receive()
			}
			last <- err
		}()
		if err := waitFor(t, first, name); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		ended[name] = last
	}
	health, err := grpc_health_v1.NewHealthClient(b.conn).Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	follow("health", func() error { _, err := health.Recv(); return err })
	reflection, err := grpc_reflection_v1.NewServerReflectionClient(b.conn).ServerReflectionInfo(ctx)
	if err == nil {
		err = reflection.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}})
	}
	if err != nil {
		t.Fatal(err)
	}
	follow("reflection", func() error { _, err := reflection.Recv(); return err })
	session, err := b.sync.Sync(ctx)
	if err == nil {
		err = session.Send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Hello{Hello: &keysvcv1.SyncHello{}}})
	}
	if err != nil {
		t.Fatal(err)
	}
	follow("sync", func() error { _, err := session.Recv(); return err })
	return ended
}

func TestStreamsEndWhenTheirCallerMayNoLonger(t *testing.T) {
	b := startCallers(t, mayAll)
	ended := b.streams(t)
	b.change(t, mayRead)
	if err := waitFor(t, ended["sync"], "the end of the session"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("the session ended with %v", err)
	}
	for _, name := range []string{"health", "reflection"} { // the caller is known, and they need no more
		select {
		case err := <-ended[name]:
			t.Errorf("%s ended with %v", name, err)
		default:
		}
	}
	b.change(t, nobody)
	for _, name := range []string{"reflection", "health"} {
		err := waitFor(t, ended[name], name)
		if code := status.Code(err); code != codes.Unauthenticated && code != codes.Unavailable {
			t.Errorf("%s ended with %v", name, err)
		}
	}
}

// TestUsersAreKnownByTheirNumber: over a real socket, as the kernel says who connects.
func TestUsersAreKnownByTheirNumber(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can connect as other users")
	}
	b := startCallers(t, "- {name: cron, uid: [4711], rights: [validate]}\n")
	socket := b.listenUnix(t)
	for user, want := range map[int]codes.Code{0: codes.OK, 4711: codes.OK, 4712: codes.Unauthenticated, 65534: codes.Unauthenticated} {
		who, err := keysvcv1.NewCallerServiceClient(dialAs(t, socket, user)).WhoAmI(testContext(t), &keysvcv1.WhoAmIRequest{})
		if code := status.Code(err); code != want && (want == codes.OK || code != codes.Unavailable) {
			t.Errorf("uid %d: %v, want %s", user, err, want)
		}
		if name := map[int]string{0: "owner", 4711: "cron"}[user]; who.GetName() != name {
			t.Errorf("uid %d is %q, want %q", user, who.GetName(), name)
		}
	}
	if lines := b.log.lines("past the callers file"); len(lines) != 1 {
		t.Errorf("the owner's call is not in the log: %q", lines)
	}
	// The owner gets in whatever the file says, and can mend it.
	b.change(t, "[]")
	if _, err := keysvcv1.NewKeyServiceClient(dialAs(t, socket, 0)).ListKeys(testContext(t), &keysvcv1.ListKeysRequest{}); err != nil {
		t.Errorf("the owner: %v", err)
	}
}

// listenUnix serves a socket that every user can connect to.
func (b *callersBench) listenUnix(t *testing.T) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "ks")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	socket := filepath.Join(folder, "s")
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err := errors.Join(err, os.Chmod(folder, 0o755), os.Chmod(socket, 0o666)); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- b.server.Serve(listener) }()
	t.Cleanup(func() {
		b.stop(t, patience)
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return socket
}

// dialAs connects to a socket as another user.
func dialAs(t *testing.T, socket string, user int) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			type outcome struct {
				conn net.Conn
				err  error
			}
			made := make(chan outcome)
			go func() {
				// The kernel notes the user of the thread that connects. The thread ends with the
				// goroutine, because it is never unlocked.
				runtime.LockOSThread()
				if user != 0 {
					if _, _, failed := syscall.RawSyscall(syscall.SYS_SETRESUID, uintptr(user), uintptr(user), uintptr(user)); failed != 0 {
						made <- outcome{nil, failed}
						return
					}
				}
				conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
				made <- outcome{conn, err}
			}()
			done := <-made
			return done.conn, done.err
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}
