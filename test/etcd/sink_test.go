package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
	"github.com/scribe-mail/keysvc/internal/storage/sink"
	"github.com/scribe-mail/keysvc/internal/storage/sinkwriter"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// sunk is a store with an audit sink.
type sunk struct {
	t         *testing.T
	prefix    string
	store     *etcdstore.Store
	workspace *storagetest.Workspace
	keys      int
}

func newSunk(t *testing.T) *sunk {
	t.Helper()
	s := &sunk{t: t, prefix: newPrefix(), workspace: storagetest.NewWorkspace("w")}
	s.store = s.open()
	s.commit(s.workspace.PutMember("m", "admin"))
	return s
}

func (s *sunk) open() *etcdstore.Store {
	return open(s.t, etcdstore.Config{Members: []*clientv3.Client{newClient(s.t)}, Prefix: s.prefix})
}

func (s *sunk) commit(change *storage.Change) int64 {
	s.t.Helper()
	return mustFollow(s.t, s.store, s.workspace, change)
}

// create creates keys, and returns the revision of the last.
func (s *sunk) create(count int) (revision int64) {
	for range count {
		s.keys++
		revision = s.commit(s.workspace.CreateKey(storagetest.KeyID(s.keys)))
	}
	return revision
}

// run runs a writer until stop is called.
func (s *sunk) run(path string) (writer *sinkwriter.Writer, stop func()) {
	s.t.Helper()
	return s.runOver(s.open(), path)
}

// runOver is run with a store.
func (s *sunk) runOver(store sinkwriter.Store, path string) (writer *sinkwriter.Writer, stop func()) {
	s.t.Helper()
	writer, err := sinkwriter.New(sinkwriter.Config{Store: store, Path: path})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.t.Context())
	var running sync.WaitGroup
	running.Go(func() { writer.Run(ctx) })
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	s.t.Cleanup(stop)
	return writer, stop
}

// has waits until a writer has a revision durably.
func (s *sunk) has(writer *sinkwriter.Writer, revision int64) {
	s.t.Helper()
	reaches(s.t, writer, revision)
}

// reaches waits until a writer has a revision durably.
func reaches(t *testing.T, writer *sinkwriter.Writer, revision int64) {
	t.Helper()
	eventually(t, 30*time.Second, func() bool { return writer.Status().Revision >= revision },
		func() string { return fmt.Sprintf("the sink is %+v, want revision %d", writer.Status(), revision) })
}

// wantChain fails the test unless the files together have each event of the workspace once, in order.
func (s *sunk) wantChain(paths ...string) {
	s.t.Helper()
	var files []string
	for _, path := range paths {
		found, err := sink.Files(path)
		if err != nil {
			s.t.Fatal(err)
		}
		files = append(files, found...)
	}
	files, err := sink.Order(files)
	if err != nil {
		s.t.Fatal(err)
	}
	reader := sink.NewReader(files...)
	defer reader.Close()
	var head storage.Head
	for {
		line, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			s.t.Fatal(err)
		}
		if line.Event == nil {
			continue
		}
		if !head.Follows(line.Event.Record) {
			s.t.Fatalf("event %d follows on event %d", line.Event.Record.GetSequence(), head.Sequence)
		}
		head = head.After(line.Event.Encoded)
	}
	if head.Sequence != s.workspace.Head.Sequence || head.Hash != s.workspace.Head.Hash {
		s.t.Errorf("the sink ends at event %d, the store at %d", head.Sequence, s.workspace.Head.Sequence)
	}
}

