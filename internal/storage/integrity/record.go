package integrity

import (
	"sync"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
)

// Problems of records whose own checksum is right.
const (
	ProblemStale   = "it is not the record that the newest audit event put"
	ProblemMissing = "missing"
	ProblemSurplus = "it is there, though an audit event deleted it"
	ProblemUnknown = "its records do not match the tag of its head, and its audit events do not show which records are wrong"
)

// KindName returns the name of a kind of records in elements and errors: one of the Kind constants, or
// "record" for a kind that is not known.
func KindName(kind storagev1.RecordKind) string {
	switch kind {
	case storagev1.RecordKind_RECORD_KIND_POLICY:
		return KindPolicy
	case storagev1.RecordKind_RECORD_KIND_WORKSPACE:
		return KindWorkspace
	case storagev1.RecordKind_RECORD_KIND_MEMBER:
		return KindMember
	case storagev1.RecordKind_RECORD_KIND_KEY:
		return KindKey
	case storagev1.RecordKind_RECORD_KIND_SETTINGS:
		return KindSettings
	case storagev1.RecordKind_RECORD_KIND_UNSPECIFIED:
	}
	return "record"
}

// hashers are those that nobody uses now.
var hashers = sync.Pool{New: func() any { return NewHasher() }}

// Borrow returns a Hasher for code that runs in many goroutines. The caller gives it back with Return.
func Borrow() *Hasher {
	return hashers.Get().(*Hasher) //nolint:errcheck // the pool has nothing else
}

// Return gives a Hasher back that Borrow returned. The caller does not use it any more.
func (h *Hasher) Return() { hashers.Put(h) }

// ElementOf is Hasher.Element for code that runs in many goroutines.
func ElementOf(kind storagev1.RecordKind, workspaceID, name string, payload Hash) Element {
	hasher := Borrow()
	defer hasher.Return()
	return hasher.Element(KindName(kind), workspaceID, name, payload)
}
