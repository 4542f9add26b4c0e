package giveway_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/scribe-mail/keysvc/internal/giveway"
)

// busy goes on with some work for a time, and returns for how long it paused meanwhile.
func busy(work *giveway.Work, lasts time.Duration, each func()) (paused time.Duration) {
	const step = 10 * time.Microsecond
	for range lasts / step {
		time.Sleep(step)
		each()
		before := time.Now()
		work.GiveWay()
		paused += time.Since(before)
	}
	return paused
}

func TestWorkPausesForUrgentCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := int64(0)
		work := giveway.From(giveway.NewContext(t.Context(), func() int64 { return begun }))
		if paused := busy(work, 10*time.Millisecond, func() {}); paused != 0 {
			t.Errorf("paused %s although nothing was urgent", paused)
		}
		begun++
		if paused := busy(work, 10*time.Millisecond, func() {}); paused != time.Millisecond {
			t.Errorf("paused %s for one urgent call", paused)
		}
		if paused := busy(work, 10*time.Millisecond, func() { begun++ }); paused < 45*time.Millisecond {
			t.Errorf("paused %s in 10 ms of work beside many urgent calls", paused)
		}
	})
}

func TestWorkPausesForHalfOfItsTimeAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := int64(0)
		for _, test := range []struct{ deadline, most time.Duration }{{0, 5 * time.Second}, {time.Second, 500 * time.Millisecond}, {time.Hour, 5 * time.Second}} {
			ctx, cancel := t.Context(), context.CancelFunc(func() {})
			if test.deadline > 0 {
				ctx, cancel = context.WithTimeout(ctx, test.deadline)
			}
			work := giveway.From(giveway.NewContext(ctx, func() int64 { return begun }))
			if paused := busy(work, 2*time.Second, func() { begun++ }); paused < test.most/2 || paused > test.most {
				t.Errorf("deadline %s: paused %s, want up to %s", test.deadline, paused, test.most)
			}
			cancel()
		}
	})
}

func TestNoWorkPausesNever(t *testing.T) {
	giveway.From(t.Context()).GiveWay()
}

func TestBackgroundWorkPausesHoweverLongItTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := int64(0)
		work := giveway.From(giveway.NewBackground(t.Context(), func() int64 { return begun }))
		time.Sleep(30 * time.Second)
		if paused := busy(work, 10*time.Millisecond, func() { begun++ }); paused < 45*time.Millisecond {
			t.Errorf("paused %s in 10 ms of work after 30 s", paused)
		}
	})
}
