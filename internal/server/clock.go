package server

import (
	"context"
	"fmt"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/clock"
	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// dormant is the longest time since the last commit after which a start still purges. After a
// longer time the wall clock is assumed to be ahead.
const dormant = 30 * 24 * time.Hour

// startPatience is how far behind the newest change of a store with several servers a wall clock may be
// at a start: clocks of machines differ a little. The start waits until that time has passed.
const startPatience = 5 * time.Second

// startClock makes the process's clock. It returns an error if the wall clock is behind the
// newest change of the store and the settings do not allow that.
func (s *Server) startClock(ctx context.Context) error {
	settings, position := s.config.Settings, s.position
	wall, passed := s.config.Now, s.config.Passed
	if wall == nil {
		wall = time.Now
		if passed == nil {
			passed = clock.Booted()
		}
	}
	_, alone := storage.LocalBarrierOf(s.config.Store)
	if !alone && !settings.AllowClockBehind {
		if err := s.awaitTime(ctx, position.Time, wall); err != nil {
			return err
		}
	}
	behind := position.Time.Sub(wall())
	if behind > 0 && !settings.AllowClockBehind {
		return fmt.Errorf("the wall clock is %s behind the last commit, at %s: set it right, or start with --allow-clock-behind; "+
			"if that commit was made while the clock was ahead, keysvc repair-clock puts the store right",
			behind.Round(time.Millisecond), position.Time.Format(time.RFC3339))
	}
	s.sweeps = true
	if passed != nil && !position.Time.IsZero() && -behind > dormant && !settings.AllowClockAhead {
		s.sweeps = false
		s.log.WarnContext(ctx, "nothing will be purged: the wall clock is far ahead of the last commit; if it is right, start with --allow-clock-ahead",
			"wall", wall().UTC(), "last_commit", position.Time)
	}
	if alone {
		s.clock = clock.New(clock.Config{Wall: wall, Passed: passed, Floor: position.Time})
		s.clock.Now() // the clock counts the time that passes from its first reading on
		return nil
	}
	// The other servers go on by their own clocks. So a time far ahead, which one wrong clock has stamped,
	// is no floor.
	s.clock = clock.New(clock.Config{Wall: wall, Passed: passed})
	s.clock.Now()
	s.others = clock.NewOthers(s.clock)
	if !s.clock.Follow(position.Time) {
		s.log.WarnContext(ctx, "the store has a time far ahead of the wall clock, which is not followed, as --allow-clock-behind says",
			"last_commit", position.Time, "ahead", behind.Round(time.Second).String())
	}
	return nil
}

// awaitTime waits until the wall clock is past a time, if that takes at most startPatience. Otherwise it
// returns at once. The error is the context's.
func (s *Server) awaitTime(ctx context.Context, newest time.Time, wall func() time.Time) error {
	for waited := time.Duration(0); ; {
		behind := newest.Sub(wall())
		if behind <= 0 || behind > startPatience-waited {
			return ctx.Err()
		}
		s.log.InfoContext(ctx, "the wall clock is a little behind the last commit; waiting until it is past that", "behind", behind.String())
		if !s.config.Wait(ctx, behind) {
			return ctx.Err()
		}
		waited += behind
	}
}

// followTime makes the clock follow the time of a change before the projection shows that change.
func (s *Server) followTime(change *storage.Committed) {
	if s.others == nil || change.Time.IsZero() { // a fence has no time
		return
	}
	s.clock.Follow(change.Time)
	if s.others.See(change.Revision, change.Time) {
		return
	}
	if own := s.clock.Own(); s.reportedAhead.IsZero() || own.Sub(s.reportedAhead) >= time.Minute {
		s.reportedAhead = own
		s.hooks.ChangeAhead(events.ChangeAhead{Revision: change.Revision, Time: change.Time, By: change.Time.Sub(own)})
	}
}

// loaded counts a load of the store, and makes the clock follow the newest time of it.
func (s *Server) loaded(position storage.Position) {
	s.loads.Add(1)
	if s.others != nil && !position.Time.IsZero() {
		s.clock.Follow(position.Time)
	}
}

// ownCommits returns a store that tells others which changes this process makes.
func ownCommits(store keys.Store, others *clock.Others) keys.Store {
	if others == nil {
		return store
	}
	return &observedCommits{store, others}
}

type observedCommits struct {
	keys.Store
	others *clock.Others
}

// Commit implements storage.Committer.
func (c *observedCommits) Commit(ctx context.Context, change *storage.Change) (revision int64, err error) {
	done := c.others.Commit()
	defer func() { done(revision) }()
	return c.Store.Commit(ctx, change)
}

// barrierInterval is how often the change log is read to know which changes are new.
const barrierInterval = 5 * time.Second

// compareClocks compares the clock with those of the other servers, and says NOT_SERVING while it differs.
func (s *Server) compareClocks(ctx context.Context) error {
	if s.others == nil {
		return nil
	}
	ticker := time.NewTicker(clock.Interval)
	defer ticker.Stop()
	isApart := false
	for ticks := 0; ; ticks++ {
		if ticks%int(barrierInterval/clock.Interval) == 0 {
			s.readBarrier(ctx)
		}
		if by := s.others.Judge(); (by != 0) != isApart {
			isApart = by != 0
			s.calls.setServing("clock", !isApart)
			s.hooks.ClockApart(events.ClockApart{By: by})
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// readBarrier tells others how far the change log has come.
func (s *Server) readBarrier(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, clock.Interval)
	defer cancel()
	sent := s.clock.Own()
	if barrier, err := s.config.Store.Barrier(ctx); err == nil {
		s.others.Read(barrier.Revision, sent)
	}
}

// latestTime returns the latest time that it may be while the clock is in doubt, and else the zero Time.
func (s *Server) latestTime() time.Time {
	latest := s.clock.Latest()
	if s.others != nil {
		if theirs := s.others.Latest(); theirs.After(latest) {
			return theirs
		}
	}
	return latest
}

// clockTrusted returns nil while the time is known, and else the error for callers.
func (s *Server) clockTrusted() error {
	switch {
	case s.clockJumped():
		return problem.New(keysvcv1.ErrorReason_ERROR_REASON_CLOCK_UNSURE,
			"the server's clock was set forward and may be wrong: what takes away goes on, the rest waits for its operator; nothing was changed")
	case s.others != nil && s.others.By() != 0:
		return problem.New(keysvcv1.ErrorReason_ERROR_REASON_CLOCK_UNSURE,
			"the server's clock differs from those of the other servers and may be wrong: what takes away goes on, the rest waits for its operator; nothing was changed")
	}
	return nil
}

// clockJumped reads the clock and reports whether the wall clock has jumped. The hook is
// called once.
func (s *Server) clockJumped() bool {
	jump := s.clock.Jump()
	if jump == nil {
		return false
	}
	s.reportJump.Do(func() { s.hooks.ClockJumped(events.ClockJump{Wall: jump.Wall, ByTimePassed: jump.Time}) })
	return true
}

// watchClock reads the clock at every clock.Interval, so that a jump is noticed soon.
func (s *Server) watchClock(ctx context.Context) error {
	ticker := time.NewTicker(clock.Interval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			s.clockJumped()
		case <-ctx.Done():
			return nil
		}
	}
}
