// Package keystest is for tests of everything below the RPCs, on any backend: a World for
// tests of single verbs, a model that random operations are compared with (Run), and several
// managers over one store (RunSeveral, SimulateSeveral).
package keystest

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/clock"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/service"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
	"github.com/scribe-mail/keysvc/internal/usage"
	"github.com/scribe-mail/keysvc/internal/validation"
)

// Actor is the actor of every change of these tests.
var Actor = audit.Actor{Caller: "test", RequestID: "request-1", Workspaces: access.All()}

// Clock is a wall clock that a test sets.
type Clock struct {
	mutex sync.Mutex
	at    time.Time
}

// Now returns the time.
func (c *Clock) Now() time.Time {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return c.at
}

// Advance sets the clock forward, or back.
func (c *Clock) Advance(by time.Duration) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.at = c.at.Add(by)
}

// Backend opens a store and examines it.
type Backend interface {
	// Open opens the store: a new one the first time, the same one after it was closed.
	Open(t testing.TB) storage.Store
	// Check examines the closed store as an operator would.
	Check(t testing.TB)
}

// Bolt is a Backend on a file of its own.
type Bolt struct{ Path string }

// NewBolt returns a backend in a folder that is removed after the test.
func NewBolt(t testing.TB) Bolt { return Bolt{filepath.Join(t.TempDir(), "keysvc.db")} }

// Open implements Backend.
func (b Bolt) Open(t testing.TB) storage.Store {
	t.Helper()
	store, err := boltstore.Open(b.Path, boltstore.Config{Create: boltstore.CreateIfAbsent, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// Check implements Backend.
func (b Bolt) Check(t testing.TB) {
	t.Helper()
	report, err := boltstore.Check(context.Background(), b.Path)
	if err != nil {
		t.Errorf("check: %v", err)
	}
	for _, found := range report.Problems {
		t.Errorf("check: %s", found)
	}
}

// World is everything below the RPCs, on a real store.
type World struct {
	// Verbs are the manager's, called with messages, as the server's handlers call them.
	service.Verbs
	// Clock is the wall clock.
	Clock *Clock
	// Store, Projection, Validator and Recorder are those of the Manager. Restart replaces
	// them.
	Store      storage.Store
	Projection *projection.Projection
	Validator  *validation.Validator
	Recorder   *usage.Recorder

	link    *link
	gate    *gate
	t       testing.TB
	backend Backend
	random  io.Reader
	stop    func()
}

// NewWorld returns a world with the built-in policy. random yields ids and secrets; nil stands
// for the system's CSPRNG. The store is checked at the end of the test.
func NewWorld(t testing.TB, backend Backend, random io.Reader) *World {
	t.Helper()
	w := &World{
		Clock:   &Clock{at: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)},
		t:       t,
		backend: backend,
		random:  random,
	}
	w.open()
	t.Cleanup(func() {
		w.close()
		w.backend.Check(t)
	})
	return w
}

func (w *World) open() {
	w.t.Helper()
	w.gate = &gate{}
	w.link = &link{
		Store: w.backend.Open(w.t), pacer: w.gate, outage: newOutage(), history: newHistory(),
		random: rand.New(rand.NewPCG(0, 0)),
	}
	store := storage.Store(w.link)
	w.Store = store
	w.Projection = projection.New(store, nil)
	position, err := w.Projection.Load(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	steady := clock.Steady(w.Clock.Now, position.Time)
	w.Verbs.Manager = keys.New(keys.Config{Store: store, Projection: w.Projection, Now: steady, Random: w.random})
	w.Recorder = usage.NewRecorder(store, nil)
	w.Validator = validation.New(w.Projection, store, steady)
	w.Validator.RecordTo(w.Recorder)
	ctx, cancel := context.WithCancel(context.Background())
	var following sync.WaitGroup
	following.Go(func() {
		if err := w.Projection.Follow(ctx); !errors.Is(err, context.Canceled) {
			w.t.Errorf("following ended: %v", err)
		}
	})
	w.stop = func() {
		cancel()
		following.Wait()
		if err := store.Close(); err != nil {
			w.t.Errorf("closing: %v", err)
		}
	}
	if _, err := w.InstallPolicy(context.Background(), Actor, policy.Default()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *World) close() {
	if w.stop != nil {
		w.stop()
		w.stop = nil
	}
}

// Stop closes the store, and leaves it closed until Restart.
func (w *World) Stop() { w.close() }

// Restart closes the store, examines it, and opens it again. With flush, it writes the
// last-used times before, as an orderly stop does.
func (w *World) Restart(flush bool) {
	w.t.Helper()
	if flush {
		if err := w.Recorder.Flush(context.Background()); err != nil {
			w.t.Fatal(err)
		}
	}
	w.close()
	w.backend.Check(w.t)
	w.open()
}

// Put adds or changes a member.
func (w *World) Put(workspaceID, memberID, role string, state keysvcv1.MemberState) {
	w.t.Helper()
	_, err := w.PutMember(context.Background(), Actor, &keysvcv1.PutMemberRequest{
		WorkspaceId: workspaceID, MemberId: memberID, Role: role, State: state,
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// Create creates a key and returns it with its token.
func (w *World) Create(workspaceID, memberID string, scopes ...string) *keysvcv1.CreateKeyResponse {
	w.t.Helper()
	created, err := w.CreateKey(context.Background(), Actor, &keysvcv1.CreateKeyRequest{
		WorkspaceId: workspaceID, MemberId: memberID, Name: "a key", Scopes: scopes,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return created
}

// Ask validates a token for a scope.
func (w *World) Ask(token, scope string) (decide.Decision, decide.Reason) {
	w.t.Helper()
	answer, err := w.Validator.Validate(context.Background(), validation.Question{
		Workspaces: access.All(),
		Token:      token, Requirement: decide.Requirement{Scope: scope},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return answer.Decision, answer.Reason
}

// Want fails unless a token is answered with a reason; NoReason is ALLOWED.
func (w *World) Want(token, scope string, reason decide.Reason) {
	w.t.Helper()
	decision, got := w.Ask(token, scope)
	if got != reason || (decision == decide.Allowed) != (reason == decide.NoReason) {
		w.t.Errorf("decision %d, reason %d; want reason %d", decision, got, reason)
	}
}

// Must fails unless err is nil.
func (w *World) Must(_ any, err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// ReasonOf returns the reason that an error gives to callers; unspecified for none.
func ReasonOf(err error) keysvcv1.ErrorReason {
	var told *problem.Error
	if errors.As(err, &told) {
		return told.Reason
	}
	if err != nil {
		return keysvcv1.ErrorReason_ERROR_REASON_INTERNAL
	}
	return keysvcv1.ErrorReason_ERROR_REASON_UNSPECIFIED
}
