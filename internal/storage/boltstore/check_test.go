package boltstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// rewrite changes a record in place.
func rewrite[M proto.Message](tx *bolt.Tx, bucket, name string, record M, change func(M)) error {
	if err := get(tx, "record", bucket, name, record); err != nil {
		return err
	}
	change(record)
	return put(tx, bucket, name, record)
}

func remove(tx *bolt.Tx, bucket, name string) error {
	content := tx.Bucket([]byte(bucket))
	if content.Get([]byte(name)) == nil {
		return fmt.Errorf("no %q in %s", name, bucket)
	}
	return content.Delete([]byte(name))
}

// rewriteEvent changes the audit event of a revision, and the revision that it points back
// to.
func rewriteEvent(tx *bolt.Tx, revision int64, change func(previous *int64, event *storagev1.AuditRecord)) error {
	name := number(revision)
	event, previous, err := decodeAudit(name, tx.Bucket([]byte(bucketAudit)).Get([]byte(name)))
	if err != nil {
		return err
	}
	change(&previous, event.Record)
	encoded, err := storage.Encode(event.Record)
	if err != nil {
		return err
	}
	value := frame(bucketAudit, name, append([]byte(number(previous)), encoded...))
	return tx.Bucket([]byte(bucketAudit)).Put([]byte(name), value)
}

