package etcd_test

import (
	"errors"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
)

// hastyBackend is shakyBackend with a store that gives up soon.
type hastyBackend struct{ *shaky }

// Open implements keystest.Backend.
func (b hastyBackend) Open(t testing.TB) storage.Store {
	t.Helper()
	return open(t, etcdstore.Config{Members: b.clients(t), Prefix: b.prefix + "world/", Timeout: shortTimeout})
}

// Check implements keystest.Backend.
func (b hastyBackend) Check(t testing.TB) { mustBeSound(t, b.prefix+"world/") }

func put(memberID, role string) *keysvcv1.PutMemberRequest {
	request := putMember("acme", memberID)
	request.Role = role
	return request
}

// TestNothingToChangeExcludesLostTransactions has two processes. The first loses a transaction that makes a
// member an owner, and is dead from then on. The second is asked to make the member a plain member, which the
// member is. When it has answered that there is nothing to change, the lost transaction arrives: the member
// must stay a plain member (R5 of docs/replication.md).
func TestNothingToChangeExcludesLostTransactions(t *testing.T) {
	for name, test := range map[string]struct {
		call func(w *keystest.World) error
		// excludes is set if the call claims something about what comes later.
		excludes bool
	}{
		"nothing to change": {func(w *keystest.World) error {
			_, err := w.PutMember(t.Context(), keystest.Actor, put("ann", "member"))
			return err
		}, true},
		"a change": {func(w *keystest.World) error {
			_, err := w.PutMember(t.Context(), keystest.Actor, put("bob", "member"))
			return err
		}, true},
		"a read": {func(w *keystest.World) error {
			_, err := w.GetMember(t.Context(), keystest.Actor.Workspaces, &keysvcv1.GetMemberRequest{WorkspaceId: "acme", MemberId: "ann"})
			return err
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShaky(t, shortTimeout)
			second := keystest.NewWorld(t, backend{s.prefix + "world/"}, nil)
			second.Put("acme", "ann", "member", 1)
			first := keystest.NewWorld(t, hastyBackend{s}, nil)
			// The first transaction is held back. Everything after it is lost, so the process cannot
			// raise the fence itself.
			var late *sent
			var once sync.Once
			s.set(func(sent *sent) (*clientv3.TxnResponse, error) {
				once.Do(func() { late = sent })
				return lose()
			})
			if _, err := first.PutMember(t.Context(), keystest.Actor, put("ann", "owner")); !errors.Is(err, storage.ErrOutcomeUnknown) {
				t.Fatalf("PutMember through the first process: %v, want ErrOutcomeUnknown", err)
			}
			if err := test.call(second); err != nil {
				t.Fatalf("through the second process: %v", err)
			}
			response, err := late.deliver()
			if err != nil || response.Succeeded == test.excludes {
				t.Errorf("the late transaction: %+v, %v", response, err)
			}
			s.set(nil)
		})
	}
}
