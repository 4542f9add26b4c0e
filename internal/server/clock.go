package server

import (
	"context"
	"fmt"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/clock"
	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/problem"
)

// dormant is the longest time since the last commit after which a start still purges. After a
// longer time the wall clock is assumed to be ahead.
const dormant = 30 * 24 * time.Hour

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
	s.clock = clock.New(clock.Config{Wall: wall, Passed: passed, Floor: position.Time})
	s.clock.Now() // the clock counts the time that passes from its first reading on
	return nil
}

// clockTrusted returns nil until the wall clock has jumped, and then the error for callers.
func (s *Server) clockTrusted() error {
	if !s.clockJumped() {
		return nil
	}
	return problem.New(keysvcv1.ErrorReason_ERROR_REASON_CLOCK_UNSURE,
		"the server's clock was set forward and may be wrong: what takes away goes on, the rest waits for its operator; nothing was changed")
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
