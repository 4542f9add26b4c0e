// Package etcdstore keeps a store in etcd, under one prefix of a cluster that others
// may use as well.
//
// A commit is one transaction. It compares the workspace's head by value, so a change that
// was checked against an older head changes nothing. It puts the feed entry last, so a
// watcher that has seen the feed entry has seen the whole change. The revision of a change
// is the revision of its transaction. The change log is etcd's history of the feed entry, which
// every change puts under the same name.
//
// If the answer to a transaction is lost, the transaction may still be executed later.
// Commit then raises the fence in the head, which the transaction compares: from then on
// the transaction either is in the audit log or never will be (fence.go).
//
// Reads are linearizable. A read of several parts reads all of them at one revision. A read that is
// not answered soon is asked of another member as well (ask.go).
//
// A watch is opened only at a point of the change log whose hash is the one that was applied, and is never
// resumed in silence (stream.go), so the store under it cannot become another one.
package etcdstore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/singleflight"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// Config is where a store is and how it is used.
type Config struct {
	// Members are clients of the cluster, each connected to one member of it, or one to all of them. The
	// store does not close them. A client should return errors at once (MaxUnaryRetries of 1), because the
	// store asks another member. It must be connected to the member itself: a gRPC proxy of etcd's resumes
	// watches without the checks of this package. Required.
	Members []*clientv3.Client
	// Connect opens one more connection to a member, which is the one with that number in Members. The
	// store closes it. Each watch has such a connection of its own, so that it does not wait behind
	// large reads, or on a connection that is dead. Default: watches use the clients in Members.
	Connect func(member int) (*clientv3.Client, error)
	// Prefix is the beginning of all names of the store. Nothing else may be stored under it.
	// Default: "/keysvc/".
	Prefix string
	// Timeout bounds one read with its retries, and one commit with the search for its outcome, of
	// a caller whose deadline is later or who has none. Default: 5 s.
	Timeout time.Duration
	// UsageGranularity is how much older than a use a stored time may be that PutUsage leaves as it is.
	// Default: storage.UsageGranularity; negative: every later time is stored.
	UsageGranularity time.Duration
	// Attempt is how long a transaction that writes waits for the answer of one member at most; half of the
	// time that is left if that is less. It ends earlier if the member answers nothing and another one does. Default: 1 s.
	Attempt time.Duration
	// Hedge is how long a read waits for an answer before another member is asked as well, and everything else before
	// its member is compared with the others. Default: 30 ms.
	Hedge time.Duration
	// Stuck is how long a watch may take to come to a revision that a caller was told of, before it is opened
	// anew at another member. Each time that this did not help it is doubled, up to 16 times. The
	// time that the consumer of the watch takes does not count. Default: 500 ms.
	Stuck time.Duration
	// Create is what New does if nothing is stored under the prefix. Default: CreateIfAbsent.
	Create Create
	// Random yields the epoch of a new store, and the hashes of fences. Default: the system's CSPRNG.
	Random io.Reader
	// Now stamps a new store. Default: time.Now.
	Now func() time.Time
	// Log receives what the store does on its own. Default: nothing.
	Log *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.Prefix == "" {
		c.Prefix = "/keysvc/"
	}
	if c.Timeout == 0 {
		c.Timeout = 5 * time.Second
	}
	if c.UsageGranularity == 0 {
		c.UsageGranularity = storage.UsageGranularity
	}
	if c.Attempt == 0 {
		c.Attempt = time.Second
	}
	if c.Hedge == 0 {
		c.Hedge = 30 * time.Millisecond
	}
	if c.Stuck == 0 {
		c.Stuck = 500 * time.Millisecond
	}
	if c.Random == nil {
		c.Random = rand.Reader
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Create is what New does if nothing is stored under the prefix.
type Create int

// The values of Create.
const (
	// CreateIfAbsent opens the store, and makes it if nothing is stored there.
	CreateIfAbsent Create = iota
	// CreateNever opens the store, and fails if nothing is stored there.
	CreateNever
	// CreateNew makes a store, and fails if the store is there already.
	CreateNew
)

// Store is a storage.Store in etcd.
type Store struct {
	config  Config
	members members
	// comparisons are those of members with the others that are under way.
	comparisons singleflight.Group

	// header is the stored header. Every change compares it, so that nothing is ever committed
	// to a history other than the one that was opened.
	header  string
	epoch   string
	schema  int32 // of the header; that of the settings may be newer
	created int64 // revision of the header
	// former is the epoch before this one while a Renewal is under way, else empty.
	former string

	// resumed is called when a watch was opened anew; nil before OnResume.
	resumed atomic.Pointer[func()]

	// seen is the newest revision of the cluster that the store has seen, and newest the
	// revision of the newest change that it has seen.
	seen, newest atomic.Int64
	// told is the newest revision of a change that a caller was told of.
	told goal
	// memory is what the records should be. Each Load replaces it.
	memory atomic.Pointer[memory]

	// loaded is where the newest Load has read the store; nil if a watch need not begin there.
	loaded atomic.Pointer[loaded]

	// room is what is known of the members.
	room *room

	// mutex guards closed and inDoubt. It also keeps running.Add from running at the same time
	// as running.Wait. No other lock is held together with it.
	mutex  sync.Mutex
	closed bool
	// inDoubt counts, for each workspace, the changes whose outcome is being resolved in the
	// background. Until then the workspace is not changed, so the counts are small.
	inDoubt map[string]int
	// running counts the calls and the background resolutions in progress.
	running sync.WaitGroup
	// closing ends reads, watches and fences when the store closes.
	closing context.Context //nolint:containedctx // the store's own life
	close   context.CancelFunc
}

var (
	_ storage.Store  = (*Store)(nil)
	_ storage.Fencer = (*Store)(nil)
)

// New opens the store under a prefix, and creates it as Config.Create says. Errors:
// ErrAbsent, ErrPresent, ErrNewer, ErrOlder, ErrDamaged, ErrUnfinished, ErrUnavailable, or the context's.
func New(ctx context.Context, config Config) (*Store, error) {
	store := newStore(ctx, config)
	err := store.open(ctx)
	switch {
	case errors.Is(err, errNoHeader):
		err = store.make(ctx)
	case err == nil && config.Create == CreateNew:
		err = storage.ErrPresent
	}
	if err != nil {
		store.close()
		return nil, fmt.Errorf("%s: %w", store.config.Prefix, err)
	}
	store.running.Go(store.watchRoom)
	return store, nil
}

// make makes the store if nothing is stored under the prefix and Config.Create allows it, and opens it.
func (s *Store) make(ctx context.Context) error {
	if s.config.Create == CreateNever {
		return s.missing(ctx)
	}
	epoch, err := s.create(ctx)
	if err != nil {
		return err
	}
	if err := s.open(ctx); err != nil {
		return err
	}
	if s.config.Create == CreateNew && s.epoch != epoch { // another process was faster
		return storage.ErrPresent
	}
	return nil
}

// missing returns why the header is missing: ErrAbsent if nothing is stored under the prefix.
func (s *Store) missing(ctx context.Context) error {
	response, err := s.read(ctx, clientv3.OpGet(s.config.Prefix, clientv3.WithPrefix(), clientv3.WithLimit(1), clientv3.WithKeysOnly()))
	switch {
	case err != nil:
		return err
	case first(response, 0) == nil:
		return storage.ErrAbsent
	}
	return errNoHeader
}

func newStore(ctx context.Context, config Config) *Store {
	config = config.withDefaults()
	store := &Store{config: config, members: newMembers(config.Members), room: newRoom(config.Members), inDoubt: make(map[string]int)}
	store.told.raised = make(chan struct{})
	store.memory.Store(newMemory(0, 0))
	store.closing, store.close = context.WithCancel(context.WithoutCancel(ctx))
	return store
}

// errNoHeader is the error if the prefix has no header: nothing is stored under it, or something
// other than a store.
var errNoHeader error = &storage.DamagedError{Kind: "header", Name: nameHeader, Problem: "missing"}

// errMigration is the error if a migration into the store has begun, and not finished.
var errMigration = fmt.Errorf("%w; run keysvc migrate again to go on with it, or with --discard to remove it", storage.ErrUnfinished)

// errRenewal is the error if a Renewal of the store has begun, and not finished.
var errRenewal = fmt.Errorf("%w: its restore was interrupted; run keysvc restore, or keysvc anchor accept, with --store etcd again", storage.ErrUnfinished)

// open reads the header, unless a migration fills the store, or a Renewal is under way.
func (s *Store) open(ctx context.Context) error {
	response, err := s.read(ctx, s.get(nameHeader), s.get(nameMigration), s.get(nameSettings), s.get(nameRenewal))
	if err != nil {
		return err
	}
	switch {
	case first(response, 1) != nil:
		return errMigration
	case first(response, 3) != nil:
		return errRenewal
	}
	return s.openHeader(response)
}

// openHeader takes the header from a transaction whose gets have read it, the record of a migration, and
// the settings.
func (s *Store) openHeader(response *clientv3.TxnResponse) error {
	stored := first(response, 0)
	if stored == nil {
		return errNoHeader
	}
	header := &storagev1.HeaderRecord{}
	if err := storage.Decode("header", nameHeader, stored.Value, header); err != nil {
		return err
	}
	if header.GetSchema() > storage.Newest {
		return fmt.Errorf("%w: schema %d, this version knows up to %d", storage.ErrNewer, header.GetSchema(), storage.Newest)
	}
	// The schema is raised in the settings, so that the header, which every transaction compares, stays the same.
	if pair := first(response, 2); pair != nil {
		settings := &storagev1.SettingsRecord{}
		// Settings that cannot be read end the load.
		if payload, err := storage.Unframe("settings", nameSettings, pair.Value); err == nil && proto.Unmarshal(payload, settings) == nil {
			if err := storage.CheckSchema(settings); err != nil {
				return err
			}
		}
	}
	if header.GetSchema() < 1 || header.GetEpoch() == "" {
		return &storage.DamagedError{Kind: "header", Name: nameHeader, Problem: "no schema or epoch"}
	}
	if header.GetSchema() < storage.Schema {
		return fmt.Errorf("%w: schema %d under %s; a store in etcd has at least schema %d and cannot be upgraded: create the store anew",
			storage.ErrOlder, header.GetSchema(), s.config.Prefix, storage.SchemaIntegrity)
	}
	s.header, s.epoch, s.schema, s.created = string(stored.Value), header.GetEpoch(), header.GetSchema(), stored.CreateRevision
	return nil
}

// create writes the header of a new store if nothing is stored under the prefix. If two
// processes try at the same time, one of them succeeds; so an attempt whose outcome is
// unknown may be repeated. create returns the epoch that the store has if it was made by this call.
func (s *Store) create(ctx context.Context) (epoch string, _ error) {
	drawn := make([]byte, 12)
	if _, err := io.ReadFull(s.config.Random, drawn); err != nil {
		return "", fmt.Errorf("drawing an epoch: %w", err)
	}
	epoch = hex.EncodeToString(drawn)
	header, err := storage.Encode(&storagev1.HeaderRecord{
		Schema:     storage.Schema,
		Epoch:      epoch,
		CreateTime: timestamppb.New(s.config.Now()),
	})
	if err != nil {
		return "", err
	}
	_, err = s.repeat(ctx, func(ctx context.Context, member *clientv3.Client) (*clientv3.TxnResponse, error) {
		return member.Txn(ctx).
			If(clientv3.Compare(clientv3.CreateRevision(s.config.Prefix).WithPrefix(), "=", 0)).
			Then(
				s.put(nameTime, encodeTime(nameTime, time.Time{})),
				s.put(nameHeader, string(storage.Frame(nameHeader, header))),
			).Commit()
	})
	return epoch, err
}

// Epoch implements storage.Store.
func (s *Store) Epoch() string { return s.epoch }

// Close implements storage.Store.
func (s *Store) Close() error {
	// 1. Refuse new calls. 2. End reads, watches and background resolutions. 3. Wait for them,
	// and for the commits in progress, which Config.Timeout bounds.
	s.mutex.Lock()
	s.closed = true
	s.mutex.Unlock()
	s.close()
	s.running.Wait()
	return nil
}

// begin counts a call as running until done is called.
func (s *Store) begin(ctx context.Context) (done func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.closed {
		return nil, storage.ErrUnavailable
	}
	s.running.Add(1)
	return s.running.Done, nil
}

// beginRead is begin for calls that end when the store closes.
func (s *Store) beginRead(ctx context.Context) (_ context.Context, done func(), err error) {
	counted, err := s.begin(ctx)
	if err != nil {
		return nil, nil, err
	}
	ctx, end := s.untilClosed(ctx)
	return ctx, func() { end(); counted() }, nil
}

// untilClosed returns a context that also ends when the store closes. The caller calls end
// after use.
func (s *Store) untilClosed(ctx context.Context) (_ context.Context, end func()) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.closing, cancel)
	return ctx, func() { stop(); cancel() }
}

// isInDoubt reports whether the outcome of a change of the workspace is being resolved.
func (s *Store) isInDoubt(workspaceID string) bool {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.inDoubt[workspaceID] > 0
}

// countInDoubt adds by to the number of a workspace's changes in doubt.
func (s *Store) countInDoubt(workspaceID string, by int) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.inDoubt[workspaceID] += by; s.inDoubt[workspaceID] == 0 {
		delete(s.inDoubt, workspaceID)
	}
}

// raise makes number at least as large as to.
func raise(number *atomic.Int64, to int64) {
	for {
		old := number.Load()
		if old >= to || number.CompareAndSwap(old, to) {
			return
		}
	}
}

// checkHeader returns errHistory if the first get of a transaction did not find the header that
// was opened.
func (s *Store) checkHeader(response *clientv3.TxnResponse) error {
	if header := first(response, 0); string(header.GetValue()) != s.header {
		return s.errHistory()
	}
	return nil
}

// errHistory returns the error for a header other than the one that was opened.
func (s *Store) errHistory() error {
	return fmt.Errorf("%w: %w: the epoch is no longer %s", storage.ErrUnavailable, storage.ErrHistoryChanged, s.epoch)
}
