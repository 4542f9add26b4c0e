package server_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/certificates/certificatestest"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/server"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/token"
)

// This file has the ways in of the matrix: for each a real server on a real listener, and the
// credentials that it takes.

// state is how keysvc stands to a caller that it does not know.
type state string

const (
	// none is a caller that presents nothing.
	none state = "none"
	// unknown is a caller whose credential is sound, and that the callers file does not name.
	unknown state = "unknown"
	// expired is a caller that the callers file names, whose credential ended before it connected.
	expired state = "expired"
	// removed is a caller that is taken out of the callers file while it is connected.
	removed state = "removed while connected"
	// ended is a caller whose credential ends while it is connected.
	ended state = "expired while connected"
)

// way is a way in.
type way struct {
	name string
	// refused are the states in which there is no connection: its calls end with UNAVAILABLE. In all
	// others they end with UNAUTHENTICATED.
	refused []state
	// lacks are the states that there are not, each with the reason.
	lacks map[state]string
	// open starts a server.
	open func(*testing.T) *entrance
}

// ways returns the ways in. On a listener that takes tokens a connection needs no identity, so a
// caller that nobody knows has a connection. On every other listener it has none.
func ways() []way {
	everywhere := []state{none, unknown, expired, removed, ended}
	same := "whoever presents nothing is who it is by the file; see unknown"
	noEnd := "this credential has no end"
	return []way{
		{
			name: "unix socket", refused: everywhere, open: openUnix,
			lacks: map[state]string{none: same, expired: noEnd, ended: noEnd},
		},
		{
			name: "plaintext on loopback", refused: everywhere, open: openLoopback,
			lacks: map[state]string{none: same, expired: noEnd, ended: noEnd},
		},
		{name: "certificate with a SPIFFE id", refused: everywhere, open: openSPIFFE(false)},
		{name: "certificate with a DNS name", refused: everywhere, open: openDNS},
		// A certificate that does not hold is refused also where none is needed.
		{name: "certificate, where tokens are taken", refused: []state{expired}, open: openSPIFFE(true)},
		{name: "caller token", open: openToken},
		{name: "token of an OIDC issuer", open: openOIDC},
	}
}

// credential is what one caller proves itself with.
type credential struct {
	// line is the credential as the callers file has it.
	line string
	// dial connects, and bearer is sent with each call unless it is empty.
	dial   func() *grpc.ClientConn
	bearer string
}

// context returns the context of a call, with the token.
func (c *credential) context(ctx context.Context) context.Context {
	if c.bearer == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.bearer)
}

// entrance is a server with a listener of one way in.
type entrance struct {
	*callersBench

	// head is what the callers file has before its callers.
	head string
	// issue returns the credential of a caller with a number, which ends then.
	issue func(t *testing.T, number int, ends time.Time) credential
	// nothing returns a credential that proves nothing.
	nothing func(t *testing.T) credential
	// counted counts what the server asks the store for.
	counted *countingStore
	// issued is the number of the last credential.
	issued int
}

// credential returns a credential that no other caller has.
func (e *entrance) credential(t *testing.T, ends time.Time) credential {
	t.Helper()
	e.issued++
	return e.issue(t, e.issued, ends)
}

// later is an end of a credential that no test reaches.
func (e *entrance) later() time.Time { return e.clock.Now().Add(time.Hour).Truncate(time.Second) }

// list makes the lines of callers the callers of the file, and waits until they are in force.
func (e *entrance) list(t *testing.T, lines ...string) {
	t.Helper()
	e.replace(t, e.text(lines...))
	e.tick(t)
	if failed := e.log.lines("a changed file is not used"); len(failed) > 0 {
		t.Fatalf("the test has written a wrong callers file: %s", failed)
	}
}

func (e *entrance) text(lines ...string) string {
	text := "version: 1\n" + e.head + "callers:\n"
	for _, line := range lines {
		text += "  - {" + line + "}\n"
	}
	return text
}

// operator is the caller of the bench's own connection, which prepares what the calls are about.
const operator = "name: operator, loopback: true, rights: [validate, read, issue, revoke, report, directory, administer]"

// openEntrance starts a server with a callers file in a folder. issue and nothing are for the caller
// to set.
func openEntrance(t *testing.T, folder, head string, settings func(*config.Settings)) *entrance {
	t.Helper()
	e := &entrance{
		callersBench: &callersBench{callers: filepath.Join(folder, "callers.yaml"), ticks: make(chan time.Time)},
		head:         head, counted: new(countingStore),
	}
	e.replace(t, e.text(operator))
	e.bench = start(t, options{
		ticks: e.ticks, clock: &testClock{now: time.Now()}, wrap: e.counted.wrap,
		settings: func(s *config.Settings) {
			s.Callers, s.Channelz, s.MaxConnectionsPerSource = e.callers, true, 0
			if settings != nil {
				settings(s)
			}
		},
	})
	return e
}

