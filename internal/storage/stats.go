package storage

import "github.com/scribe-mail/keysvc/internal/counters"

// StatsReader is an optional behaviour of stores in a file.
type StatsReader interface {
	// Stats returns how the store is. It does not wait for the disk.
	Stats() Stats
}

// Stats is how a store in a file is.
type Stats struct {
	// Commit is how long transactions took, Sync how long the disk took of that, and Queue how long
	// changes waited for their transaction.
	Commit, Sync, Queue counters.Durations
	// FileBytes is the length of the file, UsedBytes the part of it that has pages, and FreeBytes the
	// pages of it that are free.
	FileBytes, UsedBytes, FreeBytes int64
	// ReserveBytes is the room behind the pages, and ReserveWanted what is kept for narrowing changes.
	ReserveBytes, ReserveWanted int64
	// Full reports whether only narrowing changes are made, for lack of room.
	Full bool
	// DiskFree and DiskSize are of the disk of the file; 0 if that is not known.
	DiskFree, DiskSize int64
	// SinkFailing and AnchorFailing report whether the last write of the audit sink, or of the anchor,
	// failed or takes too long.
	SinkFailing, AnchorFailing bool
}
