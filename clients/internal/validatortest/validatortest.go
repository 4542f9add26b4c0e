package validatortest

import (
	"context"
	"crypto/rand"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/token"
)

// patience bounds every wait. Only a wait that hangs reaches it.
const patience = 20 * time.Second

// The scopes that the suite asks for; Roles has the roles that have them.
const (
	scopeRead    = "signatures:read"
	scopeWrite   = "signatures:write"
	scopeFinance = "financial_documents:read"
)

const (
	workspace = "acme"
	member    = "ann"
)

// Run runs the suite. newBackend returns a new Backend for each test.
func Run(t *testing.T, newBackend func(t *testing.T) Backend) {
	t.Helper()
	for _, test := range []struct {
		name string
		run  func(*testing.T, *suite)
	}{
		{"a granted scope is allowed", testAllowed},
		{"text that is no valid token is refused", testInvalidTokens},
		{"keys of other workspaces are unknown", testWorkspace},
		{"scopes that were not granted are refused", testScopeNotGranted},
		{"scopes beyond the role are refused", testRole},
		{"identity only needs no scope", testIdentityOnly},
		{"all of several scopes are needed", testAllOf},
		{"one of several scopes is enough", testAnyOf},
		{"details are given to who asks for them", testDetails},
		{"keys of suspended members are refused", testSuspended},
		{"keys of removed members are refused for good", testRemoved},
		{"revoked keys are refused", testRevoked},
		{"expired keys are refused", testExpired},
		{"old secrets work until their overlap ends", testRotated},
		{"address rules are applied", testAddresses},
		{"wrong questions are errors", testAskedWrongly},
		{"the end of the context is returned", testContextEnded},
		{"concurrent questions are answered", testConcurrent},
		{"a watch ends when its key is refused", testWatch},
		{"a watch ends with its context", testWatchContext},
	} {
		t.Run(test.name, func(t *testing.T) {
			backend := newBackend(t)
			test.run(t, &suite{Backend: backend, validator: backend.Validator()})
		})
	}
}

type suite struct {
	Backend
	validator keyauth.Validator
}

// key creates a key of the one member, who becomes an owner.
func (s *suite) key(t *testing.T, scopes ...string) (keyID, text string) {
	t.Helper()
	s.PutMember(t, workspace, member, "owner")
	return s.CreateKey(t, Key{WorkspaceID: workspace, MemberID: member, Scopes: scopes})
}

// ask asks for an answer.
func (s *suite) ask(t *testing.T, question keyauth.Question) keyauth.Answer {
	t.Helper()
	answer, err := s.validator.Validate(t.Context(), question)
	if err != nil {
		t.Fatalf("error instead of an answer: %v", err)
	}
	return answer
}

// allowed asks, and fails unless the answer is ALLOWED with the principal.
func (s *suite) allowed(t *testing.T, question keyauth.Question, want keyauth.Principal) {
	t.Helper()
	answer := s.ask(t, question)
	if answer.Decision != keysvcv1.Decision_DECISION_ALLOWED || answer.Reason != keysvcv1.Reason_REASON_UNSPECIFIED {
		t.Fatalf("answered %v, %v; want ALLOWED", answer.Decision, answer.Reason)
	}
	if answer.Principal == nil || !reflect.DeepEqual(*answer.Principal, want) {
		t.Fatalf("principal %+v, want %+v", answer.Principal, want)
	}
	if answer.KeyID != want.KeyID {
		t.Fatalf("key id %q, want %q", answer.KeyID, want.KeyID)
	}
}

// refused asks, and fails unless the answer is a refusal with the reason. keyID is the key that
// the answer must name; empty if it must name none.
func (s *suite) refused(t *testing.T, question keyauth.Question, want keysvcv1.Reason, keyID string) {
	t.Helper()
	checkRefused(t, s.ask(t, question), want, keyID)
}

func checkRefused(t *testing.T, answer keyauth.Answer, want keysvcv1.Reason, keyID string) {
	t.Helper()
	decision := keysvcv1.Decision_DECISION_UNAUTHENTICATED
	switch want { // every other reason belongs to UNAUTHENTICATED
	case keysvcv1.Reason_REASON_ADDRESS_NOT_ALLOWED, keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED, keysvcv1.Reason_REASON_SCOPE_BEYOND_ROLE:
		decision = keysvcv1.Decision_DECISION_PERMISSION_DENIED
	}
	if answer.Decision != decision || answer.Reason != want {
		t.Fatalf("answered %v, %v; want %v, %v", answer.Decision, answer.Reason, decision, want)
	}
	if answer.Principal != nil {
		t.Fatalf("a refusal with a principal: %+v", answer.Principal)
	}
	if answer.KeyID != keyID {
		t.Fatalf("key id %q, want %q", answer.KeyID, keyID)
	}
}

