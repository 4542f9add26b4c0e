package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// guarded is a store with a policy, and a workspace with a member and two keys. The test puts records into
// etcd behind the store's back.
type guarded struct {
	t         *testing.T
	client    *clientv3.Client
	prefix    string
	store     *etcdstore.Store
	workspace *storagetest.Workspace
	policy    *storagetest.Workspace
	key       *storagev1.KeyRecord
}

func newGuarded(t *testing.T) *guarded {
	t.Helper()
	g := &guarded{t: t, client: newClient(t), prefix: newPrefix(), workspace: storagetest.NewWorkspace("w"), policy: storagetest.NewWorkspace("")}
	g.store = g.open()
	g.commit(g.policy, storagetest.ApplyPolicy(g.policy.Head, string(policy.Default().Document())))
	g.commit(g.workspace, g.workspace.PutMember("member", "admin"))
	create := g.workspace.CreateKey(storagetest.KeyID(1))
	g.commit(g.workspace, create)
	g.key = create.PutKeys[0]
	g.commit(g.workspace, g.workspace.CreateKey(storagetest.KeyID(2)))
	return g
}

func (g *guarded) open() *etcdstore.Store {
	g.t.Helper()
	return open(g.t, etcdstore.Config{Members: []*clientv3.Client{g.client}, Prefix: g.prefix})
}

func (g *guarded) commit(workspace *storagetest.Workspace, change *storage.Change) {
	g.t.Helper()
	mustFollow(g.t, g.store, workspace, change)
}

// updateKey commits the first key with an alteration.
func (g *guarded) updateKey(alter func(record *storagev1.KeyRecord)) {
	g.t.Helper()
	change := g.workspace.Change(storagev1.AuditAction_AUDIT_ACTION_KEY_UPDATED, storagev1.FeedKind_FEED_KIND_KEY, g.key.GetKeyId())
	g.key = proto.CloneOf(g.key)
	alter(g.key)
	g.key.ChangeSequence = change.Event.GetSequence()
	change.PutKeys = []*storagev1.KeyRecord{g.key}
	g.commit(g.workspace, change)
}

// putMember commits the member with an alteration.
func (g *guarded) putMember(alter func(record *storagev1.MemberRecord)) {
	g.t.Helper()
	change := g.workspace.PutMember("member", "admin")
	alter(change.PutMembers[0])
	g.commit(g.workspace, change)
}

const (
	storedPolicy    = "data/policy"
	storedWorkspace = "data/workspaces/w"
	storedMember    = "data/members/w\x00member"
)

func (g *guarded) storedKey() string {
	return fmt.Sprintf("data/keys/w\x00%016x%s", uint64(1<<63-1-g.key.GetSequence()), g.key.GetKeyId())
}

// raw returns what is stored under a name.
func (g *guarded) raw(name string) string {
	g.t.Helper()
	response, err := g.client.Get(g.t.Context(), g.prefix+name)
	if err != nil || len(response.Kvs) != 1 {
		g.t.Fatalf("%q: %v, %v", name, response, err)
	}
	return string(response.Kvs[0].Value)
}

func (g *guarded) put(name, value string) { mustPut(g.t, g.client, g.prefix+name, value) }

