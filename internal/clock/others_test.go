package clock_test

import (
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/clock"
)

// TestClockFollowsTimesOfOthers: after a change that another process has stamped, the clock goes on from that
// time, and no reading is before it.
func TestClockFollowsTimesOfOthers(t *testing.T) {
	m, c := newMachine(time.Time{})
	m.pass(time.Minute)
	if !c.Follow(start.Add(90 * time.Second)) {
		t.Fatal("30 seconds ahead are not followed")
	}
	near(t, c, 90*time.Second)
	m.pass(10 * time.Second)
	near(t, c, 100*time.Second)
	if own := c.Own(); !own.Equal(m.wall) {
		t.Errorf("its own time is %s, want %s", own, m.wall)
	}
	// A time in the past changes nothing.
	if !c.Follow(start) {
		t.Error("a time in the past is not followed")
	}
	near(t, c, 100*time.Second)
	// The wall clock is corrected: that is no reason to be further ahead.
	m.wall = m.wall.Add(20 * time.Second)
	near(t, c, 100*time.Second)
	if c.Jump() != nil {
		t.Error("the correction is a jump")
	}
	// The clock runs slower until its own time has caught up. The wall clock is at 90 s.
	for range 10 {
		m.pass(time.Hour)
		c.Now()
	}
	if !c.Now().Equal(m.wall) {
		t.Errorf("after ten hours the clock is %s ahead", c.Now().Sub(m.wall))
	}
}

// TestClockFollowsNoTimeFarAhead: however often a wrong clock stamps changes, this one goes on at most Apart ahead of
// its own time.
func TestClockFollowsNoTimeFarAhead(t *testing.T) {
	m, c := newMachine(time.Time{})
	if c.Follow(start.Add(clock.Apart + 1)) {
		t.Error("a time further ahead than Apart is followed")
	}
	near(t, c, 0)
	for step := time.Duration(0); step < time.Hour; step += 50 * time.Second {
		c.Follow(start.Add(step))
	}
	if ahead := c.Now().Sub(m.wall); ahead > clock.Apart {
		t.Errorf("step by step the clock was set %s ahead", ahead)
	}
	for _, stamp := range []time.Time{time.Unix(1<<60, 0), time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), {}, time.Unix(-1<<60, 0)} {
		before := c.Now()
		c.Follow(stamp)
		if after := c.Now(); after.Before(before) || after.Sub(m.wall) > clock.Apart {
			t.Errorf("after %s the clock is at %s", stamp, after)
		}
	}
}

// TestFollowingDoesNotHideAJump: a wall clock that is set forward while the clock is ahead has jumped all the same.
func TestFollowingDoesNotHideAJump(t *testing.T) {
	m, c := newMachine(time.Time{})
	c.Follow(start.Add(time.Minute))
	m.wall = m.wall.Add(clock.Tolerance + time.Second)
	near(t, c, time.Minute)
	if c.Jump() == nil {
		t.Error("no jump")
	}
	m.pass(time.Minute)
	near(t, c, 2*time.Minute)
}

// cluster has a clock, and what it hears of others.
type cluster struct {
	*machine
	t        *testing.T
	clock    *clock.Clock
	others   *clock.Others
	revision int64
}

func newCluster(t *testing.T) *cluster {
	m, c := newMachine(time.Time{})
	return &cluster{machine: m, t: t, clock: c, others: clock.NewOthers(c)}
}

// read reads the change log.
func (c *cluster) read() { c.others.Read(c.revision, c.clock.Own()) }

// change is a change of another process whose clock is ahead by so much, seen at once.
func (c *cluster) change(ahead time.Duration) {
	c.revision++
	c.others.See(c.revision, c.wall.Add(ahead))
}

func (c *cluster) expect(what string, by time.Duration) {
	c.t.Helper()
	if got := c.others.Judge(); (got-by).Abs() > time.Second || (got == 0) != (by == 0) || c.others.By() != got {
		c.t.Errorf("%s: the others are ahead by %s, want %s", what, got, by)
	}
	latest, want := c.others.Latest(), time.Time{}
	if by > 0 {
		want = c.clock.Own().Add(c.others.By())
	}
	if !latest.Equal(want) {
		c.t.Errorf("%s: the latest time is %s, want %s", what, latest, want)
	}
}

