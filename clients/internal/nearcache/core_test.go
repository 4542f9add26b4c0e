package nearcache

import (
	"fmt"
	"net/netip"
	"reflect"
	"runtime"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

var start = time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC)

// fixture is a Core with a session and a lease.
type fixture struct {
	*Core
	t   *testing.T
	now time.Time
}

func newFixture(t *testing.T, entries int) *fixture {
	t.Helper()
	f := &fixture{Core: NewCore(entries, 1<<20), t: t, now: start}
	f.Welcome(&keysvcv1.SyncWelcome{Epoch: "e", Revision: 10, Reset_: true, Staleness: durationpb.New(time.Second)})
	f.renew()
	return f
}

// renew gets a lease that begins now.
func (f *fixture) renew() {
	f.t.Helper()
	ping := f.Ping(f.now)
	if !f.Pong(&keysvcv1.SyncPong{Nonce: ping.GetNonce(), Revision: ping.GetRevision()}) {
		f.t.Fatal("the pong was not taken")
	}
}

func question(number int) *keyauth.Question {
	return &keyauth.Question{Token: fmt.Sprint("token", number), Requirement: keyauth.Scope("a:read")}
}

func response(change func(*keysvcv1.Grant)) *keysvcv1.ValidateKeyResponse {
	grant := &keysvcv1.Grant{Scopes: []string{"a:read"}, ValidFor: durationpb.New(time.Hour)}
	if change != nil {
		change(grant)
	}
	return &keysvcv1.ValidateKeyResponse{Revision: 10, Epoch: "e", Grant: grant}
}

func allowedAs(number int) keyauth.Answer {
	return keyauth.Answer{Decision: keysvcv1.Decision_DECISION_ALLOWED, Principal: &keyauth.Principal{
		KeyID: fmt.Sprint("k", number), WorkspaceID: "w", MemberID: "m", Role: "r",
	}}
}

func (f *fixture) keep(number int, change func(*keysvcv1.Grant)) Verdict {
	return f.EndFill(f.BeginFill(f.now), question(number), response(change), allowedAs(number), f.now)
}

func (f *fixture) hits(question *keyauth.Question) bool {
	found, ok := f.Find(question)
	return ok && found.Confirm(f.now)
}

func TestHitNeedsLeaseEntryScopeAndAddress(t *testing.T) {
	f := newFixture(t, 10)
	if f.hits(question(1)) {
		t.Fatal("an empty cache answers")
	}
	if verdict := f.keep(1, nil); verdict != Keep {
		t.Fatalf("verdict %d", verdict)
	}
	found, ok := f.Find(question(1))
	if !ok || !found.Confirm(f.now) || !reflect.DeepEqual(found.Answer().Principal, allowedAs(1).Principal) {
		t.Fatalf("Find = %+v, %t", found, ok)
	}
	for name, other := range map[string]*keyauth.Question{
		"another token":     question(2),
		"another scope":     {Token: "token1", Requirement: keyauth.Scope("a:write")},
		"another workspace": {Token: "token1", Requirement: keyauth.Scope("a:read"), WorkspaceID: "x"},
		"no requirement":    {Token: "token1"},
		"a public one":      {Token: "token1", Requirement: keyauth.Public()},
	} {
		if f.hits(other) {
			t.Errorf("%s is answered", name)
		}
	}
	if !f.hits(&keyauth.Question{Token: "token1", Requirement: keyauth.IdentityOnly(), WorkspaceID: "w"}) {
		t.Error("identity alone is not answered")
	}
	f.now = start.Add(time.Second)
	if f.hits(question(1)) {
		t.Error("the lease is over, and it answers")
	}
	f.renew()
	if !f.hits(question(1)) {
		t.Error("the lease was renewed, and it does not answer")
	}
	f.now = start.Add(-time.Millisecond)
	if f.hits(question(1)) {
		t.Error("the clock stands before the lease, and it answers")
	}
}