// narrowings are the nine ways to take something away (findings of the first review). name is of the record
// that is put back afterwards.
var narrowings = map[string]struct {
	name   func(*guarded) string
	narrow func(*guarded)
	want   string // in the problem
}{
	"revoked": {(*guarded).storedKey, func(g *guarded) {
		g.updateKey(func(record *storagev1.KeyRecord) { record.RevokeTime = timestamppb.Now() })
	}, "Key0000000000001"},
	"scope taken": {(*guarded).storedKey, func(g *guarded) {
		g.updateKey(func(record *storagev1.KeyRecord) { record.Scopes = record.GetScopes()[:0] })
	}, "Key0000000000001"},
	"rotated away": {(*guarded).storedKey, func(g *guarded) {
		g.updateKey(func(record *storagev1.KeyRecord) { record.Secrets[0].Hash = []byte(strings.Repeat("n", 32)) })
	}, "Key0000000000001"},
	"network added": {(*guarded).storedKey, func(g *guarded) {
		g.updateKey(func(record *storagev1.KeyRecord) { record.AllowedCidrs = []string{"10.0.0.0/8"} })
	}, "Key0000000000001"},
	"member suspended": {func(*guarded) string { return storedMember }, func(g *guarded) {
		g.putMember(func(record *storagev1.MemberRecord) {
			record.State = storagev1.MemberRecordState_MEMBER_RECORD_STATE_SUSPENDED
		})
	}, "member"},
	"member lowered": {func(*guarded) string { return storedMember }, func(g *guarded) {
		g.putMember(func(record *storagev1.MemberRecord) { record.Role = "member" })
	}, "member"},
	"member removed": {func(*guarded) string { return storedMember }, func(g *guarded) {
		g.putMember(func(record *storagev1.MemberRecord) {
			record.State = storagev1.MemberRecordState_MEMBER_RECORD_STATE_REMOVED
		})
	}, "member"},
	"workspace removed": {func(*guarded) string { return storedWorkspace }, func(g *guarded) {
		g.commit(g.workspace, g.workspace.RemoveWorkspace())
	}, `"w"`},
	"policy narrowed": {func(*guarded) string { return storedPolicy }, func(g *guarded) {
		g.commit(g.policy, storagetest.ApplyPolicy(g.policy.Head, string(policy.Default().Document())+"\n# narrower\n"))
	}, "policy"},
}