// unanswered asks, and fails unless there is an error instead of an answer, without the token.
func (s *suite) unanswered(t *testing.T, ctx context.Context, question keyauth.Question) error {
	t.Helper()
	answer, err := s.validator.Validate(ctx, question)
	if err == nil {
		t.Fatalf("answered %v, %v; want an error", answer.Decision, answer.Reason)
	}
	if !reflect.DeepEqual(answer, keyauth.Answer{}) {
		t.Fatalf("an error with an answer: %+v", answer)
	}
	if question.Token != "" && strings.Contains(err.Error(), question.Token) {
		t.Fatal("the error holds the token")
	}
	return err
}

// principal returns the identity that a key of the one member acts as.
func principal(keyID, role string) keyauth.Principal {
	return keyauth.Principal{KeyID: keyID, WorkspaceID: workspace, MemberID: member, Role: role}
}

// reading returns the question whether a token may read.
func reading(text string) keyauth.Question {
	return keyauth.Question{Token: text, Requirement: keyauth.Scope(scopeRead)}
}

func testAllowed(t *testing.T, s *suite) {
	keyID, text := s.key(t, scopeRead, scopeWrite)
	for range 3 { // an answer that is kept must do for the next questions, too
		s.allowed(t, reading(text), principal(keyID, "owner"))
		s.allowed(t, keyauth.Question{Token: text, Requirement: keyauth.Scope(scopeWrite)}, principal(keyID, "owner"))
	}
}

