package storage

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
)

// maxProblems is how many problems a Checker describes. It only counts the rest.
const maxProblems = 100

// Place is where a Checker found a problem, as far as that is known.
type Place struct {
	// WorkspaceID is the workspace; empty is the policy's, or unknown.
	WorkspaceID string
	// Sequence of the audit event, and Revision of its change; 0 if unknown.
	Sequence, Revision int64
}

// Problem is a problem that a Checker found.
type Problem struct {
	Place
	// Record reports whether a record is wrong, and the place is that of the last event that put
	// it. Otherwise the event of the place is wrong, or the workspace's event before it.
	Record bool
	// Text says what is wrong.
	Text string
}

// FeedCheck is what a Checker expects of the change log.
type FeedCheck int

// The values of FeedCheck.
const (
	// FeedUnseen is for callers that cannot read the change log. It is not checked.
	FeedUnseen FeedCheck = iota
	// FeedSparse allows gaps between the revisions of the change log, as in a store whose
	// revisions other changes share.
	FeedSparse
	// FeedDense expects no gaps between the revisions of the change log.
	FeedDense
)

// Checker looks for contradictions in a store: records that are not what their last audit
// event put, records without an event and events without a record, broken chains, and feed
// entries that do not match the events. It knows no backend. The caller passes the whole store
// to it, as of one revision, in this order: the position; the feed entries by ascending
// revision; every item of Load; every audit event, those of a workspace by ascending sequence.
// Then Problems returns the result. The zero value is ready for use.
type Checker struct {
	// Feed is what to expect of the change log.
	Feed FeedCheck
	// Schema is the schema of the store; 0 stands for this program's. In a store of SchemaFirst,
	// events list no records, so records are compared with the other fields of the events.
	Schema int32
	// Pruned is the revision up to which old events may have been deleted; 0 if there are all. If it is
	// not 0, events need their revisions. The newest event of each workspace up to this revision, and
	// the last event of each record, are there nevertheless.
	Pruned int64

	position   Position
	feed       map[[32]byte]*storagev1.FeedRecord // by hash of the event, until the event is seen
	feedNewest int64
	policy     bool
	settings   bool
	workspaces map[string]*checkedWorkspace
	keys       map[string]*checkedKey
	records    map[recordName]*checkedRecord

	problems []Problem
	more     int
	finished bool
}

// checkedWorkspace is what a Checker knows of one workspace.
type checkedWorkspace struct {
	id string
	// head is the stored head; damagedHead reports whether it is unreadable.
	head          *Head
	damagedHead   bool
	record        bool
	damagedRecord bool
	needsRecord   bool // there are members or keys
	// chain ends in the last event seen.
	chain    Head
	feedLast int64 // revision of the last event that the change log has
	members  map[string]*checkedMember
	requests map[string]string // request id to key
	// created maps the id of each key that an event created to the sequence of that event, if
	// no record of the key names the event. A purge removes its keys from the map.
	created map[string]int64
	// lists reports whether an event has listed records. From then on every event must.
	lists bool
	// gap reports whether events were missing, and may have been pruned. prunedTo is the sequence of
	// the newest event that was seen up to the revision Pruned.
	gap      bool
	prunedTo int64
}

type checkedMember struct{ damaged, removed, put bool }

type checkedKey struct {
	workspace                *checkedWorkspace
	sequence, changeSequence int64
	damaged                  bool
	revoked                  bool // in the record
	// createdSeen, changeSeen and revokedSeen report whether the events have the creation of the
	// key, the change that its record names, and a revocation.
	createdSeen, changeSeen, revokedSeen bool
}

// Position takes the store's position.
func (c *Checker) Position(position Position) { c.position = position }

