package server

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// buffer is a log or standard output that a test can read while it is written.
type buffer struct {
	mutex sync.Mutex
	text  strings.Builder
}

func (b *buffer) Write(text []byte) (int, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.text.Write(text)
}

func (b *buffer) String() string {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.text.String()
}

// hangingStore is a store on a disk that hangs once hang is closed: its writes and its Close
// wait until release is closed.
type hangingStore struct {
	storage.Store
	hang, release chan struct{}
	hangs         chan struct{} // gets a value when a write waits
}

func (s *hangingStore) wait() {
	select {
	case <-s.hang:
		select {
		case s.hangs <- struct{}{}:
		default:
		}
		<-s.release
	default:
	}
}

func (s *hangingStore) Commit(ctx context.Context, change *storage.Change) (int64, error) {
	s.wait()
	return s.Store.Commit(ctx, change)
}

func (s *hangingStore) PutUsage(ctx context.Context, uses []storage.Usage) error {
	s.wait()
	return s.Store.PutUsage(ctx, uses)
}

func (s *hangingStore) Close() error {
	s.wait()
	return s.Store.Close()
}

// TestStopIsBoundedWhileTheDiskHangs stops while a call is in its commit, last-used times
// cannot be written, and the store cannot be closed. Validations go on until the stop.
func TestStopIsBoundedWhileTheDiskHangs(t *testing.T) {
	const drain = 200 * time.Millisecond
	settings := config.Defaults()
	settings.Listen = "unix://" + filepath.Join(shortFolder(t), "s")
	settings.Data, settings.Init, settings.DrainTimeout = t.TempDir(), true, drain
	store := &hangingStore{hang: make(chan struct{}), release: make(chan struct{}), hangs: make(chan struct{}, 1)}
	log := &buffer{}
	ctx, stop := context.WithCancel(t.Context())
	p := newProcess(settings, newLog(settings, log), &buffer{}, stop)
	p.openStore = func(ctx context.Context, settings config.Settings, log *slog.Logger) (storage.Store, error) {
		opened, err := openBolt(ctx, settings, log)
		store.Store = opened
		return store, err
	}
	ended := make(chan error, 1)
	running := make(chan struct{})
	go func() {
		defer close(running)
		ended <- p.runBounded(ctx, p.components())
	}()
	conn, err := grpc.NewClient(settings.Listen, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	members, keys, validation := keysvcv1.NewMemberServiceClient(conn), keysvcv1.NewKeyServiceClient(conn), keysvcv1.NewValidationServiceClient(conn)
	put := func(memberID string) error {
		_, err := members.PutMember(t.Context(), &keysvcv1.PutMemberRequest{
			WorkspaceId: "acme", MemberId: memberID, Role: "owner", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
		}, grpc.WaitForReady(true))
		return err
	}
	if err := put("ann"); err != nil {
		t.Fatal(err)
	}
	created, err := keys.CreateKey(t.Context(), &keysvcv1.CreateKeyRequest{WorkspaceId: "acme", MemberId: "ann", Name: "k", Scopes: []string{"emails:read"}})
	if err != nil {
		t.Fatal(err)
	}
	close(store.hang)
	inFlight := make(chan error, 1)
	go func() { inFlight <- put("bob") }()
	<-store.hangs
	if _, err := validation.ValidateKey(t.Context(), &keysvcv1.ValidateKeyRequest{Token: created.GetToken(), RequiredScope: "emails:read"}); err != nil {
		t.Errorf("a validation beside it: %v", err)
	}
	began := time.Now()
	stop()
	select {
	case err := <-ended:
		if !errors.Is(err, ErrStopTimeout) {
			t.Errorf("it ended with %v, want ErrStopTimeout", err)
		}
	case <-time.After(drain + 20*time.Second):
		t.Error("the stop hangs")
	}
	if took := time.Since(began); took > drain+stopGrace+time.Second {
		t.Errorf("the stop took %s", took)
	}
	if err := <-inFlight; status.Code(err) != codes.Unavailable {
		t.Errorf("the call in flight got %v, want UNAVAILABLE", err)
	}
	if text := log.String(); !strings.Contains(text, "cut off") || !strings.Contains(text, "the stop hangs") {
		t.Errorf("the log is\n%s", text)
	}
	// The goroutines that were left behind end when the disk works again.
	close(store.release)
	<-running
}

func shortFolder(t *testing.T) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "ks")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	return folder
}

// failingListener is a listener whose Accept returns the errors that a test sends to it, and
// blocks until the next one.
type failingListener struct {
	net.Listener
	errors chan error
	closed chan struct{}
}

func (l *failingListener) Accept() (net.Conn, error) {
	select {
	case err := <-l.errors:
		return nil, err
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *failingListener) Close() error {
	close(l.closed)
	return l.Listener.Close()
}

// TestAcceptGoesOnAfterErrors returns errors that end gRPC's own loop, and errors that gRPC
// repeats silently.
func TestAcceptGoesOnAfterErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &buffer{}
		inner := &failingListener{Listener: bufconn.Listen(1), errors: make(chan error, 100), closed: make(chan struct{})}
		listener := newPersistentListener(inner, logEvents(slog.New(slog.NewTextHandler(log, nil))).AcceptFailed)
		server := grpc.NewServer()
		served := make(chan error, 1)
		go func() { served <- server.Serve(listener) }()
		reasons := []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EPERM, syscall.ECONNABORTED, syscall.EPROTO}
		for range 10 {
			for _, reason := range reasons {
				inner.errors <- &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", reason)}
			}
		}
		time.Sleep(2 * time.Minute) // the pause after each is a second at most
		if left := len(inner.errors); left > 0 {
			t.Errorf("%d errors were not met: it accepts no more", left)
		}
		select {
		case err := <-served:
			t.Errorf("serving ended: %v", err)
		default:
		}
		if lines := strings.Count(log.String(), "cannot be accepted"); lines != 10*len(reasons) {
			t.Errorf("%d lines", lines)
		}
		// The stop does not wait for the end of a pause.
		inner.errors <- syscall.EMFILE
		synctest.Wait()
		began := time.Now()
		server.GracefulStop()
		if err := <-served; err != nil || time.Since(began) > 0 {
			t.Errorf("after the stop: %v, %s", err, time.Since(began))
		}
	})
}

func TestMakeFolderIsPrivateAndKeepsWhatIsThere(t *testing.T) {
	top := t.TempDir()
	if err := os.Chmod(top, 0o750); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(top, "a", "b", "c")
	for range 2 { // the second time there is nothing to do
		if err := makeFolder(path); err != nil {
			t.Fatal(err)
		}
	}
	for folder, want := range map[string]fs.FileMode{top: 0o750, filepath.Dir(path): 0o700, path: 0o700} {
		if info, err := os.Stat(folder); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want mode %o", folder, info.Mode(), err, want)
		}
	}
	file := filepath.Join(top, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, filepath.Join(file, "below")} {
		if err := makeFolder(path); !errors.Is(err, syscall.ENOTDIR) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v, want that it is no folder", path, err)
		}
	}
	t.Chdir(top)
	if err := makeFolder("relative/folder"); err != nil {
		t.Error(err)
	}
}
