package feed_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/feed"
)

// whole is the longest wait for a lease.
const whole = staleness + staleness/1000

// The wait is for revision 101 while a session does something.
func TestAwaitEndsWhenAllAppliedOrLapsed(t *testing.T) {
	applied, lapsed, none := feed.Outcome{Applied: 1}, feed.Outcome{Lapsed: 1}, feed.Outcome{}
	for _, test := range []struct {
		name string
		// before and after run before and after revision 101 is published.
		before, after func(w *world, session *feed.Session)
		took          time.Duration
		want          feed.Outcome
	}{
		{"it has no lease", nil, nil, 0, none},
		{"it is silent", (*world).lease, nil, whole, lapsed},
		{"it asked later", (*world).lease, func(w *world, s *feed.Session) {
			time.Sleep(staleness / 2)
			w.drain(s)
			w.asks(s, 2, 100)
		}, whole - staleness/4, applied}, // the first lease would have ended earlier
		{"it applies it", (*world).lease, func(w *world, s *feed.Session) { w.drain(s); w.applies(s, 101) }, 0, applied},
		{"it applies it later", (*world).lease, func(w *world, s *feed.Session) {
			w.drain(s)
			time.AfterFunc(staleness/4, func() { w.applies(s, 101) })
		}, staleness / 4, applied},
		{"it says so with a ping", (*world).lease, func(w *world, s *feed.Session) {
			w.drain(s)
			time.AfterFunc(staleness/4, func() { w.asks(s, 2, 101) })
		}, staleness / 4, applied},
		{"it asks again and says nothing", (*world).lease, func(w *world, s *feed.Session) {
			time.AfterFunc(staleness/4, func() { w.asks(s, 2, 100) })
		}, whole, lapsed},
		{"it goes without a word", (*world).lease, func(_ *world, s *feed.Session) { s.Close(false) }, whole, lapsed},
		{"it gives up", (*world).lease, func(_ *world, s *feed.Session) { s.Close(true) }, 0, none},
		{"it gives up later", (*world).lease, func(_ *world, s *feed.Session) {
			time.AfterFunc(staleness/4, func() { s.Close(true) })
		}, staleness / 4, applied},
		{"it went before", func(w *world, s *feed.Session) { w.lease(s); s.Close(false) }, nil, whole, lapsed},
		{"its lease is over", func(w *world, s *feed.Session) { w.lease(s); time.Sleep(whole) }, nil, 0, none},
		{"it gets its first lease after the change", nil, func(w *world, s *feed.Session) { w.drain(s); w.asks(s, 1, 101) }, 0, applied},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, func(c *feed.Config) { c.Now = time.Now; c.Started = time.Now().Add(-whole) })
				session := w.join()
				if test.before != nil {
					test.before(w, session)
				}
				w.publish(101)
				if test.after != nil {
					test.after(w, session)
				}
				began := time.Now()
				if test.name == "it asked later" {
					time.AfterFunc(whole-staleness/4, func() { w.applies(session, 101) })
				}
				outcome, err := w.AwaitRevision(t.Context(), 101)
				if took := time.Since(began); err != nil || outcome != test.want || took != test.took {
					t.Errorf("got %+v, %v after %s; want %+v after %s", outcome, err, took, test.want, test.took)
				}
			})
		})
	}
}

// asks sends a ping that arrives now.
func (w *world) asks(session *feed.Session, nonce uint64, revision int64) {
	if err := session.Ping(nonce, revision, time.Now()); err != nil {
		w.Error(err)
	}
}

// lease gives a session a lease that begins now.
func (w *world) lease(session *feed.Session) { w.asks(session, 1, 100) }

// drain takes every message that is to be sent.
func (w *world) drain(session *feed.Session) {
	for session.Next().Response != nil {
	}
}

func (w *world) applies(session *feed.Session, revision int64) {
	if err := session.Applied(revision); err != nil {
		w.Error(err)
	}
}

// Rule S4.
func TestAwaitWaitsForLeasesOfTheProcessBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *feed.Config) { c.Now = time.Now; c.Started = time.Now() })
		time.Sleep(staleness / 4)
		began := time.Now()
		outcome, err := w.AwaitRevision(t.Context(), 100)
		if took := time.Since(began); err != nil || outcome != (feed.Outcome{Lapsed: 1}) || took != whole-staleness/4 {
			t.Errorf("got %+v, %v after %s", outcome, err, took)
		}
		if outcome, err := w.AwaitRevision(t.Context(), 100); err != nil || outcome != (feed.Outcome{}) || time.Since(began) != whole-staleness/4 {
			t.Errorf("and again: got %+v, %v", outcome, err)
		}
	})
}

func TestAwaitRefusesUnpublishedRevisions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *feed.Config) { c.Now = time.Now; c.Started = time.Now() })
		if _, err := w.AwaitRevision(t.Context(), 101); !errors.Is(err, feed.ErrNotPublished) {
			t.Errorf("of a revision that is to come: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), staleness/2)
		defer cancel()
		if _, err := w.AwaitRevision(ctx, 100); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

// For the race detector: everything happens at once.
func TestConcurrentSessionsSeeEveryChangeOnceInOrderOrAReset(t *testing.T) {
	const sessions, changes = 8, 2000
	hub := feed.New(feed.Config{Epoch: "epoch", Started: time.Now(), Staleness: time.Minute, RingSize: 256})
	var group sync.WaitGroup
	for number := range sessions {
		group.Go(func() {
			session, err := hub.Open(&keysvcv1.SyncHello{}, access.All())
			if err != nil {
				t.Error(err)
				return
			}
			defer session.Close(number%2 == 0)
			last := int64(0)
			for last < changes {
				step := session.Next()
				switch kind := step.Response.GetKind().(type) {
				case nil:
					<-step.Wait
				case *keysvcv1.SyncResponse_Welcome:
					last = kind.Welcome.GetRevision()
				case *keysvcv1.SyncResponse_Reset_:
					last = kind.Reset_.GetRevision()
				case *keysvcv1.SyncResponse_Events:
					for _, event := range kind.Events.GetEvents() {
						if event.GetRevision() != last+1 {
							t.Errorf("revision %d after %d", event.GetRevision(), last)
							return
						}
						last++
					}
					if kind.Events.GetMark() > last {
						t.Errorf("mark of %d before it: %d", kind.Events.GetMark(), last)
					}
				case *keysvcv1.SyncResponse_Pong:
					if kind.Pong.GetRevision() > last {
						t.Errorf("pong at %d before what it stands behind: %d", kind.Pong.GetRevision(), last)
					}
				case *keysvcv1.SyncResponse_Mark:
					if kind.Mark.GetRevision() > last {
						t.Errorf("mark of %d before it: %d", kind.Mark.GetRevision(), last)
					}
				}
				if last%50 == 0 {
					_ = session.Ping(1, last, time.Now()) // too fast at times
				}
			}
		})
	}
	for revision := int64(1); revision <= changes; revision++ {
		hub.Publish(change(revision))
		hub.Announce()
		if revision%100 == 0 {
			if _, err := hub.Await(revision); err != nil {
				t.Error(err)
			}
			hub.Snapshot()
		}
	}
	group.Wait()
}
