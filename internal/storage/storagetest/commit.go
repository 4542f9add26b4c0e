package storagetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

var commitTests = []test{
	{"FirstChangeExpectsTheZeroHead", testFirstChange},
	{"AnotherHeadIsAConflict", testHeadConflict},
	{"KeyIDsAreUniqueAcrossWorkspaces", testAbsentKeyID},
	{"ConcurrentCreationsOfAKeyIDCreateOneKey", testAbsentKeyIDAtOnce},
	{"RequestIDsAreUniqueWithinAWorkspace", testAbsentRequestID},
	{"RefusedChangeReservesNothing", testRefusedReservesNothing},
	{"InvalidChangesAreRefused", testInvalidChange},
	{"MaxOperationsBoundsAChange", testOperations},
	{"MaxChangeBytesBoundsAChange", testBytes},
	{"PolicyHasItsOwnHead", testPolicyHead},
	{"DeletedRecordsCanBeAddedAgain", testDeleteAndAddAgain},
	{"ConflictNamesTheRevisionToWaitFor", testConflictRevision},
	{"PolicyHeadIsCompared", testExpectPolicy},
}

// conflict commits a change that must be refused because of a head, and returns the
// revision to wait for.
func (s *suite) conflict(change *storage.Change) int64 {
	s.Helper()
	_, err := s.store.Commit(s.ctx, change)
	var got *storage.ConflictError
	if !errors.As(err, &got) || !errors.Is(err, storage.ErrConflict) {
		s.Fatalf("Commit: %v, want a ConflictError", err)
	}
	s.unchanged()
	return got.Revision
}

func testConflictRevision(s *suite) {
	workspace := s.begin("w")
	stale := *workspace
	change := workspace.CreateKey(KeyID(1))
	revision := s.do(workspace, change)
	s.begin("other") // newer, but of another workspace
	if got := s.conflict(stale.CreateKey(KeyID(2))); got != revision {
		s.Errorf("ConflictError.Revision = %d, want %d: that of the workspace's newest change", got, revision)
	}
	ahead := NewWorkspace("new")
	ahead.Head = workspace.Head
	if got := s.conflict(ahead.PutMember("member", "admin")); got != 0 {
		s.Errorf("ConflictError.Revision = %d, want 0 where there is no head", got)
	}
}

func testExpectPolicy(s *suite) {
	workspace := s.begin("w")
	expecting := func(change *storage.Change, head storage.Head) *storage.Change {
		change.ExpectPolicy = &head
		return change
	}
	s.do(workspace, expecting(workspace.CreateKey(KeyID(1)), storage.Head{}))
	first := ApplyPolicy(storage.Head{}, "first")
	revision := s.commit(first)
	if got := s.conflict(expecting(workspace.CreateKey(KeyID(2)), storage.Head{})); got != revision {
		s.Errorf("ConflictError.Revision = %d, want %d: that of the policy", got, revision)
	}
	s.do(workspace, expecting(workspace.CreateKey(KeyID(2)), After(first)))
	second := ApplyPolicy(After(first), "second")
	revision = s.commit(second)
	if got := s.conflict(expecting(workspace.CreateKey(KeyID(3)), After(first))); got != revision {
		s.Errorf("ConflictError.Revision = %d, want %d: that of the policy", got, revision)
	}
	s.reopen()
	if got := s.conflict(expecting(workspace.CreateKey(KeyID(3)), After(first))); got != revision {
		s.Errorf("reopened: ConflictError.Revision = %d, want %d: that of the policy", got, revision)
	}
	s.do(workspace, expecting(workspace.CreateKey(KeyID(3)), After(second)))
	s.do(workspace, workspace.CreateKey(KeyID(4))) // nil compares nothing
}

func testFirstChange(s *suite) {
	workspace := s.begin("w")
	s.refused(NewWorkspace("w").PutMember("other", "admin"), storage.ErrConflict)
	ahead := NewWorkspace("new")
	ahead.Head = workspace.Head
	s.refused(ahead.PutMember("member", "admin"), storage.ErrConflict)
	s.begin("new")
}

