package decide_test

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/token"
)

// mayPass restates the rules as one conjunction without an order, from the design
// and not from the code. It knows no reasons.
func mayPass(s *situation, secrets []token.Token) bool {
	key, member, workspace := s.subject.Key, s.subject.Member, s.subject.Workspace
	if s.presented.IsZero() || key == nil || member == nil || workspace == nil {
		return false
	}
	moment := s.now.UnixNano()
	// Which of the key's secrets the token holds. secrets[i] is the token that
	// key.Secrets[i] was made from.
	holdsNewest := key.Secrets[0].Hash.Scheme == token.SchemeVerifier && s.presented.Reveal() == secrets[0].Reveal()
	holdsOlder := key.Secrets[1].Hash.Scheme == token.SchemeVerifier && s.presented.Reveal() == secrets[1].Reveal()
	matches := holdsNewest || holdsOlder && moment < key.Secrets[1].End
	here := s.expected == "" || s.expected == key.Workspace
	alive := !key.Revoked && !key.Held && !member.Removed && !workspace.Removed &&
		key.MemberIncarnation == member.Incarnation &&
		key.WorkspaceIncarnation == workspace.Incarnation && workspace.Incarnation == member.WorkspaceIncarnation
	near := len(key.AllowedPrefixes) == 0 || slices.ContainsFunc(key.AllowedPrefixes, func(prefix netip.Prefix) bool {
		return covers(prefix, s.address)
	})
	scope := s.requirement.Scope
	mayDo := scope == "" && s.requirement.IdentityOnly ||
		scope != "" && !s.requirement.IdentityOnly && slices.Contains(key.Scopes, scope) && slices.Contains(*s.subject.RoleScopes, scope)
	return matches && here && alive && moment < key.ExpireTime && member.Active && near && mayDo
}

// covers compares bit by bit.
func covers(prefix netip.Prefix, address netip.Addr) bool {
	if !prefix.IsValid() || !address.IsValid() {
		return false
	}
	bits := address.AsSlice()
	if address.Is4In6() {
		bits = bits[12:]
	}
	rule := prefix.Addr().AsSlice()
	if len(rule) != len(bits) {
		return false
	}
	for bit := range prefix.Bits() {
		if (rule[bit/8]^bits[bit/8])>>(7-bit%8)&1 != 0 {
			return false
		}
	}
	return true
}

// universe is what random situations are made of.
type universe struct{ tokens []token.Token }

func newUniverse(t testing.TB) *universe {
	t.Helper()
	u := &universe{tokens: []token.Token{{}}}
	for range 3 {
		u.tokens = append(u.tokens, newToken(t))
	}
	return u
}

func pick[Value any](random *rand.Rand, values ...Value) Value {
	return values[random.IntN(len(values))]
}

// mostly returns usual, and one time in n one of the others.
func mostly[Value any](random *rand.Rand, n int, usual Value, others ...Value) Value {
	if random.IntN(n) == 0 {
		return pick(random, others...)
	}
	return usual
}

// situation draws a random situation. Everything varies, but most values are mostly right:
// otherwise hardly any situation would be allowed, and little would be tested.
func (u *universe) situation(t testing.TB, random *rand.Rand) (situation, []token.Token) {
	t.Helper()
	const n = 16
	secrets := []token.Token{u.tokens[1+random.IntN(3)], u.tokens[1+random.IntN(3)]}
	moments := []time.Duration{-time.Hour, -1, 0, 1, time.Minute, time.Hour}
	key := &decide.Key{
		ID:                   keyID,
		Workspace:            mostly(random, n, "acme", "globex", ""),
		Member:               "ann",
		WorkspaceIncarnation: mostly(random, n, "w1", "w2", ""),
		MemberIncarnation:    mostly(random, n, "m1", "m2", ""),
		Revoked:              mostly(random, n, false, true),
		Held:                 mostly(random, n, false, true),
		ExpireTime:           at(mostly(random, 4, time.Hour, moments...)),
	}
	for index := range key.Secrets {
		hash := hashOf(t, secrets[index])
		hash.Scheme = mostly(random, n, token.SchemeVerifier, 0, 2, 200)
		key.Secrets[index] = decide.Secret{Hash: hash, End: at(pick(random, moments...))}
	}
	key.Secrets[0].End = key.ExpireTime
	scopes := []string{"a:x", "b:x", "c:x", "d:x"}
	some := func() decide.Scopes {
		var names []string
		for _, name := range scopes {
			if random.IntN(4) > 0 {
				names = append(names, name)
			}
		}
		return decide.NewScopes(names...)
	}
	key.Scopes = some()
	prefixes := []string{"0.0.0.0/0", "192.0.2.0/24", "192.0.2.7/32", "::/0", "2001:db8::/33", "fe80::/10", "128.0.0.0/1"}
	for range mostly(random, 2, 0, 1, 2, 3) {
		key.AllowedPrefixes = append(key.AllowedPrefixes, netip.MustParsePrefix(pick(random, prefixes...)))
	}
	if random.IntN(n) == 0 {
		key.AllowedPrefixes = append(key.AllowedPrefixes, netip.Prefix{})
	}
	s := situation{
		presented: mostly(random, 4, pick(random, secrets...), u.tokens...),
		subject: decide.Subject{
			Key: mostly(random, n, key, nil),
			Member: mostly(random, n, &decide.Member{
				Incarnation:          mostly(random, n, "m1", "m2", ""),
				WorkspaceIncarnation: mostly(random, n, "w1", "w2", ""),
				Role:                 "admin",
				Active:               mostly(random, n, true, false),
				Removed:              mostly(random, n, false, true),
			}, nil),
			Workspace: mostly(random, n, &decide.Workspace{
				Incarnation: mostly(random, n, "w1", "w2", ""),
				Removed:     mostly(random, n, false, true),
			}, nil),
			RoleScopes: scopesOf(some()...),
		},
		expected: mostly(random, n, "acme", "globex", ""),
		requirement: decide.Requirement{
			Scope:        pick(random, append(scopes, "")...),
			IdentityOnly: random.IntN(3) == 0,
		},
		now: now,
	}
	if random.IntN(n) > 0 {
		addresses := []string{
			"192.0.2.7", "192.0.2.8", "198.51.100.1", "::ffff:192.0.2.7", "2001:db8::1", "2001:db8:8000::",
			"fe80::1%eth0", "0.0.0.0", "255.255.255.255",
		}
		s.address = netip.MustParseAddr(pick(random, addresses...))
	}
	return s, secrets
}

