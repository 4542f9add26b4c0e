package storage

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
)

// auditDomain separates the hashes of audit events from all other uses of the hash
// function.
const auditDomain = "keysvc audit event v1\x00"

// HashAudit returns the hash of an audit event in its stored form. The event contains the
// hash of the event before it, so the hashes of a workspace form a chain.
func HashAudit(encoded []byte) [32]byte {
	digest := sha256.New()
	digest.Write([]byte(auditDomain))
	digest.Write(encoded)
	return [32]byte(digest.Sum(nil))
}

// Follows reports whether an event continues the chain that ends in h.
func (h Head) Follows(event *storagev1.AuditRecord) bool {
	if event.GetSequence() != h.Sequence+1 {
		return false
	}
	if h.Sequence == 0 {
		return len(event.GetPreviousHash()) == 0
	}
	return bytes.Equal(event.GetPreviousHash(), h.Hash[:])
}

// Link sets the event's sequence and previous hash so that it continues the chain that ends
// in h.
func (h Head) Link(event *storagev1.AuditRecord) {
	event.Sequence = h.Sequence + 1
	event.PreviousHash = nil
	if h.Sequence > 0 {
		event.PreviousHash = bytes.Clone(h.Hash[:])
	}
}

// Link sets the change's workspace and the head that the change expects. The event then
// continues the chain that ends in that head, and every record that the change puts names the
// event.
func (c *Change) Link(workspaceID string, head Head) {
	c.WorkspaceID, c.Expect = workspaceID, head
	head.Link(c.Event)
	sequence := c.Event.GetSequence()
	if c.PutPolicy != nil {
		c.PutPolicy.ChangeSequence = sequence
	}
	if c.PutSettings != nil {
		c.PutSettings.ChangeSequence = sequence
	}
	if c.PutWorkspace != nil {
		c.PutWorkspace.ChangeSequence = sequence
	}
	for _, member := range c.PutMembers {
		member.ChangeSequence = sequence
	}
	for _, key := range c.PutKeys {
		key.ChangeSequence = sequence
	}
}

// After returns the head after an event with these stored bytes was committed on h.
func (h Head) After(encodedEvent []byte) Head {
	return Head{Sequence: h.Sequence + 1, Hash: HashAudit(encodedEvent), Fence: h.Fence}
}

// Record returns the head in its stored form.
func (h Head) Record(revision int64) *storagev1.HeadRecord {
	return &storagev1.HeadRecord{
		AuditSequence: h.Sequence,
		AuditHash:     bytes.Clone(h.Hash[:]),
		Fence:         h.Fence,
		Revision:      revision,
	}
}

// HeadOf returns the head in a stored record, or a DamagedError.
func HeadOf(workspaceID string, record *storagev1.HeadRecord) (Head, error) {
	head := Head{Sequence: record.GetAuditSequence(), Fence: record.GetFence()}
	if len(record.GetAuditHash()) != len(head.Hash) {
		return Head{}, &DamagedError{Kind: "head", Name: workspaceID, Problem: "not a head"}
	}
	copy(head.Hash[:], record.GetAuditHash())
	// A head without an event is valid only if the first change was fenced.
	if head.Sequence < 1 && head != (Head{Fence: max(head.Fence, 1)}) {
		return Head{}, &DamagedError{Kind: "head", Name: workspaceID, Problem: "not a head"}
	}
	return head, nil
}

// Validate checks the rules of Change. Every backend calls it first. The error is
// ErrInvalidChange and says which rule is broken.
func (c *Change) Validate() error {
	if err := c.validateEvent(); err != nil {
		return err
	}
	records, size := 0, proto.Size(c.Event)
	for record, workspaceID := range c.records() {
		if workspaceID != c.WorkspaceID {
			return invalid("a record is of another workspace")
		}
		records++
		size += proto.Size(record)
	}
	if records < 1 {
		return invalid("no records")
	}
	if operations := c.operations(); operations > MaxOperations {
		return invalid("%d operations; at most %d are allowed", operations, MaxOperations)
	}
	if size > MaxChangeBytes {
		return invalid("%d bytes; at most %d are allowed", size, MaxChangeBytes)
	}
	if c.WorkspaceID == "" && records > 1 {
		return invalid("the empty workspace has changes of the policy or of the settings, and of nothing else")
	}
	if err := c.validateRecords(); err != nil {
		return err
	}
	return c.validateRequests()
}

