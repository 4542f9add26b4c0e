package storage_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

func viewedRecord() *storagev1.KeyRecord {
	at := func(seconds int64, nanos int32) *timestamppb.Timestamp {
		return &timestamppb.Timestamp{Seconds: seconds, Nanos: nanos}
	}
	return &storagev1.KeyRecord{
		KeyId: "Key0000000000001", WorkspaceId: "acme", MemberId: "ann", WorkspaceIncarnation: "first", MemberIncarnation: "second",
		Sequence: 7, Name: "näme", Scopes: []string{"a:x", "b:y"}, Labels: map[string]string{"k": "v", "": ""},
		AllowedCidrs: []string{"192.0.2.0/24", "2001:db8::/32"}, CreateTime: at(1_790_000_000, 1000), RevokeTime: at(-5, -7),
		Secrets: []*storagev1.SecretRecord{
			{Scheme: 3, Hash: make([]byte, 32), CreateTime: at(1, 2), ExpireTime: at(1_890_000_000, 999_999_999)},
			{Scheme: 1, Hash: make([]byte, 31), ExpireTime: at(4, 0), OverlapEndTime: at(3, 0), IssuedLocally: true},
		},
		RequestIds: []string{"r1", "r2"}, ChangeSequence: 9,
		CreatedBy: &storagev1.ChangedByRecord{Caller: "c", ActorMemberId: "m"}, RevokedBy: &storagev1.ChangedByRecord{}, Reported: true,
		HoldTime:  at(5, 6),
		Imported:  &storagev1.ImportRecord{ImportTime: at(7, 8), Hash: []byte{1, 2, 3}},
		MinSchema: storage.Newest,
	}
}

// describe returns everything that a view has. Nil and empty bytes are the same.
func describe(v *storage.KeyView) string {
	text := fmt.Sprintf("%q %q %q %q %q %d %d %q %q %q %d %d %t %t", v.KeyID, v.WorkspaceID, v.MemberID, v.WorkspaceIncarnation, v.MemberIncarnation,
		v.Sequence, v.ChangeSequence, v.Scopes, v.AllowedCIDRs, v.RequestIDs, v.CreateTime, v.RevokeTime, v.Revoked, v.Held)
	text += fmt.Sprintf(" %t %x %d", v.Imported, v.ImportHash, v.MinSchema)
	for _, secret := range v.Secrets {
		text += fmt.Sprintf(" {%d %x %d %d %t %d %t}", secret.Scheme, secret.Hash, secret.CreateTime, secret.ExpireTime, secret.HasExpireTime,
			secret.OverlapEndTime, secret.HasOverlapEndTime)
	}
	return text
}

// checkView compares what Parse makes of bytes with what proto.Unmarshal makes of them. The view is
// one that another record was parsed into before.
func checkView(t *testing.T, view *storage.KeyView, payload []byte) {
	t.Helper()
	record := &storagev1.KeyRecord{}
	wantErr := proto.Unmarshal(payload, record)
	if wantErr == nil && record.GetMinSchema() > storage.Newest {
		wantErr = storage.ErrNewer
	}
	err := view.Parse(payload)
	if (err != nil) != (wantErr != nil) {
		t.Fatalf("%x: got %v, want %v", payload, err, wantErr)
	}
	if err != nil {
		return
	}
	var want storage.KeyView
	want.Set(record)
	if got, want := describe(view), describe(&want); got != want {
		t.Fatalf("%x:\ngot  %s\nwant %s", payload, got, want)
	}
	if view.LastUsed != 0 {
		t.Fatalf("last used %d of an earlier record", view.LastUsed)
	}
}

