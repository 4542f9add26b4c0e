package boltstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	"github.com/scribe-mail/keysvc/internal/race"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// campaignVariable multiplies the number of random damages. Unset or 0 means 1.
const campaignVariable = "KEYSVC_STORAGE_DAMAGE"

// campaign returns how many random damages a test tries. Under the race detector that is fewer: the
// code that reads a damaged file is not concurrent.
func campaign(t *testing.T, rounds int) int {
	t.Helper()
	rounds = race.Rounds(rounds, rounds/8)
	if times, err := strconv.Atoi(os.Getenv(campaignVariable)); err == nil && times > 0 {
		return rounds * times
	}
	return rounds
}

// memoryFolder returns a folder for files that are written thousands of times: one in memory, where
// the system has such a place. What is read there does not depend on a disk.
func memoryFolder(t *testing.T) string {
	t.Helper()
	folder, err := os.MkdirTemp("/dev/shm", "keysvc-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	return folder
}

// victim is a store's file that is damaged in many ways.
type victim struct {
	path    string
	content []byte
	// scratch is the path of the damaged copy.
	scratch string
	// items are the items of the undamaged store, by title.
	items map[string]proto.Message
	heads map[string]storage.Head
	// events are all audit events of the undamaged store.
	events map[string]string

	// refused counts the copies that were not opened, damaged those with damaged records, same
	// those that were read as the undamaged store.
	refused, damaged, same int
}

func newVictim(t *testing.T, path string) *victim {
	t.Helper()
	v := &victim{path: path, content: readFile(t, path), scratch: filepath.Join(memoryFolder(t), "damaged.db")}
	store := mustOpen(t, path, quick)
	v.items, v.heads, _ = loadAll(t, store)
	v.events = make(map[string]string)
	for id := range v.heads {
		for _, event := range storagetest.ListAuditEvents(t, store, id, storage.MaxPage) {
			v.events[eventTitle(event)] = string(event.Encoded)
		}
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	return v
}

func eventTitle(event storage.AuditEvent) string {
	return fmt.Sprintf("event %q %d", event.Record.GetWorkspaceId(), event.Record.GetSequence())
}

// loadAll returns what Load visits.
func loadAll(t *testing.T, store *Store) (items map[string]proto.Message, heads map[string]storage.Head, damaged []*storage.Damaged) {
	t.Helper()
	items, heads = make(map[string]proto.Message), make(map[string]storage.Head)
	_, err := store.Load(t.Context(), func(item storage.Item) error {
		switch {
		case item.Policy != nil:
			items["policy"] = item.Policy
		case item.Workspace != nil:
			items["workspace "+item.Workspace.GetWorkspaceId()] = item.Workspace
		case item.Member != nil:
			items["member "+memberName(item.Member.GetWorkspaceId(), item.Member.GetMemberId())] = item.Member
		case item.Key != nil:
			items["key "+item.Key.GetKeyId()] = item.Key
		case item.Head != nil:
			heads[item.Head.WorkspaceID] = item.Head.Head
		case item.Damaged != nil:
			damaged = append(damaged, item.Damaged)
			if !errors.Is(item.Damaged.Err, storage.ErrDamaged) {
				t.Errorf("Load: damaged with the error %v", item.Damaged.Err)
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, storage.ErrDamaged) {
		t.Errorf("Load: %v", err)
	}
	if err != nil {
		damaged = append(damaged, &storage.Damaged{Err: err})
	}
	return items, heads, damaged
}

// try opens a damaged file. Open may refuse it, and records may be damaged. All other
// records must be what was stored.
func (v *victim) try(t *testing.T, what string, content []byte) {
	t.Helper()
	writeFile(t, v.scratch, content)
	report, err := Check(t.Context(), v.scratch)
	if err != nil {
		t.Errorf("%s: Check: %v", what, err)
	}
	sound := len(report.Problems) == 0
	store, err := Open(v.scratch, quick)
	if err != nil {
		if !errors.Is(err, storage.ErrDamaged) && !errors.Is(err, storage.ErrNewer) {
			t.Errorf("%s: Open: %v, want ErrDamaged", what, err)
		}
		if sound {
			t.Errorf("%s: Check finds nothing, Open: %v", what, err)
		}
		v.refused++
		return
	}
	defer func() {
		if err := store.Close(); err != nil {
			t.Errorf("%s: Close: %v", what, err)
		}
	}()
	items, heads, damaged := loadAll(t, store)
	for title, got := range items {
		if want, found := v.items[title]; !found || !proto.Equal(got, want) {
			t.Errorf("%s: %s is %v, want %v", what, title, got, want)
		}
	}
	for id, got := range heads {
		if got != v.heads[id] {
			t.Errorf("%s: head of %q is %v, want %v", what, id, got, v.heads[id])
		}
	}
	for id := range v.heads {
		page, err := store.ListAuditEvents(t.Context(), storage.Query{WorkspaceID: id, Limit: storage.MaxPage})
		if err != nil && !errors.Is(err, storage.ErrDamaged) || err != nil && sound {
			t.Errorf("%s: ListAuditEvents of %q: %v", what, id, err)
		}
		for _, event := range page.Events {
			if v.events[eventTitle(event)] != string(event.Encoded) {
				t.Errorf("%s: %s is %v", what, eventTitle(event), event.Record)
			}
		}
	}
	if len(damaged) > 0 {
		v.damaged++
		if sound {
			t.Errorf("%s: Check finds nothing, Load: %+v", what, damaged[0])
		}
		return
	}
	v.same++
	if len(items) != len(v.items) || len(heads) != len(v.heads) {
		t.Errorf("%s: %d records and %d heads are left, and none is damaged", what, len(items), len(heads))
	}
}

func (v *victim) log(t *testing.T) {
	t.Helper()
	t.Logf("%d bytes; %d refused, %d with damaged records, %d without effect", len(v.content), v.refused, v.damaged, v.same)
}

// large makes a store whose trees have branch pages, and records that overflow a page.
func large(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "store.db")
	store := mustOpen(t, path, quick)
	workspace := storagetest.NewWorkspace("w")
	do := func(change *storage.Change) {
		t.Helper()
		if _, err := store.Commit(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		workspace.Follow(change)
	}
	do(workspace.PutMember("member", "admin"))
	for index := range 60 {
		change := workspace.CreateKey(storagetest.KeyID(index), fmt.Sprintf("request %d", index))
		if index%10 == 0 {
			change.PutKeys[0].Name = string(bytes.Repeat([]byte("n"), 9000))
		}
		do(change)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	mustBeSound(t, path)
	return path
}

// TestOneFlippedByteIsRefusedOrReadsAsStored flips bytes of a small store: every byte of
// the first four pages, and a random sample of the others.
func TestOneFlippedByteIsRefusedOrReadsAsStored(t *testing.T) {
	path, _ := small(t)
	v := newVictim(t, path)
	random := rand.New(rand.NewPCG(1, 2))
	positions := make([]int, 0, len(v.content))
	step := race.Rounds(1, 7) // not a part of 16, because every sixteenth position is tried in full
	for position := random.IntN(step); position < min(4*os.Getpagesize(), len(v.content)); position += step {
		positions = append(positions, position)
	}
	for range campaign(t, 2000) {
		positions = append(positions, random.IntN(len(v.content)))
	}
	// The text of a record is found wherever the store has put its page.
	records := positionsOf(v.content, "key "+storagetest.KeyID(1))
	if len(records) == 0 {
		t.Fatal("no copy of the record of a key")
	}
	quickly, flipped := 0, 0
	damaged := bytes.Clone(v.content)
	for index, position := range append(records, positions...) {
		damaged[flipped] = v.content[flipped]
		flipped = position
		mask := []byte{1, 0x80, 0xff, byte(1 + random.IntN(255))}[random.IntN(4)]
		damaged[position] ^= mask
		// Open begins with this check, which refuses most pages. Opening the file as well would
		// only take time.
		if err := verifyPages(t.Context(), bytes.NewReader(damaged), int64(len(damaged))); err != nil && index >= len(records) && quickly < len(positions)/2 && position%16 != 0 {
			quickly++
			v.refused++
			continue
		}
		if unused(v.content, position) && position%16 != 0 {
			continue
		}
		v.try(t, fmt.Sprintf("byte %d ^ %#x", position, mask), damaged)
	}
	v.log(t)
	if v.refused == 0 || v.damaged == 0 || v.same == 0 {
		t.Error("the damages were not of all kinds")
	}
}

// positionsOf returns where a text begins in a file.
func positionsOf(content []byte, text string) (positions []int) {
	for from := 0; ; {
		index := bytes.Index(content[from:], []byte(text))
		if index < 0 {
			return positions
		}
		positions = append(positions, from+index)
		from += index + len(text)
	}
}

// unused reports whether a byte is surrounded by zeros. A sample of such bytes is enough.
func unused(content []byte, position int) bool {
	begin, end := max(0, position-64), min(len(content), position+64)
	return len(bytes.Trim(content[begin:end], "\x00")) == 0
}

func TestOneFlippedByteInALargeFileIsRefusedOrReadsAsStored(t *testing.T) {
	v := newVictim(t, large(t))
	random := rand.New(rand.NewPCG(3, 4))
	for range campaign(t, 600) {
		damaged := bytes.Clone(v.content)
		// Page headers and elements are hit more often than data.
		page := random.IntN(len(damaged) / os.Getpagesize())
		position := page*os.Getpagesize() + random.IntN([]int{16, 256, os.Getpagesize()}[random.IntN(3)])
		mask := byte(1 + random.IntN(255))
		damaged[position] ^= mask
		v.try(t, fmt.Sprintf("byte %d ^ %#x", position, mask), damaged)
	}
	v.log(t)
}

func TestManyDamagedBytesAreRefusedOrReadAsStored(t *testing.T) {
	v := newVictim(t, large(t))
	random := rand.New(rand.NewPCG(5, 6))
	size := os.Getpagesize()
	for round := range campaign(t, 300) {
		damaged := bytes.Clone(v.content)
		begin := random.IntN(len(damaged))
		end := min(len(damaged), begin+1+random.IntN(2*size))
		switch round % 4 {
		case 0: // zeros, as of a sector that was never written
			begin, end = begin/512*512, min(len(damaged), begin/512*512+512*(1+random.IntN(16)))
			clear(damaged[begin:end])
		case 1: // noise
			for index := begin; index < end; index++ {
				damaged[index] = byte(random.Uint32())
			}
		case 2: // a page in another's place
			from, to := random.IntN(len(damaged)/size), random.IntN(len(damaged)/size)
			copy(damaged[to*size:(to+1)*size], v.content[from*size:])
		case 3: // many flips
			for range 1 + random.IntN(20) {
				damaged[random.IntN(len(damaged))] ^= byte(1 + random.IntN(255))
			}
		}
		v.try(t, fmt.Sprintf("round %d", round), damaged)
	}
	v.log(t)
}

func TestTruncatedFileIsRefusedOrReadsAsStored(t *testing.T) {
	for _, path := range []string{first(small(t)), large(t)} {
		v := newVictim(t, path)
		for length := 0; length < len(v.content); length += os.Getpagesize() {
			v.try(t, fmt.Sprintf("%d bytes", length), v.content[:length])
			v.try(t, fmt.Sprintf("%d bytes", length+100), v.content[:length+100])
		}
		v.log(t)
	}
}

func first(path string, _ map[string]storage.Head) string { return path }

// TestFileTruncatedWhileServedIsAnError truncates the file of an open store: reads fail,
// and nothing crashes.
func TestFileTruncatedWhileServedIsAnError(t *testing.T) {
	path := large(t)
	store := mustOpen(t, path, quick)
	if err := os.Truncate(path, int64(2*os.Getpagesize())); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Load(t.Context(), func(storage.Item) error { return nil }); !errors.Is(err, storage.ErrDamaged) {
		t.Errorf("Load: %v, want ErrDamaged", err)
	}
	if _, err := store.ListKeys(t.Context(), storage.Query{Limit: 10}); !errors.Is(err, storage.ErrDamaged) {
		t.Errorf("ListKeys: %v, want ErrDamaged", err)
	}
}

// TestDamagedRecordsAreErrDamaged damages values in place, so that the pages stay good.
func TestDamagedRecordsAreErrDamaged(t *testing.T) {
	path, heads := small(t)
	damage := func(bucket, prefix string) {
		t.Helper()
		edit(t, path, func(tx *bolt.Tx) error {
			content := tx.Bucket([]byte(bucket))
			name, value := content.Cursor().Seek([]byte(prefix))
			if !bytes.HasPrefix(name, []byte(prefix)) {
				return fmt.Errorf("no %q in %s", prefix, bucket)
			}
			value = bytes.Clone(value)
			value[len(value)/2] ^= 4
			return content.Put(bytes.Clone(name), value)
		})
	}
	damage(bucketKeys, number(1)) // acme's first
	damage(bucketMembers, memberName("beta", "member"))
	damage(bucketHeads, "gamma")
	damage(bucketWorkspaces, "beta")
	damage(bucketPolicy, nameActive)
	damage(bucketAudit, number(3))

	store := mustOpen(t, path, quick)
	ctx := t.Context()
	_, _, damaged := loadAll(t, store)
	got := make(map[storage.Damaged]bool)
	for _, item := range damaged {
		item.Err = nil
		got[*item] = true
	}
	for _, want := range []storage.Damaged{
		{},
		{WorkspaceID: "acme", KeyID: storagetest.KeyID(0)},
		{WorkspaceID: "beta", MemberID: "member"},
		{WorkspaceID: "beta"},
		{WorkspaceID: "gamma", Head: true},
	} {
		if !got[want] || len(got) != 5 {
			t.Errorf("Load: damaged are %v, want %+v among five", got, want)
		}
	}
	var problem *storage.DamagedError
	if _, _, err := store.GetKey(ctx, "acme", storagetest.KeyID(0)); !errors.As(err, &problem) || problem.Kind != "key" || problem.Name != storagetest.KeyID(0) {
		t.Errorf("GetKey: %v, want a DamagedError", err)
	}
	for _, keyID := range []string{storagetest.KeyID(1), storagetest.KeyID(10), storagetest.KeyID(21)} {
		if _, _, err := store.GetKey(ctx, "", keyID); err != nil {
			t.Errorf("GetKey(%s): %v", keyID, err)
		}
	}
	if _, _, err := store.GetMember(ctx, "beta", "member"); !errors.As(err, &problem) || problem.Name != "member" {
		t.Errorf("GetMember: %v, want a DamagedError", err)
	}
	if _, _, err := store.GetMember(ctx, "acme", "member"); err != nil {
		t.Errorf("GetMember: %v", err)
	}
	damagedPages := map[string]error{"acme": storage.ErrDamaged, "": storage.ErrDamaged, "beta": nil}
	for id, want := range damagedPages {
		if _, err := store.ListKeys(ctx, storage.Query{WorkspaceID: id, Limit: 10}); !errors.Is(err, want) {
			t.Errorf("ListKeys of %q: %v, want %v", id, err, want)
		}
	}
	for id, want := range map[string]error{"acme": storage.ErrDamaged, "beta": nil, "gamma": storage.ErrDamaged} {
		if _, err := store.ListAuditEvents(ctx, storage.Query{WorkspaceID: id, Limit: 10}); !errors.Is(err, want) {
			t.Errorf("ListAuditEvents of %q: %v, want %v", id, err, want)
		}
	}
	// A workspace with a damaged head cannot be changed, whatever head is expected. Other
	// workspaces can.
	for _, head := range []storage.Head{heads["gamma"], {}} {
		gamma := &storagetest.Workspace{ID: "gamma", Head: head}
		if _, err := store.Commit(ctx, gamma.PutMember("new", "admin")); !errors.Is(err, storage.ErrDamaged) {
			t.Errorf("Commit: %v, want ErrDamaged", err)
		}
	}
	acme := &storagetest.Workspace{ID: "acme", Head: heads["acme"]}
	if _, err := store.Commit(ctx, acme.PutMember("new", "admin")); err != nil {
		t.Errorf("Commit: %v", err)
	}
	var exists *storage.ExistsError
	taken := &storagetest.Workspace{ID: "beta", Head: heads["beta"]}
	if _, err := store.Commit(ctx, taken.CreateKey(storagetest.KeyID(0))); !errors.As(err, &exists) {
		t.Errorf("Commit: %v; the id of a damaged key is taken", err)
	}
}

// TestWorkspaceWithLostHeadIsNotNew deletes the head of a workspace, as a damaged name
// would.
func TestWorkspaceWithLostHeadIsNotNew(t *testing.T) {
	path, heads := small(t)
	edit(t, path, func(tx *bolt.Tx) error {
		return errors.Join(
			tx.Bucket([]byte(bucketHeads)).Delete([]byte("beta")),
			tx.Bucket([]byte(bucketHeads)).Delete([]byte(headName(""))),
		)
	})
	store := mustOpen(t, path, quick)
	_, _, damaged := loadAll(t, store)
	if len(damaged) != 2 || !damaged[0].Head || damaged[0].WorkspaceID != "" || damaged[1].WorkspaceID != "beta" {
		t.Errorf("Load: damaged are %+v, want the heads of the policy and of beta", damaged)
	}
	for _, head := range []storage.Head{{}, heads["beta"]} {
		beta := &storagetest.Workspace{ID: "beta", Head: head}
		if _, err := store.Commit(t.Context(), beta.PutMember("new", "admin")); !errors.Is(err, storage.ErrDamaged) {
			t.Errorf("Commit: %v, want ErrDamaged", err)
		}
	}
	if _, err := store.Commit(t.Context(), storagetest.ApplyPolicy(storage.Head{}, "policy")); !errors.Is(err, storage.ErrDamaged) {
		t.Errorf("Commit of the policy: %v, want ErrDamaged", err)
	}
}

// TestVerifyPagesHonoursContext reads the page at which the context is looked at, with a context
// that ended.
func TestVerifyPagesHonoursContext(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	p := &pageWalk{pages: &pages{ctx: ended}, read: contextInterval - 1}
	if _, err := p.claim(0, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("claim: %v, want context.Canceled", err)
	}
}