// Entry takes one feed entry.
func (c *Checker) Entry(entry *storagev1.FeedRecord) {
	if c.feed == nil {
		c.feed = make(map[[32]byte]*storagev1.FeedRecord)
	}
	revision := entry.GetRevision()
	switch {
	case revision < 1 || revision <= c.feedNewest:
		c.Problem("feed: revision %d follows on %d", revision, c.feedNewest)
	case c.Feed == FeedDense && c.feedNewest > 0 && revision != c.feedNewest+1:
		c.Problem("feed: revisions between %d and %d are missing", c.feedNewest, revision)
	}
	c.feedNewest = max(c.feedNewest, revision)
	if len(entry.GetAuditHash()) != 32 {
		c.Problem("feed: revision %d has no audit hash", revision)
		return
	}
	hash := [32]byte(entry.GetAuditHash())
	if twice, found := c.feed[hash]; found {
		c.Problem("feed: revisions %d and %d name the same audit event", twice.GetRevision(), revision)
	}
	c.feed[hash] = entry
}

// Item takes one item of Load. It assumes that Encode returns the record's stored payload.
func (c *Checker) Item(item Item) {
	if name, record, changed := nameOf(item); record != nil {
		payload, err := Encode(record)
		if err != nil {
			c.Problem("%s: %v", name, err)
		}
		c.stored(name, sha256.Sum256(payload), changed)
	}
	c.item(item)
}

// Stored takes one item of Load with its payload as it is stored.
func (c *Checker) Stored(item Item, payload []byte) {
	if name, record, changed := nameOf(item); record != nil {
		c.stored(name, sha256.Sum256(payload), changed)
	}
	c.item(item)
}

func (c *Checker) item(item Item) {
	switch {
	case item.Policy != nil:
		if c.policy {
			c.Problem("policy: there are two")
		}
		c.policy = true
	case item.Settings != nil:
		if c.settings {
			c.Problem("settings: there are two")
		}
		c.settings = true
	case item.Workspace != nil:
		workspace := c.workspace(item.Workspace.GetWorkspaceId())
		if workspace.record {
			c.Problem("workspace %q: there are two records", workspace.id)
		}
		workspace.record = true
	case item.Member != nil:
		c.member(item.Member.GetWorkspaceId(), item.Member.GetMemberId(), false,
			item.Member.GetState() == storagev1.MemberRecordState_MEMBER_RECORD_STATE_REMOVED)
	case item.Head != nil:
		workspace := c.workspace(item.Head.WorkspaceID)
		if workspace.head != nil {
			c.Problem("workspace %q: there are two heads", workspace.id)
		}
		head := item.Head.Head
		workspace.head = &head
	case item.Key != nil:
		c.key(item.Key)
	case item.Usage != nil:
		if c.keys[item.Usage.KeyID] == nil {
			c.Problem("key %s: it was used, but is not there", item.Usage.KeyID)
		}
	case item.Damaged != nil:
		c.damaged(item.Damaged)
	default:
		c.Problem("an item without content")
	}
}

func (c *Checker) damaged(damaged *Damaged) {
	c.Problem("%v", damaged.Err)
	if !damaged.Head {
		c.record(damagedName(damaged)).damaged = true
	}
	switch {
	case damaged.KeyID != "":
		if key, twice := c.addKey(damaged.WorkspaceID, damaged.KeyID); !twice {
			key.damaged = true
		}
	case damaged.MemberID != "":
		c.member(damaged.WorkspaceID, damaged.MemberID, true, true)
	case damaged.Head:
		c.workspace(damaged.WorkspaceID).damagedHead = true
	case damaged.Settings:
		c.settings = true
	case damaged.WorkspaceID == "":
		c.policy = true
	default:
		c.workspace(damaged.WorkspaceID).damagedRecord = true
	}
}

func (c *Checker) workspace(id string) *checkedWorkspace {
	workspace := c.workspaces[id]
	if workspace == nil {
		if c.workspaces == nil {
			c.workspaces = make(map[string]*checkedWorkspace)
		}
		workspace = &checkedWorkspace{id: id, members: make(map[string]*checkedMember)}
		c.workspaces[id] = workspace
	}
	return workspace
}

