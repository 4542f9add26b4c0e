package clock_test

import (
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/clock"
)

// machine has the clocks of a machine. The wall clock has no monotonic part.
type machine struct {
	wall   time.Time
	passed time.Duration
}

func newMachine(floor time.Time) (*machine, *clock.Clock) {
	m := &machine{wall: start, passed: time.Hour}
	c := clock.New(clock.Config{
		Wall: func() time.Time { return m.wall }, Passed: func() time.Duration { return m.passed }, Floor: floor,
	})
	c.Now()
	return m, c
}

// pass lets time pass.
func (m *machine) pass(d time.Duration) { m.wall, m.passed = m.wall.Add(d), m.passed+d }

// near fails the test if the clock does not show the wanted time after the start. The clock may be
// a thousandth behind, because it may run slower.
func near(t *testing.T, c *clock.Clock, want time.Duration) {
	t.Helper()
	if got := c.Now().Sub(start); got > want || got < want-want.Abs()/1000 {
		t.Errorf("the clock is at %s, want %s", got, want)
	}
}

// TestClockCountsTimeThatPassesThoughSetBack sets the wall clock back: what ends in ten seconds
// still ends in ten seconds.
func TestClockCountsTimeThatPassesThoughSetBack(t *testing.T) {
	m, c := newMachine(time.Time{})
	m.pass(time.Minute)
	near(t, c, time.Minute)
	m.wall = m.wall.Add(-time.Hour)
	near(t, c, time.Minute)
	for want := time.Minute + time.Second; want <= time.Minute+12*time.Second; want += time.Second {
		m.pass(time.Second)
		near(t, c, want)
	}
	m.pass(time.Hour) // the clock is not read meanwhile
	near(t, c, time.Hour+time.Minute+12*time.Second)
	if jump := c.Jump(); jump != nil || !c.Latest().IsZero() {
		t.Errorf("a jump: %+v", jump)
	}
	// The wall clock is set right: it catches up with the clock, which is no jump.
	m.wall = m.wall.Add(time.Hour)
	near(t, c, time.Hour+time.Minute+12*time.Second)
	if jump := c.Jump(); jump != nil {
		t.Errorf("a jump: %+v", jump)
	}
}

// TestClockCountsSleep lets the machine sleep while the wall clock is set back by the same
// time, so that the wall clock does not show the sleep.
func TestClockCountsSleep(t *testing.T) {
	m, c := newMachine(time.Time{})
	m.passed += time.Hour
	m.wall = m.wall.Add(2 * clock.Interval)
	near(t, c, time.Hour)
	m.passed += time.Hour
	m.wall = m.wall.Add(-time.Minute)
	near(t, c, 2*time.Hour)
}

func TestClockRunsOnFromItsFloor(t *testing.T) {
	m, c := newMachine(start.Add(time.Hour))
	near(t, c, time.Hour)
	m.pass(time.Minute)
	near(t, c, time.Hour+time.Minute)
	// While the clock is ahead it runs slower by 1/2000, so that both agree in the end.
	for range 84 * 24 {
		m.pass(time.Hour)
		c.Now()
	}
	if !c.Now().Equal(m.wall) {
		t.Errorf("after 84 days the clock is %s ahead", c.Now().Sub(m.wall))
	}
}

// TestClockDoesNotFollowAJump sets the wall clock forward: this clock does not follow, and a new
// clock does.
func TestClockDoesNotFollowAJump(t *testing.T) {
	const ahead = 400 * 24 * time.Hour
	m, c := newMachine(time.Time{})
	m.wall = m.wall.Add(ahead)
	near(t, c, 0)
	jump := c.Jump()
	if jump == nil || !jump.Time.Equal(start) || !jump.Wall.Equal(start.Add(ahead)) {
		t.Fatalf("got %+v", jump)
	}
	m.pass(2500 * time.Millisecond)
	near(t, c, 2500*time.Millisecond)
	if got := c.Latest(); !got.Equal(m.wall) {
		t.Errorf("it may be as late as %s, want what the wall clock shows", got)
	}
	m.wall = m.wall.Add(-ahead)
	near(t, c, 2500*time.Millisecond)
	if got := c.Latest(); !got.Equal(m.wall) {
		t.Errorf("it may be as late as %s, though the wall clock is right again", got)
	}
	m.wall = m.wall.Add(-ahead)
	m.pass(time.Second)
	near(t, c, 3500*time.Millisecond)
	if got := c.Latest(); !got.Equal(c.Now()) {
		t.Errorf("it may be as late as %s, which is earlier than now", got)
	}
	if c.Jump() != jump {
		t.Errorf("the jump is now %+v, though the first one counts", c.Jump())
	}
}

