package boltstore

import (
	"encoding/binary"
	"fmt"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// The buckets of the file, and the names of their values. Audit events, feed entries and
// new keys have ascending numbers as names, so that a commit appends to three buckets
// instead of writing pages all over the file.
//
//	meta        "header" → HeaderRecord, "position" → PositionRecord,
//	            "pruned", "unsunk" → revision (8 bytes), see prune.go; 0 if it is not there
//	policy      "active" → PolicyRecord
//	workspaces  workspace → WorkspaceRecord
//	members     workspace 0x00 member → MemberRecord
//	heads       workspace, or 0x00 for the policy's → HeadRecord
//	keys        slot (8 bytes) key id (16) workspace → KeyRecord
//	usage       slot (8 bytes) → Unix nanoseconds (8 bytes)
//	audit       revision (8 bytes) → revision of the workspace's previous event in the file (8 bytes)
//	            AuditRecord
//	feed        revision (8 bytes) → FeedRecord
//	refusals    sequence (8 bytes) → RefusalRecord; made with the first refusal
//
// A slot is a key's number in the order of creation. Only the index in memory knows the
// slot of a key id. The name also has the key's id and workspace, so that a damaged record
// can still be attributed. Numbers are big-endian.
const (
	bucketMeta       = "meta"
	bucketPolicy     = "policy"
	bucketWorkspaces = "workspaces"
	bucketMembers    = "members"
	bucketHeads      = "heads"
	bucketKeys       = "keys"
	bucketAudit      = "audit"
	bucketFeed       = "feed"
	bucketUsage      = "usage"
	bucketRefusals   = "refusals"

	nameHeader   = "header"
	namePosition = "position"
	namePruned   = "pruned"
	nameUnsunk   = "unsunk"
	nameActive   = "active"
)

// buckets lists the buckets that every file has, in the order in which a commit writes.
var buckets = []string{
	bucketAudit, bucketFeed, bucketHeads, bucketKeys,
	bucketMembers, bucketMeta, bucketPolicy, bucketUsage, bucketWorkspaces,
}

const (
	numberLength = 8
	keyIDLength  = storage.KeyIDLength
)

// number returns n as a name that sorts by value. n is not negative.
func number(n int64) string {
	var name [numberLength]byte
	binary.BigEndian.PutUint64(name[:], uint64(n)) //nolint:gosec // revisions and slots are never negative
	return string(name[:])
}

// parseNumber reads the number at the beginning of a name or value.
func parseNumber(name []byte) (int64, error) {
	if len(name) < numberLength || name[0] > 0x7f {
		return 0, fmt.Errorf("name of %d bytes does not begin with a number", len(name))
	}
	return int64(binary.BigEndian.Uint64(name)), nil //nolint:gosec // the first bit is 0, checked above
}

// keyName returns the name of a key's record.
func keyName(slot int64, keyID, workspaceID string) string {
	return number(slot) + keyID + workspaceID
}

// parseKeyName splits the name of a key's record.
func parseKeyName(name []byte) (slot int64, keyID, workspaceID string, err error) {
	slot, err = checkKeyName(name)
	if err != nil {
		return 0, "", "", err
	}
	return slot, string(name[numberLength : numberLength+keyIDLength]), string(name[numberLength+keyIDLength:]), nil
}

// checkKeyName checks the name of a key's record, and returns the slot.
func checkKeyName(name []byte) (slot int64, err error) {
	slot, err = parseNumber(name)
	if err == nil && len(name) <= numberLength+keyIDLength {
		err = fmt.Errorf("name of %d bytes is not that of a key", len(name))
	}
	return slot, err
}

// memberName returns the name of a member's record. Ids contain no NUL byte.
func memberName(workspaceID, memberID string) string {
	return workspaceID + "\x00" + memberID
}

// headName returns the name of a workspace's head. The policy's workspace id is empty, and
// bbolt allows no empty name.
func headName(workspaceID string) string {
	if workspaceID == "" {
		return "\x00"
	}
	return workspaceID
}

// parseHeadName is the inverse of headName.
func parseHeadName(name string) string {
	if name == "\x00" {
		return ""
	}
	return name
}

// frameName returns what the checksum of a value covers in addition to the value.
func frameName(bucket, name string) string { return bucket + "/" + name }

// frame returns the stored form of payload under name in bucket.
func frame(bucket, name string, payload []byte) []byte {
	return storage.Frame(frameName(bucket, name), payload)
}