// member notes a member's record. The record of a removed member needs no workspace: the push
// that removes a member may arrive before the push that adds the member and the workspace.
func (c *Checker) member(workspaceID, memberID string, damaged, removed bool) {
	workspace := c.workspace(workspaceID)
	workspace.needsRecord = workspace.needsRecord || !removed
	if !isID(memberID) {
		c.Problem("workspace %q: member with the id %q", workspaceID, memberID)
	}
	if workspace.members[memberID] != nil {
		c.Problem("member %q of workspace %q: there are two records", memberID, workspaceID)
	}
	workspace.members[memberID] = &checkedMember{damaged: damaged, removed: removed}
}

func (c *Checker) addKey(workspaceID, keyID string) (added *checkedKey, twice bool) {
	if c.keys == nil {
		c.keys = make(map[string]*checkedKey)
	}
	workspace := c.workspace(workspaceID)
	workspace.needsRecord = true
	if _, twice = c.keys[keyID]; twice {
		c.Problem("key %s: there are two records", keyID)
		return nil, true
	}
	if len(keyID) != KeyIDLength {
		c.Problem("key %q: not the id of a key", keyID)
	}
	added = &checkedKey{workspace: workspace}
	c.keys[keyID] = added
	return added, false
}

func (c *Checker) key(record *storagev1.KeyRecord) {
	keyID := record.GetKeyId()
	key, twice := c.addKey(record.GetWorkspaceId(), keyID)
	if twice {
		return
	}
	key.sequence, key.changeSequence = record.GetSequence(), record.GetChangeSequence()
	key.revoked = record.GetRevokeTime() != nil
	if count := len(record.GetSecrets()); count < 1 || count > 2 {
		c.Problem("key %s: %d secrets; 1 or 2 belong there", keyID, count)
	}
	for _, secret := range record.GetSecrets() {
		if len(secret.GetHash()) != 32 || secret.GetScheme() == 0 {
			c.Problem("key %s: a secret without scheme or hash", keyID)
		}
	}
	scopes := record.GetScopes()
	for index := 1; index < len(scopes); index++ {
		if scopes[index-1] >= scopes[index] {
			c.Problem("key %s: its scopes are not sorted, or not unique", keyID)
			break
		}
	}
	for _, requestID := range record.GetRequestIds() {
		used := key.workspace.requests
		if used == nil {
			used = make(map[string]string)
			key.workspace.requests = used
		}
		if other, found := used[requestID]; found {
			c.Problem("workspace %q: request id %q is of key %s and of key %s", key.workspace.id, requestID, other, keyID)
		}
		used[requestID] = keyID
	}
}

// AuditEvent takes one audit event.
func (c *Checker) AuditEvent(event AuditEvent) {
	record := event.Record
	workspace := c.workspace(record.GetWorkspaceId())
	sequence := record.GetSequence()
	inPruned := event.Revision > 0 && event.Revision <= c.Pruned
	if isGap := inPruned && sequence > workspace.chain.Sequence+1; isGap {
		workspace.gap = true
	} else if !workspace.chain.Follows(record) {
		place := Place{workspace.id, sequence, event.Revision}
		if sequence != workspace.chain.Sequence+1 {
			c.ProblemAt(place, "workspace %q: audit event %d follows on %d", workspace.id, sequence, workspace.chain.Sequence)
		} else {
			c.ProblemAt(place, "workspace %q: audit event %d does not chain to the one before it", workspace.id, sequence)
		}
	}
	workspace.chain = Head{Sequence: sequence, Hash: HashAudit(event.Encoded)}
	if inPruned {
		workspace.prunedTo = sequence
	}
	c.matchFeed(workspace, record)
	c.matchKeys(workspace, record)
	c.matchRecords(workspace, record, event.Revision)
	if member := workspace.members[record.GetMemberId()]; member != nil {
		switch record.GetAction() { //nolint:exhaustive // the others do not write members
		case storagev1.AuditAction_AUDIT_ACTION_MEMBER_PUT:
			member.put = true
		case storagev1.AuditAction_AUDIT_ACTION_MEMBER_REMOVED:
			member.put = member.put || member.removed
		}
	}
}

