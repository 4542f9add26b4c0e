package callers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/token"
)

// TableConfig configures a TableJudge.
type TableConfig struct {
	// Owner is the user id of the process, whose owner always may do everything on a unix socket.
	Owner uint32
	// Certificates says what client certificates prove. Default: certificates prove nothing.
	Certificates CertificateVerifier
	// Bearers says what tokens of OIDC issuers prove. Default: they prove nothing.
	Bearers BearerVerifier
	// Now is the clock. Required.
	Now func() time.Time
}

// TableJudge is a Judge that follows a Table, which can be replaced. Without a Table the owner of
// the process alone may call, on the unix socket, and whoever reaches a plaintext listener on
// loopback.
type TableJudge struct {
	config TableConfig
	table  atomic.Pointer[Table]
	// generation grows with each change of what the judge decides by.
	generation atomic.Int64
	known      bearerCache
}

var _ Judge = (*TableJudge)(nil)

// NewTableJudge returns a judge without a Table.
func NewTableJudge(config TableConfig) *TableJudge {
	return &TableJudge{config: config}
}

// SetTable replaces the Table. Decisions that were made before stay with connections and streams,
// until these are judged again.
func (j *TableJudge) SetTable(table *Table) {
	j.table.Store(table)
	j.Forget()
}

// Forget drops every remembered decision about a token: call it when what certificates or tokens
// prove has changed.
func (j *TableJudge) Forget() {
	j.generation.Add(1)
	j.known.clear()
}

// Table returns the table that is in force; nil if there is none.
func (j *TableJudge) Table() *Table { return j.table.Load() }

// Connection implements Judge.
func (j *TableJudge) Connection(peer *Peer) (*Identity, error) {
	table := j.table.Load()
	switch peer.Source {
	case SourceLoopback:
		return j.loopback(table, peer)
	case SourceUnix:
		return j.user(table, peer.UserID)
	case SourceSPIFFE, SourceDNS:
		return j.certificate(table, peer)
	case SourceOIDC, SourceToken:
	}
	return nil, fmt.Errorf("a connection cannot have the source %q", peer.Source)
}

// loopback judges a plaintext connection over TCP.
func (j *TableJudge) loopback(table *Table, peer *Peer) (*Identity, error) {
	// 1. A listener for health may be reached from other machines. Nobody is known there.
	if !onThisMachine(peer.Address) {
		return nil, errors.New("a plaintext connection from another machine proves nothing")
	}
	// 2. With a callers file, plaintext has the rights that the file gives it.
	if table == nil {
		return Local(), nil
	}
	identity, err := table.loopback()
	if err != nil {
		return nil, fmt.Errorf("plaintext from this machine: %w", err)
	}
	return identity, nil
}

// inProcess is the address of a connection within the process, as google.golang.org/grpc/test/bufconn
// names it.
const inProcess = "bufconn"

// onThisMachine reports whether the address of a peer is loopback.
func onThisMachine(address string) bool {
	if address == inProcess {
		return true
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// user judges a connection on a unix socket.
func (j *TableJudge) user(table *Table, id uint32) (*Identity, error) {
	switch {
	case id == unmappedUser() || id == noUser:
		// In a user namespace this is any user of the machine that has no number here.
		return nil, fmt.Errorf("the user id %d stands for users that cannot be told apart", id)
	case id == j.config.Owner:
		// A mistake in the callers file must not lock the operator out.
		return owner(id), nil
	}
	identity, err := table.user(id)
	if err != nil {
		return nil, fmt.Errorf("uid %d: %w", id, err)
	}
	return identity, nil
}

// owner returns the identity of the owner of the process. It may do everything.
func owner(id uint32) *Identity {
	return &Identity{
		Name: OwnerName, Source: SourceUnix, Credential: Credential{Source: SourceUnix, UserID: id}.String(),
		Rule: "built in: the owner of the process on the unix socket", Grants: access.Everything(),
	}
}

// OwnerName is the name of the owner of the process, who may do everything on the unix socket.
const OwnerName = "owner"

// certificate judges a connection with TLS.
func (j *TableJudge) certificate(table *Table, peer *Peer) (*Identity, error) {
	if len(peer.Certificates) == 0 {
		return nil, errors.New("it has presented no certificate")
	}
	serial := fmt.Sprintf("the certificate %x", peer.Certificates[0].SerialNumber)
	if j.config.Certificates == nil {
		return nil, fmt.Errorf("%s: no authority is configured", serial)
	}
	if err := table.deniesCertificate(peer.Certificates); err != nil {
		return nil, fmt.Errorf("%s: %w", serial, err)
	}
	verified, err := j.config.Certificates.VerifyCertificate(peer.Certificates)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", serial, err)
	}
	identity, err := table.certificate(verified, j.config.Now())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", serial, err)
	}
	return identity, nil
}

