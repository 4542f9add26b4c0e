package feed_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/feed"
	"github.com/scribe-mail/keysvc/internal/storage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const staleness = time.Second

var begin = time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC)

// record is the feed record of a change in workspace w1, w2 or w3.
func record(revision int64) *storagev1.FeedRecord {
	return &storagev1.FeedRecord{
		Revision: revision, WorkspaceId: fmt.Sprint("w", revision%3+1), Kind: storagev1.FeedKind_FEED_KIND_KEY,
		Subject: fmt.Sprint("key", revision), AuditHash: hash(revision),
	}
}

func hash(revision int64) []byte { return fmt.Appendf(nil, "hash %d", revision) }

func change(revision int64) *storage.Committed {
	return &storage.Committed{Revision: revision, Feed: record(revision)}
}

// world is a hub with a clock.
type world struct {
	*testing.T
	*feed.Hub

	now time.Time
}

// newWorld returns a hub at revision 100 that has the changes after 90. No lease of the process
// before holds any more.
func newWorld(t *testing.T, edit func(*feed.Config)) *world {
	t.Helper()
	w := &world{T: t, now: begin}
	config := feed.Config{
		Epoch: "epoch", Revision: 100, Started: begin.Add(-time.Hour), Staleness: staleness,
		Random: func() float64 { return 0.5 }, Now: func() time.Time { return w.now },
	}
	for revision := int64(91); revision <= 100; revision++ {
		config.History = append(config.History, record(revision))
	}
	if edit != nil {
		edit(&config)
	}
	w.Hub = feed.New(config)
	return w
}

func (w *world) publish(revisions ...int64) {
	for _, revision := range revisions {
		w.Publish(change(revision))
		w.Announce()
	}
}

// join opens a new session, and takes its Welcome.
func (w *world) join() *feed.Session {
	w.Helper()
	session, err := w.Open(&keysvcv1.SyncHello{}, access.All())
	if err != nil {
		w.Fatal(err)
	}
	if got := show(session.Next()); !strings.HasPrefix(got, "welcome") {
		w.Fatalf("first came %s", got)
	}
	return session
}

// expect checks which messages a session sends next, and that no other follows.
func (w *world) expect(session *feed.Session, want ...string) {
	w.Helper()
	for _, each := range want {
		if got := show(session.Next()); got != each {
			w.Errorf("got %q, want %q", got, each)
		}
	}
	if step := session.Next(); step.Response != nil {
		w.Errorf("got %q, want nothing more", show(step))
	}
}

func (w *world) ping(session *feed.Session, nonce uint64, revision int64) {
	w.Helper()
	if err := session.Ping(nonce, revision, w.now); err != nil {
		w.Errorf("ping: %v", err)
	}
}

// show returns a step as short text.
func show(step feed.Step) string {
	if step.Response == nil && step.Last {
		return "over"
	}
	switch kind := step.Response.GetKind().(type) {
	case nil:
		return "nothing"
	case *keysvcv1.SyncResponse_Welcome:
		m := kind.Welcome
		return fmt.Sprintf("welcome %d reset=%t %q@%d", m.GetRevision(), m.GetReset_(), m.GetAuditHash(), m.GetHashRevision())
	case *keysvcv1.SyncResponse_Events:
		var revisions []int64
		for _, event := range kind.Events.GetEvents() {
			revisions = append(revisions, event.GetRevision())
		}
		if mark := kind.Events.GetMark(); mark != 0 {
			return fmt.Sprintf("events %d to %d, mark %d", revisions, kind.Events.GetRevision(), mark)
		}
		return fmt.Sprintf("events %d to %d", revisions, kind.Events.GetRevision())
	case *keysvcv1.SyncResponse_Mark:
		return fmt.Sprintf("mark %d", kind.Mark.GetRevision())
	case *keysvcv1.SyncResponse_Pong:
		return fmt.Sprintf("pong %d at %d", kind.Pong.GetNonce(), kind.Pong.GetRevision())
	case *keysvcv1.SyncResponse_Reset_:
		return fmt.Sprintf("reset %d %q@%d", kind.Reset_.GetRevision(), kind.Reset_.GetAuditHash(), kind.Reset_.GetHashRevision())
	case *keysvcv1.SyncResponse_Goodbye:
		return fmt.Sprintf("goodbye last=%t", step.Last)
	}
	return "unknown"
}

