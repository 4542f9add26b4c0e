package feed_test

import (
	"testing"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/feed"
)

func TestLagIsThatOfSessionsWithALease(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *feed.Config) { c.MaxSessions = 3 })
	expect := func(what string, want feed.Lag) {
		t.Helper()
		want.Limit = 3
		if got := w.Lag(); got != want {
			t.Errorf("%s: got %+v, want %+v", what, got, want)
		}
	}
	expect("nobody", feed.Lag{})
	prompt, slow, idle := w.join(), w.join(), w.join()
	expect("before a lease", feed.Lag{Sessions: 3})
	w.ping(prompt, 1, 100)
	w.ping(slow, 1, 100)
	expect("with leases", feed.Lag{Sessions: 3, Leased: 2})
	made := w.now.Add(10 * time.Millisecond)
	for revision := int64(101); revision <= 103; revision++ {
		committed := change(revision)
		committed.Time = made.Add(time.Duration(revision-101) * time.Millisecond)
		w.Publish(committed)
	}
	oldest := time.Unix(0, made.UnixNano())
	expect("after changes", feed.Lag{Sessions: 3, Leased: 2, Behind: 2, Unconfirmed: 3, Oldest: oldest})
	for _, session := range []*feed.Session{prompt, slow} {
		for session.Next().Response != nil { // so that they were sent the changes
		}
	}
	if err := prompt.Applied(103); err != nil {
		t.Fatal(err)
	}
	if err := slow.Applied(101); err != nil {
		t.Fatal(err)
	}
	expect("one is slow", feed.Lag{Sessions: 3, Leased: 2, Behind: 1, Unconfirmed: 2, Oldest: oldest.Add(time.Millisecond)})
	w.now = w.now.Add(staleness)
	expect("leases have run out", feed.Lag{Sessions: 3})
	idle.Close(true)
	if _, err := w.Open(&keysvcv1.SyncHello{Epoch: "epoch", Revision: 999}, access.All()); err != nil {
		t.Fatal(err)
	}
	w.Stop()
	expect("at the end", feed.Lag{Sessions: 3, Ahead: 1, Stopping: true})
}

func TestLagWithoutTimesAndWithoutTheRing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	session := w.join()
	w.ping(session, 1, 100)
	w.publish(101, 102) // without times
	if got := w.Lag(); got.Behind != 1 || got.Unconfirmed != 2 || !got.Oldest.IsZero() {
		t.Errorf("got %+v", got)
	}
	w.Restart(105) // nobody knows which changes there were
	if got := w.Lag(); got.Behind != 1 || got.Unconfirmed != 0 || !got.Oldest.IsZero() {
		t.Errorf("got %+v", got)
	}
}
