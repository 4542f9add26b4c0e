// Package clock is the clock of a process: it never goes back, counts the time that passes,
// and does not follow jumps of the wall clock.
package clock

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// Tolerance is the largest sum of steps forward of the wall clock within a day of running
	// that is not a Jump. A time service that corrects a clock stays far below it, and it is
	// little against the lives of keys (a year) and retention (days).
	Tolerance = 5 * time.Minute
	// day is the time over which steps forward are added up.
	day = 24 * time.Hour
	// noise is the largest difference between the wall clock and the time that passed, from
	// one reading to the next, that is taken for inaccuracy of the readings.
	noise = time.Millisecond
	// Interval is the longest time that should pass between two readings of the clock. A
	// reading notices that the machine slept even if the wall clock does not show it.
	Interval = time.Second
	// Apart is how far a clock may differ from the times of the changes that other processes make. No
	// time is followed that is further ahead.
	Apart = time.Minute
	// slewing is the share of the time that passed by which the clock runs slower while it is
	// ahead of the wall clock: by 1/2000, until both agree again. Kernels correct clocks at
	// this speed, too.
	slewing = 2000
)

// Jump describes how the wall clock was set forward.
type Jump struct {
	// Time is what the clock showed then: the time that passed, without the step.
	Time time.Time
	// Wall is what the wall clock showed.
	Wall time.Time
}

// Config names the clocks that a Clock reads. The zero value means those of the system.
type Config struct {
	// Wall is the wall clock; the monotonic part of its times is used if there is one.
	// Default: time.Now.
	Wall func() time.Time
	// Passed returns how much time has passed since some moment, sleep of the machine
	// included, whatever the wall clock is set to. Without it no jump is noticed.
	// Default: Booted if Wall is nil, else none.
	Passed func() time.Duration
	// Floor is the time that the clock begins with if the wall clock is behind it.
	Floor time.Time
}

// Clock follows the wall clock, with three exceptions:
//
//   - It never goes back.
//   - It counts the time that passes although the wall clock was set back, so that a key that
//     ends in ten seconds ends in ten seconds. While it is ahead of the wall clock it runs
//     slower by 1/2000.
//   - It does not follow a jump, a step forward of more than Tolerance in which no time
//     passed. From the first jump on it only counts the time that passes.
//
// With Follow it also goes on from times that other processes have stamped, so that several
// processes over one store agree about what has happened before.
//
// Its times are in UTC and without a monotonic reading. Its methods may be called from
// many goroutines.
type Clock struct {
	wall   func() time.Time
	passed func() time.Duration
	// bare is set if the wall clock's times have no monotonic part, so that only passed, if
	// it is set, measures the time that passes.
	bare bool

	latest atomic.Int64 // the latest time that was returned, in Unix nanoseconds
	last   atomic.Pointer[reading]
	jump   atomic.Pointer[Jump]

	mutex sync.Mutex // held to replace last
	// steps is the sum of the steps forward of the wall clock since the moment since, a value of
	// passed.
	steps, since time.Duration
}

// reading has the values of all clocks at one moment.
type reading struct {
	wall   time.Time     // as it was read, with its monotonic part
	passed time.Duration // from Config.Passed
	own    int64         // the time by the clocks of this machine alone, in Unix nanoseconds
	// led is the time that goes on from the latest one that was followed, in Unix nanoseconds. The
	// Clock shows it while it is ahead of own; it runs slower then. 0 if nothing was followed.
	led int64
}

// lead returns led after elapsed has passed, which may be before the own time; 0 if nothing was followed.
func (r *reading) lead(elapsed time.Duration) int64 {
	if r.led <= r.own {
		return 0
	}
	return r.led + int64(elapsed-elapsed/slewing)
}

// New returns a clock.
func New(config Config) *Clock {
	if config.Wall == nil {
		config.Wall = time.Now
		if config.Passed == nil {
			config.Passed = Booted()
		}
	}
	c := &Clock{wall: config.Wall, passed: config.Passed}
	if !config.Floor.IsZero() {
		c.latest.Store(config.Floor.UnixNano())
	}
	wall := c.wall()
	c.bare = wall.String() == wall.Round(0).String() // String shows the monotonic part, which Round strips
	return c
}

// Steady returns the method Now of a Clock with the wall clock now and the given floor. It follows
// jumps.
func Steady(now func() time.Time, floor time.Time) func() time.Time {
	return New(Config{Wall: now, Floor: floor}).Now
}

// Now returns the time.
func (c *Clock) Now() time.Time {
	own, led := c.times()
	return c.show(max(own, led))
}

// Own returns the time by the clocks of this machine alone, without what Follow was told.
func (c *Clock) Own() time.Time {
	own, _ := c.times()
	return time.Unix(0, own).UTC()
}