func testHeadConflict(s *suite) {
	workspace := s.begin("w")
	other := s.begin("other")
	stale := *workspace
	key := s.create(workspace, KeyID(1))

	s.refused(stale.CreateKey(KeyID(2)), storage.ErrConflict)
	s.refused(stale.PutMember("member", "manager"), storage.ErrConflict)
	for name, edit := range map[string]func(*storage.Head){
		"hash":     func(head *storage.Head) { head.Hash[31] ^= 1 },
		"fence":    func(head *storage.Head) { head.Fence++ },
		"sequence": func(head *storage.Head) { head.Sequence++ },
		"foreign":  func(head *storage.Head) { *head = other.Head },
	} {
		wrong := *workspace
		edit(&wrong.Head)
		if _, err := s.store.Commit(s.ctx, wrong.UpdateKey(key, rename(name))); !errors.Is(err, storage.ErrConflict) {
			s.Errorf("%s: %v, want ErrConflict", name, err)
		}
		s.unchanged()
	}
	// A conflict disturbs neither the workspace nor another one.
	s.do(other, other.CreateKey(KeyID(3)))
	s.do(workspace, workspace.UpdateKey(key, rename("new")))
}

func testAbsentKeyID(s *suite) {
	workspace, other := s.begin("w"), s.begin("other")
	key := s.create(workspace, KeyID(1))
	s.exists(workspace.CreateKey(KeyID(1)), storage.ExistsError{KeyID: KeyID(1)})
	s.exists(other.CreateKey(KeyID(1)), storage.ExistsError{KeyID: KeyID(1)})
	// One existing id is enough to refuse a change with several absent ones.
	change := workspace.CreateKey(KeyID(2))
	change.AbsentKeyIDs = append(change.AbsentKeyIDs, KeyID(1))
	s.exists(change, storage.ExistsError{KeyID: KeyID(1)})
	s.reopen()
	s.exists(other.CreateKey(KeyID(1)), storage.ExistsError{KeyID: KeyID(1)})
	s.do(workspace, workspace.DeleteKey(key))
	s.create(other, KeyID(1))
	s.exists(workspace.CreateKey(KeyID(1)), storage.ExistsError{KeyID: KeyID(1)})
}

// testAbsentKeyIDAtOnce creates the same key in many workspaces at the same time. The
// changes may share a transaction.
func testAbsentKeyIDAtOnce(s *suite) {
	const workspaces, rounds = 16, 20
	all := make([]*Workspace, workspaces)
	for index := range all {
		all[index] = s.begin(fmt.Sprintf("w%d", index))
	}
	// Another workspace keeps the store busy, so that changes have to wait.
	noise, ended := s.begin("noise"), make(chan struct{})
	var busy sync.WaitGroup
	busy.Go(func() {
		for {
			select {
			case <-ended:
				return
			default:
			}
			change := noise.PutMember("member", "admin")
			revision, err := s.store.Commit(s.ctx, change)
			if err != nil {
				s.Errorf("Commit: %v", err)
				return
			}
			s.model.Apply(change, revision)
			noise.Follow(change)
		}
	})
	defer busy.Wait()
	defer close(ended)
	for round := range rounds {
		changes := make([]*storage.Change, workspaces)
		revisions := make([]int64, workspaces)
		results := make([]error, workspaces)
		var group sync.WaitGroup
		for index, workspace := range all {
			changes[index] = workspace.CreateKey(KeyID(round))
			group.Go(func() { revisions[index], results[index] = s.store.Commit(s.ctx, changes[index]) })
		}
		group.Wait()
		created := 0
		for index, err := range results {
			var exists *storage.ExistsError
			switch {
			case err == nil:
				created++
				s.model.Apply(changes[index], revisions[index])
				all[index].Follow(changes[index])
			case !errors.As(err, &exists) || exists.KeyID != KeyID(round) || exists.RequestID != "" || exists.Revision < 1:
				s.Errorf("Commit: %v, want an ExistsError", err)
			}
		}
		if created != 1 {
			s.Errorf("the key was created in %d workspaces", created)
		}
	}
}

