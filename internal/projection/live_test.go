package projection_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// later is after every change of a test and before its keys expire.
var later = begin.AddDate(0, 1, 0)

// wantLive fails the test if a workspace does not have that many live keys, counted in each way.
func wantLive(t *testing.T, p *projection.Projection, workspaceID string, now time.Time, want int) {
	t.Helper()
	if got := p.LiveKeys(workspaceID, now, 1<<30); got != want {
		t.Errorf("%s at %s: got %d live keys, want %d", workspaceID, now.Format(time.DateTime), got, want)
	}
	for _, most := range []int{0, 1, want - 1, want, want + 1, 1000} {
		if got := p.LiveKeys(workspaceID, now, most); most >= 0 && got != min(want, most) {
			t.Errorf("up to %d: got %d live keys, want %d", most, got, min(want, most))
		}
		if got := p.HasRoom(workspaceID, now, most); got != (want < most) {
			t.Errorf("room for one more with %d of at most %d: got %t", want, most, got)
		}
	}
}

func TestLiveKeysCountsThroughAWorkspacesLife(t *testing.T) {
	store := openStore(t)
	var head storage.Head
	applyPolicy(t, store, &head, nil)
	p := loaded(t, store)
	follow(t, p)
	acme, other := storagetest.NewWorkspace("acme"), storagetest.NewWorkspace("other")
	var keys []*storagev1.KeyRecord
	step := func(name string, want int, change *storage.Change) {
		t.Helper()
		waitFor(t, p, commit(t, store, acme, change))
		t.Run(name, func(t *testing.T) {
			wantLive(t, p, "acme", later, want)
			wantLive(t, p, "other", later, 1)
		})
		if t.Failed() {
			t.FailNow()
		}
	}
	member := func(id, incarnation, workspace string, state storagev1.MemberRecordState) *storage.Change {
		change := acme.PutMember(id, "admin")
		change.PutMembers[0].Incarnation, change.PutMembers[0].WorkspaceIncarnation = incarnation, workspace
		change.PutMembers[0].State = state
		return change
	}
	create := func(memberID, memberIncarnation, workspaceIncarnation string) *storage.Change {
		change := acme.CreateKey(storagetest.KeyID(len(keys)))
		record := change.PutKeys[0]
		record.MemberId, record.MemberIncarnation, record.WorkspaceIncarnation = memberID, memberIncarnation, workspaceIncarnation
		keys = append(keys, record)
		return change
	}
	commit(t, store, other, other.PutMember("member", "admin"))
	commit(t, store, other, other.CreateKey(storagetest.KeyID(999)))

	const (
		active    = storagev1.MemberRecordState_MEMBER_RECORD_STATE_ACTIVE
		suspended = storagev1.MemberRecordState_MEMBER_RECORD_STATE_SUSPENDED
		removed   = storagev1.MemberRecordState_MEMBER_RECORD_STATE_REMOVED
	)
	step("a workspace without keys", 0, member("ann", "first", "first", active))
	step("another member", 0, member("ben", "first", "first", active))
	step("one key", 1, create("ann", "first", "first"))
	step("two", 2, create("ann", "first", "first"))
	step("one of somebody else", 3, create("ben", "first", "first"))
	step("one is revoked", 2, acme.RevokeKey(keys[0]))
	// A suspension is expected to end, so the keys still count.
	step("a member is suspended", 2, member("ann", "first", "first", suspended))
	step("and active again", 2, member("ann", "first", "first", active))
	step("a member is removed", 1, member("ann", "first", "first", removed))
	step("and added again, as somebody else", 1, member("ann", "second", "first", active))
	step("with a key of her own", 2, create("ann", "second", "first"))
	step("the workspace is removed", 0, acme.RemoveWorkspace())
	again := member("ann", "third", "second", active)
	again.PutWorkspace = &storagev1.WorkspaceRecord{
		WorkspaceId: "acme", Incarnation: "second", CreateTime: again.Event.GetTime(), ChangeSequence: again.Event.GetSequence(),
	}
	step("and comes back", 0, again)
	step("with a key of its own", 1, create("ann", "third", "second"))
	step("a dead key is purged", 1, acme.DeleteKey(keys[1]))
	step("a live one is", 0, acme.DeleteKey(keys[4]))
	step("and one of a member without a record", 0, create("nobody", "first", "second"))
	compare(t, store, p)
}

