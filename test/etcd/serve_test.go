package etcd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/certificates"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/race"
	keysvc "github.com/scribe-mail/keysvc/internal/server"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/test/trio"
)

// settingsFor returns the settings of a server over etcd that makes its store.
func settingsFor(t testing.TB, prefix string, addresses ...string) config.Settings {
	t.Helper()
	settings := config.Defaults()
	settings.Store, settings.EtcdPrefix, settings.Init = config.EtcdStore, prefix, true
	for _, text := range addresses {
		address, err := config.ParseAddress(text)
		if err != nil {
			t.Fatal(err)
		}
		settings.EtcdEndpoints = append(settings.EtcdEndpoints, address)
	}
	folder, err := os.MkdirTemp("", "ke-") // short, as paths of sockets must be
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	settings.Data = filepath.Join(folder, "data")
	settings.Listen = "unix://" + filepath.Join(folder, "s")
	settings.DrainTimeout = time.Second
	return settings
}

// served is a server in this process.
type served struct {
	*grpc.ClientConn
	ended chan error
	stop  context.CancelFunc
}

// lines passes on when the server serves, and keeps the log.
type lines struct {
	mutex  sync.Mutex
	text   bytes.Buffer
	ready  chan struct{}
	closed bool
}

func (l *lines) Write(data []byte) (int, error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.text.Write(data)
	if !l.closed && strings.Contains(l.text.String(), "keysvc serves on") {
		l.closed = true
		close(l.ready)
	}
	return len(data), nil
}