// TestRecordsThatWerePutBackAreDataLoss narrows something, and puts the record from before back: its
// checksum is right. The check names it, a process that starts does not use it, and a process that runs
// finds it at once.
func TestRecordsThatWerePutBackAreDataLoss(t *testing.T) {
	for name, test := range narrowings {
		t.Run(name, func(t *testing.T) {
			g := newGuarded(t)
			recordName := test.name(g)
			before := g.raw(recordName)
			begin, err := g.store.Barrier(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			test.narrow(g)
			running := projection.New(g.store, nil)
			if _, err := running.Load(t.Context()); err != nil {
				t.Fatal(err)
			}
			// The running process shows the truth, and its watch breaks off at once.
			for change, err := range g.store.Watch(t.Context(), begin) {
				switch {
				case err == nil && len(change.Put) == 1 && change.Put[0].Damaged == nil:
					g.put(recordName, before)
				case !errors.Is(err, storage.ErrGap):
					t.Fatalf("Watch: %v, %v, want ErrGap", change, err)
				}
			}
			g.isFound(running, test.want)
			g.isRefused(recordName == storedPolicy, test.name(g))
		})
	}
}

// isFound checks that a wrong record is found in each way.
func (g *guarded) isFound(running *projection.Projection, want string) {
	t := g.t
	t.Helper()
	keyID := g.key.GetKeyId()
	// 1. The check names it.
	report, err := etcdstore.Check(t.Context(), etcdstore.Config{Members: []*clientv3.Client{g.client}, Prefix: g.prefix})
	problems := strings.Join(report.Problems, "\n")
	if err != nil || !strings.Contains(problems, want) || !strings.Contains(problems, "tag of its head") {
		t.Errorf("Check: %v\n%s\nwant %s and the tag", err, problems, want)
	}
	// 2. The running process shows the truth until it loads anew, and then refuses.
	if found := running.Find(keyID); found.Damaged != nil {
		t.Errorf("before it is found: %v", found.Damaged)
	}
	_, err = running.Load(t.Context())
	if found := running.Find(keyID); err != nil || !errors.Is(found.Damaged, storage.ErrDamaged) {
		t.Errorf("a running process, loaded anew: %v, %v; want ErrDamaged", found.Damaged, err)
	}
	// 3. A process that starts does not use it.
	starting := projection.New(g.open(), nil)
	_, err = starting.Load(t.Context())
	if found := starting.Find(keyID); !errors.Is(err, storage.ErrDamaged) && !errors.Is(found.Damaged, storage.ErrDamaged) {
		t.Errorf("a process that starts: %v, %v; want ErrDamaged", found.Damaged, err)
	}
}

// isRefused checks that a wrong record is not changed, and that others are.
func (g *guarded) isRefused(isPolicy bool, recordName string) {
	t := g.t
	t.Helper()
	// Another process has not loaded anything: it finds out when it commits.
	for name, store := range map[string]*etcdstore.Store{"running": g.store, "other": g.open()} {
		var change, sound *storage.Change
		member := g.workspace.PutMember("other", "admin")
		switch {
		case isPolicy:
			change, sound = storagetest.ApplyPolicy(g.policy.Head, string(policy.Default().Document())), member
		case strings.HasPrefix(recordName, "data/keys/"):
			change = g.workspace.Change(storagev1.AuditAction_AUDIT_ACTION_KEY_UPDATED, storagev1.FeedKind_FEED_KIND_KEY, g.key.GetKeyId())
			record := proto.CloneOf(g.key)
			record.ChangeSequence = change.Event.GetSequence()
			change.PutKeys, sound = []*storagev1.KeyRecord{record}, member
		case recordName == storedMember:
			change, sound = g.workspace.PutMember("member", "admin"), member
		default:
			change, sound = g.workspace.RemoveWorkspace(), member
		}
		if _, err := store.Commit(t.Context(), change); !errors.Is(err, storage.ErrDamaged) {
			t.Errorf("%s: Commit of the wrong record: %v, want ErrDamaged", name, err)
		}
		if _, err := store.Commit(t.Context(), sound); err != nil {
			t.Errorf("%s: Commit of another record: %v", name, err)
		}
		g.workspace.Follow(sound)
	}
}

// TestAlteredMissingAndLeftOverRecordsAreDataLoss does to a key and a member whatever else can be done.
func TestAlteredMissingAndLeftOverRecordsAreDataLoss(t *testing.T) {
	alter := func(g *guarded) {
		altered := proto.CloneOf(g.key)
		altered.Scopes = append(altered.GetScopes(), "everything")
		payload, err := storage.Encode(altered)
		if err != nil {
			g.t.Fatal(err)
		}
		g.put(g.storedKey(), string(storage.Frame(g.storedKey(), payload)))
	}
	remove := func(name func(*guarded) string) func(*guarded) {
		return func(g *guarded) {
			if _, err := g.client.Delete(g.t.Context(), g.prefix+name(g)); err != nil {
				g.t.Fatal(err)
			}
		}
	}
	leftOver := func(g *guarded) {
		before := g.raw(g.storedKey())
		purge := g.workspace.Change(storagev1.AuditAction_AUDIT_ACTION_PURGED, storagev1.FeedKind_FEED_KIND_PURGE, "")
		purge.DeleteKeys = []*storagev1.KeyRecord{g.key}
		g.commit(g.workspace, purge)
		g.put(g.storedKey(), before)
	}
	headBack := func(g *guarded) {
		head := g.raw("data/heads/w")
		g.updateKey(func(record *storagev1.KeyRecord) { record.RevokeTime = timestamppb.Now() })
		g.put("data/heads/w", head)
	}
	allBack := func(g *guarded) {
		head, key := g.raw("data/heads/w"), g.raw(g.storedKey())
		g.updateKey(func(record *storagev1.KeyRecord) { record.RevokeTime = timestamppb.Now() })
		g.put("data/heads/w", head)
		g.put(g.storedKey(), key)
	}
	besideAnother := func(g *guarded) {
		g.put("data/keys/w\x00"+complementOf(3)+storagetest.KeyID(2), "unreadable")
		alter(g)
	}
	policyBack := func(g *guarded) {
		before := g.raw(storedPolicy)
		g.commit(g.policy, storagetest.ApplyPolicy(g.policy.Head, string(policy.Default().Document())))
		g.put(storedPolicy, before)
		g.put("data/audit/\x00"+complementOf(g.policy.Head.Sequence), "damaged")
	}
	for name, test := range map[string]struct {
		harm func(*guarded)
		want storage.Damaged
	}{
		"altered":        {alter, storage.Damaged{WorkspaceID: "w", KeyID: storagetest.KeyID(1)}},
		"missing":        {remove((*guarded).storedKey), storage.Damaged{WorkspaceID: "w", KeyID: storagetest.KeyID(1)}},
		"missing member": {remove(func(*guarded) string { return storedMember }), storage.Damaged{WorkspaceID: "w", MemberID: "member"}},
		"left over":      {leftOver, storage.Damaged{WorkspaceID: "w", KeyID: storagetest.KeyID(1)}},
		// A record and the head of its time fit each other. The event that the head does not know shows it.
		"head put back":            {headBack, storage.Damaged{WorkspaceID: "w", Head: true}},
		"head and record put back": {allBack, storage.Damaged{WorkspaceID: "w", KeyID: storagetest.KeyID(1)}},
		"beside an unreadable one": {besideAnother, storage.Damaged{WorkspaceID: "w", KeyID: storagetest.KeyID(1)}},
		"policy and event":         {policyBack, storage.Damaged{}},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuarded(t)
			test.harm(g)
			var found []storage.Damaged
			_, err := g.open().Load(t.Context(), func(item storage.Item) error {
				if item.Damaged != nil {
					damaged := *item.Damaged
					if isPolicy := strings.Contains(damaged.Err.Error(), "policy"); isPolicy != (damaged.WorkspaceID == "") {
						t.Errorf("the error names another record: %+v", damaged)
					}
					damaged.Err = nil
					found = append(found, damaged)
				}
				return nil
			})
			if err != nil {
				t.Fatalf("Load: %v", err)
			}
			has := false
			for _, damaged := range found {
				has = has || damaged == test.want
			}
			if !has {
				t.Errorf("Load visits as damaged %+v, want %+v", found, test.want)
			}
			if report, err := etcdstore.Check(t.Context(), etcdstore.Config{Members: []*clientv3.Client{g.client}, Prefix: g.prefix}); err != nil || len(report.Problems) == 0 {
				t.Errorf("Check: %v, no problems", err)
			}
		})
	}
}