func testAbsentRequestID(s *suite) {
	workspace, other := s.begin("w"), s.begin("other")
	key := s.create(workspace, KeyID(1), "request 1", "request 2")
	s.create(other, KeyID(2), "request 1") // request ids are unique within a workspace only
	used := storage.ExistsError{RequestID: "request 2", KeyID: KeyID(1)}
	s.exists(workspace.CreateKey(KeyID(3), "request 2"), used)
	s.exists(workspace.CreateKey(KeyID(3), "new", "request 2"), used)

	// A key gets another request id, as in a rotation.
	change := workspace.UpdateKey(key, func(key *storagev1.KeyRecord) { key.RequestIds = append(key.RequestIds, "request 3") })
	change.AbsentRequestIDs = []string{"request 3"}
	s.do(workspace, change)
	key = change.PutKeys[0]
	again := workspace.UpdateKey(key, rename("again"))
	again.AbsentRequestIDs = []string{"request 3"}
	s.exists(again, storage.ExistsError{RequestID: "request 3", KeyID: KeyID(1)})
	s.findRequest("w", "request 3", KeyID(1))

	s.reopen()
	s.exists(workspace.CreateKey(KeyID(3), "request 3"), storage.ExistsError{RequestID: "request 3", KeyID: KeyID(1)})

	// A request id that a key no longer has is free again, without reopening the store.
	change = workspace.UpdateKey(key, func(key *storagev1.KeyRecord) { key.RequestIds = key.RequestIds[1:] })
	s.do(workspace, change)
	s.findRequest("w", "request 1", "")
	s.findRequest("other", "request 1", KeyID(2))
	s.create(workspace, KeyID(4), "request 1")
	s.exists(workspace.CreateKey(KeyID(3), "request 2"), used)

	// So are the request ids of a deleted key.
	s.do(workspace, workspace.DeleteKey(change.PutKeys[0]))
	s.findRequest("w", "request 3", "")
	s.create(workspace, KeyID(5), "request 2", "request 3")
	s.findRequest("w", "request 3", KeyID(5))
	s.findRequest("w", "request 1", KeyID(4))
}

// findRequest looks for a request id. An empty key id means that the request id must not
// exist.
func (s *suite) findRequest(workspaceID, requestID, want string) {
	s.Helper()
	got, _, err := s.store.FindRequest(s.ctx, workspaceID, requestID)
	if got != want || want == "" && !errors.Is(err, storage.ErrNotFound) || want != "" && err != nil {
		s.Errorf("FindRequest(%q, %q) = %q, %v; want %q", workspaceID, requestID, got, err, want)
	}
}

// testRefusedReservesNothing commits, at the same time, changes that are refused and
// changes that need the same ids.
func testRefusedReservesNothing(s *suite) {
	const workspaces = 16
	for round := range 5 {
		var group sync.WaitGroup
		for index := range workspaces {
			stale := NewWorkspace(fmt.Sprintf("stale %d", index))
			if round == 0 {
				s.begin(stale.ID)
			}
			group.Go(func() {
				change := stale.CreateKey(KeyID(round), "request")
				if _, err := s.store.Commit(s.ctx, change); !errors.Is(err, storage.ErrConflict) && !isExists(err) {
					s.Errorf("Commit: %v, want ErrConflict", err)
				}
			})
		}
		workspace := s.begin(fmt.Sprintf("good %d", round))
		s.create(workspace, KeyID(round), "request")
		group.Wait()
	}
}

func isExists(err error) bool {
	var exists *storage.ExistsError
	return errors.As(err, &exists)
}

