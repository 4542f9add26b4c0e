// Package callers knows who calls keysvc: the identities of callers, what a connection proves
// about its other end, and one table of the right that each method needs. A method that is not
// in the table is refused.
package callers

import (
	"context"
	"crypto/x509"
	"sync"
	"time"

	"google.golang.org/grpc/peer"

	"github.com/scribe-mail/keysvc/internal/access"
)

// Source is the way in which a caller proves who it is.
type Source string

// The sources.
const (
	// SourceLoopback is a plaintext connection on this machine, which proves nothing.
	SourceLoopback Source = "loopback"
	// SourceUnix is the user id of the peer of a unix socket.
	SourceUnix Source = "unix"
	// SourceSPIFFE is a client certificate with a SPIFFE id.
	SourceSPIFFE Source = "spiffe"
	// SourceDNS is a client certificate with a DNS name.
	SourceDNS Source = "dns"
	// SourceOIDC is a token of an OIDC issuer, a Kubernetes service account's included.
	SourceOIDC Source = "oidc"
	// SourceToken is a caller token.
	SourceToken Source = "token"
)

// Identity is an authenticated caller. It is not changed once it is made. A nil Identity is a
// caller that is not known: it may do only what anyone may.
type Identity struct {
	// Name is the caller's name, as audit events and logs have it.
	Name string
	// Source is how the caller has proved who it is.
	Source Source
	// Credential names what it has proved it with: "uid 1000", the serial number of a
	// certificate, or the id of a token. It is no secret.
	Credential string
	// Rule says which line of which file gives the rights, or that it is built in.
	Rule string
	// NotAfter is when the credential ends; the zero Time if it does not.
	NotAfter time.Time
	// Grants are the rights.
	Grants *access.Grants

	// breaksGlass is set for the owner of the process, if a callers file says who may call.
	breaksGlass bool
	// from is the entry of the Table that has the rights; nil for an identity that is built in. It
	// is a pointer so that the hash in it is not printed.
	from *entry
}

// Ended reports whether the credential has ended. A nil identity has ended.
func (i *Identity) Ended(now time.Time) bool { return i == nil || ended(i.NotAfter, now) }

// BreaksGlass reports whether the caller is the owner of the process, who may do everything although
// a callers file says who may call. Operators should know of such calls.
func (i *Identity) BreaksGlass() bool { return i != nil && i.breaksGlass }

// Local returns the identity of callers on a plaintext connection from this machine. It may do
// everything.
func Local() *Identity { return local }

var local = &Identity{Name: "local", Source: SourceLoopback, Rule: "built in: plaintext from this machine", Grants: access.Everything()}

// May reports whether the identity has a right, for some workspace at least.
func (i *Identity) May(right access.Right) bool { return i.grants().May(right) }

// For returns the workspaces that a right of the identity holds for.
func (i *Identity) For(right access.Right) access.Workspaces { return i.grants().For(right) }

// CallerName returns the name; "" for nil.
func (i *Identity) CallerName() string {
	if i == nil {
		return ""
	}
	return i.Name
}

// CallerCredential returns what the caller has proved its identity with; "" for nil.
func (i *Identity) CallerCredential() string {
	if i == nil {
		return ""
	}
	return i.Credential
}

func (i *Identity) grants() *access.Grants {
	if i == nil {
		return nil
	}
	return i.Grants
}

// Peer is what a connection proves about its other end, before anybody decides who that is.
type Peer struct {
	// Source is SourceLoopback, SourceUnix, or SourceSPIFFE for a connection with TLS, whatever
	// its certificate is.
	Source Source
	// Address is the address of the other end; "" on a unix socket.
	Address string
	// UserID and GroupID are the peer's, on a unix socket only.
	UserID, GroupID uint32
	// Certificates is the chain that was presented, the leaf first. It has been verified. It is
	// empty if the client has presented no certificate.
	Certificates []*x509.Certificate
	// BearerAllowed is set if a call may bring a token of its own.
	BearerAllowed bool
}

// Judge decides who a peer is. Its methods may be called from many goroutines.
type Judge interface {
	// Connection returns the identity that a connection has without a token. The error says why
	// the peer is not known, for the log and never for the peer.
	Connection(peer *Peer) (*Identity, error)
	// Bearer returns the identity of a call that brings a token. The error says why the token is
	// refused, for the log and never for the peer; it never contains the token.
	Bearer(ctx context.Context, peer *Peer, bearer string) (*Identity, error)
}

// Live is the identity of a connection or a stream while it is open: it can change, and end.
type Live struct {
	mu       sync.Mutex
	identity *Identity
	changed  chan struct{}
}

// NewLive returns a Live with an identity.
func NewLive(identity *Identity) *Live {
	return &Live{identity: identity, changed: make(chan struct{})}
}

// Watch returns the identity as it is now, and a channel that is closed when it changes.
func (l *Live) Watch() (*Identity, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.identity, l.changed
}

// Set changes the identity; nil for a caller that is no longer known.
func (l *Live) Set(identity *Identity) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.identity = identity
	close(l.changed)
	l.changed = make(chan struct{})
}

// Identified is what the AuthInfo of a connection implements if the connection knows its caller.
type Identified interface {
	// CallerIdentity returns the identity as it is now; nil if the caller is not known.
	CallerIdentity() *Identity
}

// Presented is what the AuthInfo of a connection implements if the connection knows what its other
// end proves.
type Presented interface {
	// CallerPeer returns what the other end proves. It must not be changed.
	CallerPeer() *Peer
}

// PeerFromContext returns what the other end of a call's connection proves; nil if that is not
// known. It allocates nothing.
func PeerFromContext(ctx context.Context) *Peer {
	if peer, has := peer.FromContext(ctx); has {
		if presented, is := peer.AuthInfo.(Presented); is {
			return presented.CallerPeer()
		}
	}
	return nil
}

type (
	contextKey struct{}
	liveKey    struct{}
)

// NewContext returns a context that carries the caller's identity.
func NewContext(ctx context.Context, identity *Identity) context.Context {
	return context.WithValue(ctx, contextKey{}, identity)
}

// FromContext returns the caller's identity: that of NewContext, otherwise that of the call's
// connection. It is nil if the caller is not known. It allocates nothing.
func FromContext(ctx context.Context) *Identity {
	if identity, has := ctx.Value(contextKey{}).(*Identity); has {
		return identity
	}
	if peer, has := peer.FromContext(ctx); has {
		if identified, is := peer.AuthInfo.(Identified); is {
			return identified.CallerIdentity()
		}
	}
	return nil
}

// NewLiveContext returns a context that carries the identity of a stream, which can change.
func NewLiveContext(ctx context.Context, live *Live) context.Context {
	return context.WithValue(ctx, liveKey{}, live)
}

// LiveFromContext returns the identity of a stream; one that never changes if ctx has none.
func LiveFromContext(ctx context.Context) *Live {
	if live, has := ctx.Value(liveKey{}).(*Live); has {
		return live
	}
	return NewLive(FromContext(ctx))
}