func TestEntriesEndWithTheirGrantOrAfterTenMinutes(t *testing.T) {
	f := newFixture(t, 10)
	f.keep(1, func(grant *keysvcv1.Grant) { grant.ValidFor = durationpb.New(2 * time.Second) })
	f.keep(2, func(grant *keysvcv1.Grant) { grant.ValidFor = durationpb.New(24 * time.Hour) })
	f.now = start.Add(2*time.Second - 1)
	f.renew()
	if !f.hits(question(1)) {
		t.Error("it has ended too early")
	}
	f.now = start.Add(2 * time.Second)
	f.renew()
	if f.hits(question(1)) || !f.hits(question(2)) {
		t.Error("it has not ended with its grant")
	}
	f.now = start.Add(maxLife)
	f.renew()
	if f.hits(question(2)) {
		t.Error("it has not ended after ten minutes")
	}
}

func TestUnknownGrantsAreNotKept(t *testing.T) {
	unknown := protowire.AppendTag(nil, 99, protowire.VarintType)
	unknown = protowire.AppendVarint(unknown, 1)
	address := func(cidrs ...string) *keysvcv1.GrantCondition {
		return &keysvcv1.GrantCondition{Kind: &keysvcv1.GrantCondition_AllowedAddresses{AllowedAddresses: &keysvcv1.AllowedAddresses{Cidrs: cidrs}}}
	}
	for name, change := range map[string]func(*keysvcv1.Grant){
		"no life":              func(grant *keysvcv1.Grant) { grant.ValidFor = nil },
		"a negative life":      func(grant *keysvcv1.Grant) { grant.ValidFor = durationpb.New(-1) },
		"an unknown field":     func(grant *keysvcv1.Grant) { grant.ProtoReflect().SetUnknown(unknown) },
		"an unknown condition": func(grant *keysvcv1.Grant) { grant.Conditions = []*keysvcv1.GrantCondition{{}} },
		"no addresses":         func(grant *keysvcv1.Grant) { grant.Conditions = []*keysvcv1.GrantCondition{address()} },
		"a malformed address":  func(grant *keysvcv1.Grant) { grant.Conditions = []*keysvcv1.GrantCondition{address("x")} },
		"addresses twice": func(grant *keysvcv1.Grant) {
			grant.Conditions = []*keysvcv1.GrantCondition{address("10.0.0.0/8"), address("::/0")}
		},
		"a condition that is new": func(grant *keysvcv1.Grant) {
			condition := address("10.0.0.0/8")
			condition.ProtoReflect().SetUnknown(unknown)
			grant.Conditions = []*keysvcv1.GrantCondition{condition}
		},
		"an address rule that is new": func(grant *keysvcv1.Grant) {
			condition := address("10.0.0.0/8")
			condition.GetAllowedAddresses().ProtoReflect().SetUnknown(unknown)
			grant.Conditions = []*keysvcv1.GrantCondition{condition}
		},
	} {
		f := newFixture(t, 10)
		if verdict := f.keep(1, change); verdict != UseOnce || f.hits(question(1)) {
			t.Errorf("%s: verdict %d, answered %t", name, verdict, f.hits(question(1)))
		}
	}
	f := newFixture(t, 10)
	f.keep(1, func(grant *keysvcv1.Grant) { grant.Conditions = []*keysvcv1.GrantCondition{address("192.0.2.0/24")} })
	inside, outside := question(1), question(1)
	inside.ClientAddress, outside.ClientAddress = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.3.1")
	if !f.hits(inside) || f.hits(outside) || f.hits(question(1)) {
		t.Error("the address rules are not kept to")
	}
}

