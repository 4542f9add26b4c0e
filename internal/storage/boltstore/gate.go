package boltstore

import (
	"context"

	"golang.org/x/sync/semaphore"
)

// everybody is how many readers a gate admits at a time, and so what a writer takes.
const everybody = 1 << 30

// gate is a lock of one writer or many readers, in the order in which they came. Unlike
// that of sync.RWMutex, a wait for it can end with a context: the writer holds it as long
// as the disk takes to sync.
type gate struct{ places *semaphore.Weighted }

func newGate() gate { return gate{places: semaphore.NewWeighted(everybody)} }

// Enter admits a reader, or returns the context's error.
func (g gate) Enter(ctx context.Context) error { return g.places.Acquire(ctx, 1) }

// RLock admits a reader, however long that takes.
func (g gate) RLock() { _ = g.places.Acquire(context.Background(), 1) }

// RUnlock lets a reader out.
func (g gate) RUnlock() { g.places.Release(1) }

// Claim admits the writer, or returns the context's error.
func (g gate) Claim(ctx context.Context) error { return g.places.Acquire(ctx, everybody) }

// Lock admits the writer, however long that takes.
func (g gate) Lock() { _ = g.places.Acquire(context.Background(), everybody) }

// Unlock lets the writer out.
func (g gate) Unlock() { g.places.Release(everybody) }
