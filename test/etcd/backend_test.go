package etcd_test

import (
	"testing"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
)

// shakyBackend gives keystest a store of its own behind a shaky store's network.
type shakyBackend struct{ *shaky }

// Open implements keystest.Backend.
func (b shakyBackend) Open(t testing.TB) storage.Store {
	return open(t, etcdstore.Config{Members: b.clients(t), Prefix: b.prefix + "world/"})
}

// Check implements keystest.Backend.
func (b shakyBackend) Check(t testing.TB) { mustBeSound(t, b.prefix+"world/") }

func putMember(workspaceID, memberID string) *keysvcv1.PutMemberRequest {
	return &keysvcv1.PutMemberRequest{
		WorkspaceId: workspaceID, MemberId: memberID, Role: "member", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
	}
}
