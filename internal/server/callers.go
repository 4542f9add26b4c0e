package server

import (
	"context"
	"os"
	"time"

	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/reload"
)

// maxCallersFile bounds the text of a callers file, in bytes.
const maxCallersFile = 1 << 20

// newJudge returns the judge of a server, which has no callers file yet.
func (s *Server) newJudge() *callers.TableJudge {
	return callers.NewTableJudge(uint32(os.Geteuid()), func() time.Time { return s.clock.Now() }) //nolint:gosec // a user id has 32 bits
}

// callersFile is the component that reads the callers file. It comes before everything that a wrong
// file should not leave behind.
func (s *Server) callersFile() component {
	start := func(ctx context.Context) error {
		s.files = reload.New(s.log, s.filesChanged)
		if s.config.Settings.Callers == "" {
			return nil
		}
		err := s.files.Add(ctx, reload.Item{
			Name: "callers file", Reload: reload.File(s.config.Settings.Callers, maxCallersFile, s.useCallersFile),
		})
		if err == nil {
			err = s.proofs.start(ctx)
		}
		if err != nil {
			s.proofs.close()
		}
		return err
	}
	return component{name: "callers file", start: start, stop: func(context.Context) error { s.proofs.close(); return nil }}
}

// useCallersFile has the callers judged by a callers file from now on. If it returns an error, they
// are judged as before.
func (s *Server) useCallersFile(text []byte) error {
	file, err := callers.Parse(s.config.Settings.Callers, text, callers.SystemUser)
	if err != nil {
		return err
	}
	if err := s.proofs.use(file); err != nil {
		return err
	}
	s.judge.SetTable(callers.NewTable(file))
	return nil
}

// filesChanged applies what was read from changed files to connections and streams that are open.
func (s *Server) filesChanged(ctx context.Context) {
	s.judge.SetTrust(s.proofs.verifier(), s.proofs.issuers)
	// Streams come first: on a connection that ends they could not be told why.
	s.calls.door.rejudge(ctx)
	s.connections.Rejudge()
}

// lookAtFiles has the files looked at now, and not only at the next tick.
func (s *Server) lookAtFiles() {
	select {
	case s.look <- struct{}{}:
	default: // they are about to be looked at
	}
}

// watchFiles looks at the files again and again, and ends the streams of callers whose credential
// has ended.
func (s *Server) watchFiles(ctx context.Context) error {
	ticks := s.config.Ticks
	if ticks == nil {
		ticker := time.NewTicker(reload.Interval)
		defer ticker.Stop()
		ticks = ticker.C
	}
	for {
		select {
		case <-ticks:
			s.files.Check(ctx)
			s.calls.door.expire(ctx, s.clock.Now())
		case <-s.look:
			s.files.Check(ctx)
		case <-s.reprove:
			s.filesChanged(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}