func testInvalidTokens(t *testing.T, s *suite) {
	_, text := s.key(t, scopeRead)
	parsed, err := token.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	wrongSecret, err := token.New(parsed.Prefix(), parsed.ID(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	unknownID, err := token.NewID(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	unknown, err := token.New(parsed.Prefix(), unknownID, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, text string
		// stays is set if the token must not leave the process.
		stays bool
	}{
		{name: "empty", text: ""},
		{name: "a word", text: "swordfish"},
		{name: "unknown id", text: unknown.Reveal()},
		{name: "wrong secret", text: wrongSecret.Reveal()},
		{name: "cut off", text: text[:len(text)-1], stays: true},
		{name: "a character too many", text: text + "0", stays: true},
		{name: "wrong checksum", text: text[:len(text)-1] + other(text[len(text)-1]), stays: true},
		{name: "other case", text: strings.ToUpper(text[:1]) + text[1:], stays: true},
		{name: "with its scheme", text: "Bearer " + text, stays: true},
		{name: "space at the end", text: text + " ", stays: true},
		{name: "line break at the end", text: text + "\n", stays: true},
		{name: "zero byte", text: text + "\x00", stays: true},
		{name: "twice", text: text + "," + text, stays: true},
		{name: "bytes that are no text", text: "\xff\xfe\x00"},
		{name: "overlong", text: strings.Repeat("x", 10_000)},
		{name: "overlong with the mark", text: strings.Repeat("x_ksk1_", 2_000), stays: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			counter, counts := s.Backend.(Counter)
			before := 0
			if counts {
				before = counter.Calls()
			}
			for range 2 {
				s.refused(t, reading(test.text), keysvcv1.Reason_REASON_KEY_INVALID, "")
			}
			if counts && test.stays && counter.Calls() != before {
				t.Fatal("it left the process")
			}
		})
	}
}

func testWorkspace(t *testing.T, s *suite) {
	keyID, text := s.key(t, scopeRead)
	s.PutMember(t, "umbrella", "uma", "owner")
	otherID, otherText := s.CreateKey(t, Key{WorkspaceID: "umbrella", MemberID: "uma", Scopes: []string{scopeRead}})

	question := reading(text)
	question.WorkspaceID = workspace
	s.allowed(t, question, principal(keyID, "owner"))
	s.allowed(t, reading(otherText), keyauth.Principal{KeyID: otherID, WorkspaceID: "umbrella", MemberID: "uma", Role: "owner"})
	for _, elsewhere := range []string{"umbrella", "nowhere"} {
		question.WorkspaceID = elsewhere
		s.refused(t, question, keysvcv1.Reason_REASON_KEY_INVALID, "")
	}
	question = reading(otherText)
	question.WorkspaceID = workspace
	s.refused(t, question, keysvcv1.Reason_REASON_KEY_INVALID, "")
	// A refusal for one question does not refuse another one.
	s.allowed(t, reading(text), principal(keyID, "owner"))
}

func testScopeNotGranted(t *testing.T, s *suite) {
	keyID, text := s.key(t, scopeWrite)
	s.refused(t, reading(text), keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED, keyID) // write does not imply read
	s.allowed(t, keyauth.Question{Token: text, Requirement: keyauth.Scope(scopeWrite)}, principal(keyID, "owner"))
	s.refused(t, reading(text), keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED, keyID)
}

func testRole(t *testing.T, s *suite) {
	keyID, text := s.key(t, scopeFinance, scopeRead)
	finance := keyauth.Question{Token: text, Requirement: keyauth.Scope(scopeFinance)}
	s.allowed(t, finance, principal(keyID, "owner"))

	s.PutMember(t, workspace, member, "manager")
	s.refused(t, finance, keysvcv1.Reason_REASON_SCOPE_BEYOND_ROLE, keyID)
	s.allowed(t, reading(text), principal(keyID, "manager"))

	s.PutMember(t, workspace, member, "member")
	s.refused(t, reading(text), keysvcv1.Reason_REASON_SCOPE_BEYOND_ROLE, keyID)

	s.PutMember(t, workspace, member, "owner")
	s.allowed(t, finance, principal(keyID, "owner"))
}

func testIdentityOnly(t *testing.T, s *suite) {
	keyID, text := s.key(t, scopeRead)
	question := keyauth.Question{Token: text, Requirement: keyauth.IdentityOnly()}
	s.allowed(t, question, principal(keyID, "owner"))
	s.PutMember(t, workspace, member, "member")
	s.allowed(t, question, principal(keyID, "member"))
	s.RevokeKey(t, workspace, keyID)
	s.refused(t, question, keysvcv1.Reason_REASON_KEY_REVOKED, keyID)
}

// lacks asks, and fails unless the answer is a refusal with the reason and the missing scopes.
func (s *suite) lacks(t *testing.T, question keyauth.Question, want keysvcv1.Reason, keyID string, missing ...string) {
	t.Helper()
	answer := s.ask(t, question)
	checkRefused(t, answer, want, keyID)
	if !slices.Equal(answer.MissingScopes, missing) {
		t.Fatalf("missing scopes %q, want %q", answer.MissingScopes, missing)
	}
}

func testAllOf(t *testing.T, s *suite) {
	const finance = "financial_documents:read"
	keyID, text := s.key(t, scopeRead, finance)
	question := keyauth.Question{Token: text, Requirement: keyauth.AllOf(finance, scopeRead)}
	other := keyauth.Question{Token: text, Requirement: keyauth.AllOf(scopeRead, scopeWrite)}
	s.allowed(t, question, principal(keyID, "owner"))
	s.lacks(t, other, keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED, keyID, scopeWrite)
	s.lacks(t, keyauth.Question{Token: text, Requirement: keyauth.Scope(scopeWrite)}, keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED, keyID, scopeWrite)
	s.allowed(t, question, principal(keyID, "owner"))
	s.PutMember(t, workspace, member, "manager")
	s.lacks(t, question, keysvcv1.Reason_REASON_SCOPE_BEYOND_ROLE, keyID, finance)
	// What was not granted comes before what is beyond the role.
	s.lacks(t, keyauth.Question{Token: text, Requirement: keyauth.AllOf(finance, scopeWrite)}, keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED, keyID, finance, scopeWrite)
	s.unanswered(t, t.Context(), keyauth.Question{Token: text, Requirement: keyauth.AllOf(scopeRead, UnknownScope)})
}

func testAnyOf(t *testing.T, s *suite) {
	const finance = "financial_documents:read"
	keyID, text := s.key(t, finance)
	question := keyauth.Question{Token: text, Requirement: keyauth.AnyOf(scopeWrite, finance)}
	s.allowed(t, question, principal(keyID, "owner"))
	s.lacks(t, keyauth.Question{Token: text, Requirement: keyauth.AnyOf(scopeWrite, scopeRead)}, keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED, keyID, scopeWrite, scopeRead)
	s.allowed(t, question, principal(keyID, "owner"))
	// All of the same scopes is another question.
	s.lacks(t, keyauth.Question{Token: text, Requirement: keyauth.AllOf(scopeWrite, finance)}, keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED, keyID, scopeWrite)
	s.PutMember(t, workspace, member, "manager")
	s.lacks(t, question, keysvcv1.Reason_REASON_SCOPE_BEYOND_ROLE, keyID, scopeWrite, finance)
	s.unanswered(t, t.Context(), keyauth.Question{Token: text, Requirement: keyauth.AnyOf(finance, UnknownScope)})
}

func testDetails(t *testing.T, s *suite) {
	keyID, text := s.key(t, scopeWrite, scopeRead)
	question := keyauth.Question{Token: text, Requirement: keyauth.IdentityOnly(), WithDetails: true}
	for range 2 { // from keysvc, and perhaps from memory
		s.allowed(t, reading(text), principal(keyID, "owner"))
		answer := s.ask(t, question)
		if answer.Principal == nil {
			t.Fatalf("answered %v, %v; want ALLOWED", answer.Decision, answer.Reason)
		}
		if !slices.Equal(answer.Principal.Scopes, []string{scopeRead, scopeWrite}) || answer.Principal.ExpireTime.IsZero() {
			t.Fatalf("principal %+v, want scopes and expire time", answer.Principal)
		}
	}
	s.PutMember(t, workspace, member, "member")
	if answer := s.ask(t, question); answer.Principal == nil || len(answer.Principal.Scopes) != 0 {
		t.Fatalf("principal %+v, want no scopes, because the role has none", answer.Principal)
	}
}

func testSuspended(t *testing.T, s *suite) {
	keyID, text := s.key(t, scopeRead)
	s.allowed(t, reading(text), principal(keyID, "owner"))
	s.SuspendMember(t, workspace, member, "owner")
	s.refused(t, reading(text), keysvcv1.Reason_REASON_MEMBER_INACTIVE, keyID)
	s.PutMember(t, workspace, member, "owner")
	s.allowed(t, reading(text), principal(keyID, "owner"))
}

func testRemoved(t *testing.T, s *suite) {
	keyID, text := s.key(t, scopeRead)
	s.allowed(t, reading(text), principal(keyID, "owner"))
	s.RemoveMember(t, workspace, member)
	s.refused(t, reading(text), keysvcv1.Reason_REASON_KEY_REVOKED, keyID)
	// A member who is added again is another one.
	s.PutMember(t, workspace, member, "owner")
	s.refused(t, reading(text), keysvcv1.Reason_REASON_KEY_REVOKED, keyID)
}

func testRevoked(t *testing.T, s *suite) {
	keyID, text := s.key(t, scopeRead)
	spared, sparedText := s.key(t, scopeRead)
	s.allowed(t, reading(text), principal(keyID, "owner"))
	s.RevokeKey(t, workspace, keyID)
	s.refused(t, reading(text), keysvcv1.Reason_REASON_KEY_REVOKED, keyID)
	// If two reasons apply, the answer has the reason of the key, not of the scope.
	s.refused(t, keyauth.Question{Token: text, Requirement: keyauth.Scope(scopeWrite)}, keysvcv1.Reason_REASON_KEY_REVOKED, keyID)
	s.allowed(t, reading(sparedText), principal(spared, "owner"))
}

func testExpired(t *testing.T, s *suite) {
	s.PutMember(t, workspace, member, "owner")
	keyID, text := s.CreateKey(t, Key{
		WorkspaceID: workspace, MemberID: member, Scopes: []string{scopeRead}, Lifetime: time.Hour,
	})
	s.allowed(t, reading(text), principal(keyID, "owner"))
	s.Advance(time.Hour - time.Second)
	s.allowed(t, reading(text), principal(keyID, "owner"))
	s.Advance(time.Second)
	s.refused(t, reading(text), keysvcv1.Reason_REASON_KEY_EXPIRED, keyID)
}

func testRotated(t *testing.T, s *suite) {
	keyID, first := s.key(t, scopeRead)
	s.allowed(t, reading(first), principal(keyID, "owner"))

	second := s.RotateKey(t, workspace, keyID, time.Hour)
	s.allowed(t, reading(first), principal(keyID, "owner"))
	s.allowed(t, reading(second), principal(keyID, "owner"))
	s.Advance(time.Hour)
	s.refused(t, reading(first), keysvcv1.Reason_REASON_KEY_INVALID, "")
	s.allowed(t, reading(second), principal(keyID, "owner"))

	third := s.RotateKey(t, workspace, keyID, 0)
	s.refused(t, reading(second), keysvcv1.Reason_REASON_KEY_INVALID, "")
	s.allowed(t, reading(third), principal(keyID, "owner"))
}

func testAddresses(t *testing.T, s *suite) {
	s.PutMember(t, workspace, member, "owner")
	keyID, text := s.CreateKey(t, Key{
		WorkspaceID: workspace, MemberID: member, Scopes: []string{scopeRead},
		AllowedCIDRs: []string{"192.0.2.0/24", "2001:db8::/32"},
	})
	for _, test := range []struct {
		address string
		allowed bool
	}{
		{"192.0.2.1", true},
		{"192.0.3.1", false},
		{"::ffff:192.0.2.1", true},
		{"2001:db8::1", true},
		{"2001:db9::1", false},
		{"", false},
	} {
		t.Run(test.address, func(t *testing.T) {
			question := reading(text)
			if test.address != "" {
				question.ClientAddress = netip.MustParseAddr(test.address)
			}
			for range 2 {
				if test.allowed {
					s.allowed(t, question, principal(keyID, "owner"))
				} else {
					s.refused(t, question, keysvcv1.Reason_REASON_ADDRESS_NOT_ALLOWED, keyID)
				}
			}
		})
	}
}

func testAskedWrongly(t *testing.T, s *suite) {
	keyID, text := s.key(t, scopeRead)
	for _, test := range []struct {
		name        string
		requirement keyauth.Requirement
	}{
		{"nothing", keyauth.Requirement{}},
		{"public", keyauth.Public()},
		{"no scope", keyauth.Scope("")},
		{"malformed scope", keyauth.Scope("signatures")},
		{"wildcard", keyauth.Scope("signatures:*")},
		{"unknown scope", keyauth.Scope(UnknownScope)},
	} {
		t.Run(test.name, func(t *testing.T) {
			// The second time, the token may be in memory.
			for range 2 {
				err := s.unanswered(t, t.Context(), keyauth.Question{Token: text, Requirement: test.requirement})
				if code := status.Code(err); code != codes.Internal && code != codes.InvalidArgument {
					t.Fatalf("error %v, want INTERNAL or INVALID_ARGUMENT", err)
				}
				s.allowed(t, reading(text), principal(keyID, "owner"))
			}
		})
	}
}

func testContextEnded(t *testing.T, s *suite) {
	_, text := s.key(t, scopeRead)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.unanswered(t, cancelled, reading(text)); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v, want the context's", err)
	}
	late, cancel := context.WithDeadline(t.Context(), time.Unix(1, 0))
	defer cancel()
	if err := s.unanswered(t, late, reading(text)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error %v, want the context's", err)
	}
}

func testConcurrent(t *testing.T, s *suite) {
	keyID, text := s.key(t, scopeRead)
	revokedID, revokedText := s.key(t, scopeRead)
	want := principal(keyID, "owner")
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			for range 50 {
				answer, err := s.validator.Validate(t.Context(), reading(text))
				if err != nil || answer.Principal == nil || !reflect.DeepEqual(*answer.Principal, want) {
					t.Errorf("answered %+v, %v", answer, err)
				}
				answer, err = s.validator.Validate(t.Context(), reading(revokedText))
				allowed := err == nil && answer.Decision == keysvcv1.Decision_DECISION_ALLOWED
				if revoked := err == nil && answer.Reason == keysvcv1.Reason_REASON_KEY_REVOKED; !allowed && !revoked {
					t.Errorf("answered %+v, %v", answer, err)
				}
			}
		})
	}
	s.RevokeKey(t, workspace, revokedID)
	s.refused(t, reading(revokedText), keysvcv1.Reason_REASON_KEY_REVOKED, revokedID)
	group.Wait()
	s.refused(t, reading(revokedText), keysvcv1.Reason_REASON_KEY_REVOKED, revokedID)
}