// TestCheckReportsEachPlantedProblem plants one problem at a time and expects Check to
// report it. In the small store, revision 1 is the policy. Workspace acme has revisions 2
// to 5: its member, its keys 0 and 1 in slots 1 and 2, and the revocation of key 0.
func TestCheckReportsEachPlantedProblem(t *testing.T) {
	key0, key1 := storagetest.KeyID(0), storagetest.KeyID(1)
	first, second := keyName(1, key0, "acme"), keyName(2, key1, "acme")
	editKey := func(name string, change func(*storagev1.KeyRecord)) func(tx *bolt.Tx) error {
		return func(tx *bolt.Tx) error { return rewrite(tx, bucketKeys, name, &storagev1.KeyRecord{}, change) }
	}
	editFeed := func(revision int64, change func(*storagev1.FeedRecord)) func(tx *bolt.Tx) error {
		return func(tx *bolt.Tx) error {
			return rewrite(tx, bucketFeed, number(revision), &storagev1.FeedRecord{}, change)
		}
	}
	tests := map[string]struct {
		edit func(tx *bolt.Tx) error
		want string
	}{
		"key is missing":               {func(tx *bolt.Tx) error { return remove(tx, bucketKeys, second) }, "key " + key1 + ", created by event 3, is not there"},
		"member is missing its event":  {func(tx *bolt.Tx) error { return addMember(tx, "acme", "nobody") }, `member "nobody" of workspace "acme": no audit event lists it`},
		"member of no workspace":       {func(tx *bolt.Tx) error { return addMember(tx, "nowhere", "nobody") }, `workspace "nowhere": it has no head`},
		"workspace is missing":         {func(tx *bolt.Tx) error { return remove(tx, bucketWorkspaces, "acme") }, `workspace "acme": it has members or keys, but no record`},
		"head is missing":              {func(tx *bolt.Tx) error { return remove(tx, bucketHeads, "acme") }, `workspace "acme": it has no head`},
		"policy is missing":            {func(tx *bolt.Tx) error { return remove(tx, bucketPolicy, nameActive) }, "policy: it has a head"},
		"audit event is missing":       {func(tx *bolt.Tx) error { return remove(tx, bucketAudit, number(3)) }, `workspace "acme": audit event 3 follows on 1`},
		"last audit event is missing":  {func(tx *bolt.Tx) error { return remove(tx, bucketAudit, number(14)) }, "its head is at audit event 2, the last one is 1"},
		"feed entry is missing":        {func(tx *bolt.Tx) error { return remove(tx, bucketFeed, number(3)) }, "feed: revisions between 2 and 4 are missing"},
		"last feed entry is missing":   {func(tx *bolt.Tx) error { return remove(tx, bucketFeed, number(14)) }, "feed: it ends at revision 13, the store at 14"},
		"key without its event":        {editKey(second, func(k *storagev1.KeyRecord) { k.Sequence = 1 }), "says event 1"},
		"key changed without an event": {editKey(second, func(k *storagev1.KeyRecord) { k.ChangeSequence = 4 }), "key " + key1 + ": it is not the record that audit event 3 put last"},
		"key revoked without an event": {editKey(second, func(k *storagev1.KeyRecord) { k.RevokeTime = k.GetCreateTime() }), "revoked is true in the record and false"},
		"revoked key is back":          {editKey(first, func(k *storagev1.KeyRecord) { k.RevokeTime = nil }), "revoked is false in the record and true"},
		"no secret":                    {editKey(first, func(k *storagev1.KeyRecord) { k.Secrets = nil }), "0 secrets"},
		"three secrets":                {editKey(first, func(k *storagev1.KeyRecord) { k.Secrets = append(k.Secrets, k.GetSecrets()[0], k.GetSecrets()[0]) }), "3 secrets"},
		"short hash":                   {editKey(first, func(k *storagev1.KeyRecord) { k.Secrets[0].Hash = k.Secrets[0].Hash[1:] }), "a secret without scheme or hash"},
		"no scheme":                    {editKey(first, func(k *storagev1.KeyRecord) { k.Secrets[0].Scheme = 0 }), "a secret without scheme or hash"},
		"scopes not sorted":            {editKey(first, func(k *storagev1.KeyRecord) { k.Scopes = []string{"b:read", "a:read"} }), "scopes are not sorted"},
		"scopes twice":                 {editKey(first, func(k *storagev1.KeyRecord) { k.Scopes = []string{"a:read", "a:read"} }), "scopes are not sorted"},
		"request id twice":             {editKey(second, func(k *storagev1.KeyRecord) { k.RequestIds = []string{"request"} }), `request id "request" is of key`},
		"key in another's place":       {editKey(second, func(k *storagev1.KeyRecord) { k.KeyId = storagetest.KeyID(7) }), "the record is of another key"},
		"key id twice":                 {func(tx *bolt.Tx) error { return copyKey(tx, second, keyName(99, key1, "acme")) }, "key " + key1 + ": there are two records"},
		"key in another order": {func(tx *bolt.Tx) error {
			return errors.Join(copyKey(tx, first, keyName(99, key0, "acme")), remove(tx, bucketKeys, first))
		}, "but it lies after one of sequence 3"},
		"feed of another workspace": {editFeed(3, func(f *storagev1.FeedRecord) { f.WorkspaceId = "beta" }), `is of workspace "beta"`},
		"feed of another kind":      {editFeed(3, func(f *storagev1.FeedRecord) { f.Kind = storagev1.FeedKind_FEED_KIND_PURGE }), "says FEED_KIND_PURGE"},
		"feed of another subject":   {editFeed(3, func(f *storagev1.FeedRecord) { f.Subject = key1 }), "expected FEED_KIND_KEY"},
		"feed of another event":     {editFeed(3, func(f *storagev1.FeedRecord) { f.AuditHash[0] ^= 1 }), "feed: revision 3 names no audit event"},
		"feed without hash":         {editFeed(3, func(f *storagev1.FeedRecord) { f.AuditHash = nil }), "feed: revision 3 has no audit hash"},
		"feed of another revision":  {editFeed(3, func(f *storagev1.FeedRecord) { f.Revision = 2 }), "feed: the entry of revision 2 lies under"},
		"event changed": {func(tx *bolt.Tx) error {
			return rewriteEvent(tx, 3, func(_ *int64, e *storagev1.AuditRecord) { e.Caller = "forged" })
		}, "audit event 3 does not chain"},
		"last event changed": {func(tx *bolt.Tx) error {
			return rewriteEvent(tx, 5, func(_ *int64, e *storagev1.AuditRecord) { e.Caller = "forged" })
		}, "its head has another hash"},
		"event points elsewhere": {func(tx *bolt.Tx) error {
			return rewriteEvent(tx, 5, func(previous *int64, _ *storagev1.AuditRecord) { *previous = 2 })
		}, "audit: revision 5 points back to 2, the one before it is 4"},
		"head points elsewhere": {func(tx *bolt.Tx) error {
			return rewrite(tx, bucketHeads, "acme", &storagev1.HeadRecord{}, func(h *storagev1.HeadRecord) { h.Revision = 4 })
		}, "its head points to revision 4, its last audit event is 5"},
		"head is behind": {func(tx *bolt.Tx) error {
			return rewrite(tx, bucketHeads, "acme", &storagev1.HeadRecord{}, func(h *storagev1.HeadRecord) { h.AuditSequence = 3 })
		}, "its head is at audit event 3, the last one is 4"},
		"position is behind": {func(tx *bolt.Tx) error {
			return put(tx, bucketMeta, namePosition, &storagev1.PositionRecord{Revision: 13})
		}, "feed: it ends at revision 14, the store at 13"},
		"unknown bucket":                {func(tx *bolt.Tx) error { _, err := tx.CreateBucket([]byte("other")); return err }, `an unknown bucket "other"`},
		"bucket is missing":             {func(tx *bolt.Tx) error { return tx.DeleteBucket([]byte(bucketFeed)) }, `damaged bucket "feed"`},
		"unknown name":                  {func(tx *bolt.Tx) error { return put(tx, bucketMeta, "other", &storagev1.HeaderRecord{}) }, `bucket meta: an unknown name "other"`},
		"member under a wrong name":     {func(tx *bolt.Tx) error { return put(tx, bucketMembers, "acme", &storagev1.MemberRecord{}) }, `members: a record under the name "acme"`},
		"key under a short name":        {func(tx *bolt.Tx) error { return put(tx, bucketKeys, "short", &storagev1.KeyRecord{}) }, "keys: name of 5 bytes"},
		"audit event under a wrong one": {func(tx *bolt.Tx) error { return put(tx, bucketAudit, number(15)+"x", &storagev1.AuditRecord{}) }, "audit: a record under the name"},
		"bucket in a bucket": {func(tx *bolt.Tx) error {
			_, err := tx.Bucket([]byte(bucketKeys)).CreateBucket([]byte(keyName(99, storagetest.KeyID(99), "acme")))
			return err
		}, "truncated"},
		"value is damaged": {func(tx *bolt.Tx) error {
			content := tx.Bucket([]byte(bucketFeed))
			value := bytes.Clone(content.Get([]byte(number(4))))
			value[len(value)-1] ^= 1
			return content.Put([]byte(number(4)), value)
		}, "damaged feed entry"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			path, _ := small(t)
			edit(t, path, test.edit)
			report, err := Check(t.Context(), path)
			if err != nil {
				t.Fatalf("Check: %v", err)
			}
			for _, problem := range report.Problems {
				if strings.Contains(problem, test.want) {
					return
				}
			}
			t.Errorf("Check: %q, want one with %q", report.Problems, test.want)
		})
	}
}

