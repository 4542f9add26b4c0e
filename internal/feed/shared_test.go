package feed_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/feed"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// shares makes a hub one of several over a store, as it is long after its start.
func shares(c *feed.Config) {
	c.Now, c.Started, c.Shared = time.Now, time.Now().Add(-time.Hour), true
}

// awaits checks how long Await of a revision takes, and its outcome.
func (w *world) awaits(revision int64, took time.Duration, want feed.Outcome) {
	w.Helper()
	began := time.Now()
	outcome, err := w.AwaitRevision(w.Context(), revision)
	if got := time.Since(began); err != nil || outcome != want || got != took {
		w.Errorf("got %+v, %v after %s; want %+v after %s", outcome, err, got, want, took)
	}
}

// margin returns a lease's length as the server counts it.
func margin(length time.Duration) time.Duration { return length + length/1000 }

// Rule R9 of docs/replication.md: the sessions of other processes are waited for, although nobody here
// knows of any.
func TestAwaitOfASharedStoreWaitsForOtherProcesses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, shares)
		w.awaits(100, whole, feed.Outcome{Lapsed: 1})
		w.awaits(100, whole, feed.Outcome{Lapsed: 1}) // each call begins anew
		session := w.join()
		w.lease(session)
		w.publish(101)
		w.drain(session)
		w.applies(session, 101)
		w.awaits(101, whole, feed.Outcome{Applied: 1, Lapsed: 1})
	})
}

// Rule R9: a larger S counts at once; a smaller one after the larger one before it.
func TestAwaitOfASharedStoreGoesByTheLargestStaleness(t *testing.T) {
	const larger, smaller = 4 * staleness, staleness / 4
	others := feed.Outcome{Lapsed: 1}
	for _, test := range []struct {
		name string
		do   func(w *world)
		took time.Duration
	}{
		{"nothing changes", func(*world) {}, whole},
		{"raised", func(w *world) { w.SetStaleness(larger, 0) }, margin(larger)},
		{"lowered", func(w *world) { w.SetStaleness(smaller, staleness) }, whole},
		{"lowered, as a process that has not seen the larger one", func(w *world) { w.SetStaleness(smaller, larger) }, margin(larger)},
		{"lowered half of S ago", func(w *world) { w.SetStaleness(smaller, staleness); time.Sleep(staleness / 2) }, whole - staleness/2},
		{"lowered S ago", func(w *world) { w.SetStaleness(smaller, staleness); time.Sleep(whole) }, margin(smaller)},
		{"raised and lowered", func(w *world) { w.SetStaleness(larger, 0); w.SetStaleness(staleness, larger) }, margin(larger)},
		{"raised and lowered twice", func(w *world) {
			w.SetStaleness(larger, 0)
			w.SetStaleness(staleness, larger)
			w.SetStaleness(smaller, 0)
		}, margin(larger)},
		{"lowered and raised", func(w *world) { w.SetStaleness(smaller, staleness); w.SetStaleness(staleness, 0) }, whole},
		{"not known", func(w *world) { w.SetStaleness(0, 0) }, margin(storage.MaxStaleness)},
		{"not known for long", func(w *world) { w.SetStaleness(0, 0); time.Sleep(time.Hour) }, margin(storage.MaxStaleness)},
		{"known again", func(w *world) {
			w.SetStaleness(0, 0)
			w.SetStaleness(staleness, 0)
			time.Sleep(margin(storage.MaxStaleness))
		}, whole},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, shares)
				w.T = t
				test.do(w)
				w.awaits(100, test.took, others)
			})
		})
	}
}

// Rules R9 and S4: a process that starts counts from its start, with the larger one of two values.
func TestAwaitOfASharedStoreCountsFromTheStart(t *testing.T) {
	const larger = 4 * staleness
	for _, test := range []struct{ after, previous, took time.Duration }{
		{0, 0, whole},
		{0, larger, margin(larger)},
		{larger / 2, larger, margin(larger) - larger/2},
		{margin(larger), larger, whole},
		{staleness / 2, 0, whole},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, func(c *feed.Config) {
				c.Now, c.Started, c.Shared, c.PreviousStaleness = time.Now, time.Now(), true, test.previous
			})
			time.Sleep(test.after)
			w.awaits(100, test.took, feed.Outcome{Lapsed: 1})
		})
	}
}

// Rule R9: nobody waits for a lease of another length than the present one for long, so none is given.
func TestSessionsOfAnotherStalenessEndWithoutAPong(t *testing.T) {
	w := newWorld(t, nil)
	asked, silent := w.join(), w.join()
	w.ping(asked, 1, 100) // before the change, and not answered yet
	w.SetStaleness(2*staleness, 0)
	for _, session := range []*feed.Session{asked, silent} {
		w.ping(session, 2, 100)
		w.expect(session, "goodbye last=true")
		if step := session.Next(); !step.Last {
			t.Errorf("after Goodbye: %+v", step)
		}
	}
	if w.Staleness() != 2*staleness {
		t.Errorf("S is %s", w.Staleness())
	}
	// Its client connects again, and resumes.
	session, err := w.Open(&keysvcv1.SyncHello{Epoch: "epoch", Revision: 100, HashRevision: 100, AuditHash: hash(100)}, access.All())
	if err != nil {
		t.Fatal(err)
	}
	welcome := session.Next().Response.GetWelcome()
	if welcome.GetReset_() || welcome.GetRevision() != 100 || welcome.GetStaleness().AsDuration() != 2*staleness {
		t.Errorf("welcome: %v", welcome)
	}
	w.ping(session, 1, 100)
	w.expect(session, "pong 1 at 100")
	// The same value again ends nothing.
	w.SetStaleness(2*staleness, 0)
	w.expect(session)
}

// The lease of a session that has ended is as long as the S that it was welcomed with.
func TestAwaitKnowsTheLengthOfItsOwnLeases(t *testing.T) {
	for _, now := range []time.Duration{staleness / 4, 4 * staleness} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, func(c *feed.Config) { c.Now = time.Now; c.Started = time.Now().Add(-time.Hour) })
			session := w.join()
			w.lease(session)
			w.SetStaleness(now, staleness)
			w.drain(session)
			session.Close(false)
			w.publish(101)
			w.awaits(101, whole, feed.Outcome{Lapsed: 1})
		})
	}
}

func TestNoSessionBeginsWhileTheStalenessIsNotKnown(t *testing.T) {
	w := newWorld(t, nil)
	session := w.join()
	w.SetStaleness(0, 0)
	w.ping(session, 1, 100)
	w.expect(session, "goodbye last=true")
	if _, err := w.Open(&keysvcv1.SyncHello{}, access.All()); !errors.Is(err, feed.ErrNoStaleness) {
		t.Errorf("Open: %v", err)
	}
	w.SetStaleness(staleness, 0)
	w.join()
}