// TestReadsCompareWithWhatWasLoaded alters a record behind a process that does not watch the store. Each read of the
// record finds it, alone and in a list, and no other read does. A change of the record is refused.
func TestReadsCompareWithWhatWasLoaded(t *testing.T) {
	reads := map[string]func(g *guarded) error{
		"GetKey": func(g *guarded) error { _, _, err := g.store.GetKey(t.Context(), "w", g.key.GetKeyId()); return err },
		"ListKeys": func(g *guarded) error {
			_, err := g.store.ListKeys(t.Context(), storage.Query{WorkspaceID: "w", Limit: 10})
			return err
		},
		"ListKeys of all workspaces": func(g *guarded) error { _, err := g.store.ListKeys(t.Context(), storage.Query{Limit: 10}); return err },
		"GetMember":                  func(g *guarded) error { _, _, err := g.store.GetMember(t.Context(), "w", "member"); return err },
		"ListMembers": func(g *guarded) error {
			_, err := g.store.ListMembers(t.Context(), storage.Query{WorkspaceID: "w", Limit: 10})
			return err
		},
	}
	changeMember := func(g *guarded) *storage.Change { return g.workspace.PutMember("member", "manager") }
	stale := func(name func(*guarded) string, change func(*guarded)) func(*guarded) {
		return func(g *guarded) {
			before := g.raw(name(g))
			change(g)
			g.put(name(g), before)
		}
	}
	for name, test := range map[string]struct {
		harm  func(*guarded)
		finds string // in the names of the reads that find it
		// change is one of the record.
		change func(*guarded) *storage.Change
	}{
		"nothing": {func(*guarded) {}, "none", changeMember},
		"a stale key": {stale((*guarded).storedKey, func(g *guarded) {
			g.updateKey(func(record *storagev1.KeyRecord) { record.RevokeTime = timestamppb.Now() })
		}), "Key", func(g *guarded) *storage.Change {
			return g.workspace.UpdateKey(g.key, func(record *storagev1.KeyRecord) { record.Name = "another" })
		}},
		"a stale member": {stale(func(*guarded) string { return storedMember }, func(g *guarded) {
			g.putMember(func(record *storagev1.MemberRecord) { record.Role = "member" })
		}), "Member", changeMember},
		"a missing member": {func(g *guarded) {
			mustDelete(t, g.client, g.prefix+storedMember)
		}, "GetMember", changeMember}, // lists do not know whom they miss
		"a member too many": {func(g *guarded) {
			change := g.workspace.PutMember("member", "admin")
			change.PutMembers, change.DeleteMembers = nil, change.PutMembers
			before := g.raw(storedMember)
			g.commit(g.workspace, change)
			g.put(storedMember, before)
		}, "Member", changeMember},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuarded(t)
			// Another workspace, which is listed first.
			other := storagetest.NewWorkspace("other")
			g.commit(other, other.PutMember("member", "admin"))
			g.commit(other, other.CreateKey(storagetest.KeyID(9)))
			if _, err := g.store.Load(t.Context(), func(storage.Item) error { return nil }); err != nil {
				t.Fatal(err)
			}
			test.harm(g)
			for read, do := range reads {
				if err := do(g); errors.Is(err, storage.ErrDamaged) != strings.Contains(read, test.finds) || err != nil && !errors.Is(err, storage.ErrDamaged) {
					t.Errorf("%s: %v", read, err)
				}
			}
			if _, err := g.store.Commit(t.Context(), test.change(g)); errors.Is(err, storage.ErrDamaged) != (name != "nothing") {
				t.Errorf("Commit: %v", err)
			}
		})
	}
}

