package keys_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
)

// TestUnknownOutcomeIsToldBeforeTheDeadline: a change is committed, and validations never reflect
// it. The caller is told so before its deadline.
func TestUnknownOutcomeIsToldBeforeTheDeadline(t *testing.T) {
	for deadline, takes := range map[time.Duration]time.Duration{
		0:                10 * time.Second,
		time.Second:      800 * time.Millisecond,
		10 * time.Second: 9 * time.Second, // that of a Client as it comes, and of the commands
		time.Minute:      10 * time.Second,
	} {
		path := filepath.Join(t.TempDir(), "store.db")
		synctest.Test(t, func(t *testing.T) {
			store, err := boltstore.Open(path, boltstore.Config{Create: boltstore.CreateIfAbsent, Reserve: -1})
			if err != nil {
				t.Fatal(err)
			}
			defer store.Close()
			index := projection.New(store, nil)
			manager := keys.New(keys.Config{Store: store, Projection: index})
			following, stop := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			if _, err := index.Load(t.Context()); err != nil {
				t.Fatal(err)
			}
			go func() { ended <- index.Follow(following) }()
			if _, err := manager.InstallPolicy(t.Context(), audit.Actor{Caller: "test", Workspaces: access.All()}, policy.Default()); err != nil {
				t.Fatal(err)
			}
			stop()
			<-ended
			ctx := t.Context()
			if deadline > 0 {
				bounded, cancel := context.WithTimeout(ctx, deadline)
				defer cancel()
				ctx = bounded
			}
			begun := time.Now()
			_, _, err = manager.PutMember(ctx, audit.Actor{Caller: "test", Workspaces: access.All()}, keys.MemberSpec{
				WorkspaceID: "acme", MemberID: "ann", Role: "owner", State: keys.MemberActive,
			})
			if took := time.Since(begun); !errors.Is(err, storage.ErrOutcomeUnknown) || took != takes {
				t.Errorf("with a deadline of %s: %v after %s, want ErrOutcomeUnknown after %s", deadline, err, took, takes)
			}
		})
	}
}
