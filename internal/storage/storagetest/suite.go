// Package storagetest is the suite that every storage.Store must pass: backends, and
// wrappers around one. It covers the promises of package storage sentence by sentence, and
// knows no backend. What a backend promises in addition is tested in its own package, or
// with the hooks of Backend. No promise can be skipped. Optional behaviour is tested if the
// store has it.
//
// The package also exports the parts of such tests: valid changes (Workspace), a model to
// compare with (Model), and Check.
package storagetest

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// Backend is the store of one test.
type Backend struct {
	// Open opens the store for the first time, and again after it was closed. Opened again, the
	// store holds what it held before.
	Open func(t testing.TB) storage.Store
	// Check fails the test if the backend's own check finds a problem in what is stored. It
	// runs at the end of every test, when the store is closed. May be nil.
	Check func(t testing.TB)
}

// Factory returns a new backend with an empty store.
type Factory func(t testing.TB) Backend

// patience is the max duration of one test, except the random test. Only a test that hangs reaches
// it: under the race detector, beside other tests, one on etcd took 30 s.
const patience = 2 * time.Minute

// Run runs the whole suite.
func Run(t *testing.T, factory Factory) {
	t.Helper()
	groups := []struct {
		name  string
		tests []test
	}{
		{"Commit", commitTests},
		{"Read", readTests},
		{"Watch", watchTests},
		{"Barrier", barrierTests},
		{"Usage", usageTests},
		{"Settings", settingsTests},
		{"Refusals", refusalTests},
		{"Lifecycle", lifecycleTests},
		{"Concurrency", concurrencyTests},
		{"Model", modelTests},
	}
	for _, group := range groups {
		t.Run(group.name, func(t *testing.T) {
			for _, test := range group.tests {
				t.Run(test.name, func(t *testing.T) {
					t.Parallel() // each has a store of its own, and often waits for it
					s := newSuite(t, factory)
					test.run(s)
					s.finish()
				})
			}
		})
	}
}

// test is one test of the suite. When run has returned, the store must hold what the model
// holds.
type test struct {
	name string
	run  func(s *suite)
}

// suite is the state of one test: a store, and a model of what the store should hold.
type suite struct {
	*testing.T

	factory Factory
	backend Backend
	store   storage.Store
	model   *Model
	ctx     context.Context
}

func newSuite(t *testing.T, factory Factory) *suite {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	s := &suite{T: t, factory: factory, backend: factory(t), model: NewModel(), ctx: ctx}
	s.open()
	t.Cleanup(func() { _ = s.store.Close() })
	return s
}

func (s *suite) open() {
	s.Helper()
	s.store = s.backend.Open(s.T)
}

// reopen closes the store and opens it again.
func (s *suite) reopen() {
	s.Helper()
	if err := s.store.Close(); err != nil {
		s.Fatalf("Close: %v", err)
	}
	s.open()
}

// finish ends every test: the store, reopened, is sound and holds what the model holds.
func (s *suite) finish() {
	s.Helper()
	s.reopen()
	s.model.Compare(s.T, s.store)
	Check(s.T, s.store)
	if err := s.store.Close(); err != nil {
		s.Errorf("Close: %v", err)
	}
	if s.backend.Check != nil {
		s.backend.Check(s.T)
	}
}

// commit commits a change that must succeed and returns its revision.
func (s *suite) commit(change *storage.Change) int64 {
	s.Helper()
	before := s.model.Revision()
	revision, err := s.store.Commit(s.ctx, change)
	if err != nil {
		s.Fatalf("Commit: %v", err)
	}
	if revision <= before {
		s.Fatalf("Commit: revision %d after %d", revision, before)
	}
	s.model.Apply(change, revision)
	return revision
}

// do commits a change of a workspace that must succeed.
func (s *suite) do(workspace *Workspace, change *storage.Change) int64 {
	s.Helper()
	revision := s.commit(change)
	workspace.Follow(change)
	return revision
}

// begin returns a workspace with one member, "member".
func (s *suite) begin(id string) *Workspace {
	s.Helper()
	workspace := NewWorkspace(id)
	s.do(workspace, workspace.PutMember("member", "admin"))
	return workspace
}

// create adds a key and returns its record.
func (s *suite) create(workspace *Workspace, keyID string, requestIDs ...string) *storagev1.KeyRecord {
	s.Helper()
	change := workspace.CreateKey(keyID, requestIDs...)
	s.do(workspace, change)
	return change.PutKeys[0]
}

// refused commits a change that must fail with a wanted error and change nothing.
func (s *suite) refused(change *storage.Change, want error) {
	s.Helper()
	if _, err := s.store.Commit(s.ctx, change); !errors.Is(err, want) {
		s.Errorf("Commit: %v, want %v", err, want)
	}
	s.unchanged()
}

// exists commits a change that must fail because a key id or request id exists.
func (s *suite) exists(change *storage.Change, want storage.ExistsError) {
	s.Helper()
	_, err := s.store.Commit(s.ctx, change)
	var got *storage.ExistsError
	if !errors.As(err, &got) || got.KeyID != want.KeyID || got.RequestID != want.RequestID {
		s.Errorf("Commit: %v, want %v", err, &want)
	} else if got.Revision < 1 || got.Revision > s.model.Revision() {
		s.Errorf("ExistsError.Revision is %d; the store is at %d", got.Revision, s.model.Revision())
	}
	s.unchanged()
}

// unchanged fails the test if the store's revision is not the model's.
func (s *suite) unchanged() {
	s.Helper()
	position, err := s.store.Load(s.ctx, func(storage.Item) error { return nil })
	if err != nil || position.Revision != s.model.Revision() {
		s.Errorf("Load: revision %d, %v; want %d, unchanged", position.Revision, err, s.model.Revision())
	}
}

// getKey reads a key that must exist.
func (s *suite) getKey(workspaceID, keyID string) *storagev1.KeyRecord {
	s.Helper()
	key, _, err := s.store.GetKey(s.ctx, workspaceID, keyID)
	if err != nil {
		s.Fatalf("GetKey(%q, %s): %v", workspaceID, keyID, err)
	}
	return key
}

func (s *suite) equal(title string, got, want proto.Message) {
	s.Helper()
	if !proto.Equal(got, want) {
		s.Errorf("%s: %v, want %v", title, got, want)
	}
}

// rename returns an edit of a key that gives it a name.
func rename(name string) func(*storagev1.KeyRecord) {
	return func(key *storagev1.KeyRecord) { key.Name = name }
}
