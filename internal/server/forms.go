package server

import (
	"context"
	"time"

	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/service"
)

// formsInterval is how often it is reported that callers still send tokens.
const formsInterval = time.Minute

// forms reports in which form callers present tokens.
type forms struct {
	counted service.Forms
	// tokens and digests were reported already.
	tokens, digests int64
}

// watchForms reports once a minute, if tokens came.
func (s *Server) watchForms(ctx context.Context) error {
	ticker := time.NewTicker(formsInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			s.reportForms(false)
		}
	}
}

// reportLastForms reports all that came since the start, when no call is in progress any more.
func (s *Server) reportLastForms(context.Context) error {
	s.reportForms(true)
	return nil
}

// reportForms calls the hook with what came since the last report. With last it reports all that
// came since the start.
func (s *Server) reportForms(last bool) {
	reported := &s.forms
	tokens, digests, caller := reported.counted.Counted()
	seen := events.TokensPresented{Tokens: tokens - reported.tokens, Digests: digests - reported.digests, Caller: caller}
	if last {
		seen.Tokens, seen.Digests, seen.Last = tokens, digests, true
	}
	reported.tokens, reported.digests = tokens, digests
	if seen.Tokens > 0 || last && seen.Digests > 0 {
		s.hooks.TokensPresented(seen)
	}
}
