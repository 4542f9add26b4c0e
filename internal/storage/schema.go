package storage

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
)

// A schema is a version of the stored form. The header of a store has its schema. A store
// with a newer schema than the program's is refused with ErrNewer. A store with an older
// schema is upgraded by a backend that existed with that schema, and refused with ErrOlder by
// the other backends.
//
// A new schema needs a constant here that says what it changed, a step of each backend's
// upgrade, and a committed file of the schema before it, which a test opens.
const (
	// SchemaFirst is the form of the first stores. Hashes of secrets are digests of tokens
	// (scheme 1).
	SchemaFirst = 1
	// SchemaIntegrity ties records to the history: every record names its change, every
	// event lists the records that it put and deleted with the hashes of their payloads, heads
	// have tags (package integrity), and secrets are stored as verifiers (scheme 3). Programs
	// of SchemaFirst refuse it: they would write records that no event lists.
	SchemaIntegrity = 2
	// SchemaHeld is SchemaIntegrity with keys that are held (hold_time). Only a restore makes it, and
	// only if it holds keys: no store is upgraded to it. Programs of SchemaIntegrity refuse it: they
	// would allow held keys.
	SchemaHeld = 3

	// Schema is the schema that this program gives to new stores, and Newest the newest that it reads.
	Schema = SchemaIntegrity
	Newest = SchemaHeld
)

// SchemaOf returns the schema of a store by its settings; settings is nil if it has none.
func SchemaOf(settings *storagev1.SettingsRecord) int32 {
	if settings.GetSchema() == 0 {
		return SchemaIntegrity
	}
	return settings.GetSchema()
}

// CheckSchema returns ErrNewer if the settings of a store say that it has a schema beyond Newest. The store
// must not be served then.
func CheckSchema(settings *storagev1.SettingsRecord) error {
	if schema := SchemaOf(settings); schema > Newest || schema < SchemaIntegrity {
		return fmt.Errorf("%w: schema %d, this version knows up to %d", ErrNewer, schema, Newest)
	}
	return nil
}

// CheckSettings returns ErrNewer if settings could not be read because they need a schema beyond Newest. err is why
// they could not be read. No such record is written before the schema of its store is raised, so the store must
// not be served then.
func CheckSettings(err error) error {
	if damaged, is := errors.AsType[*DamagedError](err); is && damaged.Newer {
		return fmt.Errorf("%w: %w", ErrNewer, err)
	}
	return nil
}

// requiring is a record that says which schema its readers must know at least.
type requiring interface{ GetMinSchema() uint32 }

// requires returns what is wrong with a record for this program: it needs a schema that the program does not
// know. It returns "" if nothing is.
func requires(minSchema uint64) (problem string) {
	if minSchema <= Newest {
		return ""
	}
	return fmt.Sprintf("needs schema %d; this version knows up to %d", minSchema, Newest)
}

// NotUnderstood returns the item as Damaged if it is a record that needs a schema beyond Newest, and else nil.
// Records that come from Decode and KeyView.Parse are understood.
func NotUnderstood(item Item) *Damaged {
	var record requiring
	var kind string
	damaged := &Damaged{}
	switch {
	case item.Key != nil:
		record, kind, damaged.WorkspaceID, damaged.KeyID = item.Key, "key", item.Key.GetWorkspaceId(), item.Key.GetKeyId()
	case item.Member != nil:
		record, kind, damaged.WorkspaceID, damaged.MemberID = item.Member, "member", item.Member.GetWorkspaceId(), item.Member.GetMemberId()
	case item.Workspace != nil:
		record, kind, damaged.WorkspaceID = item.Workspace, "workspace", item.Workspace.GetWorkspaceId()
	case item.Policy != nil:
		record, kind = item.Policy, "policy"
	case item.Settings != nil:
		record, kind, damaged.Settings = item.Settings, "settings", true
	default:
		return nil
	}
	problem := requires(uint64(record.GetMinSchema()))
	if problem == "" {
		return nil
	}
	name := damaged.KeyID + damaged.MemberID
	if kind == "workspace" {
		name = damaged.WorkspaceID
	}
	damaged.Err = &DamagedError{Kind: kind, Name: name, Problem: problem, Newer: true}
	return damaged
}

// minSchemaFields are the numbers of the field min_schema of each kind of record.
var minSchemaFields = map[storagev1.RecordKind]protowire.Number{
	storagev1.RecordKind_RECORD_KIND_KEY:       21,
	storagev1.RecordKind_RECORD_KIND_MEMBER:    13,
	storagev1.RecordKind_RECORD_KIND_WORKSPACE: 8,
	storagev1.RecordKind_RECORD_KIND_POLICY:    5,
	storagev1.RecordKind_RECORD_KIND_SETTINGS:  7,
}

// Unread returns what is wrong with the payload of a stored record that is to be replaced or deleted unread:
// it needs a schema that this program does not know, or it is not a record. It returns "" if nothing is.
func Unread(kind storagev1.RecordKind, payload []byte) (problem string) {
	field, minSchema := minSchemaFields[kind], uint64(0)
	for len(payload) > 0 {
		number, wireType, length := protowire.ConsumeTag(payload)
		if length < 0 {
			return "not a record"
		}
		payload = payload[length:]
		if number == field && wireType == protowire.VarintType {
			minSchema, _ = protowire.ConsumeVarint(payload)
			minSchema &= 1<<32 - 1 // as proto.Unmarshal reads it
		}
		if length = protowire.ConsumeFieldValue(number, wireType, payload); length < 0 {
			return "not a record"
		}
		payload = payload[length:]
	}
	return requires(minSchema)
}