// serve serves a listener until the test ends.
func (e *entrance) serve(t *testing.T) (address string) {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- e.server.Serve(listener) }()
	t.Cleanup(func() {
		e.stop(t, patience)
		if err := <-served; err != nil {
			t.Errorf("serving ended with %v", err)
		}
	})
	return listener.Addr().String()
}

// dialer returns a function that connects to an address.
func dialer(t *testing.T, address string, with credentials.TransportCredentials) func() *grpc.ClientConn {
	t.Helper()
	return func() *grpc.ClientConn {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(with))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
}

// openUnix is the way of a user of this machine, as the kernel names it.
func openUnix(t *testing.T) *entrance {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can connect as other users")
	}
	e := openEntrance(t, t.TempDir(), "", nil)
	socket := e.listenUnix(t)
	e.issue = func(t *testing.T, number int, _ time.Time) credential {
		t.Helper()
		user := 10_000 + number
		return credential{line: fmt.Sprintf("uid: [%d]", user), dial: func() *grpc.ClientConn { return dialAs(t, socket, user) }}
	}
	return e
}

// openLoopback is the way of whoever reaches a plaintext listener. All connections are one caller.
func openLoopback(t *testing.T) *entrance {
	t.Helper()
	e := openEntrance(t, t.TempDir(), "", nil)
	address := e.serve(t)
	e.issue = func(t *testing.T, _ int, _ time.Time) credential {
		t.Helper()
		return credential{line: "loopback: true", dial: dialer(t, address, insecure.NewCredentials())}
	}
	return e
}

// overTLS is a server with TLS.
type overTLS struct {
	*entrance

	address string
	servers *certificatestest.Authority
}