// matchFeed compares an event with its feed entry.
func (c *Checker) matchFeed(workspace *checkedWorkspace, event *storagev1.AuditRecord) {
	if c.Feed == FeedUnseen {
		return
	}
	title := fmt.Sprintf("workspace %q: audit event %d", workspace.id, event.GetSequence())
	entry, found := c.feed[workspace.chain.Hash]
	if !found {
		// Older feed entries may have been deleted, but none after the first that is left.
		if workspace.feedLast > 0 {
			c.Problem("%s: not in the feed, though one before it is", title)
		}
		return
	}
	delete(c.feed, workspace.chain.Hash)
	if entry.GetRevision() <= workspace.feedLast {
		c.Problem("%s: its revision %d comes before that of an older event", title, entry.GetRevision())
	}
	workspace.feedLast = entry.GetRevision()
	if entry.GetWorkspaceId() != workspace.id {
		c.Problem("%s: its feed entry %d is of workspace %q", title, entry.GetRevision(), entry.GetWorkspaceId())
	}
	kind, subject := feedOf(event)
	if entry.GetKind() != kind || kind != storagev1.FeedKind_FEED_KIND_PURGE && entry.GetSubject() != subject {
		c.Problem("%s: its feed entry %d says %v %q, expected %v %q",
			title, entry.GetRevision(), entry.GetKind(), entry.GetSubject(), kind, subject)
	}
}

// feedOf returns kind and subject of an event's feed entry.
func feedOf(event *storagev1.AuditRecord) (kind storagev1.FeedKind, subject string) {
	switch event.GetAction() {
	case storagev1.AuditAction_AUDIT_ACTION_KEY_CREATED, storagev1.AuditAction_AUDIT_ACTION_KEY_UPDATED,
		storagev1.AuditAction_AUDIT_ACTION_KEY_ROTATED, storagev1.AuditAction_AUDIT_ACTION_ROTATION_FINISHED,
		storagev1.AuditAction_AUDIT_ACTION_KEY_REVOKED, storagev1.AuditAction_AUDIT_ACTION_KEYS_IMPORTED:
		return storagev1.FeedKind_FEED_KIND_KEY, event.GetKeyId()
	case storagev1.AuditAction_AUDIT_ACTION_MEMBER_PUT, storagev1.AuditAction_AUDIT_ACTION_MEMBER_REMOVED:
		return storagev1.FeedKind_FEED_KIND_MEMBER, event.GetMemberId()
	case storagev1.AuditAction_AUDIT_ACTION_WORKSPACE_REMOVED:
		return storagev1.FeedKind_FEED_KIND_WORKSPACE, ""
	case storagev1.AuditAction_AUDIT_ACTION_POLICY_APPLIED:
		return storagev1.FeedKind_FEED_KIND_POLICY, ""
	case storagev1.AuditAction_AUDIT_ACTION_PURGED, storagev1.AuditAction_AUDIT_ACTION_UPGRADED,
		storagev1.AuditAction_AUDIT_ACTION_SETTINGS_CHANGED, storagev1.AuditAction_AUDIT_ACTION_UPGRADE_FINISHED:
		return storagev1.FeedKind_FEED_KIND_PURGE, ""
	case storagev1.AuditAction_AUDIT_ACTION_CLOCK_REPAIRED, storagev1.AuditAction_AUDIT_ACTION_RESTORED,
		storagev1.AuditAction_AUDIT_ACTION_KEYS_RELEASED:
		switch {
		case event.GetWorkspaceId() == "":
			return storagev1.FeedKind_FEED_KIND_POLICY, ""
		case event.GetKeyId() != "":
			return storagev1.FeedKind_FEED_KIND_KEY, event.GetKeyId()
		case event.GetMemberId() != "":
			return storagev1.FeedKind_FEED_KIND_MEMBER, event.GetMemberId()
		}
		return storagev1.FeedKind_FEED_KIND_WORKSPACE, ""
	case storagev1.AuditAction_AUDIT_ACTION_UNSPECIFIED:
	}
	return storagev1.FeedKind_FEED_KIND_UNSPECIFIED, ""
}

