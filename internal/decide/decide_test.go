package decide_test

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/token"
)

const (
	keyID = "9fQ2mXc7Lr0TzB4w"
	scope = "signatures:read"
)

var now = time.Date(2026, time.March, 1, 12, 0, 0, 123456789, time.UTC)

// at returns a moment before or after now, as keys store it.
func at(offset time.Duration) int64 { return now.Add(offset).UnixNano() }

func newToken(t testing.TB) token.Token {
	t.Helper()
	made, err := token.New("scribe", keyID, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func hashOf(t testing.TB, of token.Token) token.ShortHash {
	t.Helper()
	hash, err := of.Hash(token.SchemeVerifier)
	if err != nil {
		t.Fatal(err)
	}
	return hash.Short()
}

// situation is everything that a decision depends on.
type situation struct {
	presented   token.Token
	subject     decide.Subject
	expected    string
	requirement decide.Requirement
	address     netip.Addr
	now         time.Time
}

// allowed returns a situation in which the request is allowed, although every check has
// something to compare: an expected workspace, address rules, a scope, and
// an older secret in overlap, of the token that is returned second.
func allowed(t testing.TB) (situation, token.Token) {
	t.Helper()
	newest, older := newToken(t), newToken(t)
	return situation{
		presented: newest,
		subject: decide.Subject{
			Key: &decide.Key{
				ID: keyID, Workspace: "acme", Member: "ann",
				WorkspaceIncarnation: "w1", MemberIncarnation: "m1",
				Scopes:          decide.NewScopes(scope, "emails:read"),
				AllowedPrefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
				ExpireTime:      at(time.Hour),
				Secrets: [2]decide.Secret{
					{Hash: hashOf(t, newest), End: at(time.Hour)},
					{Hash: hashOf(t, older), End: at(time.Minute)},
				},
			},
			Member:     &decide.Member{Incarnation: "m1", WorkspaceIncarnation: "w1", Role: "admin", Active: true},
			Workspace:  &decide.Workspace{Incarnation: "w1"},
			RoleScopes: scopesOf(scope, "folders:read"),
		},
		expected:    "acme",
		requirement: decide.Requirement{Scope: scope},
		address:     netip.MustParseAddr("192.0.2.7"),
		now:         now,
	}, older
}

// decide runs both functions, as the server does. keyID is what may be told.
func (s *situation) decide() (decision decide.Decision, reason decide.Reason, keyID string) {
	grant, reason := decide.Authenticate(s.presented.Presented(), s.subject, s.expected, s.now)
	keyID = grant.Principal.KeyID
	if reason != decide.NoReason {
		return reason.Decision(), reason, keyID
	}
	decision, reason = decide.Authorize(&grant, s.expected, s.requirement, s.address, s.now)
	return decision, reason, keyID
}

// fault is one reason to refuse a request.
type fault struct {
	name   string
	reason decide.Reason
	// told is set if the answer has the key's id.
	told  bool
	apply func(*testing.T, *situation)
}

// faults lists the faults in the order of the checks (design, section 6). The faults of one
// step have the same reason, so the order among them does not matter.
var faults = []fault{
	// Well-formed.
	{"malformed", decide.KeyInvalid, false, func(_ *testing.T, s *situation) { s.presented = token.Token{} }},
	// Known, and a live secret matches.
	{"unknown id", decide.KeyInvalid, false, func(_ *testing.T, s *situation) { s.subject.Key = nil }},
	{"wrong secret", decide.KeyInvalid, false, func(t *testing.T, s *situation) {
		t.Helper()
		s.edit(func(key *decide.Key) { key.Secrets[0].Hash = hashOf(t, newToken(t)) })
	}},
	{"overlap over", decide.KeyInvalid, false, func(t *testing.T, s *situation) {
		t.Helper()
		s.edit(func(key *decide.Key) {
			key.Secrets[1] = decide.Secret{Hash: key.Secrets[0].Hash, End: at(0)}
			key.Secrets[0].Hash = hashOf(t, newToken(t))
		})
	}},
	{"unknown scheme", decide.KeyInvalid, false, func(_ *testing.T, s *situation) {
		s.edit(func(key *decide.Key) { key.Secrets[0].Hash.Scheme = 77 })
	}},
	{"no scheme", decide.KeyInvalid, false, func(_ *testing.T, s *situation) {
		s.edit(func(key *decide.Key) { key.Secrets[0].Hash.Scheme = 0 })
	}},
	// In the expected workspace.
	{"other workspace", decide.KeyInvalid, false, func(_ *testing.T, s *situation) { s.expected = "globex" }},
	// Not revoked, member and workspace not removed, same incarnation.
	{"revoked", decide.KeyRevoked, true, func(_ *testing.T, s *situation) {
		s.edit(func(key *decide.Key) { key.Revoked = true })
	}},
	{"workspace gone", decide.KeyRevoked, true, func(_ *testing.T, s *situation) { s.subject.Workspace = nil }},
	{"workspace removed", decide.KeyRevoked, true, func(_ *testing.T, s *situation) {
		s.editWorkspace(func(workspace *decide.Workspace) { workspace.Removed = true })
	}},
	{"workspace removed and added again", decide.KeyRevoked, true, func(_ *testing.T, s *situation) {
		s.editWorkspace(func(workspace *decide.Workspace) { workspace.Incarnation = "w2" })
	}},
	{"member gone", decide.KeyRevoked, true, func(_ *testing.T, s *situation) { s.subject.Member = nil }},
	{"member removed", decide.KeyRevoked, true, func(_ *testing.T, s *situation) {
		s.editMember(func(member *decide.Member) { member.Removed = true })
	}},
	{"member removed and added again", decide.KeyRevoked, true, func(_ *testing.T, s *situation) {
		s.editMember(func(member *decide.Member) { member.Incarnation = "m2" })
	}},
	{"member of a former workspace", decide.KeyRevoked, true, func(_ *testing.T, s *situation) {
		s.editMember(func(member *decide.Member) { member.WorkspaceIncarnation = "w0" })
	}},
	// Not expired.
	{"expired", decide.KeyExpired, true, func(_ *testing.T, s *situation) {
		s.edit(func(key *decide.Key) { key.ExpireTime, key.Secrets[0].End = at(0), at(0) })
	}},
	// Not held.
	{"held", decide.KeyHeld, true, func(_ *testing.T, s *situation) {
		s.edit(func(key *decide.Key) { key.Held = true })
	}},
	// Member active.
	{"member inactive", decide.MemberInactive, true, func(_ *testing.T, s *situation) {
		s.editMember(func(member *decide.Member) { member.Active = false })
	}},
	// Address.
	{"address elsewhere", decide.AddressNotAllowed, true, func(_ *testing.T, s *situation) {
		s.address = netip.MustParseAddr("198.51.100.1")
	}},
	{"no address", decide.AddressNotAllowed, true, func(_ *testing.T, s *situation) { s.address = netip.Addr{} }},
	// Granted to the key.
	{"scope not granted", decide.ScopeNotGranted, true, func(_ *testing.T, s *situation) {
		s.edit(func(key *decide.Key) { key.Scopes = decide.NewScopes("emails:read") })
	}},
	{"nothing granted", decide.ScopeNotGranted, true, func(_ *testing.T, s *situation) {
		s.edit(func(key *decide.Key) { key.Scopes = nil })
	}},
	{"nothing required", decide.ScopeNotGranted, true, func(_ *testing.T, s *situation) { s.requirement = decide.Requirement{} }},
	// Within the role.
	{"scope beyond role", decide.ScopeBeyondRole, true, func(_ *testing.T, s *situation) {
		s.subject.RoleScopes = scopesOf("folders:read")
	}},
	{"unknown role", decide.ScopeBeyondRole, true, func(_ *testing.T, s *situation) {
		s.editMember(func(member *decide.Member) { member.Role = "wizard" })
		s.subject.RoleScopes = nil
	}},
}

// scopesOf returns a set of scopes.
func scopesOf(names ...string) *decide.Scopes {
	set := decide.NewScopes(names...)
	return &set
}

// edit changes the key if no other fault has removed it.
func (s *situation) edit(change func(*decide.Key)) {
	if s.subject.Key != nil {
		change(s.subject.Key)
	}
}

func (s *situation) editMember(change func(*decide.Member)) {
	if s.subject.Member != nil {
		change(s.subject.Member)
	}
}

func (s *situation) editWorkspace(change func(*decide.Workspace)) {
	if s.subject.Workspace != nil {
		change(s.subject.Workspace)
	}
}

// TestEachFaultAloneHasItsReason applies each fault alone to a situation that is allowed.
func TestEachFaultAloneHasItsReason(t *testing.T) {
	s, _ := allowed(t)
	if decision, reason, told := s.decide(); decision != decide.Allowed || reason != decide.NoReason || told != keyID {
		t.Fatalf("without a fault: got %v, %v, %q", decision, reason, told)
	}
	covered := make(map[decide.Reason]bool)
	for _, fault := range faults {
		covered[fault.reason] = true
		t.Run(fault.name, func(t *testing.T) {
			s, _ := allowed(t)
			fault.apply(t, &s)
			fault.expect(t, &s)
		})
	}
	for reason := decide.KeyInvalid; reason <= decide.ScopeBeyondRole; reason++ {
		if !covered[reason] {
			t.Errorf("no fault for reason %d", reason)
		}
	}
}

// TestOfTwoFaultsTheEarlierCheckDecides applies every pair of faults, in both orders. The reason is that
// of the fault that is earlier in the list.
func TestOfTwoFaultsTheEarlierCheckDecides(t *testing.T) {
	for first := range faults {
		for second := range faults {
			if first == second {
				continue
			}
			t.Run(faults[first].name+", then "+faults[second].name, func(t *testing.T) {
				s, _ := allowed(t)
				faults[first].apply(t, &s)
				faults[second].apply(t, &s)
				faults[min(first, second)].expect(t, &s)
			})
		}
	}
}

func (f *fault) expect(t *testing.T, s *situation) {
	t.Helper()
	decision, reason, told := s.decide()
	if reason != f.reason || decision != f.reason.Decision() || decision == decide.Allowed {
		t.Errorf("got decision %d, reason %d; want reason %d", decision, reason, f.reason)
	}
	want := ""
	if f.told {
		want = keyID
	}
	if told != want {
		t.Errorf("key id: got %q, want %q", told, want)
	}
	// Nothing but the id is told of a key whose token is refused.
	grant, refused := decide.Authenticate(s.presented.Presented(), s.subject, s.expected, s.now)
	if refused != decide.NoReason {
		grant.Principal.KeyID = ""
		if grant.Principal != (decide.Principal{}) || grant.Granted != nil || grant.Role != nil ||
			grant.AllowedPrefixes != nil || grant.HoldsUntil != 0 {
			t.Errorf("a refusal came with a grant: %+v", grant)
		}
	}
}

// TestOfTwoFaultsOfAKeptGrantTheEarlierCheckDecides does the same with a grant that a near-cache kept. There,
// the expiry is checked before the workspace.
func TestOfTwoFaultsOfAKeptGrantTheEarlierCheckDecides(t *testing.T) {
	type kept struct {
		grant       decide.Grant
		expected    string
		requirement decide.Requirement
		address     netip.Addr
		now         time.Time
	}
	ordered := []struct {
		name   string
		reason decide.Reason
		apply  func(*kept)
	}{
		{"held until now", decide.KeyExpired, func(k *kept) { k.now = now.Add(time.Hour) }},
		{"other workspace", decide.KeyInvalid, func(k *kept) { k.expected = "globex" }},
		{"address", decide.AddressNotAllowed, func(k *kept) { k.address = netip.Addr{} }},
		{"not granted", decide.ScopeNotGranted, func(k *kept) { k.grant.Granted = nil }},
		{"beyond role", decide.ScopeBeyondRole, func(k *kept) { k.grant.Role = nil }},
	}
	fresh := func(t *testing.T) *kept {
		t.Helper()
		s, _ := allowed(t)
		grant, reason := decide.Authenticate(s.presented.Presented(), s.subject, s.expected, s.now)
		if reason != decide.NoReason {
			t.Fatalf("got reason %d", reason)
		}
		return &kept{grant, s.expected, s.requirement, s.address, s.now}
	}
	check := func(t *testing.T, k *kept, want decide.Reason) {
		t.Helper()
		decision, reason := decide.Authorize(&k.grant, k.expected, k.requirement, k.address, k.now)
		if reason != want || (decision == decide.Allowed) != (want == decide.NoReason) {
			t.Errorf("got decision %d, reason %d; want reason %d", decision, reason, want)
		}
	}
	check(t, fresh(t), decide.NoReason)
	for first := range ordered {
		for second := first; second < len(ordered); second++ {
			t.Run(ordered[first].name+" and "+ordered[second].name, func(t *testing.T) {
				k := fresh(t)
				ordered[first].apply(k)
				ordered[second].apply(k)
				check(t, k, ordered[first].reason)
			})
		}
	}
}

func TestZeroValuesDeny(t *testing.T) {
	grant := func(t *testing.T) decide.Grant {
		t.Helper()
		s, _ := allowed(t)
		s.subject.Key.AllowedPrefixes = nil
		grant, _ := decide.Authenticate(s.presented.Presented(), s.subject, s.expected, s.now)
		return grant
	}
	identity := decide.Requirement{IdentityOnly: true}
	authorize := func(name string, grant decide.Grant, requirement decide.Requirement, now time.Time) {
		t.Run(name, func(t *testing.T) {
			if decision, reason := decide.Authorize(&grant, "", requirement, netip.Addr{}, now); decision == decide.Allowed || reason == decide.NoReason {
				t.Errorf("got decision %d, reason %d", decision, reason)
			}
		})
	}
	authorize("Grant", decide.Grant{}, identity, now)
	authorize("Grant in 1970", decide.Grant{}, identity, time.Unix(0, 0))
	authorize("Grant in 1969", decide.Grant{}, identity, time.Unix(-1, 0))
	authorize("Grant and time", decide.Grant{}, identity, time.Time{})
	authorize("time", grant(t), identity, time.Time{})
	authorize("time beyond what nanoseconds can tell", grant(t), identity, time.Date(2263, 1, 1, 0, 0, 0, 0, time.UTC))
	authorize("Requirement", grant(t), decide.Requirement{}, now)
	unnamed := grant(t)
	unnamed.Granted, unnamed.Role = decide.NewScopes("", scope), decide.NewScopes("", scope)
	authorize("Requirement, with an unnamed scope granted", unnamed, decide.Requirement{}, now)

	authenticate := func(name string, presented token.Token, subject decide.Subject, now time.Time) {
		t.Run(name, func(t *testing.T) {
			if grant, reason := decide.Authenticate(presented.Presented(), subject, "", now); reason == decide.NoReason || grant.HoldsUntil != 0 {
				t.Errorf("got reason %d, %+v", reason, grant)
			}
		})
	}
	s, _ := allowed(t)
	authenticate("Subject", s.presented, decide.Subject{}, now)
	authenticate("Token and Subject", token.Token{}, decide.Subject{}, now)
	authenticate("Token", token.Token{}, s.subject, now)
	authenticate("Key", s.presented, decide.Subject{Key: &decide.Key{}, Member: s.subject.Member, Workspace: s.subject.Workspace}, now)
	authenticate("Token and Key", token.Token{}, decide.Subject{Key: &decide.Key{}, Member: &decide.Member{Active: true}, Workspace: &decide.Workspace{}}, now)
	authenticate("Member", s.presented, decide.Subject{Key: s.subject.Key, Member: &decide.Member{}, Workspace: s.subject.Workspace}, now)
	authenticate("Workspace", s.presented, decide.Subject{Key: s.subject.Key, Member: s.subject.Member, Workspace: &decide.Workspace{}}, now)
	authenticate("time of authenticating", s.presented, s.subject, time.Time{})
	// All that a record of a member without any field would be.
	bare := *s.subject.Key
	bare.WorkspaceIncarnation, bare.MemberIncarnation = "", ""
	authenticate("Member and Workspace", s.presented, decide.Subject{Key: &bare, Member: &decide.Member{}, Workspace: &decide.Workspace{}}, now)

	if decision := decide.NoReason.Decision(); decision != decide.Unspecified {
		t.Errorf("NoReason: got decision %d", decision)
	}
	if decision := decide.Reason(200).Decision(); decision == decide.Allowed {
		t.Errorf("a reason of the future: got decision %d", decision)
	}
}

// TestSecretsEndAtTheNanosecond: a secret does not match at the nanosecond of its end any more.
func TestSecretsEndAtTheNanosecond(t *testing.T) {
	const tick = time.Nanosecond
	for _, test := range []struct {
		name      string
		older     bool // present the older secret
		expires   time.Duration
		olderEnds time.Duration
		reason    decide.Reason
		holds     time.Duration // how long the grant holds
	}{
		{"newest, long before its end", false, time.Hour, -time.Hour, decide.NoReason, time.Hour},
		{"newest, just before its end", false, tick, time.Minute, decide.NoReason, tick},
		{"newest, at its end", false, 0, time.Minute, decide.KeyExpired, 0},
		{"newest, after its end", false, -tick, time.Minute, decide.KeyExpired, 0},
		{"newest expired while the older would go on", false, -time.Hour, time.Hour, decide.KeyExpired, 0},
		{"older, long before its end", true, time.Hour, time.Minute, decide.NoReason, time.Minute},
		{"older, just before its end", true, time.Hour, tick, decide.NoReason, tick},
		{"older, at its end", true, time.Hour, 0, decide.KeyInvalid, 0},
		{"older, after its end", true, time.Hour, -tick, decide.KeyInvalid, 0},
		{"older ends with the key", true, tick, tick, decide.NoReason, tick},
		{"older would outlive the key", true, time.Minute, time.Hour, decide.NoReason, time.Minute},
		{"older in overlap, key expired", true, 0, time.Hour, decide.KeyExpired, 0},
		{"older over, key expired", true, 0, 0, decide.KeyInvalid, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, older := allowed(t)
			if test.older {
				s.presented = older
			}
			key := s.subject.Key
			key.ExpireTime, key.Secrets[0].End = at(test.expires), at(test.expires)
			key.Secrets[1].End = at(test.olderEnds)
			grant, reason := decide.Authenticate(s.presented.Presented(), s.subject, s.expected, s.now)
			if reason != test.reason {
				t.Fatalf("got reason %d, want %d", reason, test.reason)
			}
			if reason != decide.NoReason {
				return
			}
			if grant.HoldsUntil != at(test.holds) {
				t.Errorf("holds for %s, want %s", time.Duration(grant.HoldsUntil-now.UnixNano()), test.holds)
			}
			last := now.Add(test.holds - tick)
			if decision, reason := decide.Authorize(&grant, s.expected, s.requirement, s.address, last); decision != decide.Allowed {
				t.Errorf("just before it ends: got decision %d, reason %d", decision, reason)
			}
			decision, reason := decide.Authorize(&grant, s.expected, s.requirement, s.address, now.Add(test.holds))
			if decision != decide.Unauthenticated || reason != decide.KeyExpired {
				t.Errorf("when it ends: got decision %d, reason %d", decision, reason)
			}
		})
	}
}

func TestOnlyStoredSecretsOfAKnownSchemeMatch(t *testing.T) {
	check := func(t *testing.T, s *situation, want decide.Reason) {
		t.Helper()
		if _, reason, _ := s.decide(); reason != want {
			t.Errorf("got reason %d, want %d", reason, want)
		}
	}
	t.Run("the older one in a scheme of its own", func(t *testing.T) {
		s, older := allowed(t)
		s.subject.Key.Secrets[0].Hash.Scheme = 77 // a later version's
		check(t, &s, decide.KeyInvalid)
		s.presented = older
		check(t, &s, decide.NoReason)
	})
	t.Run("the older one in an unknown scheme", func(t *testing.T) {
		s, older := allowed(t)
		s.subject.Key.Secrets[1].Hash.Scheme = 77
		check(t, &s, decide.NoReason)
		s.presented = older
		check(t, &s, decide.KeyInvalid)
	})
	t.Run("no older secret", func(t *testing.T) {
		s, older := allowed(t)
		s.subject.Key.Secrets[1] = decide.Secret{End: at(time.Hour)}
		check(t, &s, decide.NoReason)
		s.presented = older
		check(t, &s, decide.KeyInvalid)
		s.presented = token.Token{}
		check(t, &s, decide.KeyInvalid)
	})
	t.Run("none at all", func(t *testing.T) {
		s, _ := allowed(t)
		s.subject.Key.Secrets = [2]decide.Secret{{End: at(time.Hour)}, {End: at(time.Hour)}}
		check(t, &s, decide.KeyInvalid)
		s.presented = token.Token{}
		check(t, &s, decide.KeyInvalid)
	})
	t.Run("both the same", func(t *testing.T) {
		s, _ := allowed(t)
		s.subject.Key.Secrets[1] = s.subject.Key.Secrets[0]
		s.subject.Key.Secrets[1].End = at(-time.Hour)
		check(t, &s, decide.NoReason)
	})
	t.Run("the same secret under another prefix", func(t *testing.T) {
		// The hash covers the prefix, so a token that was moved is another one.
		s, _ := allowed(t)
		moved, err := token.New("acme", keyID, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		s.presented = moved
		check(t, &s, decide.KeyInvalid)
	})
}

func TestOtherWorkspacesKeyIsInvalid(t *testing.T) {
	for _, test := range []struct {
		expected string
		reason   decide.Reason
	}{
		{"acme", decide.NoReason},
		{"", decide.NoReason}, // any
		{"Acme", decide.KeyInvalid},
		{"acm", decide.KeyInvalid},
		{"acme2", decide.KeyInvalid},
		{" ", decide.KeyInvalid},
	} {
		t.Run(fmt.Sprintf("%q", test.expected), func(t *testing.T) {
			s, _ := allowed(t)
			s.expected = test.expected
			if _, reason, _ := s.decide(); reason != test.reason {
				t.Errorf("got reason %d, want %d", reason, test.reason)
			}
			// Authorize checks the workspace again, because a near-cache keeps the grant.
			s.expected = ""
			grant, _ := decide.Authenticate(s.presented.Presented(), s.subject, "", s.now)
			if _, reason := decide.Authorize(&grant, test.expected, s.requirement, s.address, s.now); reason != test.reason {
				t.Errorf("kept: got reason %d, want %d", reason, test.reason)
			}
		})
	}
	t.Run("a key of no workspace", func(t *testing.T) {
		s, _ := allowed(t)
		s.subject.Key.Workspace = ""
		if _, reason, told := s.decide(); reason != decide.KeyInvalid || told != "" {
			t.Errorf("got reason %d, key id %q", reason, told)
		}
	})
}

func TestAddressMustLieInAPrefix(t *testing.T) {
	const none = "" // the address is not known
	for _, test := range []struct {
		prefixes string
		address  string
		allowed  bool
	}{
		{"", none, true}, // no rule
		{"", "192.0.2.1", true},
		{"192.0.2.0/24", none, false},
		{"192.0.2.0/24", "192.0.2.0", true},
		{"192.0.2.0/24", "192.0.2.255", true},
		{"192.0.2.0/24", "192.0.3.0", false},
		{"192.0.2.0/24", "192.0.1.255", false},
		{"192.0.2.1/32", "192.0.2.1", true},
		{"192.0.2.1/32", "192.0.2.2", false},
		{"0.0.0.0/0", "203.0.113.9", true},
		{"0.0.0.0/0", none, false},
		{"0.0.0.0/0", "2001:db8::1", false},
		// An IPv4 address that came through an IPv6 socket is still that address.
		{"192.0.2.0/24", "::ffff:192.0.2.7", true},
		{"192.0.2.0/24", "::ffff:198.51.100.7", false},
		{"0.0.0.0/0", "::ffff:198.51.100.7", true},
		// It is not in any IPv6 prefix.
		{"::/0", "::ffff:192.0.2.7", false},
		{"::/0", "192.0.2.7", false},
		// The old compatible form is an IPv6 address like any other.
		{"192.0.2.0/24", "::192.0.2.7", false},
		{"2001:db8::/32", "2001:db8::1", true},
		{"2001:db8::/32", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", true},
		{"2001:db8::/32", "2001:db9::", false},
		{"2001:db8::1/128", "2001:db8::1", true},
		{"2001:db8::1/128", "2001:db8::2", false},
		{"::/0", "2001:db8::1", true},
		{"::/0", none, false},
		// A zone names a network interface, not a host.
		{"fe80::/10", "fe80::1%eth0", true},
		{"fe80::/10", "fe80::1", true},
		{"fe80::/10", "2001:db8::1%eth0", false},
		{"192.0.2.0/24", "::ffff:192.0.2.7%eth0", true},
		// Any one of several will do.
		{"192.0.2.0/24 2001:db8::/32", "2001:db8::1", true},
		{"192.0.2.0/24 2001:db8::/32", "192.0.2.1", true},
		{"192.0.2.0/24 2001:db8::/32", "198.51.100.1", false},
		// A rule that makes no sense lets nobody in.
		{"invalid", "192.0.2.1", false},
		{"invalid", none, false},
	} {
		t.Run(fmt.Sprintf("%q in %q", test.address, test.prefixes), func(t *testing.T) {
			s, _ := allowed(t)
			s.subject.Key.AllowedPrefixes = nil
			for text := range strings.FieldsSeq(test.prefixes) {
				prefix, _ := netip.ParsePrefix(text) // of "invalid" the zero Prefix
				s.subject.Key.AllowedPrefixes = append(s.subject.Key.AllowedPrefixes, prefix)
			}
			s.address = netip.Addr{}
			if test.address != none {
				s.address = netip.MustParseAddr(test.address)
			}
			decision, reason, _ := s.decide()
			if test.allowed && decision != decide.Allowed || !test.allowed && reason != decide.AddressNotAllowed {
				t.Errorf("got decision %d, reason %d; want allowed: %t", decision, reason, test.allowed)
			}
		})
	}
}

func TestScopeMustBeGrantedAndWithinTheRole(t *testing.T) {
	for _, test := range []struct {
		name        string
		requirement decide.Requirement
		reason      decide.Reason
	}{
		{"scope", decide.Requirement{Scope: scope}, decide.NoReason},
		{"identity", decide.Requirement{IdentityOnly: true}, decide.NoReason},
		{"neither", decide.Requirement{}, decide.ScopeNotGranted},
		// The API refuses a question with both; here, the scope decides.
		{"both, granted", decide.Requirement{Scope: scope, IdentityOnly: true}, decide.ScopeNotGranted},
		{"both, not granted", decide.Requirement{Scope: "assets:read", IdentityOnly: true}, decide.ScopeNotGranted},
		{"role alone has it", decide.Requirement{Scope: "folders:read"}, decide.ScopeNotGranted},
		{"key alone has it", decide.Requirement{Scope: "emails:read"}, decide.ScopeBeyondRole},
		{"a wildcard is no scope", decide.Requirement{Scope: "*"}, decide.ScopeNotGranted},
		{"write does not imply read", decide.Requirement{Scope: "signatures:write"}, decide.ScopeNotGranted},
		{"prefix of a scope", decide.Requirement{Scope: "signatures:rea"}, decide.ScopeNotGranted},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, _ := allowed(t)
			s.requirement = test.requirement
			if _, reason, _ := s.decide(); reason != test.reason {
				t.Errorf("got reason %d, want %d", reason, test.reason)
			}
		})
	}
	t.Run("identity of a member without any scope", func(t *testing.T) {
		s, _ := allowed(t)
		s.requirement = decide.Requirement{IdentityOnly: true}
		s.subject.RoleScopes, s.subject.Key.Scopes = nil, nil
		if decision, _, _ := s.decide(); decision != decide.Allowed {
			t.Errorf("got decision %d", decision)
		}
	})
}

func TestGrantOfANearCacheDecidesAlike(t *testing.T) {
	s, _ := allowed(t)
	grant, _ := decide.Authenticate(s.presented.Presented(), s.subject, s.expected, s.now)
	if want := (decide.Principal{KeyID: keyID, WorkspaceID: "acme", MemberID: "ann", Role: "admin"}); grant.Principal != want {
		t.Errorf("principal: got %+v, want %+v", grant.Principal, want)
	}
	if got := grant.Effective(); !slices.Equal(got, decide.Scopes{scope}) {
		t.Errorf("effective scopes: got %q", got)
	}
	if !slices.Equal(grant.AllowedPrefixes, s.subject.Key.AllowedPrefixes) {
		t.Errorf("prefixes: got %v", grant.AllowedPrefixes)
	}
	// What a near-cache knows is enough to decide alike.
	cached := grant
	cached.Granted, cached.Role = grant.Effective(), grant.Effective()
	for _, asked := range []string{scope, "emails:read", "folders:read", ""} {
		requirement := decide.Requirement{Scope: asked}
		here, _ := decide.Authorize(&grant, "", requirement, s.address, now)
		there, _ := decide.Authorize(&cached, "", requirement, s.address, now)
		if here != there {
			t.Errorf("scope %q: decision %d here, %d from a cache", asked, here, there)
		}
	}
}

func TestScopesAreASortedSet(t *testing.T) {
	names := []string{"c:x", "a:x", "b:x", "a:x"}
	set := decide.NewScopes(names...)
	if want := (decide.Scopes{"a:x", "b:x", "c:x"}); !slices.Equal(set, want) {
		t.Errorf("got %q, want %q", set, want)
	}
	if names[0] != "c:x" {
		t.Error("NewScopes changed what it was given")
	}
	other := decide.NewScopes("b:x", "c:x", "d:x")
	if got := set.Intersect(other); !slices.Equal(got, decide.Scopes{"b:x", "c:x"}) {
		t.Errorf("Intersect: got %q", got)
	}
	if got := set.Without(other); !slices.Equal(got, decide.Scopes{"a:x"}) {
		t.Errorf("Without: got %q", got)
	}
	if got := set.Intersect(nil); len(got) != 0 {
		t.Errorf("Intersect with none: got %q", got)
	}
	if decide.Scopes(nil).Contains("") || set.Contains("") || set.Contains("a:") || !set.Contains("b:x") {
		t.Error("Contains is wrong")
	}
}

// TestNumbersAreThoseOfTheAPI, because the service converts decisions and reasons by number.
func TestNumbersAreThoseOfTheAPI(t *testing.T) {
	decisions := map[string]decide.Decision{
		"DECISION_UNSPECIFIED": decide.Unspecified, "DECISION_ALLOWED": decide.Allowed,
		"DECISION_UNAUTHENTICATED": decide.Unauthenticated, "DECISION_PERMISSION_DENIED": decide.PermissionDenied,
	}
	compareNumbers(t, keysvcv1.Decision_value, decisions)
	reasons := map[string]decide.Reason{
		"REASON_UNSPECIFIED": decide.NoReason, "REASON_KEY_INVALID": decide.KeyInvalid, "REASON_KEY_REVOKED": decide.KeyRevoked,
		"REASON_KEY_EXPIRED": decide.KeyExpired, "REASON_MEMBER_INACTIVE": decide.MemberInactive,
		"REASON_ADDRESS_NOT_ALLOWED": decide.AddressNotAllowed, "REASON_SCOPE_NOT_GRANTED": decide.ScopeNotGranted,
		"REASON_SCOPE_BEYOND_ROLE": decide.ScopeBeyondRole, "REASON_KEY_HELD": decide.KeyHeld,
	}
	compareNumbers(t, keysvcv1.Reason_value, reasons)
	for name, want := range map[decide.Reason]decide.Decision{
		decide.NoReason:   decide.Unspecified,
		decide.KeyInvalid: decide.Unauthenticated, decide.KeyRevoked: decide.Unauthenticated,
		decide.KeyExpired: decide.Unauthenticated, decide.KeyHeld: decide.Unauthenticated, decide.MemberInactive: decide.Unauthenticated,
		decide.AddressNotAllowed: decide.PermissionDenied, decide.ScopeNotGranted: decide.PermissionDenied,
		decide.ScopeBeyondRole: decide.PermissionDenied,
	} {
		if got := name.Decision(); got != want {
			t.Errorf("reason %d: got decision %d, want %d", name, got, want)
		}
	}
}

func compareNumbers[Number ~uint8](t *testing.T, api map[string]int32, here map[string]Number) {
	t.Helper()
	if len(api) != len(here) {
		t.Errorf("the API has %d values, the test %d", len(api), len(here))
	}
	for name, number := range here {
		if want, found := api[name]; !found || int32(number) != want {
			t.Errorf("%s: %d here, %d in the API (there: %t)", name, number, want, found)
		}
	}
}

// TestDecidingAllocatesNothing, for hits and for misses: hostile traffic consists of misses.
func TestDecidingAllocatesNothing(t *testing.T) {
	hit, older := allowed(t)
	missing, wrong, malformed, overlap := hit, hit, hit, hit
	missing.subject = decide.Subject{}
	wrong.presented = newToken(t)
	malformed.presented, malformed.subject = token.Token{}, decide.Subject{}
	overlap.presented = older
	for name, s := range map[string]*situation{
		"hit": &hit, "older secret": &overlap, "unknown id": &missing, "wrong secret": &wrong, "malformed": &malformed,
	} {
		t.Run(name, func(t *testing.T) {
			if allocations := testing.AllocsPerRun(1000, func() { s.decide() }); allocations != 0 {
				t.Errorf("%v allocations", allocations)
			}
		})
	}
}

func BenchmarkDecide(b *testing.B) {
	hit, older := allowed(b)
	missing, wrong, overlap := hit, hit, hit
	missing.subject = decide.Subject{}
	wrong.presented = newToken(b)
	overlap.presented = older
	for _, test := range []struct {
		name string
		of   *situation
		want decide.Reason
	}{
		{"hit", &hit, decide.NoReason},
		{"older secret", &overlap, decide.NoReason},
		{"miss", &missing, decide.KeyInvalid},
		{"wrong secret", &wrong, decide.KeyInvalid},
	} {
		b.Run(test.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, reason, _ := test.of.decide(); reason != test.want {
					b.Fatalf("got reason %d", reason)
				}
			}
		})
	}
	b.Run("kept grant", func(b *testing.B) {
		b.ReportAllocs()
		grant, _ := decide.Authenticate(hit.presented.Presented(), hit.subject, hit.expected, now)
		for b.Loop() {
			if decision, _ := decide.Authorize(&grant, hit.expected, hit.requirement, hit.address, now); decision != decide.Allowed {
				b.Fatalf("got decision %d", decision)
			}
		}
	})
}