func TestClockBehindOthersIsApartAtOnce(t *testing.T) {
	c := newCluster(t)
	c.change(clock.Apart)
	c.expect("a minute ahead", 0)
	c.change(2 * time.Minute)
	c.expect("two minutes ahead", 2*time.Minute)
	c.pass(time.Hour)
	c.expect("an hour later", 2*time.Minute)
	// The clock is set right.
	c.wall = c.wall.Add(90 * time.Second)
	c.expect("set right", 0)
	c.read()
	c.change(30 * time.Second)
	c.expect("in agreement", 0)
}

func TestClockAheadOfOthersIsApartAfterTwoChanges(t *testing.T) {
	c := newCluster(t)
	c.read()
	c.change(-time.Hour)
	c.expect("one change", 0)
	c.pass(5 * time.Second)
	c.change(-time.Hour)
	c.expect("two changes within five seconds", 0)
	c.pass(5 * time.Second)
	c.change(-time.Hour)
	c.expect("two changes within ten seconds", -time.Hour)
	c.read()
	c.change(0)
	c.expect("in agreement", 0)
}

// TestChangesThatComeLateRaiseNoAlarm: changes from before an outage prove nothing, whether the watch brings them
// late or their transaction was executed late.
func TestChangesThatComeLateRaiseNoAlarm(t *testing.T) {
	c := newCluster(t)
	c.read()
	c.pass(time.Hour) // of an outage
	// The change log is further than the watch.
	c.revision = 10
	c.read()
	for revision := int64(1); revision <= 10; revision++ {
		c.pass(3 * time.Second)
		c.others.See(revision, start.Add(time.Duration(revision)*time.Minute))
	}
	c.expect("after a replay", 0)
	// A read from before the outage does not make its changes new.
	c.others.Read(0, start)
	for revision := int64(1); revision <= 10; revision++ {
		c.pass(3 * time.Second)
		c.others.See(revision, start.Add(time.Duration(revision)*time.Minute))
	}
	c.expect("after a replay with an old read", 0)
	// One that was executed late, and one that was made now.
	c.read()
	c.change(-time.Hour)
	c.pass(time.Minute)
	c.read()
	c.change(0)
	c.change(-time.Hour)
	c.expect("after two that were executed late", 0)
}

// TestOneWrongClockOfThreeIsTheOneApart: as long as another clock agrees, this one is not apart.
func TestOneWrongClockOfThreeIsTheOneApart(t *testing.T) {
	c := newCluster(t)
	for range 60 {
		c.pass(10 * time.Second)
		c.read()
		c.change(0)
		c.change(time.Hour)
		c.expect("an hour ahead beside one that agrees", 0)
		c.change(-time.Hour)
		c.expect("an hour behind beside one that agrees", 0)
	}
	c.pass(2 * time.Minute)
	c.change(time.Hour)
	c.expect("no other clock has agreed for two minutes", time.Hour)
}

// TestOwnChangesAgreeWithNothing: a process that hears only itself has no opinion about its clock, even
// if the watch brings a change before its commit has returned.
func TestOwnChangesAgreeWithNothing(t *testing.T) {
	c := newCluster(t)
	c.read()
	before := c.others.Commit()
	c.change(0)
	before(c.revision)
	during := c.others.Commit()
	c.change(0)
	c.expect("while a commit is in flight", 0)
	during(c.revision)
	failed := c.others.Commit()
	failed(0)
	c.expect("after its own changes", 0)
	c.change(time.Hour) // would be outweighed by a change that agrees
	c.expect("an hour ahead", time.Hour)
	other := c.others.Commit()
	c.read()
	c.change(0)
	c.expect("a change of another one while a commit is in flight", time.Hour)
	other(c.revision + 1)
	c.expect("once it is known that it was another one's", 0)
}

// TestManyUnjudgedChangesAreBounded sees more changes than are kept while a commit does not return.
func TestManyUnjudgedChangesAreBounded(t *testing.T) {
	c := newCluster(t)
	c.read()
	done := c.others.Commit()
	for range 10_000 {
		c.change(0)
	}
	done(1)
	c.expect("after many", 0)
	c.change(time.Hour)
	c.expect("and others agreed", 0)
}