// RecordBytes returns the size of the change's records together, without the event.
func (c *Change) RecordBytes() int {
	size := 0
	for record := range c.records() {
		size += proto.Size(record)
	}
	return size
}

// operations returns the number of operations, as MaxOperations counts them.
func (c *Change) operations() int {
	count := len(c.PutMembers) + len(c.DeleteMembers) + len(c.PutKeys) +
		len(c.AbsentKeyIDs) + len(c.AbsentRequestIDs) + len(c.FreedRequestIDs)
	if c.PutPolicy != nil {
		count++
	}
	if c.PutSettings != nil {
		count++
	}
	if c.PutWorkspace != nil {
		count++
	}
	for _, key := range c.PutKeys {
		if c.IsNew(key) {
			count++
		}
	}
	for _, key := range c.DeleteKeys {
		count += DeleteOperations(key)
	}
	return count
}

// DeleteOperations returns how many operations the deletion of a key is.
func DeleteOperations(key *storagev1.KeyRecord) int {
	// The record, the index entries of its id and of its rank among all keys, and the time of
	// the last use.
	return 4 + len(key.GetRequestIds())
}

// IsNew reports whether a key that is put is a new one.
func (c *Change) IsNew(key *storagev1.KeyRecord) bool {
	return slices.Contains(c.AbsentKeyIDs, key.GetKeyId())
}

func (c *Change) validateEvent() error {
	switch {
	case c.Event == nil || c.Event.GetAction() == storagev1.AuditAction_AUDIT_ACTION_UNSPECIFIED:
		return invalid("no audit event")
	case c.Event.GetWorkspaceId() != c.WorkspaceID:
		return invalid("the audit event is of another workspace")
	case !c.Expect.Follows(c.Event):
		return invalid("the audit event does not follow on the expected head")
	case c.Kind == storagev1.FeedKind_FEED_KIND_UNSPECIFIED:
		return invalid("no kind of change")
	case len(c.Subject) > MaxIDBytes:
		return invalid("a subject of %d bytes", len(c.Subject))
	case (c.PutPolicy != nil || c.PutSettings != nil) != (c.WorkspaceID == ""):
		return invalid("the empty workspace has changes of the policy or of the settings, and of nothing else")
	case c.WorkspaceID != "" && !isID(c.WorkspaceID):
		return invalid("%q is not the id of a workspace", c.WorkspaceID)
	}
	return nil
}