func TestEventsDropWhatTheyConcern(t *testing.T) {
	for name, test := range map[string]struct {
		event *keysvcv1.SyncEvent
		drops bool
	}{
		"this key":          {&keysvcv1.SyncEvent{Kind: keysvcv1.SyncEventKind_SYNC_EVENT_KIND_KEY, WorkspaceId: "w", Subject: "k1"}, true},
		"another key":       {&keysvcv1.SyncEvent{Kind: keysvcv1.SyncEventKind_SYNC_EVENT_KIND_KEY, WorkspaceId: "w", Subject: "k2"}, false},
		"this member":       {&keysvcv1.SyncEvent{Kind: keysvcv1.SyncEventKind_SYNC_EVENT_KIND_MEMBER, WorkspaceId: "w", Subject: "m"}, true},
		"another member":    {&keysvcv1.SyncEvent{Kind: keysvcv1.SyncEventKind_SYNC_EVENT_KIND_MEMBER, WorkspaceId: "w", Subject: "n"}, false},
		"a namesake":        {&keysvcv1.SyncEvent{Kind: keysvcv1.SyncEventKind_SYNC_EVENT_KIND_MEMBER, WorkspaceId: "x", Subject: "m"}, false},
		"this workspace":    {&keysvcv1.SyncEvent{Kind: keysvcv1.SyncEventKind_SYNC_EVENT_KIND_WORKSPACE, WorkspaceId: "w"}, true},
		"another workspace": {&keysvcv1.SyncEvent{Kind: keysvcv1.SyncEventKind_SYNC_EVENT_KIND_WORKSPACE, WorkspaceId: "x"}, false},
		"the policy":        {&keysvcv1.SyncEvent{Kind: keysvcv1.SyncEventKind_SYNC_EVENT_KIND_POLICY}, true},
		"a purge":           {&keysvcv1.SyncEvent{Kind: keysvcv1.SyncEventKind_SYNC_EVENT_KIND_PURGE, WorkspaceId: "w", Subject: "k1"}, false},
		"no kind":           {&keysvcv1.SyncEvent{WorkspaceId: "x"}, true},
		"a kind to come":    {&keysvcv1.SyncEvent{Kind: 77, WorkspaceId: "x"}, true},
	} {
		f := newFixture(t, 10)
		f.keep(1, nil)
		before := f.BeginFill(f.now)
		test.event.Revision = 11
		f.Events(&keysvcv1.SyncEvents{Events: []*keysvcv1.SyncEvent{test.event}, Revision: 12})
		if f.hits(question(1)) == test.drops {
			t.Errorf("%s: dropped %t", name, !test.drops)
		}
		// The same for an answer that was decided before the event and arrives after it.
		want := Keep
		if test.drops {
			want = AskAgain
		}
		if verdict := f.EndFill(before, question(1), response(nil), allowedAs(1), f.now); verdict != want {
			t.Errorf("%s: verdict %d on a fill that was under way, want %d", name, verdict, want)
		}
		if hello := f.Hello(); hello.GetRevision() != 12 || hello.GetHashRevision() != 11 {
			t.Errorf("%s: hello %v", name, hello)
		}
	}
}

func TestAnswerOlderThanTheRingIsAskedAgain(t *testing.T) {
	f := newFixture(t, 10)
	under := f.BeginFill(f.now)
	for revision := int64(11); revision < 11+2*ringSize; revision++ {
		f.Events(&keysvcv1.SyncEvents{Revision: revision, Events: []*keysvcv1.SyncEvent{{
			Revision: revision, Kind: keysvcv1.SyncEventKind_SYNC_EVENT_KIND_KEY, WorkspaceId: "x", Subject: "other",
		}}})
	}
	if verdict := f.EndFill(under, question(1), response(nil), allowedAs(1), f.now); verdict != AskAgain {
		t.Errorf("verdict %d", verdict)
	}
}

