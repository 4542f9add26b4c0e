package keys_test

import (
	"context"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// meanwhile is a store that lets something happen between a read and its answer, once.
type meanwhile struct {
	storage.Store

	happens func()
}

func (m *meanwhile) happen() {
	if happens := m.happens; happens != nil {
		m.happens = nil
		happens()
	}
}

// GetKey implements storage.Store.
func (m *meanwhile) GetKey(ctx context.Context, workspaceID, keyID string) (*storagev1.KeyRecord, int64, error) {
	defer m.happen()
	return m.Store.GetKey(ctx, workspaceID, keyID)
}

// ListKeys implements storage.Store.
func (m *meanwhile) ListKeys(ctx context.Context, query storage.Query) (storage.KeyPage, error) {
	defer m.happen()
	return m.Store.ListKeys(ctx, query)
}

// FindRequest implements storage.Store.
func (m *meanwhile) FindRequest(ctx context.Context, workspaceID, requestID string) (string, int64, error) {
	defer m.happen()
	return m.Store.FindRequest(ctx, workspaceID, requestID)
}

// TestRefusalsRestOnOneState: while a key is being created, the policy gives the scope to
// another role, and then the member gets that role. At every moment the member has the
// scope; only the old policy with the new role would refuse it.
func TestRefusalsRestOnOneState(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	ctx := t.Context()
	w.Put("acme", "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	store := &meanwhile{Store: w.Store, happens: func() {
		current, err := w.GetPolicy(ctx, &keysvcv1.GetPolicyRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, role := range current.GetPolicy().GetRoles() {
			if role.GetName() == "member" {
				role.Scopes = append(role.GetScopes(), "signatures:read")
			}
		}
		_, err = w.ApplyPolicy(ctx, keystest.Actor, &keysvcv1.ApplyPolicyRequest{
			Policy: current.GetPolicy(), ReplacesDigest: current.GetDigest(),
		})
		if err != nil {
			t.Fatal(err)
		}
		w.Put("acme", "ann", "member", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	}}
	manager := keys.New(keys.Config{Store: store, Projection: w.Projection, Now: w.Clock.Now})
	_, err := manager.CreateKey(ctx, keystest.Actor, &keysvcv1.CreateKeyRequest{
		WorkspaceId: "acme", MemberId: "ann", Name: "a key", Scopes: []string{"signatures:read"}, RequestId: proto.String("request"),
	})
	if err != nil {
		t.Errorf("refused for what was never so: %v", err)
	}
	if store.happens != nil {
		t.Error("nothing happened meanwhile")
	}
}

// TestReadsAreOfOneRevision: a key is renamed and then its member suspended while it is
// being read. The old name with the new state was never there.
func TestReadsAreOfOneRevision(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	ctx := t.Context()
	reads := map[string]func(manager *keys.Manager, keyID string) (*keysvcv1.Key, error){
		"GetKey": func(manager *keys.Manager, keyID string) (*keysvcv1.Key, error) {
			got, err := manager.GetKey(ctx, &keysvcv1.GetKeyRequest{KeyId: keyID})
			return got.GetKey(), err
		},
		"ListKeys": func(manager *keys.Manager, _ string) (*keysvcv1.Key, error) {
			got, err := manager.ListKeys(ctx, &keysvcv1.ListKeysRequest{WorkspaceId: "ListKeys"})
			if err != nil || len(got.GetKeys()) != 1 {
				return nil, err
			}
			return got.GetKeys()[0], nil
		},
	}
	for name, read := range reads {
		t.Run(name, func(t *testing.T) {
			w.Put(name, "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
			keyID := w.Create(name, "ann", "signatures:read").GetKey().GetKeyId()
			store := &meanwhile{Store: w.Store, happens: func() {
				_, err := w.UpdateKey(ctx, keystest.Actor, &keysvcv1.UpdateKeyRequest{
					Key:        &keysvcv1.Key{WorkspaceId: name, KeyId: keyID, Name: "renamed"},
					UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name"}},
				})
				if err != nil {
					t.Error(err)
				}
				w.Put(name, "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_SUSPENDED)
			}}
			manager := keys.New(keys.Config{Store: store, Projection: w.Projection, Now: w.Clock.Now})
			key, err := read(manager, keyID)
			if err != nil {
				t.Fatal(err)
			}
			if key.GetName() == "a key" && key.GetState() == keysvcv1.KeyState_KEY_STATE_SUSPENDED {
				t.Errorf("%q is %s: when it was suspended it had another name", key.GetName(), key.GetState())
			}
		})
	}
}
