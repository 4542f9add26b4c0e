package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// small is an etcd with a small quota, with a store in it.
type small struct {
	t         *testing.T
	client    *clientv3.Client
	store     *etcdstore.Store
	workspace *storagetest.Workspace
	keys      int
}

const smallQuota = 64 << 20

func newSmall(t *testing.T) *small {
	t.Helper()
	folder, err := os.MkdirTemp("", "keysvc-etcd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	server, err := startServer(folder, smallQuota)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.stop)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{server.endpoint()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	// A commit that gave up on a busy machine would raise the fence, and be a conflict here.
	config := etcdstore.Config{Members: []*clientv3.Client{client}, Timeout: 2 * patience, Attempt: patience}
	s := &small{t: t, client: client, store: open(t, config), workspace: storagetest.NewWorkspace("w")}
	if err := s.commit(s.workspace.PutMember("m", "admin")); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *small) commit(change *storage.Change) error {
	_, err := s.store.Commit(s.t.Context(), change)
	if err == nil {
		s.workspace.Follow(change)
	}
	return err
}

// widen tries to create a key.
func (s *small) widen() error {
	s.keys++
	return s.commit(s.workspace.CreateKey(storagetest.KeyID(s.keys)))
}

// narrow tries to rename a member in a change that counts as narrowing.
func (s *small) narrow() error {
	change := s.workspace.PutMember("m", "member")
	change.Narrows = true
	return s.commit(change)
}

// until calls try until done holds for its error. It fails the test after a time that is much longer than
// it takes the store to notice anything.
func (s *small) until(what string, try func() error, done func(error) bool) {
	s.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := try()
		if done(err) {
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("%s: %v", what, err)
		}
	}
}

func isNil(err error) bool  { return err == nil }
func isFull(err error) bool { return errors.Is(err, storage.ErrFull) }

// fill writes another tenant's values until the database has a share of the quota, in percent.
func (s *small) fill(percent int64) {
	s.t.Helper()
	for number := 0; ; number++ {
		status, err := s.client.Status(s.t.Context(), s.client.Endpoints()[0])
		if err != nil {
			s.t.Fatal(err)
		}
		if status.DbSize*100 >= smallQuota*percent {
			return
		}
		_, err = s.client.Put(s.t.Context(), fmt.Sprint("/other/", percent, "/", number), strings.Repeat("x", 100<<10))
		if errors.Is(err, rpctypes.ErrNoSpace) {
			return
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

// TestNarrowingChangesKeepRoom: above nine tenths of the quota only narrowing changes are made, past it
// none, and once there is room again all are.
func TestNarrowingChangesKeepRoom(t *testing.T) {
	sequential(t)
	t.Parallel()
	s := newSmall(t)
	if err := s.widen(); err != nil {
		t.Fatal(err)
	}
	use := storage.Usage{KeyID: storagetest.KeyID(1), Time: time.Now()}
	// 1. Nine tenths.
	s.fill(91)
	s.until("a widening change with 91 % of the quota used", s.widen, isFull)
	for range 20 {
		if err := s.narrow(); err != nil {
			t.Fatalf("a narrowing change with 91 %% of the quota used: %v", err)
		}
	}
	if err := s.store.PutUsage(t.Context(), []storage.Usage{use}); !isFull(err) {
		t.Errorf("PutUsage: %v, want ErrFull", err)
	}
	if status := s.store.Status(t.Context()); !status.Full || status.Exhausted || status.Down || len(status.Members) != 1 ||
		status.Members[0].QuotaBytes != smallQuota || status.Members[0].DatabaseBytes < smallQuota/10*9 || !status.Members[0].Leads {
		t.Errorf("Status: %+v", status)
	}
	// 2. All of it. etcd refuses everything.
	s.fill(101)
	s.until("a narrowing change with no room left", s.narrow, isFull)
	s.until("the status", func() error {
		return given(!s.store.Status(t.Context()).Exhausted, "not exhausted")
	}, isNil)
	if err := s.store.PutSinkPosition(t.Context(), storage.Barrier{Revision: 1}); !isFull(err) {
		t.Errorf("PutSinkPosition with no room left: %v, want ErrFull", err)
	}
	if _, _, err := s.store.GetKey(t.Context(), "w", storagetest.KeyID(1)); err != nil {
		t.Errorf("GetKey with no room left: %v", err)
	}
	// 3. A person makes room.
	ctx := context.WithoutCancel(t.Context())
	removed, err := s.client.Delete(ctx, "/other/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Compact(ctx, removed.Header.GetRevision(), clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Defragment(ctx, s.client.Endpoints()[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err != nil {
		t.Fatal(err)
	}
	s.until("a widening change after a defragmentation", s.widen, isNil)
	if err := s.store.PutUsage(t.Context(), []storage.Usage{use}); err != nil {
		t.Errorf("PutUsage after a defragmentation: %v", err)
	}
	if status := s.store.Status(t.Context()); status.Full || status.Exhausted {
		t.Errorf("Status after a defragmentation: %+v", status)
	}
}

func given(holds bool, text string) error {
	if holds {
		return errors.New(text)
	}
	return nil
}
