package projection_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
	"github.com/scribe-mail/keysvc/internal/token"
)

func damaged(kind string) error {
	return &storage.DamagedError{Kind: kind, Name: "it", Problem: "checksum mismatch"}
}

// TestFindRefusesWhatDependsOnDamage has one damaged record of each kind. What does not depend
// on it is found.
func TestFindRefusesWhatDependsOnDamage(t *testing.T) {
	var (
		good       = storagetest.KeyID(1)
		bad        = storagetest.KeyID(2)
		ofBad      = storagetest.KeyID(3)
		inBad      = storagetest.KeyID(4)
		headless   = storagetest.KeyID(5)
		ofNobody   = storagetest.KeyID(6)
		inNowhere  = storagetest.KeyID(7)
		badInBad   = storagetest.KeyID(8)
		keyDamage  = damaged("key")
		headDamage = damaged("head")
	)
	p := loaded(t, &fake{load: holding(
		7, scribe(),
		workspaceItem("acme", "first"), workspaceItem("headless", "first"),
		storage.Item{Damaged: &storage.Damaged{WorkspaceID: "bad", Err: damaged("workspace")}},
		memberItem("acme", "ann"), memberItem("headless", "ann"), memberItem("bad", "ann"),
		storage.Item{Damaged: &storage.Damaged{WorkspaceID: "acme", MemberID: "bad", Err: damaged("member")}},
		storage.Item{Damaged: &storage.Damaged{WorkspaceID: "headless", Head: true, Err: headDamage}},
		storage.Item{Key: keyRecord("acme", "ann", good, 1)},
		storage.Item{Damaged: &storage.Damaged{WorkspaceID: "acme", KeyID: bad, Err: keyDamage}},
		storage.Item{Key: keyRecord("acme", "bad", ofBad, 3)},
		storage.Item{Key: keyRecord("acme", "nobody", ofNobody, 4)},
		storage.Item{Key: keyRecord("bad", "ann", inBad, 1)},
		storage.Item{Damaged: &storage.Damaged{WorkspaceID: "bad", KeyID: badInBad, Err: keyDamage}},
		storage.Item{Key: keyRecord("headless", "ann", headless, 1)},
		storage.Item{Key: keyRecord("nowhere", "ann", inNowhere, 1)},
	)})
	for _, test := range []struct {
		name, keyID            string
		damage                 string // the kind of the damaged record; empty for none
		key, member, workspace bool   // what is found
	}{
		{"good", good, "", true, true, true},
		{"unknown", storagetest.KeyID(99), "", false, false, false},
		{"empty id, as of a malformed token", "", "", false, false, false},
		{"damaged key", bad, "key", false, false, false},
		{"key of a damaged member", ofBad, "member", false, false, false},
		{"key in a damaged workspace", inBad, "workspace", false, false, false},
		{"damaged key in a damaged workspace", badInBad, "key", false, false, false},
		// The head limits what may change, not what is decided.
		{"key in a workspace with a damaged head", headless, "", true, true, true},
		{"key of a member that is not there", ofNobody, "", true, false, true},
		{"key in a workspace that is not there", inNowhere, "", true, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			found := p.Find(test.keyID)
			var damage *storage.DamagedError
			errors.As(found.Damaged, &damage)
			if kind := ""; damage != nil && damage.Kind != test.damage || damage == nil && test.damage != kind {
				t.Errorf("damaged: got %v, want %q", found.Damaged, test.damage)
			}
			if found.Damaged != nil && !errors.Is(found.Damaged, storage.ErrDamaged) {
				t.Errorf("%v is not ErrDamaged", found.Damaged)
			}
			subject := found.Subject()
			if (subject.Key != nil) != test.key || (subject.Member != nil) != test.member || (subject.Workspace != nil) != test.workspace {
				t.Errorf("found %+v", subject)
			}
			if (subject.RoleScopes != nil) != test.member {
				t.Errorf("scopes of the role: %q", subject.RoleScopes)
			}
			if found.Revision != 7 || found.Policy == nil {
				t.Errorf("revision %d, policy %v", found.Revision, found.Policy)
			}
		})
	}
	t.Run("Workspace", func(t *testing.T) {
		for id, want := range map[string]bool{"acme": false, "bad": true, "headless": true, "nowhere": false, "unknown": false} {
			if got := p.Workspace(id).Damaged; (got != nil) != want {
				t.Errorf("%s: got %v, want damaged: %t", id, got, want)
			}
		}
	})
	t.Run("Member", func(t *testing.T) {
		for id, want := range map[string]bool{"ann": false, "bad": true, "nobody": false} {
			if _, err := p.Member("acme", id); errors.Is(err, storage.ErrDamaged) != want {
				t.Errorf("%s: got %v, want damaged: %t", id, err, want)
			}
		}
	})
}

