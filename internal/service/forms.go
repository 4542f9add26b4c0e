package service

import (
	"context"
	"sync/atomic"

	"github.com/scribe-mail/keysvc/internal/callers"
)

// Forms counts in which form callers present tokens, and ask for new ones: as tokens or by digest.
// A nil Forms counts nothing.
type Forms struct {
	tokens, digests atomic.Int64
	// caller is the name of the one that sent a token, or got one, last.
	caller atomic.Pointer[string]
}

// count counts a call, or an item of a batch.
func (f *Forms) count(ctx context.Context, byDigest bool) {
	switch {
	case f == nil:
	case byDigest:
		f.digests.Add(1)
	default:
		f.tokens.Add(1)
		if identity := callers.FromContext(ctx); identity != nil {
			f.caller.Store(&identity.Name)
		}
	}
}

// Counted returns how many there were of each form so far, and the name of the caller that sent a
// token last; "" for none.
func (f *Forms) Counted() (tokens, digests int64, caller string) {
	if name := f.caller.Load(); name != nil {
		caller = *name
	}
	return f.tokens.Load(), f.digests.Load(), caller
}