// checkProperties checks what must be true of every situation.
func checkProperties(t testing.TB, random *rand.Rand, s *situation, secrets []token.Token) (passed bool) {
	t.Helper()
	want := mayPass(s, secrets)
	decision, reason, told := s.decide()
	if (decision == decide.Allowed) != want {
		t.Errorf("decision %d, reason %d, but the rules say %t: %+v", decision, reason, want, s)
	}
	if (decision == decide.Allowed) != (reason == decide.NoReason) || decision == decide.Unspecified {
		t.Errorf("decision %d with reason %d", decision, reason)
	}
	if (told != "") != (reason != decide.KeyInvalid) {
		t.Errorf("reason %d, but key id %q", reason, told)
	}
	checkExplained(t, s, decision, reason)
	// A kept grant is allowed only if a new Authenticate would be allowed, as long as nothing
	// but the time and the request change.
	grant, reason := decide.Authenticate(s.presented.Presented(), s.subject, s.expected, s.now)
	if reason != decide.NoReason {
		return want
	}
	later := *s
	later.now = s.now.Add(pick(random, 0, 1, time.Minute-1, time.Minute, time.Hour-1, time.Hour, 2*time.Hour))
	later.expected = pick(random, "", "acme", "globex")
	later.requirement.Scope = pick(random, "a:x", "b:x")
	decision, _ = decide.Authorize(&grant, later.expected, later.requirement, later.address, later.now)
	if now := mayPass(&later, secrets); (decision == decide.Allowed) != now {
		t.Errorf("kept: decision %d, but the rules say %t: %+v", decision, now, later)
	}
	return want
}

// reasonOf is the reason that a failed check gives.
var reasonOf = map[decide.Check]decide.Reason{
	decide.NotRevoked: decide.KeyRevoked, decide.WorkspaceExists: decide.KeyRevoked, decide.MemberExists: decide.KeyRevoked,
	decide.NotExpired: decide.KeyExpired, decide.NotHeld: decide.KeyHeld, decide.MemberActive: decide.MemberInactive,
	decide.AddressAllowed: decide.AddressNotAllowed, decide.ScopeGranted: decide.ScopeNotGranted,
	decide.ScopeWithinRole: decide.ScopeBeyondRole,
}

// checkExplained checks that an explanation gives the decision on a token that holds a secret of the
// key, and that its first failed step gives the reason.
func checkExplained(t testing.TB, s *situation, decision decide.Decision, reason decide.Reason) {
	t.Helper()
	explained, why, steps := decide.Explain(s.subject, s.requirement, s.address, s.now)
	if reason != decide.KeyInvalid && (explained != decision || why != reason) {
		t.Errorf("explained as %d, %d; the decision is %d, %d: %+v", explained, why, decision, reason, s)
	}
	if s.subject.Key == nil {
		if why != decide.KeyInvalid || len(steps) > 0 {
			t.Errorf("explained without a key: %d, %v", why, steps)
		}
		return
	}
	first := decide.NoReason
	order := []decide.Check{
		decide.NotRevoked, decide.WorkspaceExists, decide.MemberExists, decide.NotExpired, decide.NotHeld,
		decide.MemberActive, decide.AddressAllowed, decide.ScopeGranted, decide.ScopeWithinRole,
	}
	if !s.subject.Key.Held { // the step is there only if it fails
		order = slices.Delete(order, 4, 5)
	}
	for index, step := range steps {
		if step.Check != order[index] || step.Outcome < decide.Passed || step.Outcome > decide.NotApplicable {
			t.Errorf("step %d is %+v", index, step)
		}
		if step.Outcome == decide.Failed && first == decide.NoReason {
			first = reasonOf[step.Check]
		}
	}
	if len(steps) != len(order) || first != why {
		t.Errorf("the steps %v give %d, the reason is %d: %+v", steps, first, why, s)
	}
}

func TestRandomSituationsAreDecidedAsTheRulesSay(t *testing.T) {
	u := newUniverse(t)
	rounds := 100_000
	if testing.Short() {
		rounds = 5_000
	}
	random := rand.New(rand.NewPCG(1, 2))
	allowed := 0
	for round := range rounds {
		s, secrets := u.situation(t, random)
		if checkProperties(t, random, &s, secrets) {
			allowed++
		}
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
	if share := float64(allowed) / float64(rounds); share < 0.02 || share > 0.5 {
		t.Errorf("%.1f %% of the situations were allowed: the test is not worth much", 100*share)
	}
}

func FuzzDecide(f *testing.F) {
	u := newUniverse(f)
	for seed := range uint64(8) {
		f.Add(seed, seed*seed)
	}
	f.Fuzz(func(t *testing.T, first, second uint64) {
		random := rand.New(rand.NewPCG(first, second))
		s, secrets := u.situation(t, random)
		checkProperties(t, random, &s, secrets)
	})
}