// serve starts a server, and returns its error if it does not start.
func serve(t testing.TB, settings config.Settings) (*served, error) {
	t.Helper()
	if race.Enabled() {
		t.Skip("a server sets the logger of grpc, which the clients of this process read; that is a race in the test only")
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	s := &served{ended: make(chan error, 1), stop: cancel}
	out := &lines{ready: make(chan struct{})}
	go func() { s.ended <- keysvc.Run(ctx, settings, out, io.Discard) }()
	select {
	case <-out.ready:
	case err := <-s.ended:
		cancel()
		return nil, err
	}
	conn, err := grpc.NewClient(settings.Listen, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	if err != nil {
		t.Fatal(err)
	}
	s.ClientConn = conn
	t.Cleanup(s.end)
	return s, nil
}

// end stops the server.
func (s *served) end() {
	if s.ClientConn != nil {
		_ = s.Close()
		s.ClientConn = nil
		s.stop()
		<-s.ended
	}
}

// mustServe starts a server that must start.
func mustServe(t testing.TB, settings config.Settings) *served {
	t.Helper()
	s, err := serve(t, settings)
	if err != nil {
		t.Fatalf("the server does not start: %v", err)
	}
	return s
}

// fails starts a server that must not start, and checks its error: one line with all of some texts, soon.
func fails(t testing.TB, settings config.Settings, want ...string) {
	t.Helper()
	began := time.Now()
	s, err := serve(t, settings)
	if err == nil {
		s.end()
		t.Errorf("the server started, want an error with %q", want)
		return
	}
	for _, each := range want {
		if !strings.Contains(err.Error(), each) {
			t.Errorf("got %q, want %q in it", err, each)
		}
	}
	if strings.Contains(err.Error(), "\n") || time.Since(began) > 30*time.Second {
		t.Errorf("not one line soon: after %s %q", time.Since(began), err)
	}
}

func TestServeSaysWhatIsWrongWithTheStoreInEtcd(t *testing.T) {
	prefix := newPrefix()
	settings := settingsFor(t, prefix, endpoints...)
	settings.Init = false
	fails(t, settings, "there is no store", "--init makes a new, empty one", "--etcd-prefix")
	for what, err := range map[string]error{
		"CheckEtcd":  keysvc.CheckEtcd(t.Context(), settings, io.Discard),
		"AcceptEtcd": keysvc.AcceptEtcd(t.Context(), settings, "off", io.Discard, func() error { return nil }),
	} {
		if err == nil || !strings.Contains(err.Error(), "there is no store; etcd-prefix names where a store begins") {
			t.Errorf("%s: %v", what, err)
		}
	}
	settings.Init = true
	mustServe(t, settings).end()
	fails(t, settings, "there is a store already", "start without --init")
	settings.Init = false
	mustServe(t, settings).end()
	var out bytes.Buffer
	if err := keysvc.CheckEtcd(t.Context(), settings, &out); err != nil || !strings.HasPrefix(out.String(), "epoch     ") {
		t.Errorf("CheckEtcd: %v\n%s", err, out.String())
	}
	mustPut(t, newClient(t), settings.EtcdPrefix+"data/policy", "garbage")
	if err := keysvc.CheckEtcd(t.Context(), settings, &out); err == nil || !strings.Contains(err.Error(), "is not sound") || !strings.Contains(out.String(), "problem: ") {
		t.Errorf("CheckEtcd of a damaged store: %v\n%s", err, out.String())
	}
	settings.Dev, settings.EtcdPrefix = true, newPrefix()
	mustServe(t, settings).end()
	mustServe(t, settings).end()
	// Something else is stored there.
	settings.Dev, settings.EtcdPrefix = false, newPrefix()
	mustPut(t, newClient(t), settings.EtcdPrefix+"something", "else")
	fails(t, settings, "damaged")
}

func TestServeSaysWhichMembersDoNotAnswer(t *testing.T) {
	nowhere := "unix://" + filepath.Join(t.TempDir(), "nowhere")
	fails(t, settingsFor(t, newPrefix(), nowhere), "no member of etcd answers", nowhere+": ", "no such file", "check etcd-endpoints")
	// One that answers is enough.
	mustServe(t, settingsFor(t, newPrefix(), nowhere, endpoints[0])).end()
}

// A member that is stopped takes connections, and never answers.
func TestServeGivesUpOnAMemberThatHangs(t *testing.T) {
	folder, err := os.MkdirTemp("", "ke-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	listener, err := net.Listen("unix", filepath.Join(folder, "hangs"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	hangs := "unix://" + filepath.Join(folder, "hangs")
	fails(t, settingsFor(t, newPrefix(), hangs), "no member of etcd answers", hangs+": ")
}

func TestServeSaysThatEtcdHasNoQuorum(t *testing.T) {
	own := trio.New(t, trio.Config{Programs: &trio.Programs{Etcd: program}})
	source, err := own.Source("serve")
	if err != nil {
		t.Fatal(err)
	}
	settings := settingsFor(t, newPrefix(), source.Endpoints()...)
	mustServe(t, settings).end()
	settings.Init = false
	if err := errors.Join(own.Members[1].Kill(), own.Members[2].Kill()); err != nil {
		t.Fatal(err)
	}
	fails(t, settings, "etcd has no quorum", source.Endpoints()[0]+": it answers, and has no leader", source.Endpoints()[1]+": ", source.Endpoints()[2]+": ")
}

func TestServeSaysThatTheUserIsRefused(t *testing.T) {
	own := ownServer(t, 0)
	root, err := dial(own.endpoint())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	must(root.UserAdd(ctx, "root", "secret-of-root"))
	must(root.UserGrantRole(ctx, "root", "root"))
	must(root.UserAdd(ctx, "keysvc", "secret-of-keysvc"))
	must(root.UserAdd(ctx, "stranger", "secret-of-stranger"))
	must(root.RoleAdd(ctx, "keysvc"))
	must(root.RoleGrantPermission(ctx, "keysvc", "/k/", clientv3.GetPrefixRangeEnd("/k/"), clientv3.PermissionType(clientv3.PermReadWrite)))
	must(root.UserGrantRole(ctx, "keysvc", "keysvc"))
	must(root.AuthEnable(ctx))

	password := filepath.Join(t.TempDir(), "password")
	settings := settingsFor(t, "/k/", own.endpoint())
	fails(t, settings, "etcd-user")
	settings.EtcdUser, settings.EtcdPasswordFile = "keysvc", password
	write := func(text string, mode os.FileMode) {
		t.Helper()
		if err := errors.Join(os.WriteFile(password, []byte(text), 0o600), os.Chmod(password, mode)); err != nil {
			t.Fatal(err)
		}
	}
	write("secret-of-keysvc\n", 0o644)
	fails(t, settings, "etcd-password-file", "others may read it", "chmod 600")
	write("a-wrong-secret\n", 0o600)
	if _, err := serve(t, settings); err == nil || !strings.Contains(err.Error(), "refuses the user or the password") || strings.Contains(err.Error(), "a-wrong-secret") {
		t.Errorf("with a wrong password: %v", err)
	}
	settings.EtcdUser = "stranger"
	write("secret-of-stranger", 0o600)
	fails(t, settings, "needs the right to read and write")
	settings.EtcdUser = "keysvc"
	write("secret-of-keysvc\n", 0o600)
	s := mustServe(t, settings)
	if _, err := keysvcv1.NewSettingsServiceClient(s).SetStaleness(ctx, &keysvcv1.SetStalenessRequest{Staleness: durationpb.New(2 * time.Second)}); err != nil {
		t.Errorf("a change: %v", err)
	}
}

func TestServeSaysThatEtcdIsOutOfQuota(t *testing.T) {
	own := ownServer(t, 64<<10)
	settings := settingsFor(t, newPrefix(), own.endpoint())
	mustServe(t, settings).end()
	client, err := dial(own.endpoint())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	for range 1000 {
		if _, err = client.Put(t.Context(), "/filler", strings.Repeat("x", 8<<10)); err != nil {
			break
		}
	}
	if !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Fatalf("etcd is not full: %v", err)
	}
	// A store that is there is served: validations go on.
	settings.Init = false
	mustServe(t, settings).end()
	fails(t, settingsFor(t, newPrefix(), own.endpoint()), "etcd is out of quota", "etcdctl alarm disarm")
}

func TestServeSpeaksTLSWithEtcd(t *testing.T) {
	folder := t.TempDir()
	made, err := certificates.NewDevelopment(time.Now(), "keysvc")
	if err != nil {
		t.Fatal(err)
	}
	other, err := certificates.NewDevelopment(time.Now(), "keysvc")
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, content []byte) string {
		t.Helper()
		name = filepath.Join(folder, name)
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	authority, certificate, key := file("ca", made.Authority), file("crt", made.Clients["keysvc"].Certificate), file("key", made.Clients["keysvc"].Key)
	own := ownServer(t, 0, "-cert", file("server.crt", made.Server.Certificate), "-key", file("server.key", made.Server.Key), "-ca", authority)
	secure, plain := forward(t, filepath.Join(own.folder, "secure")), forward(t, filepath.Join(own.folder, "client"))

	settings := settingsFor(t, newPrefix(), secure)
	fails(t, settings, "etcd may speak TLS there: give etcd-ca")
	settings.EtcdCA = authority
	fails(t, settings, "check etcd-cert and etcd-key")
	settings.EtcdCert, settings.EtcdKey = certificate, key
	s := mustServe(t, settings)
	if _, err := keysvcv1.NewSettingsServiceClient(s).GetSettings(t.Context(), &keysvcv1.GetSettingsRequest{}); err != nil {
		t.Error(err)
	}
	s.end()
	settings.Init = false
	settings.EtcdCA = file("other-ca", other.Authority)
	fails(t, settings, "x509:", "etcd-ca must have the authority")
	settings.EtcdCA, settings.EtcdEndpoints = authority, settingsFor(t, "/", plain).EtcdEndpoints
	fails(t, settings, "etcd does not speak TLS there")
	settings.EtcdCA = filepath.Join(folder, "missing")
	fails(t, settings, "certificates for etcd", "missing")
}

// forward listens on loopback, and passes connections on to a socket. It returns the address.
func forward(t testing.TB, socket string) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	t.Cleanup(func() { _ = listener.Close(); group.Wait() })
	group.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("unix", socket)
			if err != nil {
				_ = near.Close()
				continue
			}
			pass := func(to, from net.Conn) { _, _ = io.Copy(to, from); _ = to.Close(); _ = from.Close() }
			group.Go(func() { pass(far, near) })
			group.Go(func() { pass(near, far) })
		}
	})
	return listener.Addr().String()
}

