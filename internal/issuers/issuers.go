// Package issuers verifies the tokens of OpenID Connect issuers, Kubernetes among them, that
// callers of keysvc bring. It fetches the issuers' keys, and keeps a flood of forged tokens from
// the issuers and from callers whose tokens are good.
package issuers

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/scribe-mail/keysvc/internal/callers"
)

// Issuer is an issuer whose tokens are taken.
type Issuer struct {
	// Name is what logs and callers call it.
	Name string
	// URL is what its tokens have as "iss", to the letter; it starts with https://.
	URL string
	// Audience is what its tokens must have as their only "aud".
	Audience string
	// Algorithms are those that its tokens may be signed with; see Algorithms.
	Algorithms []string
	// CA is a file with the authorities of the issuer's server, in PEM; "" for those of the system.
	CA string
	// TokenFile is a file with a token to fetch the keys with, as Kubernetes needs it; "" for none.
	TokenFile string
	// JWKS is a file with the issuer's keys (RFC 7517); if it is set, nothing is fetched.
	JWKS string
}

// Algorithms returns the algorithms that can be allowed: signatures with a public key (RFC 7518,
// 3.1, and RFC 8037), never "none", and none with a shared secret.
func Algorithms() []string {
	return []string{
		oidc.RS256, oidc.RS384, oidc.RS512, oidc.PS256, oidc.PS384, oidc.PS512,
		oidc.ES256, oidc.ES384, oidc.ES512, oidc.EdDSA,
	}
}

// The bounds of a token and of the clocks that it is judged by.
const (
	maxToken   = 16 << 10
	maxKeyID   = 256
	maxTokenID = 128
	// skew is by how much the clocks of issuers and of keysvc may differ.
	skew = time.Minute
)

// Options are what a Set needs besides the issuers. The zero value works.
type Options struct {
	// Log gets what goes wrong with an issuer, each error once until its keys have come; nil means
	// nobody.
	Log *slog.Logger
	// Now is the clock; nil means the system's.
	Now func() time.Time
	// Changed is called after the keys of an issuer have changed: what was verified with the old
	// keys may no longer be. It may be nil, and may be called from several goroutines.
	Changed func()

	timing timing
}

// Set is a set of issuers. It follows their keys from New until Close.
type Set struct {
	options Options
	places  *places

	mu      sync.RWMutex
	members []*member
}

// member is an issuer with its keys.
type member struct {
	issuer   Issuer
	keys     *keys
	verifier *oidc.IDTokenVerifier
}

var _ callers.BearerVerifier = (*Set)(nil)