// matchKeys compares an event with the records of the keys that it names.
func (c *Checker) matchKeys(workspace *checkedWorkspace, event *storagev1.AuditRecord) {
	if event.GetAction() == storagev1.AuditAction_AUDIT_ACTION_PURGED {
		for keyID := range strings.SplitSeq(event.GetDetails()["key_ids"], ",") {
			delete(workspace.created, strings.TrimSpace(keyID))
		}
		return
	}
	if event.GetAction() == storagev1.AuditAction_AUDIT_ACTION_KEYS_IMPORTED {
		for _, change := range event.GetChanges() {
			if change.GetKind() == storagev1.RecordKind_RECORD_KIND_KEY {
				c.matchKey(workspace, event, change.GetName(), true)
			}
		}
		return
	}
	c.matchKey(workspace, event, event.GetKeyId(), event.GetAction() == storagev1.AuditAction_AUDIT_ACTION_KEY_CREATED)
}

// matchKey compares an event with the record of one key. creates is set if the event created it.
func (c *Checker) matchKey(workspace *checkedWorkspace, event *storagev1.AuditRecord, keyID string, creates bool) {
	key := c.keys[keyID]
	switch {
	case key == nil:
	case key.damaged:
		return // an unreadable record cannot be compared
	case key.workspace != workspace:
		key = nil
	}
	if creates {
		switch {
		case key == nil || key.sequence != event.GetSequence():
			if workspace.created == nil {
				workspace.created = make(map[string]int64)
			}
			if before, found := workspace.created[keyID]; found {
				c.Problem("workspace %q: key %s was created by the events %d and %d", workspace.id, keyID, before, event.GetSequence())
			}
			workspace.created[keyID] = event.GetSequence()
		default:
			key.createdSeen = true
		}
	}
	if key == nil || key.sequence > event.GetSequence() {
		return
	}
	key.changeSeen = key.changeSeen || key.changeSequence == event.GetSequence()
	key.revokedSeen = key.revokedSeen || revokes(event)
}

// revokes reports whether an event has revoked the key that it names.
func revokes(event *storagev1.AuditRecord) bool {
	switch event.GetAction() { //nolint:exhaustive // all others leave a key as it is in this respect
	case storagev1.AuditAction_AUDIT_ACTION_KEY_REVOKED:
		return true
	case storagev1.AuditAction_AUDIT_ACTION_RESTORED:
		return slices.ContainsFunc(event.GetFields(), func(field *storagev1.FieldChange) bool {
			return field.GetField() == "revoke_time" && len(field.GetAfter()) > 0
		})
	}
	return false
}

// Problem adds a problem that the caller has found.
func (c *Checker) Problem(format string, arguments ...any) {
	c.ProblemAt(Place{}, format, arguments...)
}

// ProblemAt adds a problem that the caller has found at a place.
func (c *Checker) ProblemAt(place Place, format string, arguments ...any) {
	c.add(Problem{Place: place, Text: fmt.Sprintf(format, arguments...)})
}

// recordProblem adds a problem of a record that the event of a place has put.
func (c *Checker) recordProblem(place Place, format string, arguments ...any) {
	c.add(Problem{Place: place, Record: true, Text: fmt.Sprintf(format, arguments...)})
}

func (c *Checker) add(problem Problem) {
	if len(c.problems) == maxProblems {
		c.more++
		return
	}
	c.problems = append(c.problems, problem)
}

// Problems ends the check and returns what was found: at most a hundred problems, and then
// how many more there are. It returns nothing if the store is sound.
func (c *Checker) Problems() []string {
	located, more := c.Located()
	var texts []string
	for _, problem := range located {
		texts = append(texts, problem.Text)
	}
	if more > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", more))
	}
	return texts
}

// Incomplete ends the check of a store that could not be read to its end. Problems returns what was found until
// then, and nothing that only the whole store shows.
func (c *Checker) Incomplete() { c.finished = true }

// Located is Problems with the places, and how many problems more there are.
func (c *Checker) Located() (problems []Problem, more int) {
	if !c.finished {
		c.finished = true
		c.finish()
	}
	return slices.Clone(c.problems), c.more
}