// validateRecords checks that ids are valid, that every record that is put names the change,
// and that no record occurs twice. A transaction does not promise an order of two writes to
// one name.
func (c *Change) validateRecords() error {
	for sequence := range c.putSequences() {
		if sequence != c.Event.GetSequence() {
			return invalid("a record has the change_sequence %d; it must be the sequence of the event, %d", sequence, c.Event.GetSequence())
		}
	}
	members := make(map[string]bool)
	for _, list := range [][]*storagev1.MemberRecord{c.PutMembers, c.DeleteMembers} {
		for _, member := range list {
			memberID := member.GetMemberId()
			if !isID(memberID) {
				return invalid("%q is not the id of a member", memberID)
			}
			if members[memberID] {
				return invalid("member %s occurs twice", memberID)
			}
			members[memberID] = true
		}
	}
	keys := make(map[string]bool)
	for index, list := range [][]*storagev1.KeyRecord{c.PutKeys, c.DeleteKeys} {
		for _, key := range list {
			keyID := key.GetKeyId()
			if len(keyID) != KeyIDLength || !isID(keyID) {
				return invalid("%q is not the id of a key", keyID)
			}
			if keys[keyID] {
				return invalid("key %s occurs twice", keyID)
			}
			keys[keyID] = true
			if index == 0 {
				if err := c.validateKey(key); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// validateKey checks a key that is put.
func (c *Change) validateKey(key *storagev1.KeyRecord) error {
	isNew := c.IsNew(key)
	if key.GetSequence() < 1 || key.GetSequence() > c.Event.GetSequence() || isNew && key.GetSequence() != c.Event.GetSequence() {
		return invalid("a key's sequence is not that of the event that created it")
	}
	for _, requestID := range key.GetRequestIds() {
		if !isID(requestID) {
			return invalid("%q is not a request id", requestID)
		}
		if isNew && !slices.Contains(c.AbsentRequestIDs, requestID) {
			return invalid("request id %q of a new key is not in AbsentRequestIDs", requestID)
		}
	}
	return nil
}

// validateRequests checks that each request id is added or removed only once.
func (c *Change) validateRequests() error {
	lists := [][]string{c.AbsentRequestIDs, c.FreedRequestIDs}
	for _, key := range c.DeleteKeys {
		lists = append(lists, key.GetRequestIds())
	}
	seen := make(map[string]bool)
	for _, list := range lists {
		for _, requestID := range list {
			if !isID(requestID) || seen[requestID] {
				return invalid("%q is not a request id, or occurs twice", requestID)
			}
			seen[requestID] = true
		}
	}
	return nil
}

// isID reports whether every backend can use an id as a part of a name.
func isID(id string) bool {
	return id != "" && len(id) <= MaxIDBytes && !strings.Contains(id, "\x00")
}

// records yields every record of the change, with its workspace.
func (c *Change) records() func(yield func(proto.Message, string) bool) {
	return func(yield func(proto.Message, string) bool) {
		if c.PutPolicy != nil && !yield(c.PutPolicy, "") {
			return
		}
		if c.PutSettings != nil && !yield(c.PutSettings, "") {
			return
		}
		if c.PutWorkspace != nil && !yield(c.PutWorkspace, c.PutWorkspace.GetWorkspaceId()) {
			return
		}
		for _, members := range [][]*storagev1.MemberRecord{c.PutMembers, c.DeleteMembers} {
			for _, member := range members {
				if !yield(member, member.GetWorkspaceId()) {
					return
				}
			}
		}
		for _, keys := range [][]*storagev1.KeyRecord{c.PutKeys, c.DeleteKeys} {
			for _, key := range keys {
				if !yield(key, key.GetWorkspaceId()) {
					return
				}
			}
		}
	}
}

// putSequences yields the change_sequence of every record that is put.
func (c *Change) putSequences() func(yield func(int64) bool) {
	return func(yield func(int64) bool) {
		if c.PutPolicy != nil && !yield(c.PutPolicy.GetChangeSequence()) {
			return
		}
		if c.PutSettings != nil && !yield(c.PutSettings.GetChangeSequence()) {
			return
		}
		if c.PutWorkspace != nil && !yield(c.PutWorkspace.GetChangeSequence()) {
			return
		}
		for _, member := range c.PutMembers {
			if !yield(member.GetChangeSequence()) {
				return
			}
		}
		for _, key := range c.PutKeys {
			if !yield(key.GetChangeSequence()) {
				return
			}
		}
	}
}

// Feed returns the change's feed entry.
func (c *Change) Feed(revision int64, auditHash [32]byte) *storagev1.FeedRecord {
	return &storagev1.FeedRecord{
		Revision:    revision,
		WorkspaceId: c.WorkspaceID,
		Kind:        c.Kind,
		Subject:     c.Subject,
		AuditHash:   bytes.Clone(auditHash[:]),
	}
}

// Committed returns the change as watchers see it.
func (c *Change) Committed(revision int64, head Head) *Committed {
	committed := &Committed{
		Revision:       revision,
		Time:           c.Event.GetTime().AsTime(),
		Head:           WorkspaceHead{WorkspaceID: c.WorkspaceID, Head: head},
		Feed:           c.Feed(revision, head.Hash),
		DeletedKeys:    c.DeleteKeys,
		DeletedMembers: c.DeleteMembers,
	}
	if c.PutPolicy != nil {
		committed.Put = append(committed.Put, Item{Policy: c.PutPolicy})
	}
	if c.PutSettings != nil {
		committed.Put = append(committed.Put, Item{Settings: c.PutSettings})
	}
	if c.PutWorkspace != nil {
		committed.Put = append(committed.Put, Item{Workspace: c.PutWorkspace})
	}
	for _, member := range c.PutMembers {
		committed.Put = append(committed.Put, Item{Member: member})
	}
	for _, key := range c.PutKeys {
		committed.Put = append(committed.Put, Item{Key: key})
	}
	return committed
}

func invalid(format string, arguments ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalidChange}, arguments...)...)
}
