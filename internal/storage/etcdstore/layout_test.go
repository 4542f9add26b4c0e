package etcdstore

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// TestHeadsKeepTheirStoredBytes fixes the stored form of heads. Heads are compared as
// bytes, so another form would make every change of a stored workspace a conflict.
func TestHeadsKeepTheirStoredBytes(t *testing.T) {
	tag := "2a20" + strings.Repeat("cd", 32) + "3001"
	for want, head := range map[string]storage.Head{
		"01" + "da0201d1" + "0802" + "1220" + strings.Repeat("ab", 32) + "1803" + tag: {Sequence: 2, Hash: filled(0xab), Fence: 3},
		"01" + "d3663de0" + "0801" + "1220" + strings.Repeat("01", 32) + tag:          {Sequence: 1, Hash: filled(1)},
		"01" + "ea7caf5f" + "1220" + strings.Repeat("00", 32) + "1801" + tag:          {Fence: 1},
	} {
		framed, err := frameHead("w", head, bytes.Repeat([]byte{0xcd}, 32))
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString([]byte(framed)); got != want {
			t.Errorf("%+v is stored as %s, want %s", head, got, want)
		}
		if got, err := decodeHead("w", []byte(framed)); err != nil || got != head {
			t.Errorf("decoded: %+v, %v; want %+v", got, err, head)
		}
		if _, err := decodeHead("other", []byte(framed)); !errors.Is(err, storage.ErrDamaged) {
			t.Errorf("decoded under another name: %v, want ErrDamaged", err)
		}
	}
}

func filled(with byte) (hash [32]byte) {
	for index := range hash {
		hash[index] = with
	}
	return hash
}

func TestNamesParseBackAndSort(t *testing.T) {
	const workspaceID, memberID = "w/0.é", "m@x/y"
	keyID := storagetest.KeyID(7)
	if got, member, ok := parseMemberName(memberName(workspaceID, memberID)); got != workspaceID || member != memberID || !ok {
		t.Errorf("member: %q, %q, %t", got, member, ok)
	}
	for _, sequence := range []int64{0, 1, 255, 1 << 40, math.MaxInt64} {
		if got, at, key, ok := parseKeyName(keyName(workspaceID, sequence, keyID)); got != workspaceID || at != sequence || key != keyID || !ok {
			t.Errorf("key: %q, %d, %q, %t", got, at, key, ok)
		}
		if got, at, ok := parseAuditName(auditName(workspaceID, sequence)); got != workspaceID || at != sequence || !ok {
			t.Errorf("audit event: %q, %d, %t", got, at, ok)
		}
		if rank, key, ok := parseOrderName(orderName(complement(sequence), keyID)); rank != complement(sequence) || key != keyID || !ok {
			t.Errorf("order: %q, %q, %t", rank, key, ok)
		}
	}
	for _, name := range []string{
		"", folderKeys, keyFolder("w"), keyFolder("w") + "xyz", keyName("w", 1, keyID)[1:], keyName("w", 1, keyID) + "x",
		keyFolder("w") + strings.Repeat("f", numberLength) + keyID, keyFolder("w") + strings.ToUpper(complement(1)) + keyID,
		folderMembers + "w\x00" + complement(1) + keyID,
	} {
		if _, _, _, ok := parseKeyName(name); ok {
			t.Errorf("%q is taken for the name of a key", name)
		}
	}
	if !slices.IsSortedFunc([]int64{math.MaxInt64, 1 << 40, 256, 255, 1, 0}, func(a, b int64) int {
		return strings.Compare(complement(a), complement(b))
	}) {
		t.Error("the newest are not first")
	}
}

// TestStoredTimesSortLikeTimes checks that stored times compare as the times do.
func TestStoredTimesSortLikeTimes(t *testing.T) {
	now := time.Date(2026, 11, 23, 8, 0, 0, 123456789, time.UTC)
	times := []time.Time{
		{},
		time.Unix(-1<<40, 0), time.Unix(-1, 999999999), time.Unix(0, 0), time.Unix(0, 1), time.Unix(1, 0),
		now.Add(-time.Nanosecond), now, now.Add(time.Nanosecond), now.AddDate(500, 0, 0),
	}
	before := ""
	for _, at := range times {
		stored := encodeTime("name", at)
		if stored <= before {
			t.Errorf("%v does not sort after what is before it", at)
		}
		before = stored
		got, err := decodeTime("name", []byte(stored))
		if err != nil || !got.Equal(at) || got.IsZero() != at.IsZero() {
			t.Errorf("%v decodes to %v, %v", at, got, err)
		}
		for _, damaged := range []string{"", stored[1:], stored + "x", stored[:3] + "x" + stored[4:]} {
			if got, err := decodeTime("name", []byte(damaged)); !errors.Is(err, storage.ErrDamaged) {
				t.Errorf("%q decodes to %v, %v", damaged, got, err)
			}
		}
		if _, err := decodeTime("other", []byte(stored)); !errors.Is(err, storage.ErrDamaged) {
			t.Errorf("under another name: %v, want ErrDamaged", err)
		}
	}
}