// TestSinkGoesOnAtItsLastLine: the writers of a shared file take turns, overlap for a moment, and each goes on where
// the one before it ended, also if etcd has been compacted meanwhile.
func TestSinkGoesOnAtItsLastLine(t *testing.T) {
	// Not parallel: it compacts the etcd of all tests, and others read its history.
	s := newSunk(t)
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	s.create(5)
	first, stopFirst := s.run(path)
	s.has(first, s.create(5))
	second, stopSecond := s.run(path) // waits for the lock
	s.has(first, s.create(5))
	if status := second.Status(); status.Revision != 0 {
		t.Errorf("the second writer writes beside the first: %+v", status)
	}
	stopFirst()
	s.has(second, s.create(5))
	if position, err := s.store.SinkPosition(t.Context()); err != nil || position.Revision == 0 {
		t.Errorf("the store knows of the sink: %+v, %v", position, err)
	}
	stopSecond()
	// Nobody writes for a while, and the end of a line is torn.
	torn, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := torn.WriteString(`{"type":"event","for`); err != nil {
		t.Fatal(err)
	}
	torn.Close()
	newest := s.create(300)
	if _, err := newClient(t).Compact(t.Context(), newest); err != nil {
		t.Fatal(err)
	}
	third, stopThird := s.run(path)
	s.has(third, newest)
	s.has(third, s.create(3))
	stopThird()
	s.wantChain(path)
}

// TestSinksOfSeveralMachines: if each process has a file of its own, the files together have every event.
func TestSinksOfSeveralMachines(t *testing.T) {
	t.Parallel()
	s := newSunk(t)
	folder := t.TempDir()
	paths := []string{filepath.Join(folder, "a.jsonl"), filepath.Join(folder, "b.jsonl")}
	for round := range 4 {
		s.create(3)
		writer, stop := s.run(paths[round%2])
		s.has(writer, s.create(3))
		stop()
	}
	s.wantChain(paths...)
}

// written returns the path of a sink that has three events, and that nobody writes any more.
func (s *sunk) written() string {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "audit.jsonl")
	writer, stop := s.run(path)
	s.has(writer, s.create(3))
	stop()
	return path
}

// TestSinkIsAnAnchor: a sink that has an event which the store does not have is not written on.
func TestSinkIsAnAnchor(t *testing.T) {
	t.Parallel()
	s := newSunk(t)
	path := s.written()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Another store of the same name and epoch, whose last event is gone: it was put back.
	name := s.prefix + "data/audit/w\x00" + fmt.Sprintf("%016x", 1<<63-1-s.workspace.Head.Sequence)
	if deleted, err := newClient(t).Delete(t.Context(), name); err != nil || deleted.Deleted != 1 {
		t.Fatalf("deleting the event: %v, %v", deleted, err)
	}
	writer, _ := s.run(path)
	eventually(t, 20*time.Second, func() bool { return writer.Status().Failing }, func() string { return "the sink is not failing" })
	if after, err := os.ReadFile(path); err != nil || !slices.Equal(before, after) {
		t.Errorf("the sink was changed: %v", err)
	}
}

// positioned is a store that compares each position with the file when the position is raised.
type positioned struct {
	*etcdstore.Store
	path string
	// full is set while the position cannot be stored.
	full atomic.Bool
	// raised gets a value at each raise.
	raised chan struct{}
	// early counts the positions that the file did not have, and followed how often events were asked for.
	early, followed atomic.Int64
}

// PutSinkPosition implements storage.AuditFollower.
func (p *positioned) PutSinkPosition(ctx context.Context, position storage.Barrier) error {
	if _, tail, err := sink.Newest(p.path); err != nil || tail.Newest.Revision < position.Revision {
		p.early.Add(1)
	}
	select {
	case p.raised <- struct{}{}:
	default:
	}
	if p.full.Load() {
		return storage.ErrFull
	}
	return p.Store.PutSinkPosition(ctx, position)
}

// FollowAudit implements storage.AuditFollower.
func (p *positioned) FollowAudit(ctx context.Context, after int64) iter.Seq2[storage.AuditEvent, error] {
	p.followed.Add(1)
	return p.Store.FollowAudit(ctx, after)
}

