package server

import (
	"context"
	"crypto/x509"
	"time"

	"github.com/scribe-mail/keysvc/internal/condition"
	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/version"
)

// diskPatience is how long a status waits for the disk.
const diskPatience = time.Second

// rememberCommits returns the hooks that remember when the newest change was made.
func (s *Server) rememberCommits() events.Hooks {
	return events.Hooks{ChangeCommitted: func(change events.Change) {
		if !change.Time.IsZero() {
			s.committed.Store(change.Time.UnixNano())
		}
	}}
}

// certificate returns how long the server's certificate holds, with the intermediates that it sends; nil
// without TLS.
func (s *Server) certificate() *condition.Certificate {
	own := s.proofs.Own()
	if own == nil || !s.config.Settings.TLS() {
		return nil
	}
	var holds *condition.Certificate
	for _, each := range own.Certificate {
		parsed, err := x509.ParseCertificate(each)
		switch {
		case err != nil: // TLS would not have taken it
		case holds == nil:
			holds = &condition.Certificate{Start: parsed.NotBefore, End: parsed.NotAfter}
		default:
			if parsed.NotBefore.After(holds.Start) {
				holds.Start = parsed.NotBefore
			}
			if parsed.NotAfter.Before(holds.End) {
				holds.End = parsed.NotAfter
			}
		}
	}
	return holds
}

// condition returns how the server is. It reads memory, and waits for the disk for at most
// diskPatience. All components before the calls have started.
func (s *Server) condition(ctx context.Context) *condition.Condition {
	now := s.clock.Now()
	totals, census := s.projection.Totals(), s.projection.Census(now)
	_, revision, policyErr := s.projection.Policy()
	c := &condition.Condition{
		Version: version.Text(), Started: s.began, Now: now,
		Epoch: s.config.Store.Epoch(), Revision: revision, LastCommit: s.position.Time,
		Keys: int64(totals.Keys), Members: int64(totals.Members), Workspaces: int64(totals.Workspaces),
		States: &condition.States{
			Active: census.Active, Suspended: census.Suspended, Held: census.Held, Expired: census.Expired, Revoked: census.Revoked,
			Within7Days: census.Within7Days, Within30Days: census.Within30Days,
		},
		Damaged: int64(totals.Damaged), PolicyDamaged: policyErr != nil,
		Clock: condition.Clock{Jumped: s.clockJumped(), WallAhead: s.wallClock()().Sub(now), Purges: s.sweeps},
	}
	c.NewestSchema, c.StoreKind = storage.Newest, "bbolt"
	if s.others != nil {
		c.Clock.Apart = s.others.By()
	}
	backups := s.backups.State()
	c.LastBackup, c.BackupFailures = backups.Last.Time, int64(backups.Failures)
	sending := s.Notices()
	c.NoticesWaiting, c.NoticeFailures = sending.Waiting, sending.Failures
	if newest := s.committed.Load(); newest != 0 {
		c.LastCommit = time.Unix(0, newest)
	}
	lag := s.hub.Lag()
	c.Stopping, c.ReadOnly = lag.Stopping, s.readOnly.Load()
	c.Sessions = condition.Sessions{
		Open: int64(lag.Sessions), Limit: int64(lag.Limit), Leased: int64(lag.Leased), Behind: int64(lag.Behind),
		Unconfirmed: int64(lag.Unconfirmed), Staleness: s.hub.Staleness(), Ahead: lag.Ahead,
	}
	if !lag.Oldest.IsZero() {
		c.Sessions.Lag = max(0, now.Sub(lag.Oldest))
	}
	c.Certificate, c.FilesRefused = s.certificate(), s.files.Failing()
	for _, each := range s.proofs.files.Authorities() {
		c.Authorities = append(c.Authorities, condition.Authority{TrustDomain: each.TrustDomain, Certificate: condition.Certificate{Start: each.Start, End: each.End}})
	}
	if store, can := storage.As[storage.StatusReader](s.config.Store); can {
		ctx, cancel := context.WithTimeout(ctx, diskPatience)
		defer cancel()
		status := store.Status(ctx)
		if writer := s.sink.Load(); writer != nil {
			status.Sink = writer.Status()
		}
		c.Store, c.Schema = &status, status.Schema
	}
	if s.settingsKeeper() != nil {
		c.StoreKind = "etcd"
		if settings, _, err := s.projection.Settings(); err == nil {
			c.Schema = max(c.Schema, storage.SchemaOf(settings.Record))
		} else {
			c.Schema = 0 // it may have been raised
		}
	}
	return c
}
