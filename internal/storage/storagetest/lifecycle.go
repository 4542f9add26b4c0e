package storagetest

import (
	"errors"
	"fmt"
	"sync"

	"github.com/scribe-mail/keysvc/internal/race"
	"github.com/scribe-mail/keysvc/internal/storage"
)

var lifecycleTests = []test{
	{"EpochStaysAndDiffersBetweenStores", testEpoch},
	{"ClosedStoreIsUnavailableAndReopens", testClose},
	{"CloseEndsWatches", testCloseEndsWatches},
	{"CloseAnswersCommits", testCloseAnswersCommits},
}

func testEpoch(s *suite) {
	epoch := s.store.Epoch()
	workspace := s.begin("w")
	s.create(workspace, KeyID(1))
	if s.store.Epoch() != epoch {
		s.Errorf("Epoch: %q after changes, was %q", s.store.Epoch(), epoch)
	}
	s.reopen()
	if s.store.Epoch() != epoch {
		s.Errorf("Epoch: %q after reopening, was %q", s.store.Epoch(), epoch)
	}
	other := newSuite(s.T, s.factory)
	if other.store.Epoch() == epoch {
		s.Errorf("Epoch: two stores have %q", epoch)
	}
	other.finish()
}

func testClose(s *suite) {
	workspace := s.begin("w")
	key := s.create(workspace, KeyID(1), "request")
	closed := s.store
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			if err := closed.Close(); err != nil {
				s.Errorf("Close: %v", err)
			}
		})
	}
	group.Wait()
	if err := closed.Close(); err != nil {
		s.Errorf("Close again: %v", err)
	}
	if closed.Epoch() == "" {
		s.Error("Epoch: empty after Close")
	}
	query := storage.Query{WorkspaceID: "w", Limit: 1}
	for name, call := range map[string]func() error{
		"Load": func() error {
			_, err := closed.Load(s.ctx, func(storage.Item) error { return nil })
			return err
		},
		"Watch": func() error {
			for _, err := range closed.Watch(s.ctx, at(s.model.Revision())) {
				return err
			}
			return nil
		},
		"Commit": func() error {
			_, err := closed.Commit(s.ctx, workspace.UpdateKey(key, rename("new")))
			return err
		},
		"GetKey":          func() error { _, _, err := closed.GetKey(s.ctx, "w", KeyID(1)); return err },
		"FindRequest":     func() error { _, _, err := closed.FindRequest(s.ctx, "w", "request"); return err },
		"ListKeys":        func() error { _, err := closed.ListKeys(s.ctx, query); return err },
		"GetMember":       func() error { _, _, err := closed.GetMember(s.ctx, "w", "member"); return err },
		"ListMembers":     func() error { _, err := closed.ListMembers(s.ctx, query); return err },
		"ListAuditEvents": func() error { _, err := closed.ListAuditEvents(s.ctx, query); return err },
		"ScanAuditEvents": func() error {
			_, err := closed.ScanAuditEvents(s.ctx, storage.AuditQuery{All: true})
			return err
		},
		"ListFeed": func() error { _, err := closed.ListFeed(s.ctx, 1); return err },
	} {
		if err := call(); !errors.Is(err, storage.ErrUnavailable) {
			s.Errorf("%s after Close: %v, want ErrUnavailable", name, err)
		}
	}
	// After Close has returned, the store can be opened again.
	s.open()
	s.unchanged()
	s.create(workspace, KeyID(2))
}

func testCloseEndsWatches(s *suite) {
	s.begin("w")
	watchers := []*watcher{s.watch(0), s.watch(s.model.Revision()), s.watch(s.model.Revision())}
	watchers[0].next()
	if err := s.store.Close(); err != nil {
		s.Errorf("Close: %v", err)
	}
	for _, w := range watchers {
		if err := w.end(); !errors.Is(err, storage.ErrUnavailable) {
			s.Errorf("Watch ended: %v, want ErrUnavailable", err)
		}
		w.cancel()
	}
}

// testCloseAnswersCommits closes the store while changes are made. Each change is answered;
// what was acknowledged is stored, and nothing else is.
func testCloseAnswersCommits(s *suite) {
	const workspaces = 16
	for round := range race.Rounds(3, 1) {
		store := s.store
		begun := make(chan struct{}, workspaces)
		var group sync.WaitGroup
		for index := range workspaces {
			workspace := s.begin(fmt.Sprintf("w%d.%d", round, index))
			group.Go(func() {
				for number := 0; ; number++ {
					change := workspace.CreateKey(KeyID((round*workspaces+index)*10000 + number))
					revision, err := store.Commit(s.ctx, change)
					if err != nil {
						if !errors.Is(err, storage.ErrUnavailable) {
							s.Errorf("Commit: %v, want ErrUnavailable", err)
						}
						return
					}
					s.model.Apply(change, revision)
					workspace.Follow(change)
					if number == 1 {
						begun <- struct{}{}
					}
				}
			})
		}
		for range workspaces {
			select {
			case <-begun:
			case <-s.ctx.Done():
				s.Fatal("the changes did not begin")
			}
		}
		if err := store.Close(); err != nil {
			s.Errorf("Close: %v", err)
		}
		answered := make(chan struct{})
		go func() { group.Wait(); close(answered) }()
		select {
		case <-answered:
		case <-s.ctx.Done():
			s.Fatal("a Commit was never answered")
		}
		s.open()
		s.model.Compare(s, s.store)
	}
}
