// Package notices sends the notices that keys end soon to a receiver, over HTTP, signed as the
// Standard Webhooks specification says, in order and one at a time.
//
// A notice that the receiver does not take is sent again until it is taken, or is no longer true
// because its key was rotated, revoked or purged, or has a newer notice. What was taken is remembered in a
// file, so that after a restart at most the last notice is sent again, with the same id. One page of notices
// is in memory at a time.
package notices

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/backoff"
	"github.com/scribe-mail/keysvc/internal/keys"
)

const (
	// pageSize is how many notices are in memory at a time.
	pageSize = 100
	// firstRetry and longestRetry bound the random wait before the next attempt.
	firstRetry   = time.Second
	longestRetry = 15 * time.Minute
)

// Source has the notices. keys.Manager is one.
type Source interface {
	// NoticesAfter reads notices from a place on.
	NoticesAfter(ctx context.Context, visible access.Workspaces, place keys.NoticePlace, limit int) (*keys.NoticePage, error)
	// Still returns a notice as it is now, nil if it is no longer true.
	Still(ctx context.Context, visible access.Workspaces, notice *keys.Notice) (*keys.Notice, error)
}

// Config is what New makes a Sender from. All of it is required, but for Wait.
type Config struct {
	// Source has the notices.
	Source Source
	// Ready returns an error as long as no notice may be sent, because the clock may be wrong.
	Ready func() error
	// URL is the receiver's, and SecretFile the file with the secrets that messages are signed with.
	URL, SecretFile string
	// PlaceFile is the file with the place that the Sender has come to. Nothing else writes it.
	PlaceFile string
	// Interval is how often the Sender looks for notices.
	Interval time.Duration
	// Now is the clock.
	Now func() time.Time
	// Done is called with the outcome of each attempt. It must return at once.
	Done func(Attempt)
	// Wait waits for a duration, and reports whether the context did not end meanwhile. Default: Wait.
	Wait func(ctx context.Context, duration time.Duration) bool
}

// Attempt is one attempt to send a notice, or to find what to send.
type Attempt struct {
	// Notice is nil if the notices could not be read, or the place could not be read or written.
	Notice *keys.Notice
	// Failures is how many attempts have failed since the last one that succeeded.
	Failures int
	// Error is nil if the receiver has taken the notice.
	Error error
}

// State is how a Sender is.
type State struct {
	// Waiting is about how many notices have fallen due and were not taken yet. It is counted when the
	// Sender looks for notices.
	Waiting int64
	// Failures is how many attempts have failed since the last one that succeeded.
	Failures int64
	// Sent and Failed count notices that were taken, and attempts that failed, since the start.
	Sent, Failed int64
}

// Sender sends notices.
type Sender struct {
	config   Config
	endpoint *endpoint
	// place is how far Run has come.
	place keys.NoticePlace

	waiting, failures, sent, failed atomic.Int64
}

// New returns a Sender. CheckSecretFile checks the file of secrets.
func New(config Config) *Sender {
	if config.Wait == nil {
		config.Wait = Wait
	}
	return &Sender{config: config, endpoint: newEndpoint(config.URL, config.SecretFile, config.Now)}
}

// State returns how the Sender is. It may be called from many goroutines.
func (s *Sender) State() State {
	return State{Waiting: s.waiting.Load(), Failures: s.failures.Load(), Sent: s.sent.Load(), Failed: s.failed.Load()}
}

// Run sends notices until the context ends. It may be called again afterwards, and then begins where the file says. In between
// nothing waits and nothing fails.
func (s *Sender) Run(ctx context.Context) {
	defer func() {
		s.endpoint.close()
		s.waiting.Store(0)
		s.failures.Store(0)
	}()
	started := false
	for {
		if err := s.config.Ready(); err == nil {
			if !started { // not before: the clock says where to begin
				started = true
				var err error
				if s.place, err = begin(s.config.PlaceFile, s.config.Now()); err != nil {
					s.config.Done(Attempt{Failures: int(s.failures.Load()), Error: err})
				}
			}
			s.sendAll(ctx)
		}
		if !s.config.Wait(ctx, s.config.Interval) {
			return
		}
	}
}

// sendAll sends all notices that have fallen due. It returns early if the notices cannot be read, if
// nothing may be sent any more, and when the context ends.
func (s *Sender) sendAll(ctx context.Context) {
	for ctx.Err() == nil && s.config.Ready() == nil {
		page, err := s.config.Source.NoticesAfter(ctx, access.All(), s.place, pageSize)
		if err != nil {
			s.failedAttempt(ctx, nil, err)
			return
		}
		for index, notice := range page.Notices {
			s.waiting.Store(int64(page.Waiting + len(page.Notices) - index))
			next := keys.NoticePlace{Due: notice.DueTime, KeyID: notice.Key.ID, NotEndedBy: s.place.NotEndedBy}
			if !s.sendOne(ctx, notice) || !s.moveTo(ctx, next) {
				return
			}
		}
		s.waiting.Store(int64(page.Waiting))
		if !s.moveTo(ctx, page.Next) {
			return
		}
		if page.Waiting == 0 {
			s.failures.Store(0)
			return
		}
	}
}

// sendOne sends a notice until the receiver takes it or the notice is no longer true. It returns false
// if the context has ended, or nothing may be sent any more.
func (s *Sender) sendOne(ctx context.Context, notice *keys.Notice) bool {
	retries := backoff.New(firstRetry, longestRetry)
	for s.config.Ready() == nil {
		// The key may have changed since the page was read, and while the receiver did not answer.
		still, err := s.config.Source.Still(ctx, access.All(), notice)
		if err == nil && still == nil {
			return true
		}
		if err == nil {
			err = s.endpoint.send(ctx, still)
		}
		if err == nil {
			s.sent.Add(1)
			s.failures.Store(0)
			s.config.Done(Attempt{Notice: still})
			return true
		}
		s.failedAttempt(ctx, notice, err)
		after := retries.Next()
		if asked := new(attemptError); errors.As(err, &asked) {
			after = max(after, asked.after)
		}
		if !s.config.Wait(ctx, after) {
			return false
		}
	}
	return false
}

// moveTo makes a place durable, before anything that follows on it is sent. It returns false if the context
// has ended.
func (s *Sender) moveTo(ctx context.Context, place keys.NoticePlace) bool {
	retries := backoff.New(firstRetry, longestRetry)
	for {
		err := writePlace(s.config.PlaceFile, place)
		if err == nil {
			s.place = place
			return true
		}
		s.failedAttempt(ctx, nil, err)
		if !s.config.Wait(ctx, retries.Next()) {
			return false
		}
	}
}

// failedAttempt counts and reports an attempt that failed, unless the context has ended.
func (s *Sender) failedAttempt(ctx context.Context, notice *keys.Notice, err error) {
	if ctx.Err() == nil {
		s.failed.Add(1)
		s.config.Done(Attempt{Notice: notice, Failures: int(s.failures.Add(1)), Error: err})
	}
}

// Wait waits for a duration, and reports whether the context did not end meanwhile.
func Wait(ctx context.Context, duration time.Duration) bool {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
