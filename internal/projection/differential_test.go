package projection

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/flat"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/race"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/token"
	"github.com/scribe-mail/keysvc/internal/usage"
)

var (
	operations = flag.Int("operations", race.Rounds(20_000, 2_000), "number of operations of the differential test")
	seed       = flag.Uint64("seed", 0, "seed of the differential test; 0 draws one")
)

// TestTableEqualsMaps applies random changes, uses and loads to a projection and to the maps that it
// had before, and compares all answers.
func TestTableEqualsMaps(t *testing.T) {
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("go test ./internal/projection -run TestTableEqualsMaps -seed %d -operations %d", *seed, *operations)
	d := newDifference(t, *seed)
	for d.round = range *operations {
		d.step()
		if t.Failed() {
			t.Fatalf("in round %d", d.round)
		}
	}
	d.compareAll()
}

// difference is a projection beside maps, with the store that both have seen.
type difference struct {
	t      *testing.T
	random *rand.Rand
	round  int

	*Projection
	maps *mapState

	// What the store holds.
	revision   int64
	policy     *storagev1.PolicyRecord
	workspaces map[string]*storedWorkspace
	keys       map[string]*storagev1.KeyRecord
	ids        []string // of keys
	uses       map[string]storage.Usage
	// secretUses are the last uses of secrets, by key and tag. What they are is not known of keys in vague,
	// because their records were damaged in between.
	secretUses map[string]map[uint32]time.Time
	vague      map[string]bool
	// shared are the numbers of the store's directory; nil if the store does not share them.
	shared *flat.IDs
	// born counts how often a key was added.
	born map[string]int
	// handles are last uses that were found earlier.
	handles []handle
	purged  []string
}

// storedWorkspace is a workspace of the store.
type storedWorkspace struct {
	record   *storagev1.WorkspaceRecord
	members  map[string]*storagev1.MemberRecord
	head     storage.Head
	sequence int64
}

// handle is the last use of a key, as it was found.
type handle struct {
	keyID string
	born  int
	table *state
	last  usage.Last
	old   *mapLast
}

var diffTime = time.Date(2026, 11, 25, 12, 0, 0, 7, time.UTC)

func newDifference(t *testing.T, seed uint64) *difference {
	t.Helper()
	d := &difference{
		t: t, random: rand.New(rand.NewPCG(seed, 0)), maps: newMapState(), policy: &storagev1.PolicyRecord{Document: policy.Default().Document()},
		workspaces: make(map[string]*storedWorkspace), keys: make(map[string]*storagev1.KeyRecord), uses: make(map[string]storage.Usage),
		secretUses: make(map[string]map[uint32]time.Time), vague: make(map[string]bool),
		born: make(map[string]int),
	}
	for index := range 6 {
		d.workspaces[fmt.Sprintf("w%d", index)] = &storedWorkspace{members: make(map[string]*storagev1.MemberRecord)}
	}
	d.Projection = New(d, nil)
	d.reload()
	return d
}

// The methods of a storage.Source and a storage.ViewLoader. Only loads are used.

func (d *difference) Epoch() string { return "epoch" }

func (d *difference) Barrier(context.Context) (storage.Barrier, error) {
	return storage.Barrier{}, errors.New("not used")
}

func (d *difference) Watch(context.Context, storage.Barrier) iter.Seq2[*storage.Committed, error] {
	return nil
}

func (d *difference) Load(context.Context, func(storage.Item) error) (storage.Position, error) {
	return storage.Position{}, errors.New("not used")
}

func (d *difference) LoadViews(_ context.Context, expect func(storage.Expected), visit func(storage.Item) error) (storage.Position, error) {
	expect(storage.Expected{Keys: len(d.keys), IDs: d.shared})
	for item := range d.items() {
		d.maps.put(item)
		view, payload := storage.KeyView{}, []byte(nil)
		if item.Key != nil && d.random.IntN(2) == 0 {
			var err error
			if payload, err = storage.Encode(item.Key); err != nil {
				return storage.Position{}, err
			}
			if err := view.Parse(payload); err != nil {
				return storage.Position{}, err
			}
			item = storage.Item{KeyView: &view}
		}
		if err := visit(item); err != nil {
			return storage.Position{}, err
		}
		clear(payload) // what visit got is valid until visit returns
	}
	return storage.Position{Revision: d.revision}, nil
}

