package storagetest

import (
	"crypto/sha256"

	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// Records are the records of one workspace, by kind and name as in RecordChange.
type Records map[RecordName]proto.Message

// RecordName names a record of a workspace.
type RecordName struct {
	Kind storagev1.RecordKind
	Name string
}

// Apply makes a change to the records and returns what its audit event must list, in the
// order policy, workspace, members, keys; puts before deletes.
func (r Records) Apply(change *storage.Change) []*storagev1.RecordChange {
	var listed []*storagev1.RecordChange
	put := func(kind storagev1.RecordKind, name string, record proto.Message) {
		named := RecordName{kind, name}
		listed = append(listed, &storagev1.RecordChange{Kind: kind, Name: name, Before: hashOf(r[named]), After: hashOf(record)})
		if record == nil {
			delete(r, named)
		} else {
			r[named] = record
		}
	}
	if change.PutPolicy != nil {
		put(storagev1.RecordKind_RECORD_KIND_POLICY, "", change.PutPolicy)
	}
	if change.PutSettings != nil {
		put(storagev1.RecordKind_RECORD_KIND_SETTINGS, "", change.PutSettings)
	}
	if change.PutWorkspace != nil {
		put(storagev1.RecordKind_RECORD_KIND_WORKSPACE, "", change.PutWorkspace)
	}
	for _, member := range change.PutMembers {
		put(storagev1.RecordKind_RECORD_KIND_MEMBER, member.GetMemberId(), member)
	}
	for _, member := range change.DeleteMembers {
		put(storagev1.RecordKind_RECORD_KIND_MEMBER, member.GetMemberId(), nil)
	}
	for _, key := range change.PutKeys {
		put(storagev1.RecordKind_RECORD_KIND_KEY, key.GetKeyId(), key)
	}
	for _, key := range change.DeleteKeys {
		put(storagev1.RecordKind_RECORD_KIND_KEY, key.GetKeyId(), nil)
	}
	return listed
}

// hashOf returns the hash of a record's payload; nil if there is no record.
func hashOf(record proto.Message) []byte {
	if record == nil {
		return nil
	}
	encoded, err := storage.Encode(record)
	if err != nil {
		panic(err)
	}
	hash := sha256.Sum256(encoded)
	return hash[:]
}
