package boltstore

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/scribe-mail/keysvc/internal/storage/anchor"
)

// waitingSink returns a writer of a sink for which changes wait.
func waitingSink(changes int) *anchorWriter {
	a := &anchorWriter{released: make(chan struct{}, 1)}
	if changes > 0 {
		a.waiting = []*anchorWaiter{{group: make([]*pendingChange, changes), mark: anchor.Mark{Revision: 1}, timer: time.NewTimer(time.Hour)}}
	}
	return a
}

// writeSink makes a sink written, and the changes that waited answered.
func writeSink(a *anchorWriter) {
	for _, waiter := range a.waiting {
		for index := range waiter.group {
			waiter.group[index] = &pendingChange{done: make(chan struct{})}
		}
	}
	a.release(func(*anchorWaiter) bool { return true }, errOvertaken)
}

func TestGroupsWaitForTheSinkAndItsCallers(t *testing.T) {
	const limit = 10 * time.Millisecond
	for name, test := range map[string]struct {
		sink *anchorWriter
		// written is when the sink is written, and back how many changes come a millisecond later.
		written time.Duration
		back    int
		waits   time.Duration
		gathers int
	}{
		"without a sink":             {nil, 0, 0, 0, 1},
		"the sink has everything":    {waitingSink(0), 0, 0, 0, 1},
		"one change was answered":    {waitingSink(1), 2 * time.Millisecond, 1, 2 * time.Millisecond, 1},
		"most callers come back":     {waitingSink(8), 2 * time.Millisecond, 6, 3 * time.Millisecond, 7},
		"callers do not come back":   {waitingSink(8), 2 * time.Millisecond, 5, 7 * time.Millisecond, 6},
		"the disk of the sink hangs": {waitingSink(8), time.Hour, 0, limit, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &Store{queue: make(chan *pendingChange, 64), closing: make(chan struct{}), sink: test.sink}
				if test.sink != nil {
					s.sink.released = make(chan struct{}, 1) // of this bubble
					time.AfterFunc(test.written, func() {
						writeSink(test.sink)
						time.AfterFunc(time.Millisecond, func() {
							for range test.back {
								s.queue <- &pendingChange{}
							}
						})
					})
				}
				began := time.Now()
				gathered := s.gather([]*pendingChange{{}}, limit)
				if waited := time.Since(began); waited != test.waits || len(gathered) != test.gathers {
					t.Errorf("waited %s for %d changes, want %s for %d", waited, len(gathered), test.waits, test.gathers)
				}
				time.Sleep(2 * time.Hour) // in the bubble: every timer ends
			})
		})
	}
}