// Rule S5.
func TestOpenResumesOnlyWhatIsCertain(t *testing.T) {
	const fresh = `welcome 100 reset=true "hash 100"@100`
	onlyW1 := access.Only("w1") // 93, 96, 99
	for _, test := range []struct {
		name     string
		epoch    string
		revision int64
		hash     []byte
		at       int64
		visible  access.Workspaces
		want     []string
	}{
		{"begins", "", 0, nil, 0, access.All(), []string{fresh}},
		{"nothing was missed", "epoch", 100, hash(100), 100, access.All(), []string{`welcome 100 reset=false "hash 100"@100`}},
		{"some were missed", "epoch", 98, hash(98), 98, access.All(), []string{`welcome 98 reset=false "hash 98"@98`, "events [99 100] to 100"}},
		{"the oldest that is known", "epoch", 91, hash(91), 91, access.All(), []string{`welcome 91 reset=false "hash 91"@91`, "events [92 93 94 95 96 97 98 99 100] to 100"}},
		{"its hash is no longer known", "epoch", 90, hash(90), 90, access.All(), []string{fresh}},
		{"older than the ring", "epoch", 50, hash(50), 50, access.All(), []string{fresh}},
		{"another epoch", "other", 100, hash(100), 100, access.All(), []string{fresh}},
		{"another hash", "epoch", 100, hash(99), 100, access.All(), []string{fresh}},
		{"no hash", "epoch", 100, nil, 0, access.All(), []string{fresh}},
		{"beyond what there is", "epoch", 101, hash(100), 100, access.All(), []string{fresh}},
		{"the hash of a change that is to come", "epoch", 98, hash(100), 100, access.All(), []string{fresh}},
		{"the hash is not the newest's", "epoch", 100, hash(99), 99, access.All(), []string{fresh}},
		{"only others' changes came after the hash", "epoch", 98, hash(96), 96, onlyW1, []string{`welcome 98 reset=false "hash 96"@96`, "events [99] to 100"}},
		{"a change of its own came after the hash", "epoch", 98, hash(93), 93, onlyW1, []string{fresh}},
		{"the hash is of others' change", "epoch", 98, hash(97), 97, onlyW1, []string{`welcome 98 reset=false "hash 97"@97`, "events [99] to 100"}},
		{"the hash is of no change", "epoch", 98, hash(96), 95, onlyW1, []string{fresh}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, nil)
			session, err := w.Open(&keysvcv1.SyncHello{Epoch: test.epoch, Revision: test.revision, AuditHash: test.hash, HashRevision: test.at, VisibleWorkspaces: test.visible.Fingerprint()}, test.visible)
			if err != nil {
				t.Fatal(err)
			}
			w.expect(session, test.want...)
		})
	}
}