// TestSinkPositionFollowsTheLines: the position in the store is raised once the file has the lines, and at the end. While etcd has no room for it,
// lines are written all the same.
func TestSinkPositionFollowsTheLines(t *testing.T) {
	t.Parallel()
	s := newSunk(t)
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	store := &positioned{Store: s.open(), path: path, raised: make(chan struct{}, 1)}
	store.full.Store(true)
	s.create(3)
	writer, stop := s.runOver(store, path)
	select {
	case <-store.raised:
	case <-time.After(patience):
		t.Fatal("the position is not raised")
	}
	newest := s.create(3)
	s.has(writer, newest)
	if count := store.followed.Load(); count != 1 {
		t.Errorf("the writer began %d times", count)
	}
	store.full.Store(false)
	stop()
	if position, err := s.store.SinkPosition(t.Context()); err != nil || position.Revision != newest {
		t.Errorf("the position is %d, %v; want %d", position.Revision, err, newest)
	}
	if count := store.early.Load(); count > 0 {
		t.Errorf("%d positions were stored before their lines", count)
	}
	s.wantChain(path)
}

// TestSinkPositionNeverGoesBack: a writer that was overtaken does not lower the position.
func TestSinkPositionNeverGoesBack(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	prefix := newPrefix()
	store := open(t, etcdConfig(t, prefix))
	for _, test := range []struct{ put, want int64 }{{5, 5}, {3, 5}, {7, 7}, {7, 7}, {6, 7}} {
		if err := store.PutSinkPosition(ctx, storage.Barrier{Revision: test.put, Hash: [32]byte{byte(test.put)}}); err != nil {
			t.Fatal(err)
		}
		if got, err := store.SinkPosition(ctx); err != nil || got.Revision != test.want || got.Hash[0] != byte(test.want) {
			t.Errorf("after %d: %+v, %v; want %d", test.put, got, err, test.want)
		}
	}
	// Another writer is faster.
	n := &network{}
	slow := open(t, etcdstore.Config{Members: n.clients(t), Prefix: prefix})
	n.next(func(s *sent) (*clientv3.TxnResponse, error) {
		if err := store.PutSinkPosition(ctx, storage.Barrier{Revision: 9}); err != nil {
			return nil, err
		}
		return s.deliver()
	})
	if err := slow.PutSinkPosition(ctx, storage.Barrier{Revision: 8}); err != nil {
		t.Error(err)
	}
	if got, err := store.SinkPosition(ctx); err != nil || got.Revision != 9 {
		t.Errorf("the slower writer lowers it: %+v, %v", got, err)
	}
	// A damaged position counts for nothing, and is replaced.
	client := newClient(t)
	for _, damaged := range []string{"damaged", string(storage.Frame("sink", []byte("short")))} {
		mustPut(t, client, prefix+"sink", damaged)
		if got, err := store.SinkPosition(ctx); !errors.Is(err, storage.ErrDamaged) || got.Revision != 0 {
			t.Errorf("damaged: %+v, %v", got, err)
		}
		if err := store.PutSinkPosition(ctx, storage.Barrier{Revision: 1}); err != nil {
			t.Error(err)
		}
		if got, err := store.SinkPosition(ctx); err != nil || got.Revision != 1 {
			t.Errorf("replaced: %+v, %v", got, err)
		}
	}
	// The store gets another epoch while a position is on its way.
	n.next(func(s *sent) (*clientv3.TxnResponse, error) {
		mustPut(t, client, prefix+"data/header", "another")
		return s.deliver()
	})
	if err := slow.PutSinkPosition(ctx, storage.Barrier{Revision: 10}); !errors.Is(err, storage.ErrHistoryChanged) {
		t.Errorf("another epoch: %v, want ErrHistoryChanged", err)
	}
}

// TestFollowAuditEndsInAnotherHistory: a store that has not come to where the sink is was put back.
func TestFollowAuditEndsInAnotherHistory(t *testing.T) {
	t.Parallel()
	s := newSunk(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for event, err := range s.store.FollowAudit(ctx, s.create(1)+1000) {
		if !errors.Is(err, storage.ErrHistoryChanged) {
			t.Fatalf("FollowAudit: %v, %v; want ErrHistoryChanged", event, err)
		}
	}
}
