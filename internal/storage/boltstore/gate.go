package boltstore

import (
	"context"

	"golang.org/x/sync/semaphore"
)

// allPermits is the number of permits of a gate. A reader takes one, a writer takes all.
const allPermits = 1 << 30

// gate is a lock for one writer or many readers, in the order of arrival. Unlike the wait
// for a sync.RWMutex, the wait for a gate can end with a context. Store.state needs that: its
// writer holds it as long as the disk takes to sync.
type gate struct{ permits *semaphore.Weighted }

func newGate() gate { return gate{permits: semaphore.NewWeighted(allPermits)} }

// Enter locks for reading, or returns the context's error.
func (g gate) Enter(ctx context.Context) error { return g.permits.Acquire(ctx, 1) }

// TryEnter locks for reading if that needs no wait, and reports whether it has.
func (g gate) TryEnter() bool { return g.permits.TryAcquire(1) }

// RLock locks for reading, however long that takes.
func (g gate) RLock() { _ = g.permits.Acquire(context.Background(), 1) }

// RUnlock unlocks after Enter or RLock.
func (g gate) RUnlock() { g.permits.Release(1) }

// Claim locks for writing, or returns the context's error.
func (g gate) Claim(ctx context.Context) error { return g.permits.Acquire(ctx, allPermits) }

// Lock locks for writing, however long that takes.
func (g gate) Lock() { _ = g.permits.Acquire(context.Background(), allPermits) }

// Unlock unlocks after Claim or Lock.
func (g gate) Unlock() { g.permits.Release(allPermits) }