func TestFirstLoadRefusesADamagedPolicy(t *testing.T) {
	for name, item := range map[string]storage.Item{
		"checksum": {Damaged: &storage.Damaged{Err: damaged("policy")}},
		"document": {Policy: &storagev1.PolicyRecord{Document: []byte("roles: 7")}},
		"empty":    {Policy: &storagev1.PolicyRecord{}},
	} {
		t.Run(name, func(t *testing.T) {
			p := projection.New(&fake{load: holding(7, item)}, nil)
			if _, err := p.Load(t.Context()); !errors.Is(err, storage.ErrDamaged) {
				t.Errorf("got %v, want ErrDamaged", err)
			}
			if p.Revision() != 0 {
				t.Errorf("revision %d of what was not loaded", p.Revision())
			}
		})
	}
}

func TestMalformedKeyRecordsAreDamage(t *testing.T) {
	const keyID = "Key0000000000001"
	newest, older := newToken(t, keyID), newToken(t, keyID)
	year, week, day := begin.AddDate(1, 0, 0), begin.AddDate(0, 0, 7), begin.AddDate(0, 0, 1)
	hashOf := func(of token.Token) token.ShortHash {
		hash, err := of.Hash(token.SchemeVerifier)
		if err != nil {
			t.Fatal(err)
		}
		return hash.Short()
	}
	overlapping := func(ends, expires time.Time) *storagev1.SecretRecord {
		secret := secretOf(t, older, expires)
		secret.OverlapEndTime = timestamppb.New(ends)
		return secret
	}
	for _, test := range []struct {
		name    string
		edit    func(*storagev1.KeyRecord)
		damaged bool
		want    func(*decide.Key)
	}{
		{"one secret", func(*storagev1.KeyRecord) {}, false, func(*decide.Key) {}},
		{
			"overlap ends before the older secret expires",
			func(r *storagev1.KeyRecord) { r.Secrets = append(r.Secrets, overlapping(day, week)) }, false,
			func(k *decide.Key) { k.Secrets[1] = decide.Secret{Hash: hashOf(older), End: day.UnixNano()} },
		},
		{
			"older secret expires before its overlap ends",
			func(r *storagev1.KeyRecord) { r.Secrets = append(r.Secrets, overlapping(week, day)) }, false,
			func(k *decide.Key) { k.Secrets[1] = decide.Secret{Hash: hashOf(older), End: day.UnixNano()} },
		},
		{
			"scopes are sorted and each is there once",
			func(r *storagev1.KeyRecord) { r.Scopes = []string{"b:x", "a:x", "b:x"} }, false,
			func(k *decide.Key) { k.Scopes = decide.Scopes{"a:x", "b:x"} },
		},
		{
			"no scopes",
			func(r *storagev1.KeyRecord) { r.Scopes = nil }, false,
			func(k *decide.Key) { k.Scopes = nil },
		},
		{
			"address rules",
			func(r *storagev1.KeyRecord) { r.AllowedCidrs = []string{"192.0.2.0/24", "2001:db8::/32"} }, false,
			func(k *decide.Key) {
				k.AllowedPrefixes = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}
			},
		},
		{
			"revoked",
			func(r *storagev1.KeyRecord) { r.RevokeTime = timestamppb.New(day) }, false,
			func(k *decide.Key) { k.Revoked = true },
		},
		{
			"a scheme of a later version",
			func(r *storagev1.KeyRecord) { r.Secrets[0].Scheme = 200 }, false,
			func(k *decide.Key) { k.Secrets[0].Hash.Scheme = 200 },
		},
		{"malformed CIDR", func(r *storagev1.KeyRecord) { r.AllowedCidrs = []string{"192.0.2.0/24", "here"} }, true, nil},
		{"an address that is no CIDR", func(r *storagev1.KeyRecord) { r.AllowedCidrs = []string{"192.0.2.1"} }, true, nil},
		{"no secret", func(r *storagev1.KeyRecord) { r.Secrets = nil }, true, nil},
		{"three secrets", func(r *storagev1.KeyRecord) {
			r.Secrets = append(r.Secrets, overlapping(day, week), overlapping(day, week))
		}, true, nil},
		{"short hash", func(r *storagev1.KeyRecord) { r.Secrets[0].Hash = r.Secrets[0].Hash[:31] }, true, nil},
		{"no hash", func(r *storagev1.KeyRecord) { r.Secrets[0].Hash = nil }, true, nil},
		// As a byte, 257 would be 1.
		{"a scheme that is no byte", func(r *storagev1.KeyRecord) { r.Secrets[0].Scheme = 257 }, true, nil},
		{"no expiry", func(r *storagev1.KeyRecord) { r.Secrets[0].ExpireTime = nil }, true, nil},
		{"older secret without expiry", func(r *storagev1.KeyRecord) {
			r.Secrets = append(r.Secrets, overlapping(day, week))
			r.Secrets[1].ExpireTime = nil
		}, true, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			record := keyRecord("acme", "ann", keyID, 1)
			record.Secrets = []*storagev1.SecretRecord{secretOf(t, newest, year)}
			test.edit(record)
			p := loaded(t, &fake{load: holding(7, scribe(), workspaceItem("acme", "first"), memberItem("acme", "ann"), storage.Item{Key: record})})
			found := p.Find(keyID)
			if test.damaged {
				if !errors.Is(found.Damaged, storage.ErrDamaged) || found.Exists {
					t.Errorf("got %v, %+v; want it damaged", found.Damaged, found.Subject().Key)
				}
				return
			}
			want := &decide.Key{
				ID: keyID, Workspace: "acme", Member: "ann", WorkspaceIncarnation: "first", MemberIncarnation: "first",
				Scopes: decide.Scopes{"emails:read", "signatures:read"}, ExpireTime: year.UnixNano(),
				Secrets: [2]decide.Secret{{Hash: hashOf(newest), End: year.UnixNano()}},
			}
			test.want(want)
			if found.Damaged != nil || !reflect.DeepEqual(found.Subject().Key, want) {
				t.Errorf("got %v, %+v; want %+v", found.Damaged, found.Subject().Key, want)
			}
		})
	}
}