func TestLiveKeysExpireAtTheNanosecond(t *testing.T) {
	first, second := keyRecord("acme", "ann", storagetest.KeyID(1), 1), keyRecord("acme", "ann", storagetest.KeyID(2), 2)
	ends := begin.Add(time.Hour)
	first.Secrets[0].ExpireTime = timestamppb.New(ends)
	// The newest secret's expiry is the key's. The older secret's expiry does not matter.
	older := proto.CloneOf(second.Secrets[0])
	older.ExpireTime = timestamppb.New(begin)
	second.Secrets = append(second.Secrets, older)
	p := loaded(t, &fake{load: holding(
		7, scribe(), workspaceItem("acme", "first"), memberItem("acme", "ann"), storage.Item{Key: first}, storage.Item{Key: second},
	)})
	wantLive(t, p, "acme", ends.Add(-1), 2)
	wantLive(t, p, "acme", ends, 1)
	wantLive(t, p, "acme", ends.Add(1), 1)
	wantLive(t, p, "acme", begin.AddDate(1, 0, 0), 0)
}

// TestDamagedKeysCountAsLive: a damaged key may be live, and refusing one key too many is the
// safer mistake.
func TestDamagedKeysCountAsLive(t *testing.T) {
	revoked := keyRecord("acme", "bad", storagetest.KeyID(4), 4)
	revoked.RevokeTime = timestamppb.New(begin)
	p := loaded(t, &fake{load: holding(
		7, scribe(), workspaceItem("acme", "first"), memberItem("acme", "ann"),
		storage.Item{Damaged: &storage.Damaged{WorkspaceID: "acme", MemberID: "bad", Err: damaged("member")}},
		storage.Item{Key: keyRecord("acme", "ann", storagetest.KeyID(1), 1)},
		storage.Item{Damaged: &storage.Damaged{WorkspaceID: "acme", KeyID: storagetest.KeyID(2), Err: damaged("key")}},
		storage.Item{Key: keyRecord("acme", "bad", storagetest.KeyID(3), 3)},
		storage.Item{Key: revoked},
	)})
	wantLive(t, p, "acme", later, 3) // ann's, the damaged one, and the live one of the damaged member
}

// TestFollowedStateEqualsTheLoadedStore makes random changes, and compares the projection that
// followed them with the store, and with a projection that was just loaded.
func TestFollowedStateEqualsTheLoadedStore(t *testing.T) {
	rounds := 8
	if testing.Short() {
		rounds = 2
	}
	for seed := range rounds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			store := openStore(t)
			p := loaded(t, store)
			follow(t, p)
			c := &chaos{t: t, store: store, random: rand.New(rand.NewPCG(uint64(seed), 0)), members: make(map[string]*storagev1.MemberRecord)}
			for _, id := range []string{"a", "b", "c"} {
				c.workspaces = append(c.workspaces, &chaotic{Workspace: storagetest.NewWorkspace(id), incarnation: "first"})
			}
			revision := c.policy()
			for round := range 150 {
				if next := c.step(); next > 0 {
					revision = next
				}
				if round%30 == 29 {
					waitFor(t, p, revision)
					compare(t, store, p)
					for _, keyID := range c.purged {
						if found := p.Find(keyID); found.Exists || !found.Last.IsZero() || found.Damaged != nil {
							t.Errorf("purged key %s: got %+v", keyID, found)
						}
					}
				}
				if t.Failed() {
					t.Fatalf("in round %d", round)
				}
			}
		})
	}
}

// chaos makes random changes.
type chaos struct {
	t          *testing.T
	store      storage.Store
	random     *rand.Rand
	workspaces []*chaotic
	head       storage.Head // the policy's
	members    map[string]*storagev1.MemberRecord
	keys       int
	purged     []string
}

// chaotic is a workspace with what lives in it.
type chaotic struct {
	*storagetest.Workspace

	incarnation string
	keys        []*storagev1.KeyRecord
}

func (c *chaos) policy() int64 {
	c.t.Helper()
	return applyPolicy(c.t, c.store, &c.head, func(wanted *policy.Policy) {
		wanted.Roles[3].Scopes = []string{fmt.Sprintf("emails:%s", []string{"read", "write", "delete", "*"}[c.random.IntN(4)])}
	})
}

