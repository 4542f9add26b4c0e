package server_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/server"
)

// TestIdleConnectionsAreClosed: a connection without a request ends, and the next request opens another.
func TestIdleConnectionsAreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, options{settings: func(s *config.Settings) { s.ConnectionIdle = time.Minute }})
		for range 3 {
			b.putMember(t, "acme", "ann", "owner")
			if open := b.server.Connections().Open; open != 1 {
				t.Errorf("%d connections", open)
			}
			time.Sleep(50 * time.Second)
		}
		time.Sleep(20 * time.Second)
		if open := b.server.Connections().Open; open != 0 {
			t.Errorf("%d connections are left", open)
		}
		b.putMember(t, "acme", "ann", "owner")
		b.stop(t, patience)
	})
}

// TestOldConnectionsAreReplaced: a client that is always busy changes its connection now and then, and
// loses no call. A session on an old connection lives as long as it may.
func TestOldConnectionsAreReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, options{settings: func(s *config.Settings) { s.ConnectionAge = time.Minute }})
		dials := &atomic.Int64{}
		client, err := grpc.NewClient("passthrough:///bufconn",
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
				dials.Add(1)
				return b.listen.DialContext(ctx)
			}))
		if err != nil {
			t.Fatal(err)
		}
		stream, err := keysvcv1.NewSyncServiceClient(client).Sync(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Hello{Hello: &keysvcv1.SyncHello{}}}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		began := time.Now()
		go func() {
			defer close(ended)
			for {
				if _, err := stream.Recv(); err != nil {
					return
				}
			}
		}()
		validations := keysvcv1.NewValidationServiceClient(client)
		for range 600 {
			if _, err := validations.ValidateKey(t.Context(), &keysvcv1.ValidateKeyRequest{RequiredScope: "signatures:read"}); err != nil {
				t.Fatalf("a call was lost: %v", err)
			}
			time.Sleep(time.Second)
		}
		if made := dials.Load(); made < 8 || made > 12 {
			t.Errorf("%d connections in ten minutes", made)
		}
		<-ended
		if lived := time.Since(began); lived < 54*time.Minute {
			t.Errorf("the session lived for %s", lived)
		}
		_ = client.Close()
		b.stop(t, patience)
	})
}

// TestConnectionsThatDoNotBeginAreClosed: whoever sends no preface, or no SETTINGS, is cut off.
func TestConnectionsThatDoNotBeginAreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, options{})
		for _, text := range []string{"", "PRI * HTTP", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x06\x04\x00"} {
			began := time.Now()
			socket, err := b.listen.DialContext(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(socket, text); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, socket); err != nil && !errors.Is(err, io.ErrClosedPipe) {
				t.Error(err)
			}
			if took := time.Since(began); took != 10*time.Second {
				t.Errorf("%q: it took %s", text, took)
			}
			_ = socket.Close()
		}
		b.stop(t, patience)
	})
}

// TestClosedConnectionsAreLogged: the log says why the server closes a connection.
func TestClosedConnectionsAreLogged(t *testing.T) {
	b := start(t, options{})
	socket, err := b.listen.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(socket, "GET / HTTP/1.1\r\n\r\n")
	_, _ = io.Copy(io.Discard, socket)
	lines := b.log.lines("connections are refused or ended")
	if len(lines) != 1 || !strings.Contains(lines[0], "WARN") || !strings.Contains(lines[0], "does not begin with HTTP/2") || !strings.Contains(lines[0], "count=1") {
		t.Errorf("got %q", lines)
	}
}

// TestListenersInMemoryAreForTests: without Config.InMemory nobody comes in by one.
func TestListenersInMemoryAreForTests(t *testing.T) {
	b := start(t, options{config: func(c *server.Config) { c.InMemory = false }})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := b.validation.ValidateKey(ctx, &keysvcv1.ValidateKeyRequest{}); err == nil {
		t.Error("let in")
	}
}