func testInvalidChange(s *suite) {
	workspace, other := s.begin("w"), s.begin("other")
	key := s.create(workspace, KeyID(1))
	foreign := s.create(other, KeyID(2))
	long := strings.Repeat("x", storage.MaxIDBytes+1)
	member := func(id string) *storagev1.MemberRecord {
		return &storagev1.MemberRecord{WorkspaceId: "w", MemberId: id}
	}
	edits := map[string]func(*storage.Change){
		"no event":              func(c *storage.Change) { c.Event = nil },
		"no action":             func(c *storage.Change) { c.Event.Action = 0 },
		"foreign event":         func(c *storage.Change) { c.Event.WorkspaceId = "other" },
		"foreign workspace":     func(c *storage.Change) { c.WorkspaceID = "other" },
		"sequence too low":      func(c *storage.Change) { c.Event.Sequence-- },
		"sequence too high":     func(c *storage.Change) { c.Event.Sequence++ },
		"wrong previous hash":   func(c *storage.Change) { c.Event.PreviousHash[0] ^= 1 },
		"no previous hash":      func(c *storage.Change) { c.Event.PreviousHash = nil },
		"zero head":             func(c *storage.Change) { c.Expect = storage.Head{} },
		"no kind":               func(c *storage.Change) { c.Kind = 0 },
		"long subject":          func(c *storage.Change) { c.Subject = long },
		"nothing":               func(c *storage.Change) { c.PutKeys = nil },
		"policy in a workspace": func(c *storage.Change) { c.PutPolicy = &storagev1.PolicyRecord{} },
		"foreign workspace record": func(c *storage.Change) {
			c.PutWorkspace = &storagev1.WorkspaceRecord{WorkspaceId: "other"}
		},
		"foreign member": func(c *storage.Change) {
			c.PutMembers = []*storagev1.MemberRecord{{WorkspaceId: "other", MemberId: "m"}}
		},
		"foreign member to delete": func(c *storage.Change) {
			c.DeleteMembers = []*storagev1.MemberRecord{{WorkspaceId: "other", MemberId: "member"}}
		},
		"foreign key":           func(c *storage.Change) { c.PutKeys = append(c.PutKeys, foreign) },
		"foreign key to delete": func(c *storage.Change) { c.DeleteKeys = []*storagev1.KeyRecord{foreign} },
		"key twice":             func(c *storage.Change) { c.PutKeys = append(c.PutKeys, c.PutKeys[0]) },
		"key put and deleted":   func(c *storage.Change) { c.DeleteKeys = c.PutKeys },
		"member twice":          func(c *storage.Change) { c.PutMembers = []*storagev1.MemberRecord{member("m"), member("m")} },
		"member put and deleted": func(c *storage.Change) {
			c.PutMembers, c.DeleteMembers = []*storagev1.MemberRecord{member("member")}, []*storagev1.MemberRecord{member("member")}
		},
		"member without id":    func(c *storage.Change) { c.PutMembers = []*storagev1.MemberRecord{member("")} },
		"member with long id":  func(c *storage.Change) { c.PutMembers = []*storagev1.MemberRecord{member(long)} },
		"member with NUL":      func(c *storage.Change) { c.PutMembers = []*storagev1.MemberRecord{member("a\x00b")} },
		"key without id":       func(c *storage.Change) { c.PutKeys[0].KeyId = "" },
		"key with short id":    func(c *storage.Change) { c.PutKeys[0].KeyId = "short" },
		"key of no sequence":   func(c *storage.Change) { c.PutKeys[0].Sequence = 0 },
		"key of the future":    func(c *storage.Change) { c.PutKeys[0].Sequence = c.Event.GetSequence() + 1 },
		"request without id":   func(c *storage.Change) { c.PutKeys[0].RequestIds = []string{""} },
		"request with long id": func(c *storage.Change) { c.PutKeys[0].RequestIds = []string{long} },
		"new key, old sequence": func(c *storage.Change) {
			c.PutKeys[0].KeyId, c.AbsentKeyIDs = KeyID(3), []string{KeyID(3)}
		},
		"new key that need not be absent": func(c *storage.Change) {
			c.PutKeys[0].KeyId, c.PutKeys[0].Sequence = KeyID(3), c.Event.GetSequence()
		},
		"new request id that need not be absent": func(c *storage.Change) {
			c.PutKeys, c.AbsentKeyIDs = workspace.CreateKey(KeyID(3), "new").PutKeys, []string{KeyID(3)}
		},
		"request id freed twice": func(c *storage.Change) { c.FreedRequestIDs = []string{"old", "old"} },
		"request id freed and absent": func(c *storage.Change) {
			c.FreedRequestIDs, c.AbsentRequestIDs = []string{"old"}, []string{"old"}
		},
		"key not UTF-8":   func(c *storage.Change) { c.PutKeys[0].Name = "\xff" },
		"event not UTF-8": func(c *storage.Change) { c.Event.Caller = "\xff" },
		"subject not UTF-8": func(c *storage.Change) {
			c.Subject = "\xff"
		},
		"too many absent": func(c *storage.Change) {
			c.AbsentRequestIDs = make([]string, storage.MaxOperations+1)
		},
	}
	for name, edit := range edits {
		change := workspace.UpdateKey(key, rename(name))
		edit(change)
		if _, err := s.store.Commit(s.ctx, change); !errors.Is(err, storage.ErrInvalidChange) {
			s.Errorf("%s: %v, want ErrInvalidChange", name, err)
		}
		s.unchanged()
	}
	for name, change := range map[string]*storage.Change{
		"workspace without id":   NewWorkspace("").PutMember("member", "admin"),
		"workspace with NUL":     NewWorkspace("\x00").PutMember("member", "admin"),
		"workspace with long id": NewWorkspace(long).PutMember("member", "admin"),
		"policy and a member": func() *storage.Change {
			change := ApplyPolicy(storage.Head{}, "policy")
			change.PutMembers = []*storagev1.MemberRecord{{MemberId: "member"}}
			return change
		}(),
		"policy without policy": func() *storage.Change {
			change := ApplyPolicy(storage.Head{}, "policy")
			change.PutPolicy = nil
			return change
		}(),
	} {
		if _, err := s.store.Commit(s.ctx, change); !errors.Is(err, storage.ErrInvalidChange) {
			s.Errorf("%s: %v, want ErrInvalidChange", name, err)
		}
		s.unchanged()
	}
	s.equal("the key", s.getKey("w", KeyID(1)), key)
}

