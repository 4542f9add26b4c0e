package storage_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// requiring returns a record of each kind that needs a schema.
func requiring(schema uint32) map[storagev1.RecordKind]proto.Message {
	return map[storagev1.RecordKind]proto.Message{
		storagev1.RecordKind_RECORD_KIND_KEY:       &storagev1.KeyRecord{KeyId: "k", WorkspaceId: "w", MinSchema: schema},
		storagev1.RecordKind_RECORD_KIND_MEMBER:    &storagev1.MemberRecord{MemberId: "m", WorkspaceId: "w", MinSchema: schema},
		storagev1.RecordKind_RECORD_KIND_WORKSPACE: &storagev1.WorkspaceRecord{WorkspaceId: "w", MinSchema: schema},
		storagev1.RecordKind_RECORD_KIND_POLICY:    &storagev1.PolicyRecord{MinSchema: schema},
		storagev1.RecordKind_RECORD_KIND_SETTINGS:  &storagev1.SettingsRecord{MinSchema: schema},
	}
}

func itemOf(record proto.Message) storage.Item {
	switch record := record.(type) {
	case *storagev1.KeyRecord:
		return storage.Item{Key: record}
	case *storagev1.MemberRecord:
		return storage.Item{Member: record}
	case *storagev1.WorkspaceRecord:
		return storage.Item{Workspace: record}
	case *storagev1.PolicyRecord:
		return storage.Item{Policy: record}
	}
	return storage.Item{Settings: record.(*storagev1.SettingsRecord)}
}

// TestEveryKindOfRecordMayNeedASchema: a record that needs more than this program knows is damaged, whoever reads
// it. The kinds are those of the proto file, so that a new one is covered.
func TestEveryKindOfRecordMayNeedASchema(t *testing.T) {
	for schema, understood := range map[uint32]bool{0: true, 1: true, storage.Newest: true, storage.Newest + 1: false, 1<<32 - 1: false} {
		records := requiring(schema)
		for number, name := range storagev1.RecordKind_name {
			kind := storagev1.RecordKind(number)
			if kind == storagev1.RecordKind_RECORD_KIND_UNSPECIFIED {
				continue
			}
			record := records[kind]
			if record == nil {
				t.Errorf("%s has no record here", name)
				continue
			}
			want := fmt.Sprintf("needs schema %d; this version knows up to %d", schema, storage.Newest)
			payload, err := storage.Encode(record)
			if err != nil {
				t.Fatal(err)
			}
			err = storage.Decode("record", "name", storage.Frame("name", payload), record.ProtoReflect().New().Interface())
			if (err == nil) != understood || err != nil && (!errors.Is(err, storage.ErrDamaged) || !strings.Contains(err.Error(), want)) {
				t.Errorf("%s that needs %d: Decode says %v", name, schema, err)
			}
			if problem := storage.Unread(kind, payload); (problem == "") != understood || !understood && problem != want {
				t.Errorf("%s that needs %d: Unread says %q", name, schema, problem)
			}
			damaged := storage.NotUnderstood(itemOf(record))
			if (damaged == nil) != understood || damaged != nil && !strings.Contains(damaged.Err.Error(), want) {
				t.Errorf("%s that needs %d: NotUnderstood says %+v", name, schema, damaged)
			}
		}
	}
	for _, item := range []storage.Item{{}, {Head: &storage.WorkspaceHead{}}, {Usage: &storage.Usage{}}, {Damaged: &storage.Damaged{}}} {
		if damaged := storage.NotUnderstood(item); damaged != nil {
			t.Errorf("%+v is %+v", item, damaged)
		}
	}
}

// FuzzUnread reads any bytes as the payload of a record. The result is what decoding the record gives.
func FuzzUnread(f *testing.F) {
	for kind, record := range requiring(storage.Newest + 1) {
		payload, err := storage.Encode(record)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(int32(kind), payload)
		f.Add(int32(kind), payload[:len(payload)-1])
	}
	f.Add(int32(4), protowire.AppendVarint(protowire.AppendTag(nil, 21, protowire.VarintType), 1<<32|9))
	f.Add(int32(4), protowire.AppendBytes(protowire.AppendTag(nil, 21, protowire.BytesType), []byte{9}))
	f.Fuzz(func(t *testing.T, kind int32, payload []byte) {
		record := requiring(0)[storagev1.RecordKind(kind)]
		if record == nil {
			storage.Unread(storagev1.RecordKind(kind), payload)
			return
		}
		problem := storage.Unread(storagev1.RecordKind(kind), payload)
		proto.Reset(record)
		if proto.Unmarshal(payload, record) != nil {
			return // Unread looks for its field alone
		}
		err := storage.Decode("record", "name", storage.Frame("name", payload), record)
		if (err == nil) != (problem == "") {
			t.Errorf("%x: Unread says %q, and Decode %v", payload, problem, err)
		}
	})
}