// items yields what a load visits. Some records are damaged.
func (d *difference) items() iter.Seq[storage.Item] {
	damaged := func() bool { return d.random.IntN(40) == 0 }
	return func(yield func(storage.Item) bool) {
		yield(storage.Item{Policy: d.policy})
		names := slices.Sorted(maps.Keys(d.workspaces))
		for _, id := range names {
			if record := d.workspaces[id].record; damaged() {
				yield(storage.Item{Damaged: &storage.Damaged{WorkspaceID: id, Err: fmt.Errorf("workspace %s", id)}})
			} else if record != nil {
				yield(storage.Item{Workspace: record})
			}
		}
		for _, id := range names {
			for _, memberID := range slices.Sorted(maps.Keys(d.workspaces[id].members)) {
				if damaged() {
					yield(storage.Item{Damaged: &storage.Damaged{WorkspaceID: id, MemberID: memberID, Err: fmt.Errorf("member %s", memberID)}})
				} else {
					yield(storage.Item{Member: d.workspaces[id].members[memberID]})
				}
			}
		}
		for _, id := range names {
			if damaged() {
				yield(storage.Item{Damaged: &storage.Damaged{WorkspaceID: id, Head: true, Err: fmt.Errorf("head %s", id)}})
			} else if head := d.workspaces[id].head; head != (storage.Head{}) {
				yield(storage.Item{Head: &storage.WorkspaceHead{WorkspaceID: id, Head: head}})
			}
		}
		for _, record := range slices.SortedFunc(maps.Values(d.keys), func(a, b *storagev1.KeyRecord) int { return int(a.GetSequence() - b.GetSequence()) }) {
			if damaged() {
				d.vague[record.GetKeyId()] = true
				yield(storage.Item{Damaged: &storage.Damaged{WorkspaceID: record.GetWorkspaceId(), KeyID: record.GetKeyId(), Err: fmt.Errorf("key %s", record.GetKeyId())}})
			} else {
				yield(storage.Item{Key: record})
			}
			if use, used := d.uses[record.GetKeyId()]; used {
				yield(storage.Item{Usage: &use})
			}
		}
	}
}

// reload loads both anew. Some keys may have been purged since the last change that both have seen.
func (d *difference) reload() {
	for _, keyID := range slices.Clone(d.ids) {
		if d.random.IntN(30) == 0 {
			d.forget(keyID)
		}
	}
	switch d.random.IntN(3) {
	case 0:
		d.shared = nil
	case 1:
		d.shared = flat.NewIDs(len(d.keys))
		for keyID := range d.keys {
			d.shared.Hold(keyID, flat.Store)
		}
	}
	before := d.maps
	d.maps = newMapState()
	d.revision++
	if _, err := d.Projection.Load(d.t.Context()); err != nil {
		d.t.Fatal(err)
	}
	d.maps.revision, d.maps.loaded = d.revision, d.revision
	d.maps.keepUses(before)
	d.compareAll()
}

// forget removes a key from the store.
func (d *difference) forget(keyID string) {
	delete(d.keys, keyID)
	d.ids = slices.DeleteFunc(d.ids, func(each string) bool { return each == keyID })
	delete(d.uses, keyID)
	delete(d.secretUses, keyID)
	delete(d.vague, keyID)
	d.born[keyID]++
	d.purged = append(d.purged, keyID)
	if len(d.purged) > 50 {
		d.purged = d.purged[1:]
	}
	if d.shared != nil {
		d.shared.Release(d.shared.Find(keyID, flat.Store), flat.Store)
	}
}

