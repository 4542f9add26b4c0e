package server

import (
	"context"
	"fmt"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/clock"
	"github.com/scribe-mail/keysvc/internal/problem"
)

// dormant is how long a store may have been without a change at a start before that is
// taken for a wall clock that is ahead, as far as purging goes.
const dormant = 30 * 24 * time.Hour

// startClock makes the process's clock. The wall clock must not be behind the newest
// change of the store, unless the settings say so.
func (s *Server) startClock(ctx context.Context) error {
	settings, position := s.config.Settings, s.position
	wall, passed := s.config.Now, s.config.Passed
	if wall == nil {
		wall = time.Now //nolint:forbidigo // the one clock follows it
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
	s.clock.Now() // from here on time passes
	return nil
}

// clockTrusted returns what to tell callers once the wall clock has jumped.
func (s *Server) clockTrusted() error {
	if !s.clockJumped() {
		return nil
	}
	return problem.New(keysvcv1.ErrorReason_ERROR_REASON_CLOCK_UNSURE,
		"the server's clock was set forward and may be wrong: what takes away goes on, the rest waits for its operator; nothing was changed")
}

// clockJumped reads the clock and reports whether the wall clock has jumped. It says so in
// the log, once.
func (s *Server) clockJumped() bool {
	jump := s.clock.Jump()
	if jump == nil {
		return false
	}
	s.sayJump.Do(func() {
		s.log.Error("the wall clock was set forward, and nobody knows if it is right: until a restart no key is created or rotated with an overlap, and nothing is purged",
			"wall", jump.Wall, "by_time_passed", jump.Time, "ahead", jump.Wall.Sub(jump.Time).Round(time.Second).String())
	})
	return true
}

// watchClock reads the clock often enough.
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