// testOperations makes changes as large as they may be: a key counts with its index
// entries.
func testOperations(s *suite) {
	workspace := s.begin("w")
	const most = storage.MaxOperations
	// Keys with many request ids, as from rotations.
	keys := make([]*storagev1.KeyRecord, 5)
	requests := most/len(keys) - storage.DeleteOperations(&storagev1.KeyRecord{})
	for index := range keys {
		var requestIDs []string
		for number := range requests {
			requestIDs = append(requestIDs, fmt.Sprintf("request %d.%d", index, number))
		}
		keys[index] = s.create(workspace, KeyID(index), requestIDs...)
	}
	// Puts and deletes count alike.
	tooLarge := workspace.DeleteKey(keys...)
	tooLarge.PutMembers = workspace.PutMember("member", "manager").PutMembers
	s.refused(tooLarge, storage.ErrInvalidChange)
	s.do(workspace, workspace.DeleteKey(keys...))
	s.findRequest("w", "request 1.1", "")

	// Members are records and nothing else.
	change := workspace.PutMember("member 0", "admin")
	for number := 1; number < most; number++ {
		change.PutMembers = append(change.PutMembers, workspace.PutMember(fmt.Sprintf("member %d", number), "admin").PutMembers...)
	}
	changed := *change
	changed.AbsentRequestIDs = []string{"request"}
	s.refused(&changed, storage.ErrInvalidChange)
	s.do(workspace, change)
	all := ListMembers(s, s.store, "w", storage.MaxPage)
	s.do(workspace, workspace.DeleteMembers(all[1:]...))

	// New keys with as many request ids as fit.
	change = workspace.CreateKey(KeyID(100))
	for number := 101; len(change.PutKeys) < most/3; number++ {
		added := workspace.CreateKey(KeyID(number))
		change.PutKeys = append(change.PutKeys, added.PutKeys...)
		change.AbsentKeyIDs = append(change.AbsentKeyIDs, KeyID(number))
	}
	for number := range most - 3*len(change.PutKeys) {
		requestID := fmt.Sprintf("request %d", number)
		change.PutKeys[0].RequestIds = append(change.PutKeys[0].RequestIds, requestID)
		change.AbsentRequestIDs = append(change.AbsentRequestIDs, requestID)
	}
	changed = *change
	changed.AbsentKeyIDs = append(slices.Clone(changed.AbsentKeyIDs), KeyID(1000))
	s.refused(&changed, storage.ErrInvalidChange)
	s.do(workspace, change)
	// The event names one key only, so the others must be deleted before the check.
	for some := range slices.Chunk(change.PutKeys, 20) {
		s.do(workspace, workspace.DeleteKey(some...))
	}
}