// TestFollowerFindsWhatTheEventDoesNotList alters a change on its way, as a faulty program would write it. A process that follows the store
// decides nothing on what was altered, and does not change it.
func TestFollowerFindsWhatTheEventDoesNotList(t *testing.T) {
	t.Parallel()
	replace := func(then []clientv3.Op, name string, with ...clientv3.Op) []clientv3.Op {
		index := slices.IndexFunc(then, func(part clientv3.Op) bool { return strings.HasPrefix(string(part.KeyBytes()), name) })
		return slices.Replace(slices.Clone(then), index, index+1, with...)
	}
	changeKey := func(workspace *storagetest.Workspace, key *storagev1.KeyRecord) *storage.Change {
		return workspace.UpdateKey(key, func(record *storagev1.KeyRecord) { record.Name = "another" })
	}
	changeMember := func(workspace *storagetest.Workspace, _ *storagev1.KeyRecord) *storage.Change {
		return workspace.PutMember("member", "admin")
	}
	for name, test := range map[string]struct {
		// alter returns what is written in the place of a change that revokes the key. older is the key's record from before.
		alter func(then []clientv3.Op, prefix, older string) []clientv3.Op
		// wrong changes what was altered, and sound something else; nil if nothing else can be changed.
		wrong, sound func(*storagetest.Workspace, *storagev1.KeyRecord) *storage.Change
	}{
		"an older record is put": {func(then []clientv3.Op, prefix, older string) []clientv3.Op {
			index := slices.IndexFunc(then, func(part clientv3.Op) bool { return strings.HasPrefix(string(part.KeyBytes()), prefix+"data/keys/w") })
			return replace(then, prefix+"data/keys/w", clientv3.OpPut(string(then[index].KeyBytes()), older))
		}, changeKey, changeMember},
		"a record is not put": {func(then []clientv3.Op, prefix, _ string) []clientv3.Op {
			return replace(then, prefix+"data/keys/w")
		}, changeKey, changeMember},
		"another record is deleted": {func(then []clientv3.Op, prefix, _ string) []clientv3.Op {
			return slices.Insert(slices.Clone(then), 0, clientv3.OpDelete(prefix+storedMember))
		}, changeMember, changeKey},
		"the record is deleted": {func(then []clientv3.Op, prefix, _ string) []clientv3.Op {
			index := slices.IndexFunc(then, func(part clientv3.Op) bool { return strings.HasPrefix(string(part.KeyBytes()), prefix+"data/keys/w") })
			return replace(then, prefix+"data/keys/w", clientv3.OpDelete(string(then[index].KeyBytes())))
		}, changeKey, changeMember},
		"the tag is another one": {func(then []clientv3.Op, prefix, _ string) []clientv3.Op {
			const stored = "data/heads/w"
			index := slices.IndexFunc(then, func(part clientv3.Op) bool { return string(part.KeyBytes()) == prefix+stored })
			head := &storagev1.HeadRecord{}
			if err := storage.Decode("head", stored, then[index].ValueBytes(), head); err != nil {
				t.Error(err)
			}
			head.Tag[0] ^= 1
			payload, err := storage.Encode(head)
			if err != nil {
				t.Error(err)
			}
			return replace(then, prefix+stored, clientv3.OpPut(prefix+stored, string(storage.Frame(stored, payload))))
		}, changeKey, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			s, workspace := newShaky(t, 0), storagetest.NewWorkspace("w")
			s.do(workspace, workspace.PutMember("member", "admin"))
			create := workspace.CreateKey(storagetest.KeyID(1))
			s.do(workspace, create)
			key := create.PutKeys[0]
			found, err := newClient(t).Get(ctx, s.prefix+"data/keys/w", clientv3.WithPrefix())
			if err != nil || len(found.Kvs) != 1 {
				t.Fatal(found, err)
			}
			store := open(t, etcdConfig(t, s.prefix))
			follower, _ := followed(t, store)
			if found := follower.Find(key.GetKeyId()); !found.Exists || found.Damaged != nil {
				t.Fatalf("before: %+v", found)
			}
			s.next(func(sent *sent) (*clientv3.TxnResponse, error) {
				sent.then = test.alter(sent.then, s.prefix, string(found.Kvs[0].Value))
				return sent.deliver()
			})
			revoke := workspace.RevokeKey(key)
			if err := follower.WaitFor(ctx, s.do(workspace, revoke)); err != nil {
				t.Fatal(err)
			}
			if found := follower.Find(key.GetKeyId()); !errors.Is(found.Damaged, storage.ErrDamaged) {
				t.Errorf("the follower finds %+v, want ErrDamaged", found)
			}
			wrong := test.wrong(workspace, revoke.PutKeys[0])
			if _, err := store.Commit(ctx, wrong); !errors.Is(err, storage.ErrDamaged) {
				t.Errorf("a change of what was altered: %v, want ErrDamaged", err)
			}
			if test.sound == nil {
				return
			}
			if _, err := store.Commit(ctx, test.sound(workspace, revoke.PutKeys[0])); err != nil {
				t.Errorf("a change of something else: %v", err)
			}
		})
	}
}