// ownServer starts an etcd for this test alone.
func ownServer(t testing.TB, quota int64, arguments ...string) *server {
	t.Helper()
	folder, err := os.MkdirTemp("", "ke-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	own, err := startServer(folder, quota, arguments...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(own.stop)
	return own
}

// The store is made anew under a server: another history must never be followed.
func TestServeEndsWhenAnotherStoreIsPutUnderIt(t *testing.T) {
	settings := settingsFor(t, newPrefix(), endpoints...)
	s := mustServe(t, settings)
	client := newClient(t)
	if _, err := client.Delete(t.Context(), settings.EtcdPrefix, clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	other := settingsFor(t, settings.EtcdPrefix, endpoints...)
	mustServe(t, other)
	// A call finds it at the latest.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for ctx.Err() == nil && len(s.ended) == 0 {
		_, _ = keysvcv1.NewSettingsServiceClient(s).GetSettings(ctx, &keysvcv1.GetSettingsRequest{})
	}
	err := <-s.ended
	s.ended <- err
	if !errors.Is(err, storage.ErrHistoryChanged) || strings.Contains(err.Error(), "\n") {
		t.Errorf("the server ended with %v, want ErrHistoryChanged in one line", err)
	}
}

// The staleness bound is the store's: rule R9 of docs/replication.md.
func TestServersAgreeOnTheStalenessBound(t *testing.T) {
	ctx := t.Context()
	settings := settingsFor(t, newPrefix(), endpoints...)
	settings.Staleness = 300 * time.Millisecond
	first := mustServe(t, settings)
	other := settingsFor(t, settings.EtcdPrefix, endpoints...)
	other.Init, other.Staleness = false, time.Second
	fails(t, other, "staleness is 1s here and 300ms in the store", "keysvc staleness set 1s")
	other.Staleness = 0
	second := mustServe(t, other)
	welcomed := func(s *served) (keysvcv1.SyncService_SyncClient, *keysvcv1.SyncWelcome) {
		t.Helper()
		stream, err := keysvcv1.NewSyncServiceClient(s).Sync(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Hello{Hello: &keysvcv1.SyncHello{}}}); err != nil {
			t.Fatal(err)
		}
		response, err := stream.Recv()
		if err != nil || response.GetWelcome() == nil {
			t.Fatalf("no welcome: %v, %v", response, err)
		}
		return stream, response.GetWelcome()
	}
	stream, welcome := welcomed(second)
	if got := welcome.GetStaleness().AsDuration(); got != 300*time.Millisecond {
		t.Errorf("the second server goes by %s", got)
	}
	// Changed through one server, it holds at the other one: sessions end with Goodbye.
	changed, err := keysvcv1.NewSettingsServiceClient(first).SetStaleness(ctx, &keysvcv1.SetStalenessRequest{Staleness: durationpb.New(100 * time.Millisecond)})
	if err != nil || changed.GetReplacedStaleness().AsDuration() != 300*time.Millisecond {
		t.Fatalf("SetStaleness: %v, %v", changed, err)
	}
	for {
		response, err := stream.Recv()
		if err != nil {
			t.Fatalf("the session ended without Goodbye: %v", err)
		}
		if response.GetGoodbye() != nil {
			break
		}
	}
	if _, welcome := welcomed(second); welcome.GetStaleness().AsDuration() != 100*time.Millisecond {
		t.Errorf("then it goes by %s", welcome.GetStaleness().AsDuration())
	}
	got, err := keysvcv1.NewSettingsServiceClient(second).GetSettings(ctx, &keysvcv1.GetSettingsRequest{})
	if err != nil || !got.GetStored() || got.GetStaleness().AsDuration() != 100*time.Millisecond || got.GetPreviousStaleness().AsDuration() != 300*time.Millisecond {
		t.Errorf("GetSettings: %v, %v", got, err)
	}
	// A server without sessions waits for those of others: the smaller bound at least.
	began := time.Now()
	awaited, err := keysvcv1.NewSyncServiceClient(first).AwaitRevision(ctx, &keysvcv1.AwaitRevisionRequest{Revision: changed.GetRevision(), Epoch: changed.GetEpoch()})
	if err != nil || awaited.GetLapsed() != 1 || time.Since(began) < 100*time.Millisecond {
		t.Errorf("AwaitRevision: %v, %v after %s", awaited, err, time.Since(began))
	}
	again, err := keysvcv1.NewSettingsServiceClient(second).SetStaleness(ctx, &keysvcv1.SetStalenessRequest{Staleness: durationpb.New(100 * time.Millisecond)})
	if err != nil || again.GetReplacedStaleness().AsDuration() != 100*time.Millisecond {
		t.Errorf("nothing to change: %v, %v", again, err)
	}
}
