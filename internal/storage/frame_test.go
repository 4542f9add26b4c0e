package storage_test

import (
	"bytes"
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

func TestFrameCoversNameAndPayload(t *testing.T) {
	payload := []byte("payload")
	value := storage.Frame("name", payload)
	got, err := storage.Unframe("key", "name", value)
	if err != nil || !bytes.Equal(got, payload) {
		t.Fatalf("Unframe: %q, %v", got, err)
	}
	mustBeDamaged := func(what, name string, value []byte) {
		t.Helper()
		var damaged *storage.DamagedError
		if _, err := storage.Unframe("key", name, value); !errors.As(err, &damaged) || damaged.Kind != "key" || damaged.Name != name || !errors.Is(err, storage.ErrDamaged) {
			t.Errorf("%s: %v, want a DamagedError", what, err)
		}
	}
	mustBeDamaged("another name", "eman", value)
	for length := range value {
		mustBeDamaged("truncated", "name", value[:length])
	}
	for index := range value {
		for bit := range 8 {
			flipped := bytes.Clone(value)
			flipped[index] ^= 1 << bit
			mustBeDamaged("flipped", "name", flipped)
		}
	}
}

// FuzzDecode reads any bytes as a stored key. The result is ErrDamaged, or a record that can be
// stored and read again.
func FuzzDecode(f *testing.F) {
	encoded, err := storage.Encode(&storagev1.KeyRecord{KeyId: "Key0000000000001", WorkspaceId: "w", RequestIds: []string{"r"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("name", storage.Frame("name", encoded))
	f.Add("other", storage.Frame("name", encoded))
	f.Add("", []byte{})
	f.Add("x", storage.Frame("x", []byte{0xff, 0xff}))
	f.Fuzz(func(t *testing.T, name string, value []byte) {
		// As it is, which is nearly always damage, and as the payload of a good frame.
		for _, value := range [][]byte{value, storage.Frame(name, value)} {
			before := bytes.Clone(value)
			record := &storagev1.KeyRecord{}
			if err := storage.Decode("key", name, value, record); err != nil {
				if !errors.Is(err, storage.ErrDamaged) {
					t.Errorf("Decode: %v, want ErrDamaged", err)
				}
				continue
			}
			kept := proto.CloneOf(record)
			clear(value)
			if !proto.Equal(record, kept) {
				t.Error("Decode: the record aliases the value")
			}
			copy(value, before)
			encoded, err := storage.Encode(record)
			if err != nil {
				t.Fatalf("Encode: %v", err)
			}
			again := &storagev1.KeyRecord{}
			if err := storage.Decode("key", name, storage.Frame(name, encoded), again); err != nil || !proto.Equal(again, record) {
				t.Errorf("Decode: %v, %v; want %v", again, err, record)
			}
		}
	})
}
