package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/sink"
)

// ReadAudit examines a store as Check does, and returns its audit events for a comparison with its sink. They take
// about 200 bytes each in memory. Errors: those of Check.
func ReadAudit(ctx context.Context, config Config) (report Report, trail sink.SparseStore, err error) {
	store := newStore(ctx, config)
	defer store.Close() //nolint:errcheck // it never fails
	trail = sink.SparseStore{Heads: make(map[string]int64), Events: make(map[string][]sink.SparseEvent)}
	c := &checker{trail: func(workspaceID string, sequence, revision int64, event storage.AuditEvent) {
		found := sink.SparseEvent{Sequence: sequence, Revision: revision, Damaged: event.Record == nil}
		if !found.Damaged {
			found.Time, found.Hash = event.Record.GetTime().AsTime(), storage.HashAudit(event.Encoded)
			copy(found.Previous[:], event.Record.GetPreviousHash())
		}
		trail.Events[workspaceID] = append(trail.Events[workspaceID], found)
	}}
	err = store.check(ctx, &report, c)
	if errors.Is(err, storage.ErrDamaged) {
		c.Problem("%v", err)
		err = nil
	}
	var sunk storage.Barrier
	if err == nil {
		if sunk, err = store.SinkPosition(ctx); errors.Is(err, storage.ErrDamaged) {
			c.Problem("%v", err)
			err = nil
		}
	}
	if err != nil {
		return Report{}, sink.SparseStore{}, fmt.Errorf("%s: %w", store.config.Prefix, err)
	}
	for _, events := range trail.Events {
		slices.Reverse(events) // they are stored newest first
	}
	if c.memory != nil {
		for workspaceID, entry := range c.memory.workspaces {
			trail.Heads[workspaceID] = entry.head.Sequence
		}
	}
	trail.Epoch, trail.Newest, trail.Pruned, trail.Sunk = report.Epoch, report.Position.Revision, report.Pruned, sunk.Revision
	trail.Problems, trail.More = c.Located()
	return report, trail, nil
}
