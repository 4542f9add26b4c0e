// Package servertest runs a real keysvc, on a real file, for the tests of its clients.
package servertest

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/server"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
)

// patience bounds every wait. A wait that lasts so long hangs.
const patience = 20 * time.Second

// Options say how a Keysvc differs from the default.
type Options struct {
	// Listener is the listener that it serves. Default: on a free port of the loopback.
	Listener net.Listener
	// File is the path of the store. Default: a new one in t.TempDir().
	File string
	// Now is its clock. Default: time.Now.
	Now func() time.Time
	// Log receives its log. Default: it is discarded.
	Log *slog.Logger
	// Settings changes the default settings.
	Settings func(*config.Settings)
}

// Keysvc is a running keysvc with Scribe's policy.
type Keysvc struct {
	// Address is where it listens, as a target of grpc.NewClient.
	Address string
	// File is the path of the store.
	File string
	// Conn is a connection to it. The other fields are clients over Conn.
	Conn       *grpc.ClientConn
	Keys       keysvcv1.KeyServiceClient
	Members    keysvcv1.MemberServiceClient
	Policies   keysvcv1.PolicyServiceClient
	Validation keysvcv1.ValidationServiceClient

	stopOnce sync.Once
	stop     func()
}

// Start starts a keysvc that stops with the test.
func Start(t testing.TB, options Options) *Keysvc {
	t.Helper()
	if options.Log == nil {
		options.Log = slog.New(slog.DiscardHandler)
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	if options.File == "" {
		options.File = filepath.Join(t.TempDir(), "keysvc.db")
	}
	if options.Listener == nil {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		options.Listener = listener
	}
	settings := config.Defaults()
	if options.Settings != nil {
		options.Settings(&settings)
	}
	store, err := boltstore.Open(options.File, boltstore.Config{Log: options.Log, Now: options.Now, Create: boltstore.CreateIfAbsent, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	running, err := server.New(t.Context(), server.Config{
		Store: store, Settings: settings, Policy: policy.Default(), Now: options.Now, Log: options.Log, InMemory: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- running.Serve(options.Listener) }()
	keysvc := &Keysvc{Address: options.Listener.Addr().String(), File: options.File}
	keysvc.stop = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		running.Stop(ctx)
		if err := <-served; err != nil {
			t.Errorf("serving: %v", err)
		}
		if err := store.Close(); err != nil {
			t.Errorf("closing the store: %v", err)
		}
	}
	t.Cleanup(keysvc.Stop)
	keysvc.Conn, err = grpc.NewClient("passthrough:///"+keysvc.Address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx, options.Listener) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keysvc.Conn.Close() })
	keysvc.Keys = keysvcv1.NewKeyServiceClient(keysvc.Conn)
	keysvc.Members = keysvcv1.NewMemberServiceClient(keysvc.Conn)
	keysvc.Policies = keysvcv1.NewPolicyServiceClient(keysvc.Conn)
	keysvc.Validation = keysvcv1.NewValidationServiceClient(keysvc.Conn)
	return keysvc
}

// Limited starts a keysvc, lets prepare fill its store, and starts it again for a caller that may
// validate in these workspaces, and do nothing else.
func Limited(t testing.TB, prepare func(*Keysvc), workspaces ...string) *Keysvc {
	t.Helper()
	folder := t.TempDir()
	file, callers := filepath.Join(folder, "keysvc.db"), filepath.Join(folder, "callers.yaml")
	text := "version: 1\ncallers:\n  - name: service\n    loopback: true\n    rights: [validate]\n    workspaces: [" + strings.Join(workspaces, ", ") + "]\n"
	if err := os.WriteFile(callers, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	full := Start(t, Options{File: file})
	prepare(full)
	full.Stop()
	return Start(t, Options{File: file, Settings: func(settings *config.Settings) { settings.Callers = callers }})
}

// dial connects to a listener, which may be in memory.
func dial(ctx context.Context, listener net.Listener) (net.Conn, error) {
	if inMemory, ok := listener.(interface {
		DialContext(ctx context.Context) (net.Conn, error)
	}); ok {
		return inMemory.DialContext(ctx)
	}
	return (&net.Dialer{}).DialContext(ctx, listener.Addr().Network(), listener.Addr().String())
}

// Stop stops it in order. Further calls do nothing.
func (k *Keysvc) Stop() { k.stopOnce.Do(k.stop) }

// PutMember adds a member, or changes the role of an existing member.
func (k *Keysvc) PutMember(t testing.TB, workspaceID, memberID, role string) {
	t.Helper()
	if _, err := k.Members.PutMember(t.Context(), &keysvcv1.PutMemberRequest{
		WorkspaceId: workspaceID, MemberId: memberID, Role: role, State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
	}); err != nil {
		t.Fatal(err)
	}
}

// CreateKey creates a key and returns its id and token.
func (k *Keysvc) CreateKey(t testing.TB, workspaceID, memberID string, scopes ...string) (keyID, token string) {
	t.Helper()
	made, err := k.Keys.CreateKey(t.Context(), &keysvcv1.CreateKeyRequest{
		WorkspaceId: workspaceID, MemberId: memberID, Name: "test", Scopes: scopes,
	})
	if err != nil {
		t.Fatal(err)
	}
	return made.GetKey().GetKeyId(), made.GetToken()
}