// TestUnknownDamageIsOfTheWholeWorkspace takes away what would show which record of a workspace is wrong. Then nothing in the workspace is
// decided on or changed.
func TestUnknownDamageIsOfTheWholeWorkspace(t *testing.T) {
	t.Parallel()
	const head = "data/heads/w"
	newest := func(g *guarded) string { return "data/audit/w\x00" + complementOf(g.workspace.Head.Sequence) }
	// putBack revokes the key, puts the record from before back, and returns the name of the event that shows it.
	putBack := func(g *guarded) (event string) {
		before := g.raw(g.storedKey())
		g.updateKey(func(record *storagev1.KeyRecord) { record.RevokeTime = timestamppb.Now() })
		g.put(g.storedKey(), before)
		return newest(g)
	}
	for name, harm := range map[string]func(*guarded){
		"the event is damaged": func(g *guarded) { g.put(putBack(g), "damaged") },
		"the event is missing": func(g *guarded) {
			mustDelete(t, g.client, g.prefix+putBack(g))
		},
		// Without a head, only the chain of the events shows what the records should be.
		"event and head are damaged": func(g *guarded) {
			g.put(putBack(g), "damaged")
			g.put(head, "damaged")
		},
		"the event is another one, and the head is damaged": func(g *guarded) {
			event, record := putBack(g), &storagev1.AuditRecord{}
			if err := storage.Decode("event", event, []byte(g.raw(event)), record); err != nil {
				t.Fatal(err)
			}
			g.putMember(func(*storagev1.MemberRecord) {})
			record.Changes[0].After = record.GetChanges()[0].GetBefore()
			payload, err := storage.Encode(record)
			if err != nil {
				t.Fatal(err)
			}
			g.put(event, string(storage.Frame(event, payload)))
			g.put(head, "damaged")
		},
		"an event has no number, and the head is damaged": func(g *guarded) {
			putBack(g)
			g.put("data/audit/w\x00x", "damaged")
			g.put(head, "damaged")
		},
		"no event lists a record, and the head is damaged": func(g *guarded) {
			const other = "data/members/w\x00other"
			payload, err := storage.Encode(&storagev1.MemberRecord{WorkspaceId: "w", MemberId: "other"})
			if err != nil {
				t.Fatal(err)
			}
			g.put(other, string(storage.Frame(other, payload)))
			g.put(head, "damaged")
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuarded(t)
			harm(g)
			loaded := g.open()
			starting := projection.New(loaded, nil)
			if _, err := starting.Load(t.Context()); err != nil {
				t.Fatal(err)
			}
			for number := range 2 {
				if found := starting.Find(storagetest.KeyID(number + 1)); !errors.Is(found.Damaged, storage.ErrDamaged) {
					t.Errorf("key %d: %+v, want ErrDamaged", number+1, found)
				}
			}
			for name, store := range map[string]*etcdstore.Store{"loaded": loaded, "not loaded": g.open()} {
				if _, err := store.Commit(t.Context(), g.workspace.PutMember("other", "admin")); !errors.Is(err, storage.ErrDamaged) {
					t.Errorf("%s: Commit: %v, want ErrDamaged", name, err)
				}
			}
		})
	}
}

