// Package reload notices that files have changed while a process runs, and has them used. It looks
// at contents: so it does not matter whether a file was written, replaced, or put in place by moving
// a symbolic link, as Kubernetes does.
package reload

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"
)

// Interval is how often a Poller should look. With it, a change is in use within a second.
const Interval = 500 * time.Millisecond

// Item is one thing that is read from files.
type Item struct {
	// Name is what the log calls it, as in "callers file".
	Name string
	// Reload reads the files and uses their contents. It reports whether anything has changed. If it
	// returns an error, what was used before must stay in use; the error names file and line, and
	// contains no secret.
	Reload func(ctx context.Context) (changed bool, err error)
}

// Poller reloads items. Create it with New.
type Poller struct {
	log     *slog.Logger
	changed func(ctx context.Context)

	mu    sync.Mutex
	items []Item
	// failing has the error of each item that could not be reloaded when it was last tried.
	failing map[string]string
}

// New returns a Poller of items. changed is called after items have changed, once for all that have
// changed together; it may be nil.
func New(log *slog.Logger, changed func(ctx context.Context), items ...Item) *Poller {
	return &Poller{log: log, changed: changed, items: items, failing: map[string]string{}}
}

// Add reloads an item, and has it reloaded by Check from then on. It returns the error of Reload.
func (p *Poller) Add(ctx context.Context, item Item) error {
	if _, err := item.Reload(ctx); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.items = append(p.items, item)
	return nil
}

// Check reloads every item now. An error is logged when it is new.
func (p *Poller) Check(ctx context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	news := false
	for _, item := range p.items {
		changed, err := item.Reload(ctx)
		news = news || changed && err == nil
		p.report(ctx, item.Name, changed, err)
	}
	if news && p.changed != nil {
		p.changed(ctx)
	}
}

// report logs what has become of an item, once.
func (p *Poller) report(ctx context.Context, name string, changed bool, err error) {
	before, failed := p.failing[name]
	switch {
	case err != nil && ctx.Err() != nil: // the process stops
	case err != nil && before != err.Error():
		p.failing[name] = err.Error()
		p.log.ErrorContext(ctx, "a changed file is not used; what was used before stays", "item", name, "error", err)
	case err != nil:
	case changed:
		delete(p.failing, name)
		p.log.InfoContext(ctx, "a changed file is used", "item", name)
	case failed:
		delete(p.failing, name)
		p.log.InfoContext(ctx, "a file is again as it was", "item", name)
	}
}

// Failing returns the names of the items whose files are not used as they are now, sorted.
func (p *Poller) Failing() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.failing))
}

// Run calls Check at each tick, until the context ends.
func (p *Poller) Run(ctx context.Context, ticks <-chan time.Time) {
	for {
		select {
		case <-ticks:
			p.Check(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// File returns the Reload of an Item that is one file of at most so many bytes. use is called with
// the contents when they differ from those that were last given to it, also if it has refused them.
func File(name string, most int64, use func(text []byte) error) func(context.Context) (bool, error) {
	var last [sha256.Size]byte
	var refused error
	seen := false
	return func(context.Context) (bool, error) {
		text, err := Read(name, most)
		if err != nil {
			return false, err
		}
		sum := sha256.Sum256(text)
		if seen && sum == last {
			return false, refused
		}
		seen, last = true, sum
		refused = use(text)
		return refused == nil, refused
	}
}

// Read reads a regular file of at most so many bytes.
func Read(name string, most int64) ([]byte, error) {
	file, err := os.Open(name) // #nosec G304 -- the operator names the file
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(file, most+1))
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	if int64(len(text)) > most {
		return nil, fmt.Errorf("%s has more than %d bytes", name, most)
	}
	return text, nil
}
