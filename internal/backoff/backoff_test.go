package backoff_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/scribe-mail/keysvc/internal/backoff"
)

// longest returns the longest wait that many Backoffs yield after a number of skipped waits.
func longest(skipped int, prepare func(*backoff.Backoff)) time.Duration {
	var found time.Duration
	for range 2000 {
		b := backoff.New(10*time.Millisecond, 100*time.Millisecond)
		for range skipped {
			b.Next()
		}
		prepare(b)
		found = max(found, b.Next())
	}
	return found
}

func TestBoundDoublesUntilTheMaximum(t *testing.T) {
	for skipped, milliseconds := range []int{10, 20, 40, 80, 100, 100} {
		bound := time.Duration(milliseconds) * time.Millisecond
		got := longest(skipped, func(*backoff.Backoff) {})
		if got >= bound || got < bound*9/10 {
			t.Errorf("after %d waits the longest of many is %s, want almost %s", skipped, got, bound)
		}
	}
}

func TestWaitsSpreadFromZero(t *testing.T) {
	shortest := time.Hour
	for range 2000 {
		shortest = min(shortest, backoff.New(time.Second, time.Second).Next())
	}
	if shortest < 0 || shortest > 100*time.Millisecond {
		t.Errorf("the shortest of many waits is %s, want almost 0", shortest)
	}
}

func TestResetReturnsToTheFirstBound(t *testing.T) {
	if got := longest(5, (*backoff.Backoff).Reset); got >= 10*time.Millisecond {
		t.Errorf("after Reset a wait is %s, want less than 10ms", got)
	}
}

func TestWaitEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := backoff.New(time.Hour, time.Hour)
		ctx, cancel := context.WithCancel(t.Context())
		begun := time.Now()
		time.AfterFunc(time.Nanosecond, cancel)
		if b.Wait(ctx) || time.Since(begun) > time.Nanosecond {
			t.Errorf("Wait said to try again, or lasted %s", time.Since(begun))
		}
		if b.Wait(ctx) {
			t.Error("Wait with an ended context said to try again")
		}
	})
}

func TestWaitReportsThatTheTimeHasPassed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		if !backoff.New(time.Minute, time.Minute).Wait(t.Context()) {
			t.Error("Wait said that the context has ended")
		}
		if lasted := time.Since(begun); lasted >= time.Minute {
			t.Errorf("Wait lasted %s, want less than a minute", lasted)
		}
	})
}