// moment returns a time close to those at which compare looks.
func (c *chaos) moment() *timestamppb.Timestamp {
	return timestamppb.New(begin.Add(time.Duration(c.random.IntN(400)) * 24 * time.Hour))
}

// step commits one change and returns its revision, 0 if there was nothing to do.
func (c *chaos) step() int64 {
	c.t.Helper()
	w := c.workspaces[c.random.IntN(len(c.workspaces))]
	memberID := fmt.Sprintf("member %d", c.random.IntN(4))
	name := w.ID + " " + memberID
	index := -1
	if len(w.keys) > 0 {
		index = c.random.IntN(len(w.keys))
	}
	switch choice := c.random.IntN(100); {
	case choice < 3:
		return c.policy()
	case w.Head.Sequence == 0 || choice < 25:
		change := w.PutMember(memberID, []string{"owner", "manager", "member", "wizard"}[c.random.IntN(4)])
		record := change.PutMembers[0]
		record.WorkspaceIncarnation = w.incarnation
		record.Incarnation = fmt.Sprintf("incarnation %d", c.random.IntN(3))
		record.State = storagev1.MemberRecordState(c.random.IntN(4))
		record.SourceVersion = int64(c.random.IntN(100))
		c.members[name] = record
		return commit(c.t, c.store, w.Workspace, change)
	case choice < 30:
		change := w.RemoveWorkspace()
		change.PutWorkspace.Incarnation = w.incarnation
		if c.random.IntN(2) == 0 {
			w.incarnation = fmt.Sprintf("incarnation %d", c.random.IntN(3))
			change.PutWorkspace.Incarnation, change.PutWorkspace.RemoveTime = w.incarnation, nil
		}
		return commit(c.t, c.store, w.Workspace, change)
	case choice < 35:
		if record := c.members[name]; record != nil {
			delete(c.members, name)
			return commit(c.t, c.store, w.Workspace, w.DeleteMembers(record))
		}
	case choice < 60 || index < 0:
		c.keys++
		change := w.CreateKey(storagetest.KeyID(c.keys))
		c.fill(w, change.PutKeys[0], memberID)
		w.keys = append(w.keys, change.PutKeys[0])
		return commit(c.t, c.store, w.Workspace, change)
	case choice < 75:
		change := w.UpdateKey(w.keys[index], func(key *storagev1.KeyRecord) { c.fill(w, key, key.GetMemberId()) })
		w.keys[index] = change.PutKeys[0]
		return commit(c.t, c.store, w.Workspace, change)
	case choice < 90:
		change := w.RevokeKey(w.keys[index])
		w.keys[index] = change.PutKeys[0]
		return commit(c.t, c.store, w.Workspace, change)
	default:
		change := w.DeleteKey(w.keys[index])
		c.purged = append(c.purged, w.keys[index].GetKeyId())
		w.keys = slices.Delete(w.keys, index, index+1)
		return commit(c.t, c.store, w.Workspace, change)
	}
	return 0
}

// fill draws the fields of a key.
func (c *chaos) fill(w *chaotic, key *storagev1.KeyRecord, memberID string) {
	key.MemberId, key.MemberIncarnation = memberID, fmt.Sprintf("incarnation %d", c.random.IntN(3))
	key.WorkspaceIncarnation = w.incarnation
	key.Scopes = [][]string{nil, {"a:x"}, {"a:x", "b:x"}, {"a:x", "b:x", "c:x"}}[c.random.IntN(4)]
	key.AllowedCidrs = [][]string{nil, {"192.0.2.0/24"}, {"192.0.2.0/24", "2001:db8::/32"}}[c.random.IntN(3)]
	secret := proto.CloneOf(key.GetSecrets()[0])
	secret.ExpireTime = c.moment()
	secret.Hash[0], secret.Scheme = byte(c.random.IntN(256)), uint32(c.random.IntN(3))
	key.Secrets = []*storagev1.SecretRecord{secret}
	if c.random.IntN(2) == 0 {
		older := proto.CloneOf(secret)
		older.Hash[1]++
		older.OverlapEndTime = c.moment()
		key.Secrets = append(key.Secrets, older)
	}
}