// certificate returns the identity of a certificate that has been verified, until it ends.
func (t *Table) certificate(verified Verified, now time.Time) (*Identity, error) {
	if verified.NotAfter.IsZero() || ended(verified.NotAfter, now) {
		return nil, errExpired
	}
	// 1. A certificate with a SPIFFE id is matched by that and nothing else.
	if id := verified.SPIFFEID; id != "" {
		if domain, is := trustDomainOf(id); !is || domain != verified.TrustDomain {
			return nil, fmt.Errorf("its SPIFFE id %q is malformed", id)
		}
		if err := t.denies(Denial{Source: SourceSPIFFE, ID: id}); err != nil {
			return nil, fmt.Errorf("%s: %w", id, err)
		}
		found := t.find(credentialKey{source: SourceSPIFFE, id: id})
		if found == nil {
			return nil, fmt.Errorf("%s: %w", id, errNoCaller)
		}
		return found.until("certificate "+verified.Serial+" of "+id, verified.NotAfter), nil
	}
	// 2. Of its DNS names, none may be denied, and those that are known must be of one caller.
	var match *entry
	for _, name := range verified.DNSNames {
		if err := t.denies(Denial{Source: SourceDNS, ID: name}); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		found := t.find(credentialKey{source: SourceDNS, id: name})
		switch {
		case found == nil || strings.Contains(name, "*"):
		case match == nil:
			match = found
		case match.identity.Name != found.identity.Name:
			return nil, fmt.Errorf("it names two callers: %s and %s", match.identity.Name, found.identity.Name)
		}
	}
	if match == nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(verified.DNSNames, ", "), errNoCaller)
	}
	return match.until("certificate "+verified.Serial+" of "+match.credential.ID, verified.NotAfter), nil
}

// maxBearer is the max. length, in bytes, of a token. Headers have a bound, too.
const maxBearer = 16 << 10

// Bearer implements Judge. An error that matches ErrBusy says that nothing was decided.
func (j *TableJudge) Bearer(ctx context.Context, peer *Peer, bearer string) (*Identity, error) {
	switch {
	case !peer.BearerAllowed:
		return nil, errors.New("a token is not taken on this listener")
	case token.In(bearer):
		return nil, errors.New("the token of a key was sent in place of a caller's; keys do not call keysvc")
	case len(bearer) > maxBearer:
		return nil, errors.New("the token is too long")
	}
	now := j.config.Now()
	if known := j.known.get(bearer); known != nil && !known.Ended(now) {
		return known, nil
	}
	generation := j.generation.Load()
	identity, err := j.bearer(ctx, peer, bearer, now)
	if err != nil {
		return nil, err
	}
	// What was decided by an older table is not remembered. put takes the cache's lock, and so does
	// Forget after it has changed the generation.
	j.known.put(bearer, identity, func() bool { return j.generation.Load() == generation })
	return identity, nil
}

// bearer decides on a token that is not remembered.
func (j *TableJudge) bearer(ctx context.Context, peer *Peer, bearer string, now time.Time) (*Identity, error) {
	if token.CallerIn(bearer) {
		parsed, err := token.ParseCaller(bearer)
		if err != nil {
			return nil, errors.New("the caller token is malformed")
		}
		return j.table.Load().token(strings.Clone(parsed.ID()), parsed.Hash(), now)
	}
	if j.config.Bearers == nil || strings.Count(bearer, ".") != 2 {
		return nil, errors.New("the token is neither a caller token nor that of a configured issuer")
	}
	proven, err := j.config.Bearers.VerifyBearer(ctx, hostOf(peer.Address), bearer)
	if err != nil {
		return nil, err
	}
	return j.table.Load().subject(proven, now)
}

// hostOf returns an address without its port.
func hostOf(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return host
}

// Again judges a stream again whose call has brought a token, by what the token had proved. The
// token itself is not needed.
func (j *TableJudge) Again(earlier *Identity) (*Identity, error) {
	return j.table.Load().again(earlier, j.config.Now())
}
