package lease_test

import (
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/lease"
)

const length = time.Second

// margin is what the table adds to a lease.
const margin = length / 1000

// begin is long after the start of every table here, so that no lease from before the start
// holds.
var begin = time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC)

func newTable() *lease.Table {
	return lease.NewTable(lease.Config{Started: begin.Add(-time.Hour), Length: length})
}

// count counts the pending holders by their status at a time.
func count(all []lease.Pending, now time.Time) (open, applied, lapsed int) {
	for _, pending := range all {
		switch status, _, _ := pending.Status(now); status {
		case lease.Open:
			open++
		case lease.Applied:
			applied++
		case lease.Lapsed:
			lapsed++
		}
	}
	return open, applied, lapsed
}

// The table is asked at begin for revision 10.
func TestPendingCountsLeasesThatHold(t *testing.T) {
	for _, test := range []struct {
		name             string
		history          func(*lease.Holder)
		applied, pending int
	}{
		{"has no lease yet", func(*lease.Holder) {}, 0, 0},
		{"has a lease", func(h *lease.Holder) { h.Extend(begin) }, 0, 1},
		{"in the last moment of its lease", func(h *lease.Holder) { h.Extend(begin.Add(1 - length - margin)) }, 0, 1},
		{"after its lease", func(h *lease.Holder) { h.Extend(begin.Add(-length - margin)) }, 0, 0},
		{"asked after the clock was read", func(h *lease.Holder) { h.Extend(begin.Add(time.Millisecond)) }, 0, 1},
		{"an older question is noted later", func(h *lease.Holder) { h.Extend(begin); h.Extend(begin.Add(-length - margin)) }, 0, 1},
		{"has applied the revision", func(h *lease.Holder) { h.Extend(begin); h.Applied(10) }, 1, 0},
		{"has applied more, then less", func(h *lease.Holder) { h.Extend(begin); h.Applied(11); h.Applied(9) }, 1, 0},
		{"has applied less", func(h *lease.Holder) { h.Extend(begin); h.Applied(9) }, 0, 1},
		{"left with a lease", func(h *lease.Holder) { h.Extend(begin); h.Leave(begin) }, 0, 1},
		{"left twice", func(h *lease.Holder) { h.Extend(begin); h.Leave(begin); h.Leave(begin) }, 0, 1},
		{"left without a lease", func(h *lease.Holder) { h.Leave(begin) }, 0, 0},
		{"left long ago", func(h *lease.Holder) { h.Extend(begin.Add(-2 * length)); h.Leave(begin.Add(-2 * length)) }, 0, 0},
		{"gave up", func(h *lease.Holder) { h.Extend(begin); h.GiveUp() }, 0, 0},
		{"gave up and asks again", func(h *lease.Holder) { h.GiveUp(); h.Extend(begin) }, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			table := newTable()
			test.history(table.Enter())
			applied, pending := table.Pending(10, begin)
			if applied != test.applied || len(pending) != test.pending {
				t.Errorf("%d applied, %d pending; want %d, %d", applied, len(pending), test.applied, test.pending)
			}
		})
	}
}

func TestLeaseOfTheProcessBeforeIsPendingForItsLength(t *testing.T) {
	table := lease.NewTable(lease.Config{Started: begin, Length: length})
	for after, want := range map[time.Duration]int{-time.Second: 1, 0: 1, length: 1, length + margin - 1: 1, length + margin: 0} {
		if _, pending := table.Pending(1, begin.Add(after)); len(pending) != want {
			t.Errorf("after %s: %d pending, want %d", after, len(pending), want)
		}
		table = lease.NewTable(lease.Config{Started: begin, Length: length})
	}
}