func TestWelcomeAndResetDropByTheirRules(t *testing.T) {
	resumed := &keysvcv1.SyncWelcome{Epoch: "e", Revision: 10, Staleness: durationpb.New(time.Second)}
	for name, test := range map[string]struct {
		message func(f *fixture)
		stays   bool
	}{
		"resumed": {func(f *fixture) { f.Welcome(resumed) }, true},
		"with reset": {func(f *fixture) {
			f.Welcome(&keysvcv1.SyncWelcome{Epoch: "e", Revision: 10, Reset_: true, Staleness: resumed.GetStaleness()})
		}, false},
		"another epoch": {func(f *fixture) {
			f.Welcome(&keysvcv1.SyncWelcome{Epoch: "f", Revision: 10, Staleness: resumed.GetStaleness()})
		}, false},
		"another place": {func(f *fixture) {
			f.Welcome(&keysvcv1.SyncWelcome{Epoch: "e", Revision: 11, Staleness: resumed.GetStaleness()})
		}, false},
		"reset midway": {func(f *fixture) { f.Reset(&keysvcv1.SyncReset{Revision: 10}) }, false},
	} {
		f := newFixture(t, 10)
		f.keep(1, nil)
		ping := f.Ping(f.now)
		under := f.BeginFill(f.now)
		test.message(f)
		if f.hits(question(1)) {
			t.Errorf("%s: the lease goes on", name)
		}
		if f.Pong(&keysvcv1.SyncPong{Nonce: ping.GetNonce(), Revision: 10}) {
			t.Errorf("%s: a ping of before is answered", name)
		}
		f.renew()
		if f.hits(question(1)) != test.stays {
			t.Errorf("%s: the entry stays: %t", name, !test.stays)
		}
		if kept := f.EndFill(under, question(2), response(nil), allowedAs(2), f.now) == Keep; kept != test.stays {
			t.Errorf("%s: a fill of before is kept: %t", name, kept)
		}
	}
}

func TestRefusalsAreRepeatedForASecond(t *testing.T) {
	f := newFixture(t, 10)
	refused := keyauth.Answer{Decision: keysvcv1.Decision_DECISION_PERMISSION_DENIED, Reason: keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED}
	keep := func() {
		if verdict := f.EndFill(f.BeginFill(f.now), question(1), response(nil), refused, f.now); verdict != Keep {
			t.Fatalf("verdict %d", verdict)
		}
	}
	keep()
	if answer, ok := f.Refusal(question(1), f.now); !ok || !reflect.DeepEqual(answer, refused) {
		t.Errorf("Refusal = %+v, %t", answer, ok)
	}
	other := question(1)
	other.ClientAddress = netip.MustParseAddr("192.0.2.1")
	if _, ok := f.Refusal(other, f.now); ok {
		t.Error("another address is refused")
	}
	if _, ok := f.Refusal(question(1), f.now.Add(time.Second)); ok {
		t.Error("it is repeated after a second")
	}
	f.Events(&keysvcv1.SyncEvents{Revision: 11, Events: []*keysvcv1.SyncEvent{{Revision: 11, Kind: keysvcv1.SyncEventKind_SYNC_EVENT_KIND_KEY, WorkspaceId: "x", Subject: "y"}}})
	if _, ok := f.Refusal(question(1), f.now); ok {
		t.Error("it is repeated after an event")
	}
}

func TestEvictionKeepsEntriesWithinTheBound(t *testing.T) {
	f := newFixture(t, 100)
	for number := range 1000 {
		f.keep(number, nil)
		f.Used(f.foundFirst(number), f.now.Add(time.Duration(number)*time.Second))
	}
	count := f.entries.size
	if count != 100 || len(f.entries.workspaces["w"]) != 100 {
		t.Errorf("%d entries, %d in the index; want 100", count, len(f.entries.workspaces["w"]))
	}
	f.Reset(&keysvcv1.SyncReset{Revision: 10})
	if count := f.entries.size; count != 0 || f.entries.bytes != 0 || len(f.entries.workspaces) != 0 {
		t.Errorf("%d entries after a reset", count)
	}
}

// foundFirst returns the entry of the first token, or of another token if that entry is gone.
func (f *fixture) foundFirst(other int) Found {
	found := Found{entry: f.findToken("token0")}
	if found.entry == nil {
		found.entry = f.findToken(question(other).Token)
	}
	return found
}