func TestHistoryIsUsedAsFarAsItFits(t *testing.T) {
	hello := &keysvcv1.SyncHello{Epoch: "epoch", Revision: 95, AuditHash: hash(95), HashRevision: 95}
	for _, test := range []struct {
		name string
		edit func(*feed.Config)
		want []string
	}{
		{"newer than what was loaded", func(c *feed.Config) { c.Revision = 97 }, []string{`welcome 95 reset=false "hash 95"@95`, "events [96 97] to 97"}},
		{"gaps in the revisions", func(c *feed.Config) {
			c.History = []*storagev1.FeedRecord{record(85), record(95), record(100), record(103)}
		}, []string{`welcome 95 reset=false "hash 95"@95`, "events [100] to 100"}},
		{"more than the ring holds", func(c *feed.Config) { c.RingSize = 6 }, []string{`welcome 95 reset=false "hash 95"@95`, "events [96 97 98 99 100] to 100"}},
		{"so much more that the place is gone", func(c *feed.Config) { c.RingSize = 5 }, []string{`welcome 100 reset=true "hash 100"@100`}},
		{"none", func(c *feed.Config) { c.History = nil }, []string{`welcome 100 reset=true ""@0`}},
		{"not up to what was loaded", func(c *feed.Config) { c.Revision = 101 }, []string{`welcome 101 reset=true ""@0`}},
		{"out of order", func(c *feed.Config) { c.History = append(c.History, record(93), record(100)) }, []string{`welcome 100 reset=true ""@0`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, test.edit)
			session, err := w.Open(hello, access.All())
			if err != nil {
				t.Fatal(err)
			}
			w.expect(session, test.want...)
		})
	}
}

// A pong does not wait for later events (S2).
func TestPongFollowsEveryEventUpToItsBarrier(t *testing.T) {
	w := newWorld(t, nil)
	session := w.join()
	w.expect(session)
	w.publish(101, 103) // gaps are allowed
	w.ping(session, 7, 100)
	w.expect(session, "events [101 103] to 103", "pong 7 at 103")

	w.ping(session, 8, 103)
	w.publish(104)
	w.expect(session, "pong 8 at 103", "events [104] to 104")

	// Only the newest ping is answered.
	w.ping(session, 9, 104)
	w.publish(105)
	w.ping(session, 10, 104)
	w.expect(session, "events [105] to 105", "pong 10 at 105")

	// Marks come before pongs and after the events that they are for, and once.
	w.publish(106)
	w.await(106)
	w.await(105)
	w.ping(session, 11, 105)
	w.expect(session, "events [106] to 106, mark 106", "pong 11 at 106")
	w.await(106)
	w.expect(session)
	w.publish(107)
	w.expect(session, "events [107] to 107")
	w.await(107)
	w.publish(108)
	w.ping(session, 12, 106)
	w.expect(session, "mark 107", "events [108] to 108", "pong 12 at 108")
	if err := session.Applied(106); err != nil {
		t.Error(err)
	}
}

func (w *world) await(revision int64) *feed.Await {
	w.Helper()
	await, err := w.Await(revision)
	if err != nil {
		w.Fatal(err)
	}
	return await
}

func TestManyChangesComeInBoundedMessages(t *testing.T) {
	w := newWorld(t, nil)
	session := w.join()
	for revision := int64(101); revision <= 1300; revision++ {
		w.publish(revision)
	}
	w.ping(session, 1, 100)
	next := int64(101)
	for _, size := range []int{512, 512, 176} {
		events := session.Next().Response.GetEvents().GetEvents()
		if len(events) != size {
			t.Errorf("a batch of %d, want %d", len(events), size)
		}
		for _, event := range events {
			if event.GetRevision() != next || string(event.GetAuditHash()) != string(hash(next)) || event.GetSubject() != fmt.Sprint("key", next) {
				t.Fatalf("got %v, want revision %d", event, next)
			}
			next++
		}
	}
	w.expect(session, "pong 1 at 1300")
}

// The session's index and revision move past them.
func TestInvisibleChangesAreLeftOut(t *testing.T) {
	w := newWorld(t, nil)
	session, err := w.Open(&keysvcv1.SyncHello{}, access.Only("w1"))
	if err != nil {
		t.Fatal(err)
	}
	session.Next()
	w.publish(101, 102, 103)
	w.ping(session, 1, 100)
	w.expect(session, "events [102] to 103", "pong 1 at 103")
	w.publish(104)
	w.expect(session, "events [] to 104")
}