// watched is how a watch ended.
type watched struct {
	answer keyauth.Answer
	err    error
}

// watch starts a watch.
func watch(ctx context.Context, watcher keyauth.Watcher, question keyauth.Question) <-chan watched {
	ended := make(chan watched, 1)
	go func() {
		answer, err := watcher.Watch(ctx, question)
		ended <- watched{answer, err}
	}()
	return ended
}

func wait(t *testing.T, ended <-chan watched) watched {
	t.Helper()
	select {
	case result := <-ended:
		return result
	case <-time.After(patience):
		t.Fatal("the watch does not end")
		return watched{}
	}
}

// watcher returns the Validator as a Watcher, and reports whether a Guard would use it as one.
func (s *suite) watcher() (keyauth.Watcher, bool) {
	watcher, watches := s.validator.(keyauth.Watcher)
	if optional, has := s.validator.(interface{ Watches() bool }); has && !optional.Watches() {
		return nil, false
	}
	return watcher, watches
}

func testWatch(t *testing.T, s *suite) {
	watcher, watches := s.watcher()
	if !watches {
		t.Skip("it is no Watcher")
	}
	for _, test := range []struct {
		name   string
		change func(t *testing.T, memberID, keyID string)
		want   keysvcv1.Reason
	}{
		{"revoked", func(t *testing.T, _, keyID string) { s.RevokeKey(t, workspace, keyID) }, keysvcv1.Reason_REASON_KEY_REVOKED},
		{"role", func(t *testing.T, memberID, _ string) { s.PutMember(t, workspace, memberID, "member") }, keysvcv1.Reason_REASON_SCOPE_BEYOND_ROLE},
		{"suspended", func(t *testing.T, memberID, _ string) { s.SuspendMember(t, workspace, memberID, "owner") }, keysvcv1.Reason_REASON_MEMBER_INACTIVE},
		{"removed", func(t *testing.T, memberID, _ string) { s.RemoveMember(t, workspace, memberID) }, keysvcv1.Reason_REASON_KEY_REVOKED},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.PutMember(t, workspace, test.name, "owner")
			s.PutMember(t, workspace, "bystander", "owner")
			keyID, text := s.CreateKey(t, Key{WorkspaceID: workspace, MemberID: test.name, Scopes: []string{scopeRead}})
			otherID, otherText := s.CreateKey(t, Key{WorkspaceID: workspace, MemberID: "bystander", Scopes: []string{scopeRead}})
			concerned := watch(t.Context(), watcher, reading(text))
			spared := watch(t.Context(), watcher, reading(otherText))

			test.change(t, test.name, keyID)
			result := wait(t, concerned)
			if result.err != nil {
				t.Fatal(result.err)
			}
			checkRefused(t, result.answer, test.want, keyID)
			select {
			case result := <-spared:
				t.Fatalf("another key's watch ended, too: %+v", result)
			default:
			}
			// A watch that begins after the change ends at once.
			checkRefused(t, wait(t, watch(t.Context(), watcher, reading(text))).answer, test.want, keyID)

			s.RevokeKey(t, workspace, otherID)
			checkRefused(t, wait(t, spared).answer, keysvcv1.Reason_REASON_KEY_REVOKED, otherID)
		})
	}
	t.Run("asked wrongly", func(t *testing.T) {
		_, text := s.key(t, scopeRead)
		result := wait(t, watch(t.Context(), watcher, keyauth.Question{Token: text}))
		if code := status.Code(result.err); code != codes.Internal && code != codes.InvalidArgument {
			t.Fatalf("ended with %+v, want INTERNAL or INVALID_ARGUMENT", result)
		}
	})
}

func testWatchContext(t *testing.T, s *suite) {
	watcher, watches := s.watcher()
	if !watches {
		t.Skip("it is no Watcher")
	}
	_, text := s.key(t, scopeRead)
	ctx, cancel := context.WithCancel(t.Context())
	ended := watch(ctx, watcher, reading(text))
	cancel()
	if result := wait(t, ended); !errors.Is(result.err, context.Canceled) {
		t.Fatalf("ended with %+v, want the context's error", result)
	}
}

// other returns a base62 digit that is not digit.
func other(digit byte) string {
	if digit == '0' {
		return "1"
	}
	return "0"
}
