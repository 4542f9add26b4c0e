package feed_test

import (
	"slices"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/feed"
)

// deliveries notes what an observer is told of deliveries.
type deliveries struct {
	ignoreOthers
	after []time.Duration
}

// ignoreOthers are the other methods of an observer.
type ignoreOthers struct{}

func (ignoreOthers) SessionBegan(bool) {}
func (ignoreOthers) SessionReset()     {}
func (ignoreOthers) SessionEnded(bool) {}

func (d *deliveries) ChangeDelivered(after time.Duration) { d.after = append(d.after, after) }

// TestDeliveryLastsUntilTheLastSessionWasSentTheChange: sessions that come later do not count, one that
// ends counts as done, and while a change is on its way, others are not measured.
func TestDeliveryLastsUntilTheLastSessionWasSentTheChange(t *testing.T) {
	told := new(deliveries)
	w := newWorld(t, func(config *feed.Config) { config.Observer = told })
	expect := func(what string, want ...time.Duration) {
		t.Helper()
		if !slices.Equal(told.after, want) {
			t.Errorf("%s: got %v, want %v", what, told.after, want)
		}
	}
	w.publish(101) // no session
	first, second, third := w.join(), w.join(), w.join()
	w.publish(102)
	w.now = w.now.Add(time.Millisecond)
	w.publish(103)
	late := w.join()
	w.drain(first)
	w.drain(late)
	expect("sent to one of three")
	w.now = w.now.Add(time.Millisecond)
	w.drain(second)
	third.Close(false)
	third.Next()
	expect("sent to two, and one has ended", 2*time.Millisecond)
	w.publish(104)
	w.drain(first)
	w.drain(second)
	expect("one of three is behind", 2*time.Millisecond)
	w.Restart(200)
	w.now = w.now.Add(time.Millisecond)
	w.drain(late)
	expect("reset", 2*time.Millisecond, time.Millisecond)
}

func TestOldestLeaseIsThatOfTheClientThatAskedFirst(t *testing.T) {
	w := newWorld(t, nil)
	if got := w.OldestLease(); got != 0 {
		t.Errorf("without a lease: %s", got)
	}
	first, second := w.join(), w.join()
	w.ping(first, 1, 100)
	w.now = w.now.Add(staleness / 2)
	w.ping(second, 1, 100)
	first.Close(false)
	if got := w.OldestLease(); got != staleness/2 {
		t.Errorf("got %s, want that of the client that left: %s", got, staleness/2)
	}
	w.now = w.now.Add(staleness * 3 / 4)
	if got := w.OldestLease(); got != staleness*3/4 {
		t.Errorf("got %s, want that of the other client: %s", got, staleness*3/4)
	}
}
