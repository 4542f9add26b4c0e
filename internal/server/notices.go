package server

import (
	"cmp"
	"context"
	"errors"
	"path/filepath"

	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/giveway"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/notices"
	"github.com/scribe-mail/keysvc/internal/projection"
)

// noticesFile is the name of the file in the data folder that has the place in the notices.
const noticesFile = "keysvc.notices"

// noticeSecret checks the file of secrets before anything is begun.
func (s *Server) noticeSecret() component {
	return component{name: "notice-secret", start: func(context.Context) error {
		if s.config.Settings.NoticeSecret == "" {
			return nil
		}
		return notices.CheckSecretFile(s.config.Settings.NoticeSecret)
	}}
}

// prepareNotices makes what sends notices, if the settings name a receiver. Of several servers over a store, one sends them.
func (s *Server) prepareNotices(context.Context) error {
	settings := s.config.Settings
	if settings.NoticeWebhook == "" {
		return nil
	}
	s.sender = notices.New(notices.Config{
		Source: s.keys, Ready: s.mayNotify, Now: s.clock.Now,
		URL: settings.NoticeWebhook, SecretFile: settings.NoticeSecret, Interval: settings.NoticeInterval,
		PlaceFile: filepath.Join(settings.Data, noticesFile), Wait: s.config.Wait,
		Done: func(attempt notices.Attempt) {
			done := events.NoticeAttempt{Failures: attempt.Failures, Error: attempt.Error}
			if notice := attempt.Notice; notice != nil {
				done.NoticeID, done.Days = notice.ID, notice.Days
				done.WorkspaceID, done.KeyID = notice.Key.WorkspaceID, notice.Key.ID
			}
			s.hooks.NoticeAttempted(done)
		},
	})
	return nil
}

// mayNotify returns an error as long as the clock may be wrong. A clock that is ahead by months would
// have a notice for each key.
func (s *Server) mayNotify() error {
	if !s.sweeps {
		return errClockAhead
	}
	return s.clockTrusted()
}

var errClockAhead = errors.New("the wall clock may be far ahead")

// background returns a context for work that gives way to validations for as long as it takes. It belongs to
// one goroutine.
func (s *Server) background(ctx context.Context) context.Context {
	return giveway.NewBackground(ctx, s.slots.of(callers.Validation).begun.Load)
}

// countEnding counts the keys that end soon, at every interval.
func (s *Server) countEnding(ctx context.Context) error {
	for {
		now := s.clock.Now()
		counts := s.projection.CountEnding(s.background(ctx), now, keys.NoticeLeads(), keys.UsedSince(now))
		s.ending.Store(&counts)
		if !s.config.Wait(ctx, s.config.Settings.NoticeInterval) {
			return nil
		}
	}
}

// endingCounts returns the keys that end within each of keys.NoticeLeads, as they were counted last.
func (s *Server) endingCounts() []projection.EndingCounts {
	return *cmp.Or(s.ending.Load(), &[]projection.EndingCounts{})
}

// Notices returns how sending notices goes; zero if the settings name no receiver.
func (s *Server) Notices() notices.State {
	if s.sender == nil {
		return notices.State{}
	}
	return s.sender.State()
}
