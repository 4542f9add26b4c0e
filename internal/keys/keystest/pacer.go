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

// simulation holds every call back until its turn comes. One call goes on at a time, so a
// seed makes almost the same schedule each time it is played. It lives in a bubble of
// testing/synctest: what is waited for by time costs none.
type simulation struct {
	random *rand.Rand // used by drive alone
	mutex  sync.Mutex
	parked []*parked
	// held are what does not get its turn for a while.
	held map[place]bool
}

type place struct {
	seat int
	at   point
}

type parked struct {
	place

	// caller is the number of the caller that waits; 0 is a projection that follows.
	caller  int
	release chan struct{}
}

type callerKey struct{}

// asCaller returns a context for the calls of one caller; the first has 1.
func asCaller(ctx context.Context, number int) context.Context {
	return context.WithValue(ctx, callerKey{}, number)
}

func (s *simulation) pause(ctx context.Context, seat int, at point) error {
	caller, _ := ctx.Value(callerKey{}).(int)
	waiting := &parked{place{seat, at}, caller, make(chan struct{})}
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

// drive gives turns until done is closed.
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
			// Nothing can go on, or time passes all the same.
			time.Sleep(time.Duration(1 + s.random.IntN(int(100*time.Millisecond))))
			if s.random.IntN(4) == 0 {
				s.held = nil
			}
		}
	}
}

// open lets everything go on that is still held back.
func (s *simulation) open() {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for _, each := range s.parked {
		close(each.release)
	}
	s.parked = nil
}

// hold chooses what does not get its turn from now on.
func (s *simulation) hold(seats int) {
	s.held = make(map[place]bool)
	for seat := range seats {
		s.held[place{seat, atWatch}] = s.random.IntN(3) == 0
		s.held[place{seat, atLoaded}] = s.random.IntN(3) == 0
		s.held[place{seat, atMade}] = s.random.IntN(8) == 0
		s.held[place{seat, atReached}] = s.random.IntN(8) == 0
		s.held[place{seat, atAnswer}] = s.random.IntN(8) == 0
	}
}

// next gives one call its turn, and reports whether there was one.
func (s *simulation) next() bool {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	var ready []*parked
	for _, each := range s.parked {
		if !s.held[each.place] {
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

// atOnce holds nothing back.
type atOnce struct{}

func (atOnce) pause(ctx context.Context, _ int, _ point) error { return ctx.Err() }

// delays hold calls back by the clock on the wall, a few of them and for a short time. At
// times one seat's watch stands still for longer. They are for stores that a bubble of
// testing/synctest cannot hold, and for many callers at once.
type delays struct {
	mutex  sync.Mutex
	random *rand.Rand
	// still is the seat whose watch stands still, for so many pauses of anybody.
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