// Many large entries stay within the bound. An entry that is larger than the bound is answered
// and not kept.
func TestBytesAreBounded(t *testing.T) {
	f := newFixture(t, 1_000_000)
	scopes := func(count int) func(*keysvcv1.Grant) {
		return func(grant *keysvcv1.Grant) {
			for number := range count {
				grant.Scopes = append(grant.Scopes, fmt.Sprintf("resource%d:read", number))
			}
		}
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for number := range 2000 {
		if verdict := f.keep(number, scopes(100)); verdict != Keep {
			t.Fatalf("verdict %d", verdict)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	snapshot := f.Snapshot(f.now)
	if snapshot.Bytes > 1<<20 || snapshot.Bytes < 1<<19 || snapshot.Entries < 100 {
		t.Errorf("%d entries, %d bytes", snapshot.Entries, snapshot.Bytes)
	}
	if grown := int(after.HeapAlloc) - int(before.HeapAlloc); grown > 2*snapshot.Bytes {
		t.Errorf("the heap has grown by %d for %d bytes", grown, snapshot.Bytes)
	}
	if verdict := f.keep(3000, scopes(50_000)); verdict != UseOnce {
		t.Errorf("verdict %d for an entry that is too large", verdict)
	}
	f.Reset(&keysvcv1.SyncReset{Revision: 10})
	if snapshot := f.Snapshot(f.now); snapshot.Bytes != 0 {
		t.Errorf("%d bytes after a reset", snapshot.Bytes)
	}
}

// A use beyond the bound is lost; the next use of the same key is noted.
func TestUsesBeyondTheBoundAreNotedLater(t *testing.T) {
	f := newFixture(t, 10)
	f.keep(1, nil)
	found, _ := f.Find(question(1))
	f.uses = make([]*entry, maxWaitingUses)
	f.Used(found, f.now)
	f.uses = nil
	f.Used(found, f.now.Add(time.Second))
	if len(f.uses) != 1 {
		t.Errorf("%d uses wait", len(f.uses))
	}
}

func TestUsesAreReportedOnce(t *testing.T) {
	f := newFixture(t, 10)
	tagged := response(nil)
	tagged.SecretTag = 7
	f.EndFill(f.BeginFill(f.now), question(1), tagged, allowedAs(1), f.now)
	found, _ := f.Find(question(1))
	f.Used(found, start)
	f.Used(found, start.Add(5*time.Second))
	uses := f.Ping(f.now).GetUses()
	if len(uses) != 1 || uses[0].GetKeyId() != "k1" || uses[0].GetSecretTag() != 7 || !uses[0].GetTime().AsTime().Equal(start.Add(5*time.Second)) {
		t.Errorf("uses %v", uses)
	}
	if uses := f.Ping(f.now).GetUses(); len(uses) != 0 {
		t.Errorf("uses %v were reported twice", uses)
	}
	f.Used(found, start.Add(6*time.Second))
	if uses := f.Ping(f.now).GetUses(); len(uses) != 1 {
		t.Errorf("uses %v; want the new one", uses)
	}
}

// TestDecisionsAreReportedOnce: hits as ALLOWED, and repeated refusals by their reason.
func TestDecisionsAreReportedOnce(t *testing.T) {
	f := newFixture(t, 10)
	f.entries.hit()
	f.entries.hit()
	refused := keyauth.Answer{Decision: keysvcv1.Decision_DECISION_UNAUTHENTICATED, Reason: keysvcv1.Reason_REASON_KEY_REVOKED}
	f.EndFill(f.BeginFill(f.now), question(1), response(nil), refused, f.now)
	if _, ok := f.Refusal(question(1), f.now); !ok {
		t.Fatal("the refusal is not repeated")
	}
	counts := make(map[keysvcv1.Reason]int64)
	for _, each := range f.Ping(f.now).GetDecisions() {
		counts[each.GetReason()] += each.GetCount()
	}
	if len(counts) != 2 || counts[keysvcv1.Reason_REASON_UNSPECIFIED] != 2 || counts[keysvcv1.Reason_REASON_KEY_REVOKED] != 1 {
		t.Errorf("got %v, want two allowed and one revoked", counts)
	}
	if again := f.Ping(f.now).GetDecisions(); len(again) != 0 {
		t.Errorf("%v were reported twice", again)
	}
	f.entries.hit()
	if next := f.Ping(f.now).GetDecisions(); len(next) != 1 || next[0].GetCount() != 1 {
		t.Errorf("got %v, want the new hit", next)
	}
}

func TestGiveUpEndsTheLeaseForGood(t *testing.T) {
	f := newFixture(t, 10)
	f.keep(1, nil)
	ping := f.Ping(f.now)
	f.GiveUp()
	if f.hits(question(1)) || f.Pong(&keysvcv1.SyncPong{Nonce: ping.GetNonce(), Revision: 10}) || f.hits(question(1)) {
		t.Error("it answers after it gave up")
	}
	later := f.Ping(f.now)
	if f.Pong(&keysvcv1.SyncPong{Nonce: later.GetNonce(), Revision: 10}) {
		t.Error("it takes a lease after it gave up")
	}
}

func BenchmarkHit(b *testing.B) {
	core := NewCore(100_000, 64<<20)
	core.Welcome(&keysvcv1.SyncWelcome{Epoch: "e", Revision: 10, Reset_: true, Staleness: durationpb.New(time.Hour)})
	ping := core.Ping(time.Now())
	core.Pong(&keysvcv1.SyncPong{Nonce: ping.GetNonce(), Revision: 10})
	asked := question(1)
	asked.Token = "scribe_ksk1_9fQ2mXc7Lr0TzB4w_0123456789012345678901234567890123456789012345678"
	now := time.Now()
	core.EndFill(core.BeginFill(now), asked, response(nil), allowedAs(1), now)
	b.ReportAllocs()
	for b.Loop() {
		found, ok := core.Find(asked)
		now := time.Now()
		if !ok || !found.Confirm(now) {
			b.Fatal("no hit")
		}
		core.Used(found, now)
	}
}

// findToken returns the entry of a token; nil if it is not in memory.
func (c *Core) findToken(token string) *entry {
	if c.entries.table.Load() == nil {
		return nil
	}
	known := c.identities.of(token)
	return c.entries.find(&known)
}

// TestGrantsOfOtherRightsAreNotKept: C12.
func TestGrantsOfOtherRightsAreNotKept(t *testing.T) {
	f := newFixture(t, 10)
	some, others := []byte("0123456789abcdef"), []byte("fedcba9876543210")
	end := func(number int, visible []byte) Verdict {
		asked := question(number)
		asked.WorkspaceID = "w"
		return f.EndFill(f.BeginFill(f.now), asked, response(func(grant *keysvcv1.Grant) { grant.VisibleWorkspaces = visible }), allowedAs(number), f.now)
	}
	expect := func(number int, visible []byte, want Verdict) {
		t.Helper()
		if got := end(number, visible); got != want {
			t.Errorf("a session of %q and a grant of %q: got %d, want %d", f.Hello().GetVisibleWorkspaces(), visible, got, want)
		}
	}
	expect(1, nil, Keep)
	expect(2, some, UseOnce)
	f.Reset(&keysvcv1.SyncReset{Revision: 10, VisibleWorkspaces: some})
	expect(1, nil, UseOnce)
	expect(2, some, Keep)
	expect(3, others, UseOnce)
	f.Welcome(&keysvcv1.SyncWelcome{Epoch: "e", Revision: 10, Reset_: true, Staleness: durationpb.New(time.Second), VisibleWorkspaces: others})
	expect(3, others, Keep)
	expect(2, some, UseOnce)
}

// TestLimitedCallersNameTheWorkspace: C12. Memory answers no question that the server would refuse.
func TestLimitedCallersNameTheWorkspace(t *testing.T) {
	f := newFixture(t, 10)
	f.Reset(&keysvcv1.SyncReset{Revision: 10, VisibleWorkspaces: []byte("0123456789abcdef")})
	f.renew()
	asked := question(1)
	asked.WorkspaceID = "w"
	grant := response(func(grant *keysvcv1.Grant) { grant.VisibleWorkspaces = []byte("0123456789abcdef") })
	if got := f.EndFill(f.BeginFill(f.now), asked, grant, allowedAs(1), f.now); got != Keep {
		t.Fatalf("got %d", got)
	}
	if _, found := f.Find(asked); !found {
		t.Error("a question with the workspace is not answered")
	}
	if _, found := f.Find(question(1)); found {
		t.Error("a question without a workspace is answered")
	}
}