// A lease that is given later does not prolong the wait.
func TestPendingEndsWhenTheHolderAppliesOrItsLeaseEnds(t *testing.T) {
	end := begin.Add(length + margin)
	for _, test := range []struct {
		name                  string
		then                  func(*lease.Holder)
		at                    time.Time
		open, applied, lapsed int
	}{
		{"nothing happens", func(*lease.Holder) {}, end.Add(-1), 1, 0, 0},
		{"its lease ends", func(*lease.Holder) {}, end, 0, 0, 1},
		{"it leaves", func(h *lease.Holder) { h.Leave(begin) }, end.Add(-1), 1, 0, 0},
		{"it applies", func(h *lease.Holder) { h.Applied(10) }, begin, 0, 1, 0},
		{"it applies something older", func(h *lease.Holder) { h.Applied(9) }, begin, 1, 0, 0},
		{"it gives up", func(h *lease.Holder) { h.GiveUp() }, begin, 0, 1, 0},
		{"it asks again", func(h *lease.Holder) { h.Extend(begin.Add(length / 2)) }, end, 0, 0, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			table := newTable()
			holder := table.Enter()
			holder.Extend(begin)
			_, pending := table.Pending(10, begin)
			_, left, changed := pending[0].Status(begin)
			if left != length+margin {
				t.Errorf("%s left", left)
			}
			test.then(holder)
			open, applied, lapsed := count(pending, test.at)
			if open != test.open || applied != test.applied || lapsed != test.lapsed {
				t.Errorf("%d open, %d applied, %d lapsed", open, applied, lapsed)
			}
			select {
			case <-changed:
			default:
				if applied > 0 {
					t.Error("changed was not closed")
				}
			}
		})
	}
}

// A real reading of the clock has a monotonic part, which Round(0) takes away.
func TestElapsedIsTheLargerOfMonotonicAndWallTime(t *testing.T) {
	now := time.Now()
	if got := lease.Elapsed(now, now.Add(time.Second)); got != time.Second {
		t.Errorf("both: %s", got)
	}
	if got := lease.Elapsed(now.Round(0), now.Add(time.Hour).Round(0)); got != time.Hour {
		t.Errorf("wall only: %s", got)
	}
	if got := lease.Elapsed(begin, begin.Add(-time.Hour)); got != -time.Hour {
		t.Errorf("back: %s", got)
	}
}

func TestLeaseHoldsFromItsBeginningUntilItsEnd(t *testing.T) {
	held := lease.New(begin, length)
	for after, want := range map[time.Duration]time.Duration{-1: 0, 0: length, 1: length - 1, length - 1: 1, length: 0, time.Hour: 0} {
		now := begin.Add(after)
		if got := held.Left(now); got != want || held.Holds(now) != (want > 0) {
			t.Errorf("after %s: %s left, holds: %t", after, got, held.Holds(now))
		}
	}
	for name, none := range map[string]lease.Lease{"zero": {}, "no length": lease.New(begin, 0), "negative": lease.New(begin, -1)} {
		if none.Holds(begin) || none.Holds(time.Time{}) {
			t.Errorf("%s: holds", name)
		}
	}
}

func TestFreshnessCountsFromTheNewestQuestion(t *testing.T) {
	var f lease.Freshness
	if f.Current().Holds(begin) || f.Answered(0, length) || f.Answered(1, length) {
		t.Error("fresh without having asked")
	}
	first := f.Ask(begin)
	second := f.Ask(begin.Add(time.Millisecond))
	if f.Answered(first, length) || f.Current().Holds(begin) {
		t.Error("an older question counts")
	}
	if !f.Answered(second, length) || f.Answered(second, length) {
		t.Error("the newest counts once")
	}
	if end := begin.Add(time.Millisecond + length); !f.Current().Holds(end.Add(-1)) || f.Current().Holds(end) {
		t.Error("the lease is counted from another time than the asking")
	}
	third := f.Ask(begin.Add(2 * time.Millisecond))
	f.Drop()
	if f.Current().Holds(begin.Add(time.Millisecond)) || f.Answered(third, length) {
		t.Error("something is left after Drop")
	}
}