func TestUnknownKindsConcernEverything(t *testing.T) {
	w := newWorld(t, nil)
	session := w.join()
	want := map[storagev1.FeedKind]keysvcv1.SyncEventKind{
		storagev1.FeedKind_FEED_KIND_UNSPECIFIED: keysvcv1.SyncEventKind_SYNC_EVENT_KIND_UNSPECIFIED,
		storagev1.FeedKind_FEED_KIND_KEY:         keysvcv1.SyncEventKind_SYNC_EVENT_KIND_KEY,
		storagev1.FeedKind_FEED_KIND_MEMBER:      keysvcv1.SyncEventKind_SYNC_EVENT_KIND_MEMBER,
		storagev1.FeedKind_FEED_KIND_WORKSPACE:   keysvcv1.SyncEventKind_SYNC_EVENT_KIND_WORKSPACE,
		storagev1.FeedKind_FEED_KIND_POLICY:      keysvcv1.SyncEventKind_SYNC_EVENT_KIND_POLICY,
		storagev1.FeedKind_FEED_KIND_PURGE:       keysvcv1.SyncEventKind_SYNC_EVENT_KIND_PURGE,
		77:                                       keysvcv1.SyncEventKind_SYNC_EVENT_KIND_UNSPECIFIED,
	}
	if len(want) != len(storagev1.FeedKind_name)+1 {
		t.Errorf("there are %d kinds", len(storagev1.FeedKind_name))
	}
	revision := int64(100)
	for kind, told := range want {
		revision++
		entry := record(revision)
		entry.Kind = kind
		w.Publish(&storage.Committed{Revision: revision, Feed: entry})
		if got := session.Next().Response.GetEvents().GetEvents(); len(got) != 1 || got[0].GetKind() != told {
			t.Errorf("%s: got %v", kind, got)
		}
	}
}

// A session whose index has fallen out of the ring gets a Reset, and nothing else.
func TestSlowSessionIsReset(t *testing.T) {
	w := newWorld(t, func(c *feed.Config) { c.RingSize = 10 })
	slow, quick := w.join(), w.join()
	for revision := int64(101); revision <= 111; revision++ {
		w.publish(revision)
		w.expect(quick, fmt.Sprintf("events [%d] to %[1]d", revision))
	}
	w.ping(slow, 1, 100)
	w.expect(slow, `reset 111 "hash 111"@111`, "pong 1 at 111")
	w.publish(112)
	w.expect(slow, "events [112] to 112")

	// Up to the last index in the ring, nothing is lost.
	for revision := int64(113); revision <= 122; revision++ {
		w.publish(revision)
	}
	w.expect(slow, "events [113 114 115 116 117 118 119 120 121 122] to 122")
}

func TestRestartResetsAllSessions(t *testing.T) {
	w := newWorld(t, nil)
	behind, current := w.join(), w.join()
	w.publish(101)
	w.expect(current, "events [101] to 101")
	w.Restart(101)
	w.ping(current, 1, 101)
	w.expect(current, `reset 101 ""@0`, "pong 1 at 101")
	w.expect(behind, `reset 101 ""@0`)
	w.Restart(105)
	w.publish(106)
	w.expect(current, `reset 106 "hash 106"@106`)
	w.publish(107)
	w.expect(current, "events [107] to 107")
	session, err := w.Open(&keysvcv1.SyncHello{Epoch: "epoch", Revision: 106, AuditHash: hash(106), HashRevision: 106}, access.All())
	if err != nil {
		t.Fatal(err)
	}
	w.expect(session, `welcome 106 reset=false "hash 106"@106`, "events [107] to 107")

	// A change that comes twice or too late breaks the order: everything is reset.
	for _, revision := range []int64{107, 103} {
		w.publish(revision)
		w.expect(current, `reset 107 ""@0`)
	}
	if w.Revision() != 107 {
		t.Errorf("revision %d", w.Revision())
	}
}

