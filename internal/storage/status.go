package storage

import "context"

// Status is how a store is, for its operator. Numbers that a store cannot know are 0.
type Status struct {
	// Schema is the store's, as it was when this process opened the store; 0 if the store does not say. Settings
	// that all processes share may have raised it since.
	Schema int32
	// Silent is set if the disk did not answer before the context ended. Down, FileBytes, FreeBytes,
	// DiskFreeBytes and DiskBytes are not known then.
	Silent bool
	// Down is set while the store makes no change, because it was not opened again since a commit
	// failed.
	Down bool
	// Full is set while the disk is full, or a member has used nine tenths of its quota, so that only
	// changes that narrow are made. Exhausted is set while members have no room for these either.
	Full, Exhausted bool
	// FileBytes is the size of the file, and FreeBytes how much of it later changes use before the
	// file grows.
	FileBytes, FreeBytes int64
	// ReserveBytes is how much of the disk is kept for changes that narrow.
	ReserveBytes int64
	// DiskFreeBytes is how much of the disk this process may still use, and DiskBytes its size.
	DiskFreeBytes, DiskBytes int64
	// Members are the members of the cluster that has the store; none for a store in a file. With members,
	// Down is set while nothing could be read from any of them for some seconds, Silent is never set, and the numbers of the file and
	// of the disk are 0.
	Members []StoreMember
	// Sink is the audit sink, and Anchor the anchor's file.
	Sink, Anchor Follower
}

// StoreMember is one member of the cluster that has a store.
type StoreMember struct {
	// Address is where the member is reached.
	Address string
	// Silent is set while the member does not answer. The numbers are then those of its last answer.
	Silent bool
	// Leads is set if the member is the leader of the cluster.
	Leads bool
	// DatabaseBytes is the size of the member's database, FreeBytes the part of it that can be used again
	// or given back, and QuotaBytes the size that the database may have; 0 if that is not known.
	DatabaseBytes, FreeBytes, QuotaBytes int64
}

// Follower is the state of something that is written after each commit.
type Follower struct {
	// On reports whether the store has it. Otherwise all else is zero.
	On bool
	// Failing is set from a write that failed, or took too long, until one has succeeded.
	Failing bool
	// Full is set while its disk is full.
	Full bool
	// Revision is the newest one that it has durably.
	Revision int64
}

// StatusReader is an optional behaviour of stores that know how they are.
type StatusReader interface {
	// Status returns how the store is. It waits for the disk until ctx ends and does not fail.
	Status(ctx context.Context) Status
}
