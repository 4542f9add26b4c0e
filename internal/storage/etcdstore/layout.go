package etcdstore

import (
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// The names in etcd, all below the store's prefix. A number is 16 hex digits. A complement
// is the number MaxInt64 - n, so that an ascending range gives the newest first: for any
// other order, etcd reads the whole range.
//
//	data/header                                → HeaderRecord
//	data/time                                  → the latest wall time of any change
//	data/policy                                → PolicyRecord
//	data/settings                              → SettingsRecord
//	data/workspaces/<workspace>                → WorkspaceRecord
//	data/members/<workspace> 00 <member>       → MemberRecord
//	data/keys/<workspace> 00 <complement of the sequence> <key id> → KeyRecord
//	data/ids/<key id>                          → rank, name of the record
//	data/order/<rank> <key id>                → name of the record
//	data/requests/<workspace> 00 <request id>  → key id
//	data/heads/<workspace>, or data/heads/ for the policy's → HeadRecord
//	data/audit/<workspace> 00 <complement of the sequence>  → AuditRecord
//	data/feed/head                             → FeedRecord of the newest change
//	data/pruned                                → revision up to which audit events may be deleted
//	usage/<key id>                             → when the key was last used
//	migration                                  → MigrationRecord, while the store is filled from another one
//	renewal                                    → RestoredRecord, while the store gets a new epoch
//	election/<lease>                           → a candidate for the work that one process does at a time
//	sink                                       → the newest revision that the audit sink has, and its hash
//
// Ids contain no NUL byte, so no name can be mistaken for another. Watchers follow data/
// only, so recording uses wakes no watcher. The checksum of a value covers its name without
// the prefix, so that a store can be moved to another prefix.
const (
	folderData       = "data/"
	folderWorkspaces = "data/workspaces/"
	folderMembers    = "data/members/"
	folderKeys       = "data/keys/"
	folderIDs        = "data/ids/"
	folderOrder      = "data/order/"
	folderRequests   = "data/requests/"
	folderHeads      = "data/heads/"
	folderAudit      = "data/audit/"
	folderUsage      = "usage/"
	folderElection   = "election/"

	nameHeader   = "data/header"
	nameTime     = "data/time"
	namePolicy   = "data/policy"
	nameSettings = "data/settings"
	nameFeedHead = "data/feed/head"

	nameMigration = "migration"
	nameRenewal   = "renewal"
	namePruned    = "data/pruned"
	nameSink      = "sink"
)

const (
	numberLength = 16
	separator    = "\x00"
)

// number returns n as a name that sorts by value. n is not negative.
func number(n int64) string {
	var bytes [8]byte
	binary.BigEndian.PutUint64(bytes[:], uint64(n)) //nolint:gosec // sequences and revisions are never negative
	return hex.EncodeToString(bytes[:])
}

// complement returns n as a name that sorts by descending value.
func complement(n int64) string { return number(math.MaxInt64 - n) }

// parseNumber is the inverse of number.
func parseNumber(text string) (n int64, ok bool) {
	if len(text) != numberLength || strings.ToLower(text) != text {
		return 0, false
	}
	var bytes [8]byte
	if _, err := hex.Decode(bytes[:], []byte(text)); err != nil || bytes[0] > 0x7f {
		return 0, false
	}
	return int64(binary.BigEndian.Uint64(bytes[:])), true //nolint:gosec // the first bit is 0, checked above
}

// parseComplement is the inverse of complement.
func parseComplement(text string) (n int64, ok bool) {
	n, ok = parseNumber(text)
	return math.MaxInt64 - n, ok
}

func workspaceName(workspaceID string) string { return folderWorkspaces + workspaceID }

func headName(workspaceID string) string { return folderHeads + workspaceID }

func memberFolder(workspaceID string) string { return folderMembers + workspaceID + separator }

func memberName(workspaceID, memberID string) string { return memberFolder(workspaceID) + memberID }

// parseMemberName splits the name of a member's record.
func parseMemberName(name string) (workspaceID, memberID string, ok bool) {
	return strings.Cut(strings.TrimPrefix(name, folderMembers), separator)
}

func keyFolder(workspaceID string) string { return folderKeys + workspaceID + separator }

func keyName(workspaceID string, sequence int64, keyID string) string {
	return keyFolder(workspaceID) + complement(sequence) + keyID
}

// parseKeyName splits the name of a key's record.
func parseKeyName(name string) (workspaceID string, sequence int64, keyID string, ok bool) {
	if !strings.HasPrefix(name, folderKeys) {
		return "", 0, "", false
	}
	workspaceID, rest, ok := strings.Cut(name[len(folderKeys):], separator)
	if !ok || len(rest) != numberLength+storage.KeyIDLength {
		return "", 0, "", false
	}
	sequence, ok = parseComplement(rest[:numberLength])
	return workspaceID, sequence, rest[numberLength:], ok
}

func idName(keyID string) string { return folderIDs + keyID }

// idEntry is the index entry under idName: where the key's record is.
type idEntry struct {
	rank string // among the keys of all workspaces
	name string // of the record
}

func (e idEntry) encode() []byte { return []byte(e.rank + e.name) }

func parseIDEntry(payload []byte) (entry idEntry, ok bool) {
	if len(payload) < numberLength {
		return idEntry{}, false
	}
	entry = idEntry{rank: string(payload[:numberLength]), name: string(payload[numberLength:])}
	_, ok = parseComplement(entry.rank)
	return entry, ok
}

func orderName(rank, keyID string) string { return folderOrder + rank + keyID }

// parseOrderName splits the name of an index entry of the order of all keys.
func parseOrderName(name string) (rank, keyID string, ok bool) {
	rest := strings.TrimPrefix(name, folderOrder)
	if len(rest) != numberLength+storage.KeyIDLength {
		return "", "", false
	}
	_, ok = parseComplement(rest[:numberLength])
	return rest[:numberLength], rest[numberLength:], ok
}

func requestFolder(workspaceID string) string { return folderRequests + workspaceID + separator }

func requestName(workspaceID, requestID string) string { return requestFolder(workspaceID) + requestID }

func auditFolder(workspaceID string) string { return folderAudit + workspaceID + separator }

func auditName(workspaceID string, sequence int64) string {
	return auditFolder(workspaceID) + complement(sequence)
}

// parseAuditName splits the name of an audit event.
func parseAuditName(name string) (workspaceID string, sequence int64, ok bool) {
	workspaceID, rest, ok := strings.Cut(strings.TrimPrefix(name, folderAudit), separator)
	if !ok {
		return "", 0, false
	}
	sequence, ok = parseComplement(rest)
	return workspaceID, sequence, ok
}

func usageName(keyID string) string { return folderUsage + keyID }

// validID reports whether an id can be part of a name. Nothing is stored under other ids.
func validID(id string) bool {
	return id != "" && len(id) <= storage.MaxIDBytes && !strings.Contains(id, separator) && utf8.ValidString(id)
}

// Stored times compare as bytes in the same way as the times themselves. So etcd can keep
// the later one without a round trip. This is why the checksum comes last here.
const (
	timeLength = 8 + 4
	timeStored = timeLength + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encodeTime returns the stored form of a time. The zero time sorts before all others.
func encodeTime(name string, at time.Time) string {
	value := appendTime(make([]byte, 0, timeStored), at)
	return string(binary.BigEndian.AppendUint32(value, timeChecksum(name, value)))
}

func appendTime(value []byte, at time.Time) []byte {
	if at.IsZero() {
		return append(value, make([]byte, timeLength)...)
	}
	value = binary.BigEndian.AppendUint64(value, uint64(at.Unix())^1<<63)  //nolint:gosec // a signed number, shifted to sort
	return binary.BigEndian.AppendUint32(value, uint32(at.Nanosecond())+1) //nolint:gosec // below 1e9
}

// encodeUsage returns the stored form of a use: the time, and a tag and a time for each secret. Uses
// sort by the time of the key, and then by those of its secrets.
func encodeUsage(name string, use storage.Usage) string {
	value := appendTime(nil, use.Time)
	for _, secret := range use.Secrets {
		if secret.Tag != 0 {
			value = appendTime(binary.BigEndian.AppendUint32(value, secret.Tag), secret.Time)
		}
	}
	return string(binary.BigEndian.AppendUint32(value, timeChecksum(name, value)))
}

// decodeUsage decodes a stored use of a key.
func decodeUsage(name, keyID string, value []byte) (*storage.Usage, error) {
	const secretLength = 4 + timeLength
	length := len(value) - (timeStored - timeLength)
	if length < timeLength || length > timeLength+2*secretLength || (length-timeLength)%secretLength != 0 ||
		binary.BigEndian.Uint32(value[length:]) != timeChecksum(name, value[:length]) {
		return nil, &storage.DamagedError{Kind: "usage", Name: name, Problem: "checksum mismatch"}
	}
	use := &storage.Usage{KeyID: keyID, Time: timeAt(value)}
	for index, rest := 0, value[timeLength:length]; len(rest) > 0; index++ {
		use.Secrets[index] = storage.SecretUse{Tag: binary.BigEndian.Uint32(rest), Time: timeAt(rest[4:])}
		rest = rest[secretLength:]
	}
	return use, nil
}

// decodeTime decodes a stored time.
func decodeTime(name string, value []byte) (time.Time, error) {
	if len(value) != timeStored || binary.BigEndian.Uint32(value[timeLength:]) != timeChecksum(name, value[:timeLength]) {
		return time.Time{}, &storage.DamagedError{Kind: "time", Name: name, Problem: "checksum mismatch"}
	}
	return timeAt(value), nil
}

// timeAt is the inverse of appendTime, for the beginning of a value.
func timeAt(value []byte) time.Time {
	nanoseconds := binary.BigEndian.Uint32(value[8:])
	if nanoseconds == 0 {
		return time.Time{}
	}
	seconds := int64(binary.BigEndian.Uint64(value) ^ 1<<63) //nolint:gosec // see appendTime
	return time.Unix(seconds, int64(nanoseconds)-1).UTC()
}

func timeChecksum(name string, value []byte) uint32 {
	return crc32.Update(crc32.Update(0, castagnoli, []byte(name)), castagnoli, value)
}
