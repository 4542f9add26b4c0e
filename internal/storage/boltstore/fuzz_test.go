package boltstore

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// FuzzRequestIDsOf compares requestIDsOf with decoding the whole record.
func FuzzRequestIDsOf(f *testing.F) {
	for _, record := range []*storagev1.KeyRecord{
		{},
		{KeyId: "Key0000000000001", WorkspaceId: "w", RequestIds: []string{"one", "", "three"}, ChangeSequence: 7},
		{Labels: map[string]string{"a": "b"}, Secrets: []*storagev1.SecretRecord{{Hash: []byte{1}}}, RequestIds: []string{"r"}},
	} {
		encoded, err := storage.Encode(record)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(encoded)
	}
	f.Add(protowire.AppendVarint(protowire.AppendTag(nil, 14, protowire.VarintType), 1)) // the field, of another type
	f.Add([]byte{0x72, 0xff})
	f.Fuzz(func(t *testing.T, payload []byte) {
		got, err := requestIDsOf(payload)
		record := &storagev1.KeyRecord{}
		if proto.Unmarshal(payload, record) != nil {
			return // requestIDsOf may read its field, or not
		}
		if err != nil || !slices.Equal(got, record.GetRequestIds()) {
			t.Errorf("requestIDsOf: %q, %v; want %q", got, err, record.GetRequestIds())
		}
	})
}

// FuzzParseUse reads a last use and writes it again.
func FuzzParseUse(f *testing.F) {
	f.Add(storedUse{at: 1}.encode())
	f.Add(storedUse{at: 7, secrets: [2]storage.SecretUseView{{Tag: 1<<32 - 1, Time: 7}, {Tag: 2}}}.encode())
	f.Fuzz(func(t *testing.T, payload []byte) {
		use, err := parseUse(payload)
		if err != nil {
			return
		}
		again, err := parseUse(use.encode())
		// A secret without a tag is not written.
		if err != nil || again.at != use.at || use.secrets[0].Tag != 0 && use.secrets[1].Tag != 0 && again != use {
			t.Errorf("parseUse(%x) = %+v, and then %+v, %v", payload, use, again, err)
		}
	})
}

// FuzzParseKeyName splits names and builds them again.
func FuzzParseKeyName(f *testing.F) {
	f.Add([]byte(keyName(1, "Key0000000000001", "w")))
	f.Add([]byte(keyName(1<<62, "Key0000000000001", "")))
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xff}, 40))
	f.Fuzz(func(t *testing.T, name []byte) {
		slot, keyID, workspaceID, err := parseKeyName(name)
		if err != nil {
			return
		}
		if slot < 0 || len(keyID) != keyIDLength || workspaceID == "" || keyName(slot, keyID, workspaceID) != string(name) {
			t.Errorf("parseKeyName(%x) = %d, %q, %q", name, slot, keyID, workspaceID)
		}
	})
}

// FuzzVerifyPages writes any bytes anywhere into a good file. verifyPages returns an error
// or none; it does not panic, and it ends. The tests of damage open the files that pass.
func FuzzVerifyPages(f *testing.F) {
	path, _ := small(f)
	content, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(0), []byte{})
	f.Add(uint32(os.Getpagesize()*3), []byte{1, 2, 3})
	f.Add(uint32(pageHeader+8), []byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, position uint32, patch []byte) {
		damaged := bytes.Clone(content)
		copy(damaged[int(position)%len(damaged):], patch)
		err := verifyPages(context.Background(), bytes.NewReader(damaged), int64(len(damaged)))
		if err != nil && !errors.Is(err, storage.ErrDamaged) {
			t.Errorf("verifyPages: %v, want ErrDamaged", err)
		}
	})
}