func (c *Checker) finish() {
	if c.Feed != FeedUnseen {
		if c.feedNewest != c.position.Revision {
			c.Problem("feed: it ends at revision %d, the store at %d", c.feedNewest, c.position.Revision)
		}
		left := make([]int64, 0, len(c.feed))
		for _, entry := range c.feed {
			if entry.GetRevision() > c.Pruned {
				left = append(left, entry.GetRevision())
			}
		}
		slices.Sort(left)
		for _, revision := range left {
			c.Problem("feed: revision %d names no audit event of the store", revision)
		}
	}
	if c.position.Revision == 0 && len(c.workspaces) > 0 {
		c.Problem("position: revision 0, though there are records")
	}
	for _, id := range sortedKeys(c.workspaces) {
		c.finishWorkspace(c.workspaces[id])
	}
	if c.policy && c.workspaces[""] == nil {
		c.Problem("policy: it has no head")
	}
	if c.settings && c.workspaces[""] == nil {
		c.Problem("settings: they have no head")
	}
	for _, id := range sortedKeys(c.keys) {
		if key := c.keys[id]; !key.damaged {
			c.finishKey(id, key)
		}
	}
	c.finishRecords()
}

func (c *Checker) finishWorkspace(workspace *checkedWorkspace) {
	title := fmt.Sprintf("workspace %q", workspace.id)
	place := Place{WorkspaceID: workspace.id, Sequence: workspace.chain.Sequence}
	switch {
	case workspace.damagedHead:
	case workspace.head == nil:
		c.ProblemAt(place, "%s: it has no head", title)
	case workspace.head.Sequence != workspace.chain.Sequence:
		c.ProblemAt(place, "%s: its head is at audit event %d, the last one is %d", title, workspace.head.Sequence, workspace.chain.Sequence)
	case workspace.head.Hash != workspace.chain.Hash:
		c.ProblemAt(place, "%s: its head has another hash than the last audit event", title)
	}
	if workspace.id == "" {
		if !c.policy && !c.settings {
			c.Problem("policy: it has a head or audit events, but no record")
		}
		if workspace.record || workspace.needsRecord {
			c.Problem("policy: a workspace, member or key belongs to the empty workspace")
		}
	} else if workspace.needsRecord && !workspace.record && !workspace.damagedRecord {
		c.Problem("%s: it has members or keys, but no record", title)
	}
	for _, id := range sortedKeys(workspace.members) {
		member := workspace.members[id]
		name := recordName{workspace.id, storagev1.RecordKind_RECORD_KIND_MEMBER, id}
		unlisted := c.Schema != SchemaFirst && !c.record(name).listed // finishRecords reports it
		if !member.put && !member.damaged && !unlisted && !workspace.gap {
			c.Problem("%s: no audit event put member %q", title, id)
		}
	}
	for _, id := range sortedKeys(workspace.created) {
		if workspace.gap && workspace.created[id] <= workspace.prunedTo {
			continue // the event that purged the key may have been pruned
		}
		if key := c.keys[id]; key != nil && key.workspace == workspace {
			c.Problem("%s: event %d created key %s, whose record says event %d", title, workspace.created[id], id, key.sequence)
		} else {
			c.ProblemAt(Place{WorkspaceID: workspace.id, Sequence: workspace.created[id]}, "%s: key %s, created by event %d, is not there and was not purged", title, id, workspace.created[id])
		}
	}
}

func (c *Checker) finishKey(id string, key *checkedKey) {
	isPruned := key.workspace.gap && key.sequence <= key.workspace.prunedTo
	if !key.createdSeen && !isPruned {
		c.Problem("key %s: audit event %d did not create it", id, key.sequence)
	}
	if !key.changeSeen && c.Schema == SchemaFirst { // in later schemas finishRecords compares
		c.Problem("key %s: audit event %d did not change it", id, key.changeSequence)
	}
	if key.revoked != key.revokedSeen && !(key.revoked && isPruned) {
		c.Problem("key %s: revoked is %t in the record and %t in the audit events", id, key.revoked, key.revokedSeen)
	}
}

func sortedKeys[V any](values map[string]V) []string {
	names := make([]string, 0, len(values))
	for name := range values {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