func testBytes(s *suite) {
	workspace := s.begin("w")
	key := s.create(workspace, KeyID(1))
	sized := func(size int) *storage.Change {
		length := size - 4096
		for {
			change := workspace.UpdateKey(key, rename(strings.Repeat("x", length)))
			got := proto.Size(change.Event)
			for _, record := range change.PutKeys {
				got += proto.Size(record)
			}
			if got == size {
				return change
			}
			length += size - got
		}
	}
	s.refused(sized(storage.MaxChangeBytes+1), storage.ErrInvalidChange)
	s.do(workspace, sized(storage.MaxChangeBytes))
	// Deleted records count as well.
	big := s.getKey("w", KeyID(1))
	s.refused(workspace.DeleteKey(big, s.create(workspace, KeyID(2))), storage.ErrInvalidChange)
}

func testPolicyHead(s *suite) {
	workspace := s.begin("w")
	first := ApplyPolicy(storage.Head{}, "first")
	s.commit(first)
	s.create(workspace, KeyID(1))
	s.refused(ApplyPolicy(storage.Head{}, "again"), storage.ErrConflict)
	s.refused(ApplyPolicy(workspace.Head, "at a workspace's head"), storage.ErrConflict)
	second := ApplyPolicy(After(first), "second")
	s.commit(second)
	s.refused(ApplyPolicy(After(first), "stale"), storage.ErrConflict)
	s.create(workspace, KeyID(2))
	s.reopen()
	s.commit(ApplyPolicy(After(second), "third"))
	s.create(workspace, KeyID(3))
}

func testDeleteAndAddAgain(s *suite) {
	workspace := s.begin("w")
	s.do(workspace, workspace.PutMember("other", "manager"))
	other, _, err := s.store.GetMember(s.ctx, "w", "other")
	if err != nil {
		s.Fatalf("GetMember: %v", err)
	}
	s.do(workspace, workspace.DeleteMembers(other))
	if _, _, err := s.store.GetMember(s.ctx, "w", "other"); !errors.Is(err, storage.ErrNotFound) {
		s.Errorf("GetMember: %v, want ErrNotFound", err)
	}
	s.do(workspace, workspace.PutMember("other", "admin"))

	key := s.create(workspace, KeyID(1), "request")
	s.create(workspace, KeyID(2))
	s.do(workspace, workspace.RevokeKey(key))
	s.do(workspace, workspace.DeleteKey(s.getKey("w", KeyID(1))))
	if _, _, err := s.store.GetKey(s.ctx, "w", KeyID(1)); !errors.Is(err, storage.ErrNotFound) {
		s.Errorf("GetKey: %v, want ErrNotFound", err)
	}
	s.create(workspace, KeyID(1), "request")
	if keys := ListKeys(s, s.store, "w", 10); len(keys) != 2 || keys[0].GetKeyId() != KeyID(1) {
		s.Errorf("ListKeys: %v; the key that was added again is the newest", keys)
	}
	s.do(workspace, workspace.RemoveWorkspace())
}
