package patience_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/scribe-mail/keysvc/internal/patience"
)

func TestWithinLeavesTimeForTheAnswer(t *testing.T) {
	for _, test := range []struct{ deadline, most, want time.Duration }{
		{0, time.Second, time.Second}, // none
		{time.Second, time.Second, 800 * time.Millisecond},
		{10 * time.Second, 10 * time.Second, 9 * time.Second},
		{time.Hour, time.Hour, time.Hour - time.Second},
		{10 * time.Second, time.Second, time.Second},
		{200 * time.Millisecond, time.Second, 160 * time.Millisecond},
		{4 * time.Nanosecond, time.Second, 4 * time.Nanosecond},
		{-time.Second, time.Second, time.Second}, // nobody listens
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx := t.Context()
			if test.deadline != 0 {
				bounded, cancel := context.WithTimeout(ctx, test.deadline)
				defer cancel()
				ctx = bounded
			}
			if got := patience.Within(ctx, test.most); got != test.want {
				t.Errorf("with a deadline in %s and a bound of %s: %s, want %s", test.deadline, test.most, got, test.want)
			}
			if test.deadline < 0 {
				return
			}
			begun := time.Now()
			bounded, cancel := patience.Bound(ctx, test.most)
			defer cancel()
			<-bounded.Done()
			if lasted := time.Since(begun); lasted != test.want {
				t.Errorf("the context lasted %s, want %s", lasted, test.want)
			}
		})
	}
}

// TestBoundEndsWithTheCaller: the context of a wait ends when that of its caller does.
func TestBoundEndsWithTheCaller(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	bounded, end := patience.Bound(ctx, time.Hour)
	defer end()
	cancel()
	<-bounded.Done()
	if bounded.Err() != context.Canceled {
		t.Errorf("got %v", bounded.Err())
	}
}
