package server

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// outages tells when the store goes down, and when it is back. It is down while its change log is broken off, and
// while it does not answer. A store in a cluster resumes its watch by itself, so only the second shows its outages.
type outages struct {
	hooks events.Hooks

	mutex          sync.Mutex
	broken, silent bool
}

// set notes that one of the two reasons holds, or no longer does. err is why, and revision what the store shows.
func (o *outages) set(reason *bool, holds bool, err error, revision int64) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	before := o.broken || o.silent
	*reason = holds
	switch now := o.broken || o.silent; {
	case now && !before:
		o.hooks.StoreDown(err)
	case before && !now:
		o.hooks.StoreBack(revision)
	}
}

// outageInterval is how often a store in a cluster is asked whether it answers, which costs nothing.
const outageInterval = 250 * time.Millisecond

var errStoreSilent = errors.New("the store does not answer")

// watchOutages says NOT_SERVING, and tells the hooks, while a store in a cluster does not answer: then no token is decided
// on. A store in a file is of no concern here, because validations go on from memory without it.
func (s *Server) watchOutages(ctx context.Context) error {
	reader, can := storage.As[storage.StatusReader](s.config.Store)
	if s.others == nil || !can {
		return nil
	}
	ticker := time.NewTicker(outageInterval)
	defer ticker.Stop()
	for {
		down := reader.Status(ctx).Down
		if ctx.Err() != nil {
			return nil
		}
		s.calls.setServing("store", !down)
		s.outages.set(&s.outages.silent, down, errStoreSilent, s.projection.Revision())
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}