// New returns a set that takes no issuer's tokens yet; see Use.
func New(options Options) *Set {
	if options.Log == nil {
		options.Log = slog.New(slog.DiscardHandler)
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	options.timing.setDefaults()
	return &Set{options: options, places: newPlaces()}
}

// Use makes a list of issuers the ones whose tokens are taken. The keys of those that were in the
// list before stay. It does not wait for keys: an issuer that is away keeps nobody from starting.
// The error names the first issuer that is not allowed; nothing has changed then.
func (s *Set) Use(list []Issuer) error {
	for _, issuer := range list {
		if err := issuer.check(); err != nil {
			return fmt.Errorf("issuer %q: %w", issuer.Name, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var next []*member
	for _, issuer := range list {
		at := slices.IndexFunc(s.members, func(m *member) bool { return m != nil && m.issuer.equal(issuer) })
		if at >= 0 {
			next = append(next, s.members[at])
			s.members[at] = nil
			continue
		}
		next = append(next, s.follow(issuer))
	}
	for _, left := range s.members {
		if left != nil {
			left.keys.close()
		}
	}
	s.members = next
	return nil
}

func (s *Set) follow(issuer Issuer) *member {
	keys := followKeys(issuer, s.options)
	return &member{issuer: issuer, keys: keys, verifier: oidc.NewVerifier(issuer.URL, keys, &oidc.Config{
		ClientID:             issuer.Audience,
		SupportedSigningAlgs: issuer.Algorithms,
		// Its tolerance for "nbf" is five minutes; checkTimes has one for all times.
		SkipExpiryCheck: true,
	})}
}

// Close stops following the issuers' keys.
func (s *Set) Close() { _ = s.Use(nil) }

func (i Issuer) equal(other Issuer) bool {
	return slices.Equal(i.Algorithms, other.Algorithms) && i.Name == other.Name && i.URL == other.URL && i.Audience == other.Audience &&
		i.CA == other.CA && i.TokenFile == other.TokenFile && i.JWKS == other.JWKS
}

func (i Issuer) check() error {
	switch {
	case i.Name == "":
		return errors.New("has no name")
	case !strings.HasPrefix(i.URL, "https://") || len(i.URL) == len("https://"):
		return fmt.Errorf("its URL is %q, it must start with https://", i.URL)
	case i.Audience == "":
		return errors.New("has no audience")
	case len(i.Algorithms) == 0:
		return errors.New("allows no algorithm")
	}
	for _, algorithm := range i.Algorithms {
		if !slices.Contains(Algorithms(), algorithm) {
			return fmt.Errorf("allows the algorithm %q, allowed are %s", algorithm, strings.Join(Algorithms(), ", "))
		}
	}
	return nil
}

// VerifyBearer implements callers.BearerVerifier. Whatever can be refused without the issuer's
// keys is refused at once; the rest waits in a bounded number of places, a quarter of them at most
// for one peer, and for a second at most.
func (s *Set) VerifyBearer(ctx context.Context, from, bearer string) (callers.VerifiedBearer, error) {
	// 1. What the token says of itself, which is cheap to read.
	claimed, err := read(bearer)
	if err != nil {
		return callers.VerifiedBearer{}, err
	}
	member, err := s.find(claimed)
	if err != nil {
		return callers.VerifiedBearer{}, err
	}
	if err := claimed.checkTimes(s.options.Now()); err != nil {
		return callers.VerifiedBearer{}, fmt.Errorf("issuer %q: %w", member.issuer.Name, err)
	}
	// 2. A place, because from here on a token costs something: it waits for keys, or its signature
	// is computed.
	ctx, cancel := context.WithTimeout(ctx, s.options.timing.wait)
	defer cancel()
	leave, err := s.places.enter(from)
	if err != nil {
		return callers.VerifiedBearer{}, fmt.Errorf("issuer %q: %w", member.issuer.Name, err)
	}
	defer leave()
	// 3. The key, with which the signature is verified in verify.
	if err := member.keys.await(ctx, claimed.keyID); err != nil {
		return callers.VerifiedBearer{}, fmt.Errorf("issuer %q: %w", member.issuer.Name, err)
	}
	endTurn, err := s.places.turn(ctx)
	if err != nil {
		return callers.VerifiedBearer{}, fmt.Errorf("issuer %q: %w", member.issuer.Name, err)
	}
	defer endTurn()
	return member.verify(ctx, bearer, s.options.Now())
}

// find returns the issuer of a token, by "iss" and "aud" together.
func (s *Set) find(claimed claims) (*member, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	known := false
	for _, member := range s.members {
		if member.issuer.URL != claimed.Issuer {
			continue
		}
		known = true
		if claimed.checkAudience(member.issuer.Audience) != nil {
			continue
		}
		if !slices.Contains(member.issuer.Algorithms, claimed.algorithm) {
			return nil, fmt.Errorf("issuer %q: the token's algorithm is not allowed; allowed are %s", member.issuer.Name, strings.Join(member.issuer.Algorithms, ", "))
		}
		return member, nil
	}
	if known {
		return nil, errors.New("the token is not for keysvc: its audience must be exactly the configured one, and no other beside it")
	}
	return nil, errors.New("the token's issuer is not configured")
}

// verify verifies the signature, and reads everything once more from what is signed.
func (m *member) verify(ctx context.Context, bearer string, now time.Time) (callers.VerifiedBearer, error) {
	token, err := m.verifier.Verify(ctx, bearer)
	if err != nil {
		return callers.VerifiedBearer{}, fmt.Errorf("issuer %q: %w", m.issuer.Name, cut(err))
	}
	var signed claims
	if err := token.Claims(&signed); err != nil {
		return callers.VerifiedBearer{}, fmt.Errorf("issuer %q: the claims cannot be read", m.issuer.Name)
	}
	for _, check := range []error{signed.checkAudience(m.issuer.Audience), signed.checkTimes(now), signed.checkSubject()} {
		if check != nil {
			return callers.VerifiedBearer{}, fmt.Errorf("issuer %q: %w", m.issuer.Name, check)
		}
	}
	return callers.VerifiedBearer{
		Issuer: m.issuer.Name, Subject: signed.Subject, ID: signed.id(), NotAfter: signed.Expiry.at().Add(skew),
	}, nil
}

// claims are the parts of a token that are looked at (RFC 7519, 4.1).
type claims struct {
	Issuer    string   `json:"iss"`
	Subject   string   `json:"sub"`
	Audience  audience `json:"aud"`
	Expiry    *seconds `json:"exp"`
	NotBefore *seconds `json:"nbf"`
	IssuedAt  *seconds `json:"iat"`
	ID        string   `json:"jti"`

	algorithm, keyID string
}

// audience is one name, or a list of names.
type audience []string

// UnmarshalJSON reads a name or a list of names.
func (a *audience) UnmarshalJSON(text []byte) error {
	var one string
	if json.Unmarshal(text, &one) == nil {
		*a = audience{one}
		return nil
	}
	return json.Unmarshal(text, (*[]string)(a))
}

// seconds is a time in seconds since 1970, perhaps with a fraction.
type seconds float64

func (s *seconds) at() time.Time { return time.Unix(int64(*s), 0) }

// maxSeconds is the beginning of the year 10000.
const maxSeconds = 253402300800

// read reads what a token says of itself. Nothing of it is true yet.
func read(bearer string) (claims, error) {
	errMalformed := errors.New("the token is no signed JWT in compact form")
	if len(bearer) > maxToken {
		return claims{}, fmt.Errorf("the token has %d bytes, allowed are at most %d", len(bearer), maxToken)
	}
	parts := strings.Split(bearer, ".")
	if len(parts) != 3 {
		return claims{}, errMalformed
	}
	var header struct {
		Algorithm string `json:"alg"`
		KeyID     string `json:"kid"`
	}
	var claimed claims
	for i, into := range []any{&header, &claimed} {
		text, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil || json.Unmarshal(text, into) != nil {
			return claims{}, errMalformed
		}
	}
	switch {
	case header.KeyID == "":
		return claims{}, errors.New(`the token does not name its key: it has no "kid"`)
	case len(header.KeyID) > maxKeyID:
		return claims{}, fmt.Errorf(`the token's "kid" has %d bytes, allowed are at most %d`, len(header.KeyID), maxKeyID)
	}
	claimed.algorithm, claimed.keyID = header.Algorithm, header.KeyID
	return claimed, nil
}

// checkAudience refuses a token with further audiences: each of them could send it on to keysvc.
func (c claims) checkAudience(want string) error {
	if len(c.Audience) != 1 || c.Audience[0] != want {
		return fmt.Errorf("the token's only audience must be %q", want)
	}
	return nil
}

func (c claims) checkTimes(now time.Time) error {
	for name, at := range map[string]*seconds{"exp": c.Expiry, "nbf": c.NotBefore, "iat": c.IssuedAt} {
		if at != nil && (*at < 0 || *at >= maxSeconds) {
			return fmt.Errorf("the token's %q is no time", name)
		}
	}
	switch {
	case c.Expiry == nil:
		return errors.New(`the token does not end: it has no "exp"`)
	case !now.Before(c.Expiry.at().Add(skew)):
		return fmt.Errorf("the token has ended at %s", c.Expiry.at().UTC().Format(time.RFC3339))
	case c.NotBefore != nil && now.Before(c.NotBefore.at().Add(-skew)):
		return fmt.Errorf("the token is valid from %s on", c.NotBefore.at().UTC().Format(time.RFC3339))
	case c.IssuedAt != nil && now.Before(c.IssuedAt.at().Add(-skew)):
		return fmt.Errorf("the token will be issued at %s", c.IssuedAt.at().UTC().Format(time.RFC3339))
	}
	return nil
}

func (c claims) checkSubject() error {
	if c.Subject == "" {
		return errors.New("the token has no subject")
	}
	return nil
}

// id returns the token's id if it is one that can be shown, otherwise when it was issued.
func (c claims) id() string {
	odd := func(r rune) bool { return r <= ' ' || r > '~' }
	switch {
	case c.ID != "" && len(c.ID) <= maxTokenID && !strings.ContainsFunc(c.ID, odd):
		return c.ID
	case c.IssuedAt != nil:
		return "issued " + c.IssuedAt.at().UTC().Format(time.RFC3339)
	}
	return "without an id"
}

// maxError bounds what of a server's answer gets into an error.
const maxError = 300

// cut returns an error whose text is bounded and matches what err matches.
func cut(err error) error {
	if text := err.Error(); len(text) > maxError {
		return &cutError{text: text[:maxError] + "…", err: err}
	}
	return err
}

type cutError struct {
	text string
	err  error
}

func (e *cutError) Error() string { return e.text }
func (e *cutError) Unwrap() error { return e.err }