// TestCorrectionsAndSleepAreNoJump moves the clocks as a time service and a sleeping machine do.
func TestCorrectionsAndSleepAreNoJump(t *testing.T) {
	for _, test := range []struct {
		name string
		step func(m *machine)
		jump bool
	}{
		{"sleep", func(m *machine) { m.pass(30 * 24 * time.Hour) }, false},
		{"a correction", func(m *machine) { m.wall = m.wall.Add(clock.Tolerance) }, false},
		{"more than a correction", func(m *machine) { m.wall = m.wall.Add(clock.Tolerance + time.Second) }, true},
		{"back", func(m *machine) { m.wall = m.wall.Add(-400 * 24 * time.Hour) }, false},
		{"sleep, and a correction", func(m *machine) { m.pass(time.Hour); m.wall = m.wall.Add(time.Minute) }, false},
		{"less sleep than the wall clock says", func(m *machine) { m.pass(time.Hour); m.wall = m.wall.Add(time.Hour) }, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			m, c := newMachine(time.Time{})
			m.pass(time.Second)
			before := c.Now()
			test.step(m)
			if c.Now().Before(before) {
				t.Error("the clock went back")
			}
			if got := c.Jump() != nil; got != test.jump {
				t.Errorf("a jump: %t, want %t", got, test.jump)
			}
		})
	}
}

// TestSmallStepsWithinADayAddUpToAJump sets the wall clock forward in small steps: a little each
// day is a bad clock, and much within a day is a jump.
func TestSmallStepsWithinADayAddUpToAJump(t *testing.T) {
	m, c := newMachine(time.Time{})
	for range 90 {
		m.pass(25 * time.Hour)
		c.Now()
		m.wall = m.wall.Add(4 * time.Minute)
		if c.Jump() != nil {
			t.Fatal("4 minutes a day are a jump")
		}
	}
	m.pass(time.Hour)
	m.wall = m.wall.Add(2 * time.Minute)
	if c.Jump() == nil {
		t.Error("6 minutes within a day are no jump")
	}
}

// TestBootedAdvances reads the real clock of this machine.
func TestBootedAdvances(t *testing.T) {
	booted := clock.Booted()
	if booted == nil {
		t.Skip("this system does not tell")
	}
	first := booted()
	if second := booted(); first <= 0 || second < first {
		t.Errorf("up for %s, then for %s", first, second)
	}
	c := clock.New(clock.Config{})
	if now := c.Now(); c.Jump() != nil || time.Since(now).Abs() > time.Minute {
		t.Errorf("the clock shows %s", now)
	}
}

func TestNowAllocatesNothing(t *testing.T) {
	c := clock.New(clock.Config{})
	if allocations := testing.AllocsPerRun(1000, func() { c.Now() }); allocations >= 1 {
		t.Errorf("%v allocations", allocations)
	}
}

func BenchmarkNow(b *testing.B) {
	c := clock.New(clock.Config{})
	for b.Loop() {
		c.Now()
	}
}

// TestClockDoesNotRunAheadWhenReadingsAreApart reads the time that passed later than the wall
// clock, as when the process is stopped between the two: the clock does not run ahead.
func TestClockDoesNotRunAheadWhenReadingsAreApart(t *testing.T) {
	began := time.Now() // Add moves its monotonic part, too
	var passed, late time.Duration
	c := clock.New(clock.Config{Wall: func() time.Time { return began.Add(passed) }, Passed: func() time.Duration { return passed + late }})
	c.Now()
	for _, late = range []time.Duration{500 * time.Millisecond, 0, 200 * time.Millisecond, 0} {
		passed += 2 * clock.Interval
		if now := c.Now(); !now.Equal(began.Add(passed)) || c.Jump() != nil {
			t.Errorf("with a reading that is late by %s the clock is ahead by %s", late, now.Sub(began.Add(passed)))
		}
	}
	late += time.Hour // a sleep that the wall clock does not show
	passed += 2 * clock.Interval
	if now := c.Now(); !now.Equal(began.Add(passed + late)) {
		t.Errorf("after a sleep of an hour the clock is ahead by %s", now.Sub(began.Add(passed)))
	}
}
