// Package clock holds the one clock of a process.
package clock

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// Tolerance is how far the wall clock may be set forward within a day of running
	// before that is a Jump. A time service that corrects a clock stays far below it; the
	// lives of keys (a year) and retention (days) do not notice it.
	Tolerance = 5 * time.Minute
	// day is how long steps forward are added up.
	day = 24 * time.Hour
	// noise is by how much the wall clock and the time that passed may differ between two
	// readings before that is looked into.
	noise = time.Millisecond
	// Interval is how often the clock should be read at least: what the machine slept is
	// noticed then, if the wall clock does not tell.
	Interval = time.Second
	// slewing is the share of the time that passed by which the clock runs slower while it
	// is ahead of the wall clock, so that it does not stay so for ever. Kernels correct
	// clocks at this speed, too.
	slewing = 2000
)

// Jump says how the wall clock was set forward.
type Jump struct {
	// Time is what the clock showed then: the time by what has passed.
	Time time.Time
	// Wall is what the wall clock showed.
	Wall time.Time
}

// Config says what a Clock reads. The zero value is the system's clocks.
type Config struct {
	// Wall is the wall clock; the monotonic part of its times is used if there is one.
	// Default: time.Now.
	Wall func() time.Time
	// Passed says how much time has passed since some moment, sleep of the machine
	// included and whatever the wall clock is set to. Without it no jump is noticed.
	// Default: Booted if Wall is nil, else nothing.
	Passed func() time.Duration
	// Floor is what the clock begins with if the wall clock is behind it.
	Floor time.Time
}

// Clock follows the wall clock, with three exceptions. It never goes back. It counts the
// time that passes also when the wall clock was set back, so that what is to end in ten
// seconds ends in ten seconds; while it is ahead it runs slower by 1/2000. And it does
// not follow a jump, which is a step forward of more than Tolerance that no time has
// passed for: from the first one on it counts the time that passes, and nothing else.
//
// Its times are in UTC and without a monotonic reading. Its methods may be called from
// many goroutines.
type Clock struct {
	wall   func() time.Time
	passed func() time.Duration
	// bare says that the wall clock's times have no monotonic part: only passed tells what
	// time has passed, or nothing does.
	bare bool

	latest atomic.Int64 // Unix nanoseconds: what was shown last
	last   atomic.Pointer[reading]
	jump   atomic.Pointer[Jump]

	mutex sync.Mutex // of those that replace last
	// steps is by how much the wall clock was set forward since since.
	steps, since time.Duration
}

// reading is all clocks at one moment.
type reading struct {
	wall   time.Time     // as it was read, with its monotonic part
	passed time.Duration // of Config.Passed
	shown  int64         // what the clock showed, in Unix nanoseconds
}

// New returns a clock.
func New(config Config) *Clock {
	if config.Wall == nil {
		config.Wall = time.Now //nolint:forbidigo // this is the clock
		if config.Passed == nil {
			config.Passed = Booted()
		}
	}
	c := &Clock{wall: config.Wall, passed: config.Passed}
	if !config.Floor.IsZero() {
		c.latest.Store(config.Floor.UnixNano())
	}
	wall := c.wall()
	c.bare = wall == wall.Round(0) //nolint:revive // == sees the monotonic part, and Equal does not
	return c
}

// Steady returns Now of a clock over now, which begins at floor if now is behind it, and
// follows jumps.
func Steady(now func() time.Time, floor time.Time) func() time.Time {
	return New(Config{Wall: now, Floor: floor}).Now
}

// Now returns the time.
func (c *Clock) Now() time.Time {
	wall, last := c.wall(), c.last.Load()
	if last == nil || c.bare {
		return c.show(c.read())
	}
	elapsed := max(0, wall.Sub(last.wall))
	step := time.Duration(wall.UnixNano()-last.wall.UnixNano()) - elapsed
	if step > noise || step < -noise || elapsed > Interval {
		return c.show(c.read())
	}
	now := last.shown + int64(elapsed)
	if c.jump.Load() == nil {
		now = follow(last, wall, elapsed)
	}
	return c.show(now)
}

// Latest returns the latest time that it may be after a jump: nobody knows whether the
// wall clock or the time that passed is right. Before a jump it is the zero Time.
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

// Jump returns the first jump, nil if there was none. It reads the clocks first.
func (c *Clock) Jump() *Jump {
	c.Now()
	return c.jump.Load()
}

// show returns a time that was computed, or a later one that was shown.
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

// follow returns what a clock that follows the wall clock shows, a time after a reading.
func follow(last *reading, wall time.Time, elapsed time.Duration) int64 {
	counted := last.shown + int64(elapsed)
	if last.shown > last.wall.UnixNano() {
		counted -= int64(elapsed / slewing)
	}
	return max(wall.UnixNano(), counted)
}

// read reads all clocks and returns what this one shows.
func (c *Clock) read() int64 {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	last, next := c.last.Load(), &reading{wall: c.wall()}
	if c.passed != nil {
		next.passed = c.passed()
	}
	if last == nil {
		c.since = next.passed
		next.shown = max(next.wall.UnixNano(), c.latest.Load())
		c.last.Store(next)
		return next.shown
	}
	explained := max(0, next.passed-last.passed)
	elapsed := explained
	if !c.bare {
		// The two are not read at the same moment: only a sleep makes much of a difference.
		elapsed = max(0, next.wall.Sub(last.wall))
		if explained = max(explained, elapsed); explained-elapsed > Interval {
			elapsed = explained
		}
	}
	next.shown = last.shown + int64(elapsed)
	if c.jump.Load() == nil && !c.jumps(last, next, explained) {
		next.shown = follow(last, next.wall, elapsed)
	}
	c.last.Store(next)
	return next.shown
}

// jumps reports whether the wall clock has jumped, and remembers it. explained is how
// much time has passed at most.
func (c *Clock) jumps(last, next *reading, explained time.Duration) bool {
	if c.passed == nil {
		return false
	}
	if next.passed-c.since > day {
		c.steps, c.since = 0, next.passed
	}
	// A clock that was set back and then right again only comes up to what is shown.
	if step := time.Duration(next.wall.UnixNano() - last.shown - int64(explained)); step > noise {
		c.steps += step
	}
	if c.steps <= Tolerance {
		return false
	}
	c.jump.Store(&Jump{Time: time.Unix(0, next.shown).UTC(), Wall: next.wall.Round(0).UTC()})
	return true
}