// A session whose client says nothing for long ends, and one whose client pings now and then stays.
func TestSilentSessionsEnd(t *testing.T) {
	w := newWorld(t, nil)
	silent, idle := w.join(), w.join()
	if step := silent.Next(); step.Within != 5*time.Minute {
		t.Errorf("it may be silent for %s", step.Within)
	}
	for nonce := range uint64(3) {
		w.now = w.now.Add(5*time.Minute - 1)
		w.ping(idle, nonce+1, 100)
		w.expect(idle, fmt.Sprintf("pong %d at 100", nonce+1))
		if nonce == 0 {
			w.expect(silent)
		}
	}
	if got := show(silent.Next()); got != "goodbye last=true" {
		t.Errorf("silent for a quarter of an hour: %s", got)
	}
	w.expect(idle)
	w.now = w.now.Add(5 * time.Minute)
	if got := show(idle.Next()); got != "goodbye last=true" {
		t.Errorf("silent after all: %s", got)
	}
}

// Sessions are limited in number and age, clients in their messages.
func TestSessionsAndMessagesAreLimited(t *testing.T) {
	w := newWorld(t, func(c *feed.Config) {
		c.MaxSessions = 2
		c.MaxSilence = 2 * time.Hour
		c.Random = func() float64 { return 0 }
	})
	first := w.join()
	w.now = w.now.Add(time.Minute)
	second := w.join()
	if _, err := w.Open(&keysvcv1.SyncHello{}, access.All()); !errors.Is(err, feed.ErrTooMany) {
		t.Errorf("a third: %v", err)
	}
	first.Close(false)
	first.Close(true)
	w.join().Close(false)
	if got := show(first.Next()); got != "over" {
		t.Errorf("of a closed one: %s", got)
	}
	if err := errors.Join(first.Ping(1, 100, w.now), first.Applied(100)); !errors.Is(err, feed.ErrClosed) {
		t.Errorf("to a closed one: %v", err)
	}

	// This session's age is an hour less a tenth.
	if step := second.Next(); step.Within != 54*time.Minute {
		t.Errorf("it may stay for %s", step.Within)
	}
	w.now = w.now.Add(54*time.Minute - 1)
	w.expect(second)
	w.now = w.now.Add(1)
	for _, want := range []string{"goodbye last=true", "over", "over"} {
		if got := show(second.Next()); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}

	third := w.join()
	if err := third.Ping(1, 101, w.now); !errors.Is(err, feed.ErrBeyond) {
		t.Errorf("applied what was not sent: %v", err)
	}
	if err := third.Applied(1 << 62); !errors.Is(err, feed.ErrBeyond) {
		t.Errorf("applied what was not sent: %v", err)
	}
	said := 2 // the two refused messages
	for ; third.Ping(1, 100, w.now) == nil; said++ {
		if said > 1000 {
			t.Fatal("no end")
		}
	}
	if said != 100 {
		t.Errorf("%d messages at once", said)
	}
	if err := third.Applied(100); !errors.Is(err, feed.ErrTooFast) {
		t.Errorf("got %v", err)
	}
	w.now = w.now.Add(staleness / 20)
	if err := third.Ping(2, 100, w.now); err != nil {
		t.Errorf("a twentieth of S later: %v", err)
	}
	if err := third.Ping(3, 100, w.now); !errors.Is(err, feed.ErrTooFast) {
		t.Errorf("and once more: %v", err)
	}
	// A client that is sent a mark may answer it.
	w.await(100)
	w.publish(101)
	w.await(101)
	w.expect(third, "pong 2 at 100", "events [101] to 101, mark 101")
	if err := third.Applied(101); err != nil {
		t.Errorf("the answer to a mark: %v", err)
	}
}