// openTLS starts a server with TLS. clients is the authority of its clients, in clients.crt.
func openTLS(t *testing.T, head string, clients *certificatestest.Authority, bearers bool) overTLS {
	t.Helper()
	folder, servers := t.TempDir(), certificatestest.NewAuthority(t, "servers")
	cert, key := certificatestest.Write(t, folder, "server", servers.Issue(t, certificatestest.Loopback))
	if err := os.WriteFile(filepath.Join(folder, "clients.crt"), clients.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	e := openEntrance(t, folder, head, func(s *config.Settings) { s.TLSServerCert, s.TLSServerKey, s.TLSBearers = cert, key, bearers })
	over := overTLS{entrance: e, address: e.serve(t), servers: servers}
	e.nothing = func(t *testing.T) credential {
		t.Helper()
		return credential{dial: over.dialer(t, nil)}
	}
	return over
}

// dialer returns a function that connects with a certificate; nil for none.
func (o overTLS) dialer(t *testing.T, certificate *tls.Certificate) func() *grpc.ClientConn {
	t.Helper()
	with := &tls.Config{RootCAs: o.servers.Pool(), MinVersion: tls.VersionTLS13}
	if certificate != nil {
		with.Certificates = []tls.Certificate{*certificate}
	}
	return dialer(t, o.address, credentials.NewTLS(with))
}

// openSPIFFE is the way of a workload with an X.509-SVID.
func openSPIFFE(bearers bool) func(*testing.T) *entrance {
	return func(t *testing.T) *entrance {
		t.Helper()
		clients := certificatestest.NewAuthority(t, "clients")
		o := openTLS(t, "trust_domains: [{name: clients.test, bundle: clients.crt}]\n", clients, bearers)
		o.issue = func(t *testing.T, number int, ends time.Time) credential {
			t.Helper()
			id := fmt.Sprintf("spiffe://clients.test/caller-%d", number)
			certificate := clients.Issue(t, certificatestest.URI(t, id), certificatestest.Valid(ends.Add(-2*time.Hour), ends))
			return credential{line: "spiffe: [" + id + "]", dial: o.dialer(t, certificate)}
		}
		return o.entrance
	}
}

// openDNS is the way of a certificate of cert-manager or step-ca.
func openDNS(t *testing.T) *entrance {
	t.Helper()
	clients := certificatestest.NewAuthority(t, "clients")
	o := openTLS(t, "client_ca: clients.crt\n", clients, false)
	o.issue = func(t *testing.T, number int, ends time.Time) credential {
		t.Helper()
		name := fmt.Sprintf("caller-%d.test", number)
		certificate := clients.Issue(t, certificatestest.DNS(name), certificatestest.Valid(ends.Add(-2*time.Hour), ends))
		return credential{line: "dns: [" + name + "]", dial: o.dialer(t, certificate)}
	}
	return o.entrance
}

// openToken is the way of a caller token.
func openToken(t *testing.T) *entrance {
	t.Helper()
	o := openTLS(t, "", certificatestest.NewAuthority(t, "clients"), true)
	o.issue = func(t *testing.T, _ int, ends time.Time) credential {
		t.Helper()
		made, err := token.NewCaller("test", rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return credential{
			line:   fmt.Sprintf(`tokens: [{id: %s, hash: "sha256:%x", not_after: "%s"}]`, made.ID(), made.Hash(), ends.UTC().Format(time.RFC3339)),
			bearer: made.Reveal(), dial: o.dialer(t, nil),
		}
	}
	return o.entrance
}

// openOIDC is the way of a service account of Kubernetes.
func openOIDC(t *testing.T) *entrance {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "one", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	jwks := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(jwks, keys, 0o600); err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", "one"))
	if err != nil {
		t.Fatal(err)
	}
	head := fmt.Sprintf("issuers: [{name: cluster, url: \"https://cluster.test\", audience: keysvc, algorithms: [ES256], jwks: %s}]\n", jwks)
	o := openTLS(t, head, certificatestest.NewAuthority(t, "clients"), true)
	o.issue = func(t *testing.T, number int, ends time.Time) credential {
		t.Helper()
		subject := fmt.Sprintf("system:serviceaccount:mail:caller-%d", number)
		claims, err := json.Marshal(map[string]any{"iss": "https://cluster.test", "aud": "keysvc", "sub": subject, "exp": ends.Unix()})
		if err != nil {
			t.Fatal(err)
		}
		signed, err := signer.Sign(claims)
		if err != nil {
			t.Fatal(err)
		}
		text, err := signed.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return credential{line: fmt.Sprintf("oidc: [{issuer: cluster, subject: %q}]", subject), bearer: text, dial: o.dialer(t, nil)}
	}
	return o.entrance
}

// countingStore counts what the verbs ask a store for, and barriers.
type countingStore struct {
	storage.Store

	asked atomic.Int64
}

var _ server.Store = (*countingStore)(nil)

func (c *countingStore) wrap(store storage.Store) storage.Store {
	c.Store = store
	return c
}

// Barrier implements storage.Store.
func (c *countingStore) Barrier(ctx context.Context) (storage.Barrier, error) {
	c.asked.Add(1)
	return c.Store.Barrier(ctx)
}

// Snapshot implements storage.Snapshotter.
func (c *countingStore) Snapshot(ctx context.Context) (storage.Snapshot, error) {
	c.asked.Add(1)
	snapshotter, _ := storage.As[storage.Snapshotter](c.Store)
	return snapshotter.Snapshot(ctx)
}

// Commit implements storage.Store.
func (c *countingStore) Commit(ctx context.Context, change *storage.Change) (int64, error) {
	c.asked.Add(1)
	return c.Store.Commit(ctx, change)
}

// GetKey implements storage.Store.
func (c *countingStore) GetKey(ctx context.Context, workspaceID, keyID string) (*storagev1.KeyRecord, int64, error) {
	c.asked.Add(1)
	return c.Store.GetKey(ctx, workspaceID, keyID)
}

// FindRequest implements storage.Store.
func (c *countingStore) FindRequest(ctx context.Context, workspaceID, requestID string) (string, int64, error) {
	c.asked.Add(1)
	return c.Store.FindRequest(ctx, workspaceID, requestID)
}

// ListKeys implements storage.Store.
func (c *countingStore) ListKeys(ctx context.Context, query storage.Query) (storage.KeyPage, error) {
	c.asked.Add(1)
	return c.Store.ListKeys(ctx, query)
}

// GetMember implements storage.Store.
func (c *countingStore) GetMember(ctx context.Context, workspaceID, memberID string) (*storagev1.MemberRecord, int64, error) {
	c.asked.Add(1)
	return c.Store.GetMember(ctx, workspaceID, memberID)
}

// ListMembers implements storage.Store.
func (c *countingStore) ListMembers(ctx context.Context, query storage.Query) (storage.MemberPage, error) {
	c.asked.Add(1)
	return c.Store.ListMembers(ctx, query)
}
