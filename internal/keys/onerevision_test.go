package keys_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/token"
)

// meanwhile is a store that calls functions: reading once, before it reads a key; happens once, between a read and its answer; and
// committed after each commit.
type meanwhile struct {
	storage.Store

	reading, happens, committed func()
}

func (m *meanwhile) happen() {
	if happens := m.happens; happens != nil {
		m.happens = nil
		happens()
	}
}

// GetKey implements storage.Store.
func (m *meanwhile) GetKey(ctx context.Context, workspaceID, keyID string) (*storagev1.KeyRecord, int64, error) {
	if reading := m.reading; reading != nil {
		m.reading = nil
		reading()
	}
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

// Commit implements storage.Store.
func (m *meanwhile) Commit(ctx context.Context, change *storage.Change) (int64, error) {
	if m.committed != nil {
		defer m.committed()
	}
	return m.Store.Commit(ctx, change)
}

// TestRefusalsRestOnOneState: while a key is being created, the policy gives the scope to
// another role, and then the member gets that role. The member has the scope at every moment:
// only the old policy together with the new role would refuse it.
func TestRefusalsRestOnOneState(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	ctx := t.Context()
	w.Put("acme", "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	store := &meanwhile{Store: w.Store, happens: func() {
		current, err := w.GetPolicy(ctx, access.All(), &keysvcv1.GetPolicyRequest{})
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
	_, err := manager.CreateKey(ctx, keystest.Actor, keys.KeySpec{
		WorkspaceID: "acme", MemberID: "ann", Name: "a key", Scopes: []string{"signatures:read"}, RequestID: new("one"),
	})
	if err != nil {
		t.Errorf("refused for what was never so: %v", err)
	}
	if store.happens != nil {
		t.Error("nothing happened meanwhile")
	}
}

// TestReadsAreOfOneRevision: while a key is being read, the key is renamed, and then its member
// is suspended. The key never had the old name together with the new state.
func TestReadsAreOfOneRevision(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	ctx := t.Context()
	reads := map[string]func(manager *keys.Manager, keyID string) (*keys.Key, error){
		"GetKey": func(manager *keys.Manager, keyID string) (*keys.Key, error) {
			got, _, err := manager.GetKey(ctx, access.All(), "", keyID)
			return got, err
		},
		"ListKeys": func(manager *keys.Manager, _ string) (*keys.Key, error) {
			got, err := manager.ListKeys(ctx, access.All(), keys.KeyQuery{WorkspaceID: "ListKeys"})
			if err != nil {
				return nil, err
			}
			if len(got.Keys) != 1 {
				return nil, fmt.Errorf("%d keys", len(got.Keys))
			}
			return got.Keys[0], nil
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
			if key.Name == "a key" && key.State == keys.KeySuspended {
				t.Errorf("%q is suspended: when it was suspended it had another name", key.Name)
			}
		})
	}
}

// TestChangesAreShownAsOfTheirRevision: after a key was changed and before the caller is answered, the key's member is suspended. The
// answer is of the revision of the change, so the key is active in it.
func TestChangesAreShownAsOfTheirRevision(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	ctx := t.Context()
	issued := func(key *keys.IssuedKey, err error) (*keys.Key, keys.Position, error) {
		if err != nil {
			return nil, keys.Position{}, err
		}
		return key.Key, key.Position, nil
	}
	changes := map[string]func(manager *keys.Manager, keyID string) (*keys.Key, keys.Position, error){
		"CreateKey": func(manager *keys.Manager, _ string) (*keys.Key, keys.Position, error) {
			return issued(manager.CreateKey(ctx, keystest.Actor, keys.KeySpec{
				WorkspaceID: "CreateKey", MemberID: "ann", Name: "another", Scopes: []string{"signatures:read"},
			}))
		},
		"RotateKey": func(manager *keys.Manager, keyID string) (*keys.Key, keys.Position, error) {
			return issued(manager.RotateKey(ctx, keystest.Actor, keys.Rotation{WorkspaceID: "RotateKey", KeyID: keyID, Overlap: new(time.Hour)}))
		},
		"FinishRotation": func(manager *keys.Manager, keyID string) (*keys.Key, keys.Position, error) {
			_, err := w.RotateKey(ctx, keystest.Actor, &keysvcv1.RotateKeyRequest{
				WorkspaceId: "FinishRotation", KeyId: keyID, Overlap: durationpb.New(time.Hour),
			})
			if err != nil {
				return nil, keys.Position{}, err
			}
			return manager.FinishRotation(ctx, keystest.Actor, "FinishRotation", keyID)
		},
		"UpdateKey": func(manager *keys.Manager, keyID string) (*keys.Key, keys.Position, error) {
			return manager.UpdateKey(ctx, keystest.Actor, keys.KeyUpdate{
				WorkspaceID: "UpdateKey", KeyID: keyID, Name: "renamed", Mask: []string{"name"},
			})
		},
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			w.Put(name, "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
			keyID := w.Create(name, "ann", "signatures:read").GetKey().GetKeyId()
			var suspended int64
			store := &meanwhile{Store: w.Store}
			manager := keys.New(keys.Config{Store: store, Projection: w.Projection, Now: w.Clock.Now})
			store.committed = func() {
				w.Put(name, "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_SUSPENDED)
				suspended = w.Projection.Revision()
			}
			key, position, err := change(manager, keyID)
			if err != nil {
				t.Fatal(err)
			}
			if position.Revision >= suspended || key.State != keys.KeyActive || key.StopReason != keys.StopUnspecified {
				t.Errorf("at revision %d, state %d and reason %d; the member was suspended at %d", position.Revision, key.State, key.StopReason, suspended)
			}
		})
	}
}

// TestPutMemberIsShownAsOfItsRevision: after a member was put and before the caller is answered, the workspace is removed.
func TestPutMemberIsShownAsOfItsRevision(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	ctx := t.Context()
	store := &meanwhile{Store: w.Store, committed: func() {
		if _, err := w.RemoveWorkspace(ctx, keystest.Actor, &keysvcv1.RemoveWorkspaceRequest{WorkspaceId: "acme"}); err != nil {
			t.Error(err)
		}
	}}
	manager := keys.New(keys.Config{Store: store, Projection: w.Projection, Now: w.Clock.Now})
	member, position, err := manager.PutMember(ctx, keystest.Actor, keys.MemberSpec{
		WorkspaceID: "acme", MemberID: "ann", Role: "manager", State: keys.MemberActive,
	})
	if err != nil {
		t.Fatal(err)
	}
	if member.State != keys.MemberActive || position.Revision >= w.Projection.Revision() {
		t.Errorf("at revision %d of %d, state %d", position.Revision, w.Projection.Revision(), member.State)
	}
}

// TestKeyThatIsNewerThanTheViewIsChanged: a key is created, by another process say, after an attempt has taken its view of the workspace
// and before it reads the key. The key is then younger than the event that the attempt would make. The change is tried again with a newer view.
func TestKeyThatIsNewerThanTheViewIsChanged(t *testing.T) {
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	ctx := t.Context()
	w.Put("acme", "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
	var nonce [token.NonceLength]byte
	digest := bytes.Repeat([]byte{7}, token.DigestLength)
	store := &meanwhile{Store: w.Store, reading: func() {
		w.Put("acme", "bob", "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
		_, err := w.CreateKey(ctx, keystest.Actor, &keysvcv1.CreateKeyRequest{
			WorkspaceId: "acme", MemberId: "ann", Name: "a key", Scopes: []string{"signatures:read"},
			TokenDigest: digest, KeyIdNonce: nonce[:],
		})
		if err != nil {
			t.Fatal(err)
		}
	}}
	manager := keys.New(keys.Config{Store: store, Projection: w.Projection, Now: w.Clock.Now})
	if _, err := manager.RotateKey(ctx, keystest.Actor, keys.Rotation{
		WorkspaceID: "acme", KeyID: token.KeyID("acme", nonce), Overlap: new(time.Hour),
	}); err != nil {
		t.Errorf("RotateKey: %v", err)
	}
}