func addMember(tx *bolt.Tx, workspaceID, memberID string) error {
	return put(tx, bucketMembers, memberName(workspaceID, memberID), &storagev1.MemberRecord{WorkspaceId: workspaceID, MemberId: memberID})
}

func copyKey(tx *bolt.Tx, from, to string) error {
	record := &storagev1.KeyRecord{}
	return errors.Join(get(tx, "key", bucketKeys, from, record), put(tx, bucketKeys, to, record))
}

// TestCheckReportsAtMostAHundredProblems damages more than a report can hold: 500 records,
// and with them a head.
func TestCheckReportsAtMostAHundredProblems(t *testing.T) {
	path, _ := small(t)
	edit(t, path, func(tx *bolt.Tx) error {
		for index := range 500 {
			if err := addMember(tx, "acme", fmt.Sprint(index)); err != nil {
				return err
			}
		}
		return nil
	})
	report, err := Check(t.Context(), path)
	if err != nil || len(report.Problems) != 101 || report.Problems[100] != "and 401 more" {
		t.Errorf("Check: %d problems, the last %q, %v", len(report.Problems), report.Problems[len(report.Problems)-1], err)
	}
}

// TestDamagedMetaPageIsRefused damages the newest meta page. bbolt by itself would serve
// the state before the newest change.
func TestDamagedMetaPageIsRefused(t *testing.T) {
	path, _ := small(t)
	content := readFile(t, path)
	size := int(binary.NativeEndian.Uint32(content[pageHeader+8:]))
	newest := 0
	if order.Uint64(content[size+pageHeader+48:]) > order.Uint64(content[pageHeader+48:]) {
		newest = size
	}
	content[newest+pageHeader+20] ^= 1
	writeFile(t, path, content)
	database, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatalf("bbolt itself refuses the file now, so pages.go may do less: %v", err)
	}
	if err := database.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, quick); !errors.Is(err, storage.ErrDamaged) {
		t.Errorf("Open: %v, want ErrDamaged", err)
	}
}

// TestPageWithoutElementsButContentIsRefused sets the count of elements to 0 in every page with
// one element, inline pages included, so that the page looks empty.
func TestPageWithoutElementsButContentIsRefused(t *testing.T) {
	path, _ := small(t)
	content := readFile(t, path)
	leaf := order.AppendUint16(order.AppendUint16(nil, leafPage), 1) // flags and count
	found := 0
	for position := range len(content) - pageHeader {
		if !bytes.Equal(content[position:position+4], leaf) || !bytes.Equal(content[position+4:position+8], make([]byte, 4)) {
			continue
		}
		damaged := bytes.Clone(content)
		damaged[position+2], damaged[position+3] = 0, 0
		writeFile(t, path, damaged)
		store, err := Open(path, quick)
		if err != nil {
			found++
			if !errors.Is(err, storage.ErrDamaged) {
				t.Errorf("byte %d: Open: %v, want ErrDamaged", position, err)
			}
			continue
		}
		// This page is free.
		items, _, damage := loadAll(t, store)
		if err := store.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if len(items) != 13 || len(damage) > 0 {
			t.Errorf("byte %d: %d records are left, %d damaged", position, len(items), len(damage))
		}
	}
	if found == 0 {
		t.Error("no page with one element")
	}
}
