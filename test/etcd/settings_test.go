package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// told is a publisher that notes what it is told, and checks that nothing is shown before.
type told struct {
	of    *projection.Projection
	mutex sync.Mutex
	notes []string
}

func (p *told) note(format string, arguments ...any) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.notes = append(p.notes, fmt.Sprintf(format, arguments...)+fmt.Sprintf(" at %d", p.of.Revision()))
}

func (p *told) Settings(settings *projection.Settings) {
	if settings == nil {
		p.note("no settings")
		return
	}
	p.note("settings %s after %s", settings.Staleness, settings.Previous)
}

func (p *told) Publish(change *storage.Committed) { p.note("change %d", change.Revision) }

// Renew implements projection.Publisher.
func (p *told) Renew() {}

func (p *told) Announce()              {}
func (p *told) Restart(revision int64) { p.note("restart %d", revision) }

// TestProjectionTellsOfSettingsBeforeTheirChange: rule R9 of docs/replication.md. A settings record that cannot be
// used is told as well, so that no lease is given by it.
func TestProjectionTellsOfSettingsBeforeTheirChange(t *testing.T) {
	client, prefix := newClient(t), newPrefix()
	store := open(t, etcdstore.Config{Members: []*clientv3.Client{client}, Prefix: prefix})
	policy := storagetest.ApplyPolicy(storage.Head{}, "scopes: [a]")
	head := storagetest.After
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p := projection.New(store, nil)
	if _, err := p.Load(ctx); err != nil {
		t.Fatal(err)
	}
	publisher := &told{of: p}
	p.PublishTo(publisher)
	followed := make(chan error, 1)
	following, stop := context.WithCancel(ctx)
	go func() { followed <- p.Follow(following) }()
	if _, _, err := p.Settings(); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("Settings of an empty store: %v", err)
	}
	begun := p.Revision()
	first := mustCommit(t, store, policy)
	settings := storagetest.PutSettings(head(policy), 2*time.Second)
	second := mustCommit(t, store, settings)
	lower := storagetest.PutSettings(head(settings), time.Second)
	lower.PutSettings.PreviousStaleness = durationpb.New(2 * time.Second)
	third := mustCommit(t, store, lower)
	wrong := storagetest.PutSettings(head(lower), time.Hour) // no command sets it
	fourth := mustCommit(t, store, wrong)
	if err := p.WaitFor(ctx, fourth); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.Settings(); !errors.Is(err, storage.ErrDamaged) {
		t.Errorf("Settings of an hour: %v", err)
	}
	stop()
	<-followed
	want := []string{
		fmt.Sprintf("change %d at %d", first, begun),
		fmt.Sprintf("settings 2s after 0s at %d", first), fmt.Sprintf("change %d at %d", second, first),
		fmt.Sprintf("settings 1s after 2s at %d", second), fmt.Sprintf("change %d at %d", third, second),
		fmt.Sprintf("no settings at %d", third), fmt.Sprintf("change %d at %d", fourth, third),
	}
	publisher.mutex.Lock()
	if !slices.Equal(publisher.notes, want) {
		t.Errorf("told %q, want %q", publisher.notes, want)
	}
	publisher.notes = nil
	publisher.mutex.Unlock()
	// A load anew tells of them as well, before the restart.
	if _, err := p.Load(ctx); err != nil {
		t.Fatal(err)
	}
	if want := []string{fmt.Sprintf("no settings at %d", fourth), fmt.Sprintf("restart %d at %d", fourth, fourth)}; !slices.Equal(publisher.notes, want) {
		t.Errorf("told %q, want %q", publisher.notes, want)
	}
	if _, err := projection.New(store, nil).Load(ctx); !errors.Is(err, storage.ErrDamaged) {
		t.Errorf("the first load with such settings: %v, want ErrDamaged", err)
	}
}