// Follow makes the clock show at least a time that another process has stamped, and go on from there:
// while it is ahead of its own time it runs slower by 1/2000. It does not follow a time that is more than
// Apart ahead of its own, because a single wrong clock would then set all others forward. It reports
// whether the clock shows at least that time now.
func (c *Clock) Follow(stamp time.Time) bool {
	if !stamp.After(time.Unix(0, c.latest.Load())) {
		return true
	}
	if !stamp.After(c.Now()) {
		return true
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	last := c.read()
	if stamp.Sub(time.Unix(0, last.own)) > Apart {
		return false
	}
	next := *last
	next.led = max(next.led, stamp.UnixNano())
	c.last.Store(&next)
	c.show(next.led)
	return true
}

// times returns the own time, and the time that goes on from what was followed, in Unix nanoseconds.
func (c *Clock) times() (own, led int64) {
	wall, last := c.wall(), c.last.Load()
	elapsed := time.Duration(0)
	if last != nil && !c.bare {
		elapsed = max(0, wall.Sub(last.wall))
		step := time.Duration(wall.UnixNano()-last.wall.UnixNano()) - elapsed
		if step > noise || step < -noise || elapsed > Interval {
			last = nil
		}
	}
	if last == nil || c.bare {
		c.mutex.Lock()
		defer c.mutex.Unlock()
		last = c.read()
		return last.own, last.led
	}
	own = last.own + int64(elapsed)
	if c.jump.Load() == nil {
		own = follow(last, wall, elapsed)
	}
	return own, last.lead(elapsed)
}

// Latest returns the later of the wall clock and Now after a jump, because nobody knows
// which of them is right. Before a jump it returns the zero Time.
func (c *Clock) Latest() time.Time {
	if c.jump.Load() == nil {
		return time.Time{}
	}
	now := c.Now()
	if wall := c.wall().Round(0).UTC(); wall.After(now) {
		return wall
	}
	return now
}

// Jump reads the clocks and returns the first jump; nil if there was no jump.
func (c *Clock) Jump() *Jump {
	c.Now()
	return c.jump.Load()
}

// show returns the later of now and the latest time that was returned, both in Unix
// nanoseconds.
func (c *Clock) show(now int64) time.Time {
	for {
		latest := c.latest.Load()
		if now <= latest {
			return time.Unix(0, latest).UTC()
		}
		if c.latest.CompareAndSwap(latest, now) {
			return time.Unix(0, now).UTC()
		}
	}
}

// follow returns what a Clock that follows the wall clock shows, in Unix nanoseconds, when
// elapsed has passed since the reading last.
func follow(last *reading, wall time.Time, elapsed time.Duration) int64 {
	counted := last.own + int64(elapsed)
	if last.own > last.wall.UnixNano() {
		counted -= int64(elapsed / slewing)
	}
	return max(wall.UnixNano(), counted)
}

// read reads all clocks, replaces the last reading, and returns the new one. mutex is held.
func (c *Clock) read() *reading {
	last, next := c.last.Load(), &reading{wall: c.wall()}
	if c.passed != nil {
		next.passed = c.passed()
	}
	if last == nil {
		c.since = next.passed
		next.own = max(next.wall.UnixNano(), c.latest.Load())
		c.last.Store(next)
		return next
	}
	explained := max(0, next.passed-last.passed)
	elapsed := explained
	if !c.bare {
		// The two clocks are not read at the same moment. Only a sleep of the machine makes
		// them differ by more than Interval.
		elapsed = max(0, next.wall.Sub(last.wall))
		if explained = max(explained, elapsed); explained-elapsed > Interval {
			elapsed = explained
		}
	}
	next.own = last.own + int64(elapsed)
	if c.jump.Load() == nil && !c.jumps(last, next, explained) {
		next.own = follow(last, next.wall, elapsed)
	}
	next.led = last.lead(elapsed)
	c.last.Store(next)
	return next
}

// jumps reports whether the wall clock has jumped, and remembers the jump. explained is the
// longest time that may have passed since last. mutex is held.
func (c *Clock) jumps(last, next *reading, explained time.Duration) bool {
	if c.passed == nil {
		return false
	}
	if next.passed-c.since > day {
		c.steps, c.since = 0, next.passed
	}
	// A wall clock that was set back, and then right again, only catches up with the own time: that is
	// no step.
	if step := time.Duration(next.wall.UnixNano() - last.own - int64(explained)); step > noise {
		c.steps += step
	}
	if c.steps <= Tolerance {
		return false
	}
	c.jump.Store(&Jump{Time: time.Unix(0, next.own).UTC(), Wall: next.wall.Round(0).UTC()})
	return true
}