func TestUnknownMemberStateDenies(t *testing.T) {
	for _, test := range []struct {
		state           storagev1.MemberRecordState
		active, removed bool
	}{
		{storagev1.MemberRecordState_MEMBER_RECORD_STATE_UNSPECIFIED, false, false},
		{storagev1.MemberRecordState_MEMBER_RECORD_STATE_ACTIVE, true, false},
		{storagev1.MemberRecordState_MEMBER_RECORD_STATE_SUSPENDED, false, false},
		{storagev1.MemberRecordState_MEMBER_RECORD_STATE_REMOVED, false, true},
		{77, false, false},
	} {
		t.Run(fmt.Sprint(test.state), func(t *testing.T) {
			item := memberItem("acme", "ann")
			item.Member.State = test.state
			keyID := storagetest.KeyID(1)
			p := loaded(t, &fake{load: holding(
				7, scribe(), workspaceItem("acme", "first"), item, storage.Item{Key: keyRecord("acme", "ann", keyID, 1)},
			)})
			if got := subjectOf(p, keyID).Member; got.Active != test.active || got.Removed != test.removed {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestRolesAreLookedUpInTheActivePolicy(t *testing.T) {
	store := openStore(t)
	var head storage.Head
	applyPolicy(t, store, &head, nil)
	acme := storagetest.NewWorkspace("acme")
	commit(t, store, acme, acme.PutMember("member", "manager"))
	keyID := storagetest.KeyID(1)
	commit(t, store, acme, acme.CreateKey(keyID))
	p := loaded(t, store)
	follow(t, p)
	if got := *subjectOf(p, keyID).RoleScopes; got.Contains("financial_documents:read") || !got.Contains("emails:read") {
		t.Errorf("manager: got %q", got)
	}
	waitFor(t, p, commit(t, store, acme, acme.PutMember("member", "wizard")))
	if got := subjectOf(p, keyID).RoleScopes; got != nil {
		t.Errorf("a role that the policy does not have: got %q", got)
	}
	waitFor(t, p, applyPolicy(t, store, &head, func(wanted *policy.Policy) {
		wanted.Roles = append(wanted.Roles, policy.Role{Name: "wizard", Scopes: []string{"emails:*"}})
	}))
	found := p.Find(keyID)
	if got := *found.Subject().RoleScopes; !reflect.DeepEqual(got, decide.Scopes{"emails:delete", "emails:read", "emails:write"}) {
		t.Errorf("once the policy has it: got %q", got)
	}
	if !reflect.DeepEqual(found.Policy.Role("wizard"), *found.Subject().RoleScopes) || found.Policy.Role("nobody") != nil {
		t.Error("Policy.Role says something else")
	}
	if current, revision, err := p.Policy(); err != nil || current != found.Policy || revision != found.Revision {
		t.Error("Policy says something else")
	}
}

func TestEmptyStoreKnowsNothing(t *testing.T) {
	p := loaded(t, openStore(t))
	found := p.Find(storagetest.KeyID(1))
	if found.Policy != nil || found.Damaged != nil || !found.Last.IsZero() || found.Revision != 0 || !reflect.DeepEqual(found.Subject(), decide.Subject{}) {
		t.Errorf("got %+v", found)
	}
	if got := p.Workspace("acme"); got.Head != (storage.Head{}) || got.Current != nil || got.Damaged != nil || got.Has(nil) {
		t.Errorf("got %+v", got)
	}
	if got, err := p.Member("acme", "ann"); got != nil || err != nil {
		t.Errorf("got %+v, %v", got, err)
	}
	if got := p.LiveKeys("acme", begin, 10); got != 0 {
		t.Errorf("got %d live keys", got)
	}
	if got := p.Dead("acme", begin, 10); got.KeyIDs != nil || got.MemberIDs != nil {
		t.Errorf("got %+v", got)
	}
	if narrowed, widened := p.Effect(t.Context(), nil, begin); narrowed != 0 || widened != 0 {
		t.Errorf("got %d, %d", narrowed, widened)
	}
	if got := p.LastUsed(storagetest.KeyID(1)); !got.IsZero() {
		t.Errorf("got %s", got)
	}
}

// TestDamagedBytesDenyWhatDependsOnThem damages the last byte of a record of each kind in a real
// file. Everything that does not depend on the record can be decided.
func TestDamagedBytesDenyWhatDependsOnThem(t *testing.T) {
	for _, test := range []struct {
		bucket  string
		damages bool // whether the key is damaged
	}{
		{"keys", true}, {"members", true}, {"workspaces", true}, {"heads", false},
	} {
		t.Run(test.bucket, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "keysvc.db")
			store, err := boltstore.Open(path, boltstore.Config{Create: boltstore.CreateIfAbsent, Reserve: -1})
			if err != nil {
				t.Fatal(err)
			}
			var head storage.Head
			applyPolicy(t, store, &head, nil)
			for index, id := range []string{"bad", "good"} {
				workspace := storagetest.NewWorkspace(id)
				commit(t, store, workspace, workspace.PutMember("member", "admin"))
				commit(t, store, workspace, workspace.CreateKey(storagetest.KeyID(index)))
			}
			if err := store.Close(); err != nil {
				t.Fatal(err)
			}
			flipLastByte(t, path, test.bucket, "bad")
			store, err = boltstore.Open(path, boltstore.Config{Create: boltstore.CreateIfAbsent, Reserve: -1})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := store.Close(); err != nil {
					t.Error(err)
				}
			}()
			p := loaded(t, store)
			if got := p.Find(storagetest.KeyID(0)).Damaged; errors.Is(got, storage.ErrDamaged) != test.damages {
				t.Errorf("got %v, want damaged: %t", got, test.damages)
			}
			if test.bucket != "keys" && test.bucket != "members" && p.Workspace("bad").Damaged == nil {
				t.Error("the workspace may be changed")
			}
			if found := p.Find(storagetest.KeyID(1)); found.Damaged != nil || found.Subject().Member == nil || p.Workspace("good").Damaged != nil {
				t.Errorf("the other workspace: got %+v", found)
			}
		})
	}
}

// flipLastByte damages the records of a workspace in one bucket.
func flipLastByte(t *testing.T, path, bucket, workspaceID string) {
	t.Helper()
	database, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	flipped := 0
	err = database.Update(func(tx *bolt.Tx) error {
		cursor := tx.Bucket([]byte(bucket)).Cursor()
		for name, value := cursor.First(); name != nil; name, value = cursor.Next() {
			if !bytes.Contains(name, []byte(workspaceID)) {
				continue
			}
			changed := append([]byte(nil), value...)
			changed[len(changed)-1] ^= 1
			if err := tx.Bucket([]byte(bucket)).Put(append([]byte(nil), name...), changed); err != nil {
				return err
			}
			flipped++
		}
		return nil
	})
	if err := errors.Join(err, database.Close()); err != nil {
		t.Fatal(err)
	}
	if flipped != 1 {
		t.Fatalf("%d records were damaged", flipped)
	}
}
