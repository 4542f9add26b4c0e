package storagetest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/race"
	"github.com/scribe-mail/keysvc/internal/storage"
)

var modelTests = []test{
	{"RandomChangesMatchTheModel", testRandom},
}

// Settings of the random test, for longer campaigns and to repeat a failure:
//
//	KEYSVC_STORAGE_OPERATIONS=100000 KEYSVC_STORAGE_SEED=7 go test -timeout 1h -run /Model/ …
const (
	operationsVariable = "KEYSVC_STORAGE_OPERATIONS"
	seedVariable       = "KEYSVC_STORAGE_SEED"
)

// setting returns a number from the environment.
func (s *suite) setting(name string, otherwise int) int {
	s.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	number, err := strconv.Atoi(text)
	if err != nil {
		s.Fatalf("%s: %v", name, err)
	}
	return number
}

// testRandom makes random valid and invalid changes, reopens the store now and then, and
// compares it with the model.
func testRandom(s *suite) {
	operations := s.setting(operationsVariable, race.Rounds(600, 200))
	seed := s.setting(seedVariable, 1)
	s.Logf("%s=%d %s=%d", operationsVariable, operations, seedVariable, seed)
	s.ctx = live(s.T)
	r := &randomizer{
		suite:  s,
		random: rand.New(rand.NewPCG(uint64(seed), 0)),
	}
	for index := range 5 {
		r.workspaces = append(r.workspaces, NewWorkspace(fmt.Sprintf("w%d", index)))
	}
	for number := range operations {
		r.step(number)
		if s.Failed() {
			s.Fatalf("after operation %d", number)
		}
		if number%200 == 199 {
			s.model.Compare(s, s.store)
		}
		if number%150 == 149 {
			s.reopen()
		}
	}
}

// randomizer makes random changes.
type randomizer struct {
	*suite

	random     *rand.Rand
	workspaces []*Workspace
	policy     storage.Head
	keys       int
}

// step makes one random change.
func (r *randomizer) step(number int) {
	r.Helper()
	workspace := r.workspaces[r.random.IntN(len(r.workspaces))]
	if workspace.Head.Sequence == 0 {
		r.do(workspace, workspace.PutMember("member", "admin"))
		return
	}
	key := r.anyKey(workspace)
	switch choice := r.random.IntN(100); {
	case choice < 35 || key == nil:
		r.createKey(workspace)
	case choice < 55:
		change := workspace.UpdateKey(key, func(key *storagev1.KeyRecord) {
			key.Name = strings.Repeat("n", r.random.IntN(2000))
			if r.random.IntN(4) == 0 {
				key.RequestIds = nil
			}
		})
		r.do(workspace, change)
	case choice < 60:
		if key.GetRevokeTime() == nil {
			r.do(workspace, workspace.RevokeKey(key))
		}
	case choice < 72:
		deleted := []*storagev1.KeyRecord{key}
		if other := r.anyKey(workspace); other.GetKeyId() != key.GetKeyId() {
			deleted = append(deleted, other)
		}
		r.do(workspace, workspace.DeleteKey(deleted...))
	case choice < 82:
		r.do(workspace, workspace.PutMember(fmt.Sprintf("member %d", r.random.IntN(8)), fmt.Sprintf("role %d", number)))
	case choice < 85:
		member := fmt.Sprintf("member %d", r.random.IntN(8))
		if record := r.model.workspaces[workspace.ID].members[member]; record != nil {
			r.do(workspace, workspace.DeleteMembers(record))
		}
	case choice < 88:
		change := ApplyPolicy(r.policy, fmt.Sprintf("policy %d", number))
		r.commit(change)
		r.policy = After(change)
	case choice < 92:
		stale := *workspace
		stale.Head.Hash[r.random.IntN(32)] ^= 1
		r.refused(stale.UpdateKey(key, rename("stale")), storage.ErrConflict)
	case choice < 96:
		other := r.workspaces[r.random.IntN(len(r.workspaces))]
		if other.Head.Sequence > 0 {
			r.exists(other.CreateKey(key.GetKeyId()), storage.ExistsError{KeyID: key.GetKeyId()})
		}
	default:
		change := workspace.UpdateKey(key, rename("invalid"))
		change.Event.Sequence++
		r.refused(change, storage.ErrInvalidChange)
	}
}

// createKey adds a key with one of a few request ids, which may have been used.
func (r *randomizer) createKey(workspace *Workspace) {
	r.Helper()
	r.keys++
	requestID := fmt.Sprintf("request %d", r.random.IntN(20))
	change := workspace.CreateKey(KeyID(r.keys), requestID)
	for _, key := range r.model.workspaces[workspace.ID].keys {
		for _, used := range key.GetRequestIds() {
			if used == requestID {
				r.exists(change, storage.ExistsError{RequestID: requestID, KeyID: key.GetKeyId()})
				return
			}
		}
	}
	r.do(workspace, change)
}

// anyKey returns a random key of a workspace, nil if the workspace has no key.
func (r *randomizer) anyKey(workspace *Workspace) *storagev1.KeyRecord {
	keys := newestFirst(r.model.workspaces[workspace.ID].keys)
	if len(keys) == 0 {
		return nil
	}
	return keys[r.random.IntN(len(keys))]
}
