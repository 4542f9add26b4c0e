package storage

import (
	"errors"
	"fmt"
)

// Errors of every backend; compare with errors.Is. Errors of a backend's own library do
// not escape, except as a cause, for the log.
var (
	// ErrNotFound is returned by reads of one record that does not exist, or that
	// belongs to another workspace.
	ErrNotFound = errors.New("storage: not found")
	// ErrConflict matches every ConflictError.
	ErrConflict = errors.New("storage: the workspace or the policy has changed meanwhile")
	// ErrOutcomeUnknown is returned by Commit if the disk or the quorum failed during the
	// commit: the change took effect or it did not. If it did not, it never will.
	ErrOutcomeUnknown = errors.New("storage: the outcome of the commit is unknown")
	// ErrUnavailable is returned while the store cannot serve: closed, being
	// reopened, or not reachable. Nothing was changed.
	ErrUnavailable = errors.New("storage: unavailable")
	// ErrGap is yielded by Watch if it cannot continue from the given revision without
	// leaving out a change. The caller has to Load again.
	ErrGap = errors.New("storage: the change log does not reach back that far")
	// ErrInvalidChange is returned by Commit for a change that breaks the rules of
	// Change: too large, without its audit event, or with records that are not the
	// workspace's. It is a fault of the caller. Nothing was changed.
	ErrInvalidChange = errors.New("storage: invalid change")
	// ErrInvalidCursor is returned by page reads for a cursor that the backend did not
	// return.
	ErrInvalidCursor = errors.New("storage: invalid cursor")
	// ErrLocked is returned when opening a store that another process serves.
	ErrLocked = errors.New("storage: in use by another process")
	// ErrAbsent is returned when opening a store that does not exist, if the caller did not ask
	// for a new one.
	ErrAbsent = errors.New("storage: there is no store")
	// ErrPresent is returned when making a store at a path where a store exists.
	ErrPresent = errors.New("storage: there is a store already")
	// ErrUnfinished is returned when opening a store that a migration, or a restore, is working on, or has begun to.
	ErrUnfinished = errors.New("storage: what makes this store has not finished")
	// ErrSourceChanged is returned when a migration is gone on with from another state of its source than
	// the one that it began with.
	ErrSourceChanged = errors.New("storage: the source has changed since the migration began")
	// ErrNewer is returned when opening a store that a newer version has written.
	ErrNewer = errors.New("storage: written by a newer version")
	// ErrOlder is returned when opening a store that an older version has written, if the
	// backend has no upgrade from that version.
	ErrOlder = errors.New("storage: written by an older version")
	// ErrHistoryChanged is returned if the store is no longer the one that was served: its
	// epoch changed or its revision went back. The process must stop serving it.
	ErrHistoryChanged = errors.New("storage: the store no longer has the history that was served")
	// ErrReplaced is an ErrHistoryChanged: while the store was served, one of its files was
	// deleted or replaced by another file.
	ErrReplaced = fmt.Errorf("storage: a file was replaced while it was served: %w", ErrHistoryChanged)
	// ErrFull is returned by Commit, PutUsage and PutRefusals if the disk is full. Commit returns
	// it for a narrowing change only after the space that is reserved for narrowing changes was
	// used up. In a cluster, a member whose database has used nine tenths of its quota counts as full, and
	// narrowing changes are ErrFull once the quota is used up.
	// Nothing was changed. Changes succeed again within a second after space was freed, in a
	// cluster within a few.
	ErrFull = errors.New("storage: no room left")
	// ErrNoSpace is returned by Snapshot if the disk has no room for a copy and, beside it, for the
	// store to grow. Nothing was changed.
	ErrNoSpace = errors.New("storage: the disk has no room for a copy of the store")
	// ErrSink is returned by Commit if the store's audit sink cannot be written, for a change that
	// does not narrow. Nothing was changed. Changes succeed again within a second after the sink
	// can be written.
	ErrSink = errors.New("storage: the audit sink cannot be written")
	// ErrAnchor is returned when opening a store that disagrees with its anchor or its audit sink:
	// the store is behind it or has another history, or it is missing or unreadable. Changes may
	// be lost, including revocations. Only a person can decide to serve the store as it is
	// (keysvc anchor accept).
	ErrAnchor = errors.New("storage: the store does not agree with its anchor")
	// ErrSinkNotGiven is returned together with ErrAnchor when opening a store that has an audit sink
	// without naming the sink. Nothing was found to be lost.
	ErrSinkNotGiven = errors.New("none is given")
	// ErrDamaged matches every DamagedError. It is also returned when opening a store that is
	// damaged as a whole, so that nothing of it can be served.
	ErrDamaged = errors.New("storage: damaged")
)

// DamagedError is returned by reads of a record that is unreadable, stale, left over or
// missing. errors.Is(err, ErrDamaged) holds.
type DamagedError struct {
	// Kind of the record, e.g. "key".
	Kind string
	// Name is the record's identifier, as far as it is known.
	Name string
	// Problem says what is wrong with it.
	Problem string
	// Newer is set if nothing is wrong with the record but that it needs a schema beyond Newest.
	Newer bool
}

// Error implements error.
func (e *DamagedError) Error() string {
	return fmt.Sprintf("storage: damaged %s %q: %s", e.Kind, e.Name, e.Problem)
}

// Is makes every DamagedError an ErrDamaged.
func (e *DamagedError) Is(target error) bool { return target == ErrDamaged }

// ConflictError is returned by Commit if the head of the workspace or of the policy is not
// the expected one. Nothing was changed. The caller waits until the projection has reached
// Revision, checks again, and tries again. errors.Is(err, ErrConflict) holds.
type ConflictError struct {
	// Revision of the change that put the stored head; 0 if there is no head.
	Revision int64
}

// Error implements error.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("%v, by revision %d", ErrConflict, e.Revision)
}

// Is makes every ConflictError an ErrConflict.
func (e *ConflictError) Is(target error) bool { return target == ErrConflict }

// ExistsError is returned by Commit if an id that must be absent exists. Nothing was
// changed.
type ExistsError struct {
	// Revision is a revision at which the id exists.
	Revision int64
	// RequestID is the request id that was used before; empty if the key id exists.
	RequestID string
	// KeyID is the existing key.
	KeyID string
}

// Error implements error.
func (e *ExistsError) Error() string {
	if e.RequestID != "" {
		return fmt.Sprintf("storage: request id %q was used for key %s", e.RequestID, e.KeyID)
	}
	return fmt.Sprintf("storage: key %s exists", e.KeyID)
}
