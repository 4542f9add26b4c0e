package lease_test

import (
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/lease"
)

const length = time.Second

// margin is what the ledger adds to a lease.
const margin = length / 1000

// begin is long after the start of every ledger here, so that what may have been before
// it is over.
var begin = time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC)

func newLedger() *lease.Ledger { return lease.NewLedger(begin.Add(-time.Hour), length) }

// settle counts how debts stand at a time.
func settle(debts []lease.Debt, now time.Time) (open, applied, lapsed int) {
	for _, debt := range debts {
		switch settlement, _, _ := debt.Settled(now); settlement {
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

// TestDebts says who is owed at revision 10, at begin.
func TestDebts(t *testing.T) {
	for _, test := range []struct {
		name          string
		history       func(*lease.Holder)
		applied, owed int
	}{
		{"came just now", func(*lease.Holder) {}, 0, 0},
		{"has a lease", func(h *lease.Holder) { h.Extend(begin) }, 0, 1},
		{"at the last moment of it", func(h *lease.Holder) { h.Extend(begin.Add(1 - length - margin)) }, 0, 1},
		{"after it", func(h *lease.Holder) { h.Extend(begin.Add(-length - margin)) }, 0, 0},
		{"asked after the look at the clock", func(h *lease.Holder) { h.Extend(begin.Add(time.Millisecond)) }, 0, 1},
		{"an older question is told later", func(h *lease.Holder) { h.Extend(begin); h.Extend(begin.Add(-length - margin)) }, 0, 1},
		{"has applied it", func(h *lease.Holder) { h.Extend(begin); h.Applied(10) }, 1, 0},
		{"has applied more, and then less", func(h *lease.Holder) { h.Extend(begin); h.Applied(11); h.Applied(9) }, 1, 0},
		{"has applied less", func(h *lease.Holder) { h.Extend(begin); h.Applied(9) }, 0, 1},
		{"left with a lease", func(h *lease.Holder) { h.Extend(begin); h.Leave(begin) }, 0, 1},
		{"left twice", func(h *lease.Holder) { h.Extend(begin); h.Leave(begin); h.Leave(begin) }, 0, 1},
		{"left without one", func(h *lease.Holder) { h.Leave(begin) }, 0, 0},
		{"left so long ago", func(h *lease.Holder) { h.Extend(begin.Add(-2 * length)); h.Leave(begin.Add(-2 * length)) }, 0, 0},
		{"gave up", func(h *lease.Holder) { h.Extend(begin); h.GiveUp() }, 0, 0},
		{"gave up, and asks again", func(h *lease.Holder) { h.GiveUp(); h.Extend(begin) }, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			ledger := newLedger()
			test.history(ledger.Enter())
			applied, debts := ledger.Debts(10, begin)
			if applied != test.applied || len(debts) != test.owed {
				t.Errorf("%d applied, %d owed; want %d, %d", applied, len(debts), test.applied, test.owed)
			}
		})
	}
}

// TestStart: what the process before may have given is owed for the length of a lease.
func TestStart(t *testing.T) {
	ledger := lease.NewLedger(begin, length)
	for after, want := range map[time.Duration]int{-time.Second: 1, 0: 1, length: 1, length + margin - 1: 1, length + margin: 0} {
		if _, debts := ledger.Debts(1, begin.Add(after)); len(debts) != want {
			t.Errorf("after %s: %d owed, want %d", after, len(debts), want)
		}
		ledger = lease.NewLedger(begin, length)
	}
}

// TestSettled: a debt ends when its holder has spoken, or with the lease that it had
// when it was incurred; a new lease does not prolong it.
func TestSettled(t *testing.T) {
	end := begin.Add(length + margin)
	for _, test := range []struct {
		name                  string
		then                  func(*lease.Holder)
		at                    time.Time
		open, applied, lapsed int
	}{
		{"nothing happens", func(*lease.Holder) {}, end.Add(-1), 1, 0, 0},
		{"until the end", func(*lease.Holder) {}, end, 0, 0, 1},
		{"it leaves", func(h *lease.Holder) { h.Leave(begin) }, end.Add(-1), 1, 0, 0},
		{"it applies", func(h *lease.Holder) { h.Applied(10) }, begin, 0, 1, 0},
		{"it applies something older", func(h *lease.Holder) { h.Applied(9) }, begin, 1, 0, 0},
		{"it gives up", func(h *lease.Holder) { h.GiveUp() }, begin, 0, 1, 0},
		{"it asks again", func(h *lease.Holder) { h.Extend(begin.Add(length / 2)) }, end, 0, 0, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			ledger := newLedger()
			holder := ledger.Enter()
			holder.Extend(begin)
			_, debts := ledger.Debts(10, begin)
			_, left, changed := debts[0].Settled(begin)
			if left != length+margin {
				t.Errorf("%s left", left)
			}
			test.then(holder)
			open, applied, lapsed := settle(debts, test.at)
			if open != test.open || applied != test.applied || lapsed != test.lapsed {
				t.Errorf("%d open, %d applied, %d lapsed", open, applied, lapsed)
			}
			select {
			case <-changed:
			default:
				if applied > 0 {
					t.Error("nobody was woken")
				}
			}
		})
	}
}

// TestElapsed: the larger of what the two parts of a time say. A real reading has a
// monotonic part, which Round(0) takes away.
func TestElapsed(t *testing.T) {
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

func TestLease(t *testing.T) {
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

func TestFreshness(t *testing.T) {
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