func TestStopEndsAllSessionsAndRefusesNewOnes(t *testing.T) {
	w := newWorld(t, nil)
	session := w.join()
	opened, err := w.Open(&keysvcv1.SyncHello{}, access.All())
	if err != nil {
		t.Fatal(err)
	}
	w.publish(101)
	w.ping(session, 1, 100)
	w.Stop()
	for _, each := range []*feed.Session{session, opened} {
		if got := show(each.Next()); got != "goodbye last=true" {
			t.Errorf("got %s", got)
		}
	}
	if got := show(session.Next()); got != "over" {
		t.Errorf("got %s", got)
	}
	if _, err := w.Open(&keysvcv1.SyncHello{}, access.All()); !errors.Is(err, feed.ErrStopping) {
		t.Errorf("got %v", err)
	}
}

func TestSessionsAreWokenOnlyForWhatConcernsThem(t *testing.T) {
	for name, test := range map[string]struct {
		wake func(w *world, mine, other *feed.Session)
		want bool
	}{
		"a change":        {func(w *world, _, _ *feed.Session) { w.publish(101) }, true},
		"a restart":       {func(w *world, _, _ *feed.Session) { w.Restart(100) }, true},
		"the stop":        {func(w *world, _, _ *feed.Session) { w.Stop() }, true},
		"its ping":        {func(w *world, mine, _ *feed.Session) { w.ping(mine, 1, 100) }, true},
		"another's":       {func(w *world, _, other *feed.Session) { w.ping(other, 1, 100) }, false},
		"its close":       {func(_ *world, mine, _ *feed.Session) { mine.Close(false) }, true},
		"another's close": {func(_ *world, _, other *feed.Session) { other.Close(false) }, false},
		"an Await for a revision that it has applied": {func(w *world, _, _ *feed.Session) { w.await(99) }, false},
		"an Await without leases":                     {func(w *world, _, _ *feed.Session) { w.await(100) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			mine, other := w.join(), w.join()
			step := mine.Next()
			test.wake(w, mine, other)
			select {
			case <-step.Wait:
				if !test.want {
					t.Error("it was woken")
				}
			default:
				if test.want {
					t.Error("it sleeps on")
				}
			}
		})
	}
}

func TestSnapshotShowsSessionsAndRing(t *testing.T) {
	w := newWorld(t, nil)
	session, _ := w.join(), w.join()
	w.publish(101, 102)
	session.Next()
	w.ping(session, 1, 101)
	want := feed.Snapshot{Sessions: 2, Revision: 102, Changes: 12, Oldest: 91, Unread: 2, Unapplied: 101}
	if got := w.Snapshot(); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	w.Stop()
	if !w.Snapshot().Stopping || w.Epoch() != "epoch" || w.Staleness() != staleness {
		t.Error("not as it is")
	}
}

// A client of this epoch that has applied what the store does not have shows that the store was
// rolled back. The client is reset, and counted.
func TestHelloAheadOfTheStoreIsCounted(t *testing.T) {
	w := newWorld(t, nil)
	w.publish(101, 102)
	for _, test := range []struct {
		epoch    string
		revision int64
		ahead    bool
	}{{"epoch", 102, false}, {"epoch", 103, true}, {"another", 1000, false}, {"", 0, false}, {"epoch", 1000, true}} {
		before := w.Snapshot().Ahead
		session, err := w.Open(&keysvcv1.SyncHello{Epoch: test.epoch, Revision: test.revision}, access.All())
		if err != nil {
			t.Fatal(err)
		}
		if counted := w.Snapshot().Ahead > before; session.Ahead() != test.ahead || counted != test.ahead {
			t.Errorf("epoch %q, revision %d: ahead is %t, counted %t; want %t", test.epoch, test.revision, session.Ahead(), counted, test.ahead)
		}
		if welcome := session.Next().Response.GetWelcome(); test.ahead && (!welcome.GetReset_() || welcome.GetRevision() != 102) {
			t.Errorf("revision %d: got %v, want a reset to 102", test.revision, welcome)
		}
	}
}

