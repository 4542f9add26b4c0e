package storage

import (
	"errors"
	"fmt"
)

// Errors that every backend answers with; compare with errors.Is. No error of a
// backend's own library escapes except as a cause, for the log.
var (
	// ErrNotFound is returned by reads of one record that is not there, or that
	// belongs to another workspace.
	ErrNotFound = errors.New("storage: not found")
	// ErrConflict is what every ConflictError is.
	ErrConflict = errors.New("storage: the workspace or the policy has changed meanwhile")
	// ErrOutcomeUnknown is returned by Commit if the disk or the quorum failed during
	// the commit: the change took effect or did not, and that will not change.
	ErrOutcomeUnknown = errors.New("storage: the outcome of the commit is unknown")
	// ErrUnavailable is returned while the store cannot serve: closed, being
	// reopened, or not reachable. Nothing was changed.
	ErrUnavailable = errors.New("storage: unavailable")
	// ErrGap is yielded by Watch if it cannot go on from the given revision without
	// leaving something out. Load anew.
	ErrGap = errors.New("storage: the change log does not reach back that far")
	// ErrInvalidChange is returned by Commit for a change that breaks the rules of
	// Change: too large, without its audit event, or with records that are not the
	// workspace's. It is a fault of the caller. Nothing was changed.
	ErrInvalidChange = errors.New("storage: invalid change")
	// ErrInvalidCursor is returned by reads of pages for a cursor that the backend
	// did not give out.
	ErrInvalidCursor = errors.New("storage: invalid cursor")
	// ErrLocked is returned when opening a store that another process serves.
	ErrLocked = errors.New("storage: in use by another process")
	// ErrAbsent is returned when opening a store that is not there and was not to be made.
	ErrAbsent = errors.New("storage: there is no store")
	// ErrPresent is returned when making a new store where one is, or where something is
	// left of one that has gone.
	ErrPresent = errors.New("storage: there is a store already")
	// ErrNewer is returned when opening a store that a newer version has written.
	ErrNewer = errors.New("storage: written by a newer version")
	// ErrOlder is returned when opening a store that an older version has written, with a
	// backend that was not offered then, and so has no upgrade.
	ErrOlder = errors.New("storage: written by an older version")
	// ErrHistoryChanged is returned by Load if the store is no longer the one that was
	// served: its epoch changed or its revision went back. The process must not go on
	// with it.
	ErrHistoryChanged = errors.New("storage: the history is another than the one served")
	// ErrReplaced is an ErrHistoryChanged: while the store was served, another file was
	// put in the place of one of its own, or it was deleted.
	ErrReplaced = fmt.Errorf("storage: a file was replaced while it was served: %w", ErrHistoryChanged)
	// ErrFull is returned by Commit for a change that is not known to be narrowing, and
	// by PutUsage, if the disk has no room for it beyond what is kept for narrowing
	// changes; and for these once that is used up. Nothing was changed. It ends within a
	// second after there is room again.
	ErrFull = errors.New("storage: no room left")
	// ErrAnchor is returned when opening a store that does not agree with its anchor: it
	// lies behind it, or has another history, or its anchor is not there or cannot be
	// read. Changes may be lost, revocations among them. Only a person can say that it
	// shall be served all the same (keysvc anchor accept).
	ErrAnchor = errors.New("storage: the store does not agree with its anchor")
	// ErrDamaged is what every DamagedError is, and what opening returns if nothing
	// can be served.
	ErrDamaged = errors.New("storage: damaged")
)

// DamagedError is returned by reads of a record whose checksum or content is
// wrong. errors.Is(err, ErrDamaged) holds.
type DamagedError struct {
	// Kind says what the record is, e.g. "key".
	Kind string
	// Name is the record's identifier, as far as it is known.
	Name string
	// Problem says what is wrong with it.
	Problem string
}

// Error implements error.
func (e *DamagedError) Error() string {
	return fmt.Sprintf("storage: damaged %s %q: %s", e.Kind, e.Name, e.Problem)
}

// Is makes every DamagedError an ErrDamaged.
func (e *DamagedError) Is(target error) bool { return target == ErrDamaged }

// ConflictError is returned by Commit if the workspace's or the policy's head is not the
// expected one. Nothing was changed: wait until the projection has come to Revision, check
// again, and try again. errors.Is(err, ErrConflict) holds.
type ConflictError struct {
	// Revision of the change that put the head that is there; 0 if there is none.
	Revision int64
}

// Error implements error.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("%v, by revision %d", ErrConflict, e.Revision)
}

// Is makes every ConflictError an ErrConflict.
func (e *ConflictError) Is(target error) bool { return target == ErrConflict }

// ExistsError is returned by Commit if something that must be absent is there.
// Nothing was changed.
type ExistsError struct {
	// Revision is one at which it is there.
	Revision int64
	// RequestID is the request id that was used before; empty if it is the key id
	// that is taken.
	RequestID string
	// KeyID is the key that is there.
	KeyID string
}

// Error implements error.
func (e *ExistsError) Error() string {
	if e.RequestID != "" {
		return fmt.Sprintf("storage: request id %q was used for key %s", e.RequestID, e.KeyID)
	}
	return fmt.Sprintf("storage: key %s exists", e.KeyID)
}