func pick[Value any](d *difference, values ...Value) Value { return values[d.random.IntN(len(values))] }

func (d *difference) workspaceID() string {
	return fmt.Sprintf("w%d", d.random.IntN(len(d.workspaces)))
}
func (d *difference) memberID() string { return fmt.Sprintf("member%d", d.random.IntN(6)) }
func (d *difference) incarnation() string {
	return pick(d, "first", "first", "first", "second", "third", "")
}

// moment returns a time near diffTime. Some times cannot be held in 52 bits of microseconds.
func (d *difference) moment() *timestamppb.Timestamp {
	at := diffTime.Truncate(time.Microsecond).Add(time.Duration(d.random.IntN(2000)-1000) * time.Hour)
	switch d.random.IntN(20) {
	case 0:
		at = at.Add(1)
	case 1:
		at = time.Unix(-5, 0)
	case 2:
		at = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	return timestamppb.New(at)
}

func (d *difference) keyID() string {
	if len(d.ids) == 0 {
		return "Key0000000000000"
	}
	return d.ids[d.random.IntN(len(d.ids))]
}

// step makes one operation and compares what it touched.
func (d *difference) step() {
	switch choice := d.random.IntN(1000); {
	case choice < 1:
		d.reload()
		return
	case choice < 300:
		if d.random.IntN(2) == 0 {
			d.use()
		} else {
			d.useSecret(d.keyID())
		}
		return
	case choice < 302:
		d.change("", func(change *storage.Committed) {
			wanted := policy.Default()
			wanted.Roles[3].Scopes = []string{pick(d, "emails:read", "emails:write", "emails:*")}
			d.policy = &storagev1.PolicyRecord{Document: wanted.Document()}
			record := d.policy
			if d.random.IntN(4) == 0 {
				record = &storagev1.PolicyRecord{Document: []byte("roles: 7")}
			}
			change.Put = append(change.Put, storage.Item{Policy: record})
		})
		d.compareAll()
		return
	}
	id := d.workspaceID()
	d.change(id, func(change *storage.Committed) {
		for range 1 + d.random.IntN(3) {
			d.edit(id, d.workspaces[id], change)
		}
	})
	for range 3 {
		d.compareKey(d.keyID())
		d.compareMember(d.workspaceID(), d.memberID())
	}
	d.compareWorkspace(id)
	d.compareImported()
	if d.round%5 == 0 {
		d.compareCensus()
	}
	if d.round%2000 == 0 {
		d.compareAll()
	}
}

// change applies a change of a workspace to both.
func (d *difference) change(workspaceID string, edit func(change *storage.Committed)) {
	d.revision++
	change := &storage.Committed{Revision: d.revision, Feed: &storagev1.FeedRecord{}}
	head := storage.Head{Sequence: d.revision, Fence: int64(d.random.IntN(3))}
	binary.LittleEndian.PutUint64(head.Hash[:], d.random.Uint64())
	change.Head = storage.WorkspaceHead{WorkspaceID: workspaceID, Head: head}
	if of := d.workspaces[workspaceID]; of != nil {
		of.head = head
	}
	edit(change)
	d.show(d.t.Context(), change)
	d.maps.apply(change)
}

// edit adds one record to a change of a workspace.
func (d *difference) edit(id string, of *storedWorkspace, change *storage.Committed) {
	touched := func(keyID string) bool {
		return slices.ContainsFunc(change.Put, func(item storage.Item) bool { return item.Key.GetKeyId() == keyID }) ||
			slices.ContainsFunc(change.DeletedKeys, func(record *storagev1.KeyRecord) bool { return record.GetKeyId() == keyID })
	}
	switch choice := d.random.IntN(100); {
	case choice < 8:
		record := &storagev1.WorkspaceRecord{WorkspaceId: id, Incarnation: d.incarnation(), CreateTime: d.moment(), RemovalSourceVersion: d.random.Int64N(9)}
		if d.random.IntN(3) == 0 {
			record.RemoveTime = d.moment()
		}
		of.record = record
		change.Put = append(change.Put, storage.Item{Workspace: record})
	case choice < 30:
		record := &storagev1.MemberRecord{
			WorkspaceId: id, MemberId: d.memberID(), Incarnation: d.incarnation(), WorkspaceIncarnation: d.incarnation(),
			Role: pick(d, "owner", "manager", "member", "wizard", ""), State: storagev1.MemberRecordState(d.random.IntN(4)),
			SourceVersion: d.random.Int64N(100), UpdateTime: d.moment(),
		}
		of.members[record.GetMemberId()] = record
		change.Put = append(change.Put, storage.Item{Member: record})
	case choice < 36:
		memberID := d.memberID()
		if record := of.members[memberID]; record != nil {
			delete(of.members, memberID)
			change.DeletedMembers = append(change.DeletedMembers, record)
		}
	case choice < 56 && len(d.keys) < 150 || len(d.keys) < 20:
		keyID := fmt.Sprintf("Key%013d", d.random.IntN(250))
		if d.random.IntN(50) == 0 {
			keyID = fmt.Sprintf("not base62 %05d", d.random.IntN(20))
		}
		if d.keys[keyID] != nil || touched(keyID) {
			return
		}
		if d.shared != nil {
			d.shared.Hold(keyID, flat.Store)
		}
		d.put(keyID, id, of, change)
	case choice < 80:
		if keyID := d.keyID(); d.keys[keyID].GetWorkspaceId() == id && !touched(keyID) {
			d.put(keyID, id, of, change)
		}
	default:
		for range 1 + d.random.IntN(4) {
			if keyID := d.keyID(); d.keys[keyID].GetWorkspaceId() == id && !touched(keyID) {
				change.DeletedKeys = append(change.DeletedKeys, d.keys[keyID])
				d.forget(keyID)
			}
		}
	}
}

// put adds a random record of a key to a change.
func (d *difference) put(keyID, id string, of *storedWorkspace, change *storage.Committed) {
	hash := func() []byte {
		sum := make([]byte, 32)
		binary.LittleEndian.PutUint64(sum, d.random.Uint64())
		return sum
	}
	record := &storagev1.KeyRecord{
		KeyId: keyID, WorkspaceId: id, MemberId: d.memberID(), WorkspaceIncarnation: d.incarnation(), MemberIncarnation: d.incarnation(),
		CreateTime: timestamppb.New(diffTime.AddDate(-2, 0, 0).Add(time.Duration(d.random.IntN(3)))),
		Scopes:     pick(d, nil, []string{"emails:read"}, []string{"emails:read", "emails:write"}, []string{"emails:write", "emails:read"}, []string{fmt.Sprintf("s:%d", d.random.IntN(1000))}),
		Secrets: []*storagev1.SecretRecord{{
			Scheme: pick(d, uint32(3), 3, 3, 1, 0, 14, 15, 16, 255), Hash: hash(), ExpireTime: d.moment(),
			CreateTime: timestamppb.New(diffTime.Add(time.Duration(d.random.Int64N(int64(1000 * time.Hour)))).Truncate(time.Microsecond)),
		}},
	}
	older := &storagev1.SecretRecord{Scheme: pick(d, uint32(3), 1, 14, 15, 255), Hash: hash(), ExpireTime: d.moment(), CreateTime: timestamppb.New(diffTime)}
	if before := d.keys[keyID]; before != nil {
		if had := before.GetSecrets(); len(had) > 0 && len(had[0].GetHash()) == 32 && had[0].GetScheme() < 256 && had[0].GetExpireTime() != nil {
			if d.random.IntN(2) == 0 {
				record.Secrets[0] = proto.CloneOf(had[0]) // an update, or the end of a rotation
				if len(had) == 2 {
					older = proto.CloneOf(had[1])
				}
			} else {
				older = proto.CloneOf(had[0]) // a rotation
			}
		}
		record.Sequence, record.CreateTime = before.GetSequence(), before.GetCreateTime()
		if d.random.IntN(2) == 0 {
			record.MemberId, record.MemberIncarnation = before.GetMemberId(), before.GetMemberIncarnation()
		}
	} else {
		// Sequences ascend in the order of all changes, so that a load visits keys in this order.
		of.sequence = d.revision<<8 | int64(len(change.Put))
		record.Sequence = of.sequence
	}
	if d.random.IntN(4) == 0 {
		record.RevokeTime = d.moment()
	}
	if d.random.IntN(4) == 0 {
		record.HoldTime = d.moment()
	}
	if d.random.IntN(4) == 0 {
		record.AllowedCidrs = pick(d, []string{"192.0.2.0/24"}, []string{"192.0.2.0/24", "2001:db8::/32"}, []string{fmt.Sprintf("10.0.%d.0/24", d.random.IntN(256))})
	}
	if d.random.IntN(3) == 0 {
		if d.random.IntN(4) > 0 {
			older.OverlapEndTime = d.moment()
		}
		record.Secrets = append(record.Secrets, older)
	}
	if before := d.keys[keyID]; before.GetImported() != nil {
		record.Imported = before.GetImported()
	} else if d.random.IntN(5) == 0 {
		digest := d.digest()
		sum := token.ForeignVerifierOf(digest)
		record.Imported = &storagev1.ImportRecord{ImportTime: d.moment(), Hash: sum[:]}
		if d.random.IntN(2) == 0 {
			record.Secrets[0].Scheme, record.Secrets[0].Hash = uint32(token.SchemeForeign), sum[:]
		}
	}
	malformed := d.random.IntN(40)
	d.vague[keyID] = d.vague[keyID] || malformed < 5
	switch malformed {
	case 0:
		record.Secrets = nil
	case 1:
		record.Secrets[0].Scheme = 257
	case 2:
		record.Secrets[0].Hash = record.Secrets[0].Hash[:31]
	case 3:
		record.AllowedCidrs = []string{"192.0.2.0/24", "here"}
	case 4:
		record.Secrets[0].ExpireTime = nil
	}
	if d.keys[keyID] == nil {
		d.ids = append(d.ids, keyID)
	}
	d.keys[keyID] = record
	present := make(map[uint32]time.Time)
	for _, secret := range record.GetSecrets() {
		if at, used := d.secretUses[keyID][tagOf(secret)]; used {
			present[tagOf(secret)] = at
		}
	}
	d.secretUses[keyID] = present
	change.Put = append(change.Put, storage.Item{Key: record})
}

// digest returns one of the digests of tokens that were imported. There are few, so that several keys have the same.
func (d *difference) digest() (digest [32]byte) {
	digest[0] = byte(1 + d.random.IntN(20))
	return digest
}

// compareImported looks for the token of another system.
func (d *difference) compareImported() {
	d.t.Helper()
	digest := d.digest()
	presented := token.PresentDigest("", token.DigestFrom(digest[:]))
	var owners []string
	sum := token.ForeignVerifierOf(digest)
	for keyID, record := range d.keys {
		if d.maps.keys[keyID].damaged == nil && string(record.GetImported().GetHash()) == string(sum[:]) {
			owners = append(owners, keyID)
		}
	}
	want := d.Find("")
	if len(owners) == 1 {
		want = d.Find(owners[0])
	}
	got := d.FindPresented(presented)
	d.equal("imported token", got.Subject(), want.Subject())
	d.equal("damage of an imported token", fmt.Sprint(got.Damaged), fmt.Sprint(want.Damaged))
	key, is := d.Imported(presented.Hash())
	if is != (len(owners) > 0) || is && (!slices.Contains(owners, key.KeyID) || key.MemberID != d.keys[key.KeyID].GetMemberId() || key.WorkspaceID != d.keys[key.KeyID].GetWorkspaceId()) {
		d.t.Errorf("round %d: the token was imported for %+v, %t; want one of %q", d.round, key, is, owners)
	}
}

// tagOf returns the tag of a secret; 0 if it is malformed.
func tagOf(secret *storagev1.SecretRecord) uint32 {
	if len(secret.GetHash()) != 32 {
		return 0
	}
	return token.Hash{Scheme: token.Scheme(secret.GetScheme()), Sum: [32]byte(secret.GetHash())}.Short().Tag()
}

// useSecret notes a use of one of a key's secrets, as a Recorder does.
func (d *difference) useSecret(keyID string) {
	id, is := flat.Pack(keyID)
	found, secrets := d.Find(keyID), d.keys[keyID].GetSecrets()
	if !is || !found.Exists || len(secrets) == 0 || d.vague[keyID] {
		return
	}
	secret := secrets[d.random.IntN(len(secrets))]
	at := diffTime.Add(time.Duration(d.random.Int64N(int64(1000 * time.Hour)))).Truncate(time.Microsecond)
	if created := secret.GetCreateTime().AsTime(); at.Before(created) {
		at = created
	}
	if found.Last.CountsSecrets() {
		d.state.RaiseSecret(id, tagOf(secret), at)
	} else if len(secrets) != 1 {
		d.t.Errorf("round %d: the uses of the secrets of %s are not counted", d.round, keyID)
	}
	found.Last.Raise(at)
	d.maps.keys[keyID].last.raise(at)
	d.noteSecret(keyID, secret, at)
	d.compareKey(keyID)
}

// noteSecret notes when a secret was used.
func (d *difference) noteSecret(keyID string, secret *storagev1.SecretRecord, at time.Time) {
	if d.secretUses[keyID] == nil {
		d.secretUses[keyID] = make(map[uint32]time.Time)
	}
	if tag := tagOf(secret); d.secretUses[keyID][tag].Before(at) {
		d.secretUses[keyID][tag] = at
	}
}

// compareSecrets compares the last uses of a key's secrets.
func (d *difference) compareSecrets(keyID string) {
	d.t.Helper()
	if d.vague[keyID] {
		return
	}
	for _, secret := range d.keys[keyID].GetSecrets() {
		hash := token.Hash{Scheme: token.Scheme(secret.GetScheme()), Sum: [32]byte(secret.GetHash())}.Short()
		got, want := d.LastUses(keyID).Secret(hash, secret.GetCreateTime().AsTime()), d.secretUses[keyID][hash.Tag()]
		if !got.Equal(want) {
			d.t.Errorf("round %d: last use of a secret of %s: got %s, want %s of %+v", d.round, keyID, got, want, d.LastUses(keyID))
		}
	}
}

// use notes a use with a handle that was found now or earlier.
func (d *difference) use() {
	if keyID := d.keyID(); d.random.IntN(2) == 0 || len(d.handles) == 0 {
		// No token has an id that is not base62, so its uses need not survive a load.
		if _, is := flat.Pack(keyID); is && d.Find(keyID).Exists {
			found := d.Find(keyID)
			d.handles = append(d.handles, handle{keyID, d.born[keyID], d.state, found.Last, d.maps.keys[keyID].last})
		}
		if len(d.handles) > 100 {
			d.handles = d.handles[1:]
		}
	}
	if len(d.handles) == 0 {
		return
	}
	used := d.handles[d.random.IntN(len(d.handles))]
	if used.table.Replaced() && d.born[used.keyID] != used.born {
		return // it may mark a new key of the same id then
	}
	at := diffTime.Add(time.Duration(d.random.Int64N(int64(1000 * time.Hour))))
	if d.random.IntN(10) == 0 {
		at = diffTime.AddDate(-4, 0, 0)
	}
	used.last.Raise(at)
	used.old.raise(at)
	if d.keys[used.keyID] != nil && d.born[used.keyID] == used.born {
		// The use does not say of which secret it was, so it is that of the only one.
		secrets, at := d.keys[used.keyID].GetSecrets(), at.Truncate(time.Microsecond)
		if len(secrets) == 1 && !d.LastUses(used.keyID).counted && !at.Before(secrets[0].GetCreateTime().AsTime()) {
			d.noteSecret(used.keyID, secrets[0], at)
		}
		if d.random.IntN(2) == 0 {
			d.store(used.keyID)
		}
	}
	d.compareKey(used.keyID)
}

// store stores the last use of a key, as a Recorder does.
func (d *difference) store(keyID string) {
	use := storage.Usage{KeyID: keyID, Time: d.LastUsed(keyID)}
	if number := d.state.find(keyID); number != 0 {
		use.Secrets = d.state.storedSecretUses(number)
	}
	d.uses[keyID] = use
}

// equal fails the test if two answers differ.
func (d *difference) equal(what string, got, want any) {
	d.t.Helper()
	if !reflect.DeepEqual(got, want) {
		d.t.Errorf("round %d: %s:\ngot  %+v\nwant %+v", d.round, what, got, want)
	}
}

func (d *difference) compareKey(keyID string) {
	d.t.Helper()
	got, want := d.Find(keyID), d.maps.Find(keyID)
	subject := got.Subject()
	d.equal("key "+keyID, subject, want.Subject)
	d.equal("exists "+keyID, got.Exists, want.Subject.Key != nil)
	d.equal("revision", got.Revision, want.Revision)
	d.equal("damage of "+keyID, fmt.Sprint(got.Damaged, got.WorkspaceID), fmt.Sprint(want.Damaged, want.WorkspaceID))
	d.equal("policy", got.Policy == nil, want.Policy == nil)
	if got.Policy != nil && want.Policy != nil && got.Policy.Digest != want.Policy.Digest {
		d.t.Errorf("policy %s, want %s", got.Policy.Digest, want.Policy.Digest)
	}
	if at := d.LastUsed(keyID); !at.Equal(d.maps.LastUsed(keyID)) {
		d.t.Errorf("round %d: last use of %s: got %s, want %s", d.round, keyID, at, d.maps.LastUsed(keyID))
	}
	d.compareSecrets(keyID)
}

func (d *difference) compareMember(workspaceID, memberID string) {
	d.t.Helper()
	got, err := d.Member(workspaceID, memberID)
	want, wantErr := d.maps.Member(workspaceID, memberID)
	d.equal("error of "+memberID, fmt.Sprint(err), fmt.Sprint(wantErr))
	d.equal("member "+memberID, got == nil, want == nil)
	if got != nil && want != nil {
		d.equal("member "+memberID, got.Member, want.Member)
		d.equal("source version of "+memberID, got.SourceVersion, want.SourceVersion)
	}
}

func (d *difference) compareWorkspace(id string) {
	d.t.Helper()
	got, want := d.Workspace(id), d.maps.Workspace(id)
	got.Policy, want.Policy, got.DamagedPolicy, want.DamagedPolicy = nil, nil, nil, nil
	d.equal("workspace "+id, got, want)
	now := d.moment().AsTime()
	for _, limit := range []int{0, 1, 5, 10, 1000} {
		d.equal("live keys of "+id, d.LiveKeys(id, now, limit), d.maps.LiveKeys(id, now, limit))
		d.equal("room in "+id, d.HasRoom(id, now, limit), d.maps.HasRoom(id, now, limit))
		got, want := d.Dead(id, now, limit), d.maps.Dead(id, now, limit)
		d.equal("dead keys of "+id, got.KeyIDs, want.KeyIDs)
		// Which members a limit leaves out is not promised.
		d.equal("dead members of "+id, len(got.MemberIDs), len(want.MemberIDs))
		if limit == 1000 {
			d.equal("dead members of "+id, got.MemberIDs, want.MemberIDs)
		}
	}
	d.equal("newest source version of "+id, d.NewestSourceVersion(id), d.maps.NewestSourceVersion(id))
}

// compareAll compares everything, and checks that the table has kept nothing that it does not need.
func (d *difference) compareAll() {
	d.t.Helper()
	for keyID := range d.keys {
		d.compareKey(keyID)
	}
	for _, keyID := range append(slices.Clone(d.purged), "", "short", "Key9999999999999") {
		d.compareKey(keyID)
	}
	for id := range d.workspaces {
		d.compareWorkspace(id)
		for index := range 7 {
			d.compareMember(id, fmt.Sprintf("member%d", index))
		}
	}
	d.compareWorkspace("")
	d.compareWorkspace("unknown")
	d.compareMember("unknown", "member0")
	d.equal("workspaces", slices.Sorted(slices.Values(d.Workspaces())), slices.Sorted(slices.Values(d.maps.Workspaces())))
	roles := map[string]decide.Scopes{"owner": decide.NewScopes("emails:read"), "member": decide.NewScopes("emails:read", "emails:write")}
	now := d.moment().AsTime()
	narrowed, widened := d.Effect(context.Background(), roles, now)
	wantNarrowed, wantWidened := d.maps.Effect(roles, now)
	d.equal("effect", [2]int64{narrowed, widened}, [2]int64{wantNarrowed, wantWidened})
	d.checkSizes()
}

// checkSizes checks that what only purged keys and members had is gone.
func (d *difference) checkSizes() {
	d.t.Helper()
	s := d.state
	scopes, limits := make(map[uint32]uint32), make(map[uint32]uint32)
	owners := make(map[uint32]uint32)
	rares, seconds, exacts, uses, imports, keys := 0, 0, 0, 0, 0, 0
	for number := uint32(1); number <= s.highest; number++ {
		if !s.has(number) {
			continue
		}
		keys++
		key := s.records.At(number)
		owners[key.life]++
		more := s.rareOf(key)
		if limits[more.limits]++; limits[more.limits] == 1 {
			scopes[s.limits.get(more.limits).scopes]++
		}
		rares += int(key.ends >> 60 & 1)
		if more.second != 0 {
			seconds++
		}
		if more.exact != 0 {
			exacts++
		}
		if more.uses != 0 {
			uses++
		}
		if more.imported != 0 {
			imports++
		}
	}
	delete(scopes, 0)
	delete(limits, 0)
	d.equal("keys", keys, len(d.maps.keys))
	d.equal("sizes of rares, seconds, exacts, uses, imports", [5]int{s.rares.Len(), s.seconds.Len(), s.exacts.Len(), s.uses.Len(), s.imports.Len()}, [5]int{rares, seconds, exacts, uses, imports})
	d.equal("sets of scopes", s.scopes.counts(), scopes)
	d.equal("limits", s.limits.counts(), limits)
	lives := maps.Clone(owners)
	names, terms := make(map[uint32]uint32), make(map[uint32]uint32)
	members := 0
	for _, of := range s.numbered[1:] {
		d.equal("revoked keys of "+of.id, of.revoked, d.maps.workspace(of.id).revoked)
		for number := range s.lists.Backward(&of.members, func(uint32) bool { return false }) {
			lives[number] += 0
			members++
		}
	}
	for number, count := range lives {
		life := s.lives.At(number)
		d.equal("keys of a life", life.keys, count)
		names[life.role()]++
		terms[life.term]++
	}
	delete(names, 0)
	d.equal("lives", s.lives.Len(), len(lives))
	d.equal("names", s.names.counts(), names)
	d.equal("terms", s.terms.counts(), terms)
	if s.ids != d.shared {
		d.equal("ids", s.ids.Len(), keys)
	}
}

// counts returns how often each number is referred to.
func (i *interned[Value]) counts() map[uint32]uint32 {
	counts := make(map[uint32]uint32)
	for number := uint32(1); number <= i.entries.Highest(); number++ {
		if count := i.entries.At(number).count; count > 0 {
			counts[number] = count
		}
	}
	return counts
}