// TestLostWorkspacesAreDamaged takes away all that there is of some workspaces, but not their events: they must not count as new.
func TestLostWorkspacesAreDamaged(t *testing.T) {
	t.Parallel()
	g, lost := newGuarded(t), []string{"a", "b", "y", "z"} // before and after the workspace that is left
	for _, id := range lost {
		workspace := storagetest.NewWorkspace(id)
		g.commit(workspace, workspace.PutMember("m", "admin"))
		for _, name := range []string{"heads/" + id, "workspaces/" + id, "members/" + id + "\x00m"} {
			mustDelete(t, g.client, g.prefix+"data/"+name)
		}
	}
	// Names that are no events' do not hide those behind them.
	g.put("data/audit/a", "damaged")
	g.put("data/audit/x", "damaged")
	var found []string
	if _, err := g.open().Load(t.Context(), func(item storage.Item) error {
		if item.Damaged != nil && item.Damaged.Head && strings.Contains(item.Damaged.Err.Error(), "missing") {
			found = append(found, item.Damaged.WorkspaceID)
		}
		return nil
	}); err != nil || !slices.Equal(found, lost) {
		t.Errorf("the workspaces %q were lost, %v; want %q", found, err, lost)
	}
}

// TestRecordsThatFitTheirTagNeedNoEvent: a damaged event makes sound records neither damaged nor unchangeable.
func TestRecordsThatFitTheirTagNeedNoEvent(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	g.put("data/audit/w\x00"+complementOf(g.workspace.Head.Sequence), "damaged")
	if _, err := g.open().Commit(t.Context(), g.workspace.PutMember("other", "admin")); err != nil {
		t.Errorf("Commit by a process that has not loaded: %v", err)
	}
}