// TestOtherWorkspacesResetTheSession: S7. The reset comes before everything else that is due, even if
// the workspaces have changed back by then.
func TestOtherWorkspacesResetTheSession(t *testing.T) {
	w := newWorld(t, nil)
	session, err := w.Open(&keysvcv1.SyncHello{}, access.Only("w1"))
	if err != nil {
		t.Fatal(err)
	}
	session.Next()
	session.See(access.Only("w1"))
	w.expect(session)
	w.publish(101, 102) // w3, w1
	w.ping(session, 1, 100)
	session.See(access.Only("w2"))
	w.expect(session, `reset 102 "hash 102"@102`, "pong 1 at 102")
	w.publish(103, 104, 105) // w2, w3, w1
	w.expect(session, "events [103] to 105")
	session.See(access.All())
	session.See(access.Only("w2"))
	w.expect(session, `reset 105 "hash 105"@105`)
}

// TestWelcomeAndResetTellTheWorkspaces: S7, with a change between the two.
func TestWelcomeAndResetTellTheWorkspaces(t *testing.T) {
	w := newWorld(t, nil)
	session, err := w.Open(&keysvcv1.SyncHello{}, access.Only("w1"))
	if err != nil {
		t.Fatal(err)
	}
	session.See(access.All())
	if got := session.Next().Response.GetWelcome().GetVisibleWorkspaces(); string(got) != string(access.Only("w1").Fingerprint()) {
		t.Errorf("welcome has %x", got)
	}
	step := session.Next()
	if reset := step.Response.GetReset_(); reset == nil || reset.GetVisibleWorkspaces() != nil || step.Wait == nil {
		t.Errorf("got %v", step)
	}
}

// TestWakesForOtherWorkspaces: a session that waits is told at once.
func TestWakesForOtherWorkspaces(t *testing.T) {
	w := newWorld(t, nil)
	session := w.join()
	for session.Next().Wait == nil {
	}
	wait := session.Next().Wait
	select {
	case <-wait: // what is left of the beginning
	default:
	}
	session.See(access.Only("w1"))
	select {
	case <-wait:
	default:
		t.Error("nobody was woken")
	}
	w.expect(session, `reset 100 "hash 100"@100`)
}

func TestOtherWorkspacesAreNotResumed(t *testing.T) {
	w := newWorld(t, nil)
	hello := &keysvcv1.SyncHello{Epoch: "epoch", Revision: 100, AuditHash: hash(100), HashRevision: 100, VisibleWorkspaces: access.Only("w1").Fingerprint()}
	for _, test := range []struct {
		now   access.Workspaces
		reset bool
	}{
		{access.Only("w1"), false}, {access.Only("w2"), true}, {access.Only("w1", "w2"), true}, {access.All(), true},
	} {
		session, err := w.Open(hello, test.now)
		if err != nil {
			t.Fatal(err)
		}
		if got := session.Next().Response.GetWelcome().GetReset_(); got != test.reset {
			t.Errorf("with %v: reset %t", test.now, got)
		}
	}
}

// TestLookForAnOldHashIsBounded: a client whose workspaces are quiet may have a hash that is far
// behind. It is reset rather than that everybody waits for the look.
func TestLookForAnOldHashIsBounded(t *testing.T) {
	w := newWorld(t, func(config *feed.Config) {
		config.Revision = 10_000
		config.History = nil
		for revision := int64(1); revision <= 10_000; revision++ {
			config.History = append(config.History, record(revision))
		}
	})
	quiet := access.Only("quiet")
	for at, reset := range map[int64]bool{10_000: false, 6_000: false, 5_800: true, 1: true} {
		session, err := w.Open(&keysvcv1.SyncHello{
			Epoch: "epoch", Revision: 10_000, AuditHash: hash(at), HashRevision: at, VisibleWorkspaces: quiet.Fingerprint(),
		}, quiet)
		if err != nil {
			t.Fatal(err)
		}
		if got := session.Next().Response.GetWelcome().GetReset_(); got != reset {
			t.Errorf("with the hash of %d: reset %t", at, got)
		}
	}
}
