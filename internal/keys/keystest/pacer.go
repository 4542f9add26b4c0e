package keystest

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing/synctest"
	"time"
)

// simulation is a pacer that holds every call back until drive releases it. One call is released at a
// time, so a seed gives almost the same schedule in each run. It runs in a bubble of
// testing/synctest, where waiting for time takes no time.
type simulation struct {
	random *rand.Rand // used by drive alone
	mutex  sync.Mutex
	parked []*parked
	// held are the points at which calls are not released for a while.
	held map[seatPoint]bool
}

// seatPoint is a point of the link of one seat.
type seatPoint struct {
	seat int
	at   point
}

// parked is a call that is held back.
type parked struct {
	seatPoint

	// caller is the number of the caller that makes the call; 0 is a projection.
	caller  int
	release chan struct{}
}

type callerKey struct{}

// asCaller returns a context for the calls of one caller; the number of the first is 1.
func asCaller(ctx context.Context, number int) context.Context {
	return context.WithValue(ctx, callerKey{}, number)
}

func (s *simulation) pause(ctx context.Context, seat int, at point) error {
	caller, _ := ctx.Value(callerKey{}).(int)
	waiting := &parked{seatPoint{seat, at}, caller, make(chan struct{})}
	s.mutex.Lock()
	s.parked = append(s.parked, waiting)
	s.mutex.Unlock()
	select {
	case <-waiting.release:
		return nil
	case <-ctx.Done():
		s.mutex.Lock()
		defer s.mutex.Unlock()
		s.parked = slices.DeleteFunc(s.parked, func(each *parked) bool { return each == waiting })
		return ctx.Err()
	}
}

// drive releases calls until done is closed.
func (s *simulation) drive(seats int, done <-chan struct{}) {
	for {
		synctest.Wait()
		select {
		case <-done:
			return
		default:
		}
		if s.random.IntN(25) == 0 {
			s.hold(seats)
		}
		if s.random.IntN(40) == 0 || !s.next() {
			// Let time pass: now and then, and whenever no call can be released.
			time.Sleep(time.Duration(1 + s.random.IntN(int(100*time.Millisecond))))
			if s.random.IntN(4) == 0 {
				s.held = nil
			}
		}
	}
}

// open releases all calls that are still held back.
func (s *simulation) open() {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for _, each := range s.parked {
		close(each.release)
	}
	s.parked = nil
}

// hold chooses the points at which calls are not released from now on.
func (s *simulation) hold(seats int) {
	s.held = make(map[seatPoint]bool)
	for seat := range seats {
		s.held[seatPoint{seat, atWatch}] = s.random.IntN(3) == 0
		s.held[seatPoint{seat, atLoaded}] = s.random.IntN(3) == 0
		s.held[seatPoint{seat, atMade}] = s.random.IntN(8) == 0
		s.held[seatPoint{seat, atReached}] = s.random.IntN(8) == 0
		s.held[seatPoint{seat, atAnswer}] = s.random.IntN(8) == 0
	}
}

// next releases one call, and reports whether there was one to release.
func (s *simulation) next() bool {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	var ready []*parked
	for _, each := range s.parked {
		if !s.held[each.seatPoint] {
			ready = append(ready, each)
		}
	}
	if len(ready) == 0 {
		return false
	}
	slices.SortStableFunc(ready, func(a, b *parked) int {
		return cmp.Or(cmp.Compare(a.seat, b.seat), cmp.Compare(a.at, b.at), cmp.Compare(a.caller, b.caller))
	})
	chosen := ready[s.random.IntN(len(ready))]
	s.parked = slices.DeleteFunc(s.parked, func(each *parked) bool { return each == chosen })
	close(chosen.release)
	return true
}

// atOnce is a pacer that holds no call back.
type atOnce struct{}

func (atOnce) pause(ctx context.Context, _ int, _ point) error { return ctx.Err() }

// delays is a pacer that holds back a few calls for a short time. From time to time it holds back the
// watch of one seat for longer. It is for stores that cannot run in a bubble of testing/synctest, and
// for many concurrent callers.
type delays struct {
	mutex  sync.Mutex
	random *rand.Rand
	// still is the seat whose watch is held back while pauses, which each call of pause decrements,
	// is more than 0.
	still, pauses int
}

func (d *delays) pause(ctx context.Context, seat int, at point) error {
	if at == atCall || at == atStart {
		return nil
	}
	length := d.length(seat, at)
	if length == 0 {
		return ctx.Err()
	}
	return wait(ctx, length)
}

// wait returns after a time, or with the context's error.
func wait(ctx context.Context, length time.Duration) error {
	timer := time.NewTimer(length)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (d *delays) length(seat int, at point) time.Duration {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if d.pauses--; d.pauses < -5000 {
		d.still, d.pauses = seat, 200
	}
	switch {
	case at == atWatch && seat == d.still && d.pauses > 0:
		return 20 * time.Millisecond
	case d.random.IntN(50) == 0:
		return time.Duration(d.random.IntN(int(3 * time.Millisecond)))
	}
	return 0
}