// unusual returns encodings that are valid or not, and that Encode does not write.
func unusual(t testing.TB) map[string][]byte {
	t.Helper()
	whole, err := storage.Encode(viewedRecord())
	if err != nil {
		t.Fatal(err)
	}
	field := func(number protowire.Number, content []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), content)
	}
	varint := func(number protowire.Number, value uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(nil, number, protowire.VarintType), value)
	}
	join := func(parts ...[]byte) (joined []byte) {
		for _, part := range parts {
			joined = append(joined, part...)
		}
		return joined
	}
	group := protowire.AppendTag(protowire.AppendTag(nil, 30, protowire.StartGroupType), 30, protowire.EndGroupType)
	return map[string][]byte{
		"whole":                       whole,
		"empty":                       nil,
		"truncated":                   whole[:len(whole)-1],
		"an id twice":                 join(whole, field(1, []byte("Key0000000000002"))),
		"a time in two parts":         join(field(12, varint(1, 5)), field(12, varint(2, 6))),
		"a time with a value twice":   field(12, join(varint(1, 5), varint(1, 6))),
		"a time with a field of text": field(12, join(varint(1, 5), field(3, []byte("x")))),
		"nanos beyond 32 bits":        field(12, varint(2, 1<<40|17)),
		"negative seconds":            field(12, varint(1, 1<<64-3)),
		"an unknown field":            join(whole, field(99, []byte("x")), varint(98, 7)),
		"an unknown group":            join(whole, group),
		"a group without end":         join(whole, protowire.AppendTag(nil, 30, protowire.StartGroupType)),
		"text of a wrong type":        join(varint(1, 5), field(2, []byte("acme"))),
		"a number of a wrong type":    field(6, []byte("x")),
		"a fixed number":              protowire.AppendFixed64(protowire.AppendTag(nil, 6, protowire.Fixed64Type), 9),
		"text that is not UTF-8":      field(3, []byte{0xff}),
		"a scope that is not UTF-8":   field(8, []byte{0xc3, 0x28}),
		"a label that is not UTF-8":   field(9, field(2, []byte{0xff})),
		"a label of a wrong type":     field(9, varint(1, 5)),
		"a label with a field more":   field(9, join(field(1, nil), field(3, nil))),
		"a label that is no message":  field(9, []byte{0x0a, 0x05}),
		"a caller that is not UTF-8":  field(16, field(1, []byte{0xff})),
		"a scheme beyond 32 bits":     field(13, varint(1, 1<<32|3)),
		"a secret with a field more":  field(13, join(varint(1, 3), varint(77, 1))),
		"a secret that is no message": field(13, []byte{0x08}),
		"a hash twice":                field(13, join(field(2, make([]byte, 32)), field(2, []byte("x")))),
		"an expiry in two parts":      field(13, join(field(4, varint(1, 5)), field(4, varint(2, 6)))),
		"a schema beyond the newest":  join(whole, varint(21, storage.Newest+1)),
		"a schema of 2^32 - 1":        varint(21, 1<<32-1),
		"a schema beyond 32 bits":     varint(21, 1<<32|1),
		"a schema twice, newer first": join(varint(21, storage.Newest+1), varint(21, 1)),
		"a schema twice, newer last":  join(varint(21, 1), varint(21, storage.Newest+1)),
		"a schema as text":            field(21, []byte("4")),
		"an import without a hash":    field(20, field(1, varint(1, 5))),
		"an import with a field more": field(20, join(field(2, []byte("x")), varint(3, 1))),
		"an import in two parts":      join(field(20, field(1, varint(1, 5))), field(20, field(2, []byte("x")))),
		"an import that is a number":  varint(20, 1),
		"a bool that is not 1":        join(varint(18, 77), varint(15, 1<<63)),
		"field 0":                     {0x00, 0x00},
		"a field number that is long": {0xff, 0xff, 0xff, 0xff, 0x7f, 0x00},
	}
}

func TestKeyViewEqualsTheDecodedRecord(t *testing.T) {
	var view storage.KeyView
	for name, payload := range unusual(t) {
		t.Run(name, func(t *testing.T) { checkView(t, &view, payload) })
	}
	t.Run("random damage", func(t *testing.T) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		whole := unusual(t)["whole"]
		for range 20_000 {
			damaged := append([]byte(nil), whole...)
			for range 1 + random.IntN(3) {
				damaged[random.IntN(len(damaged))] = byte(random.Uint32())
			}
			checkView(t, &view, damaged[:len(damaged)-random.IntN(2)*random.IntN(len(damaged))])
		}
	})
}

func TestParsingAKeyViewDoesNotAllocate(t *testing.T) {
	payload, err := storage.Encode(viewedRecord())
	if err != nil {
		t.Fatal(err)
	}
	var view storage.KeyView
	if got := testing.AllocsPerRun(100, func() {
		if err := view.Parse(payload); err != nil {
			t.Fatal(err)
		}
	}); got > 0 {
		t.Errorf("%.0f allocations", got)
	}
}

func FuzzKeyView(f *testing.F) {
	for _, payload := range unusual(f) {
		f.Add(payload)
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		var view storage.KeyView
		checkView(t, &view, payload)
	})
}

func BenchmarkKeyViewParse(b *testing.B) {
	record := viewedRecord()
	record.RevokeTime, record.RevokedBy, record.AllowedCidrs, record.RequestIds, record.HoldTime = nil, nil, nil, nil, nil
	record.Secrets = record.Secrets[:1]
	payload, err := storage.Encode(record)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("view", func(b *testing.B) {
		var view storage.KeyView
		b.ReportAllocs()
		for b.Loop() {
			if err := view.Parse(payload); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("record", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := proto.Unmarshal(payload, &storagev1.KeyRecord{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
