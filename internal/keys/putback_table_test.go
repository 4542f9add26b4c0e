package keys_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
	"github.com/scribe-mail/keysvc/internal/storage/sink"
	"github.com/scribe-mail/keysvc/internal/validation"
)

// remembered is a file backend with what remembers how far the store had come.
type remembered struct {
	keystest.Bolt
	config boltstore.Config
	// beside reports whether it lies beside the file, and is put back with the whole file.
	beside bool
}

// rememberings are what can remember how far a store had come.
func rememberings(t *testing.T) []remembered {
	t.Helper()
	config := boltstore.Config{Create: boltstore.CreateIfAbsent, Reserve: -1, SinkReserve: -1}
	elsewhere, sunk := config, config
	elsewhere.Anchor = filepath.Join(t.TempDir(), "anchor")
	sunk.Sink = filepath.Join(t.TempDir(), "audit")
	return []remembered{
		{keystest.NewBolt(t), config, true}, {keystest.NewBolt(t), elsewhere, false}, {keystest.NewBolt(t), sunk, false},
	}
}

// Open implements keystest.Backend.
func (r remembered) Open(t testing.TB) storage.Store {
	t.Helper()
	store, err := boltstore.Open(r.Path, r.config)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// Check implements keystest.Backend. The file is altered on purpose.
func (remembered) Check(testing.TB) {}

// files returns the content of the file and of what remembers, by path.
func (r remembered) files(t *testing.T) map[string][]byte {
	t.Helper()
	found := make(map[string][]byte)
	for _, path := range []string{r.Path, boltstore.AnchorOf(r.Path), r.config.Anchor, r.config.Sink} {
		content, err := os.ReadFile(path)
		if err == nil {
			found[path] = content
		} else if path != "" && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	return found
}

// putBack writes files.
func putBack(t *testing.T, files map[string][]byte) {
	t.Helper()
	for path, content := range files {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// outcome is what happens to a file that was tampered with.
type outcome struct {
	allowed                              bool
	refused, dataLoss, checked, verified bool
}

// none reports whether the tampering had no effect that a caller could notice.
func (o outcome) none() bool { return !o.allowed && !o.refused && !o.dataLoss }

// String returns the outcome as the table has it.
func (o outcome) String() string {
	var words []string
	for _, word := range []struct {
		holds bool
		text  string
	}{{o.allowed, "**allowed**"}, {o.refused, "start"}, {o.dataLoss, "loss"}, {o.checked, "check"}, {o.verified, "verify"}} {
		if word.holds {
			words = append(words, word.text)
		}
	}
	return strings.Join(words, ", ")
}

// try looks at the files as they are, and starts with them.
func (r remembered) try(t *testing.T, token string) (o outcome) {
	t.Helper()
	report, err := boltstore.CheckAnchored(t.Context(), r.Path, r.config.Anchor, r.config.Sink)
	if err != nil {
		t.Fatal(err)
	}
	o.checked = len(report.Problems) > 0
	if r.config.Sink != "" {
		o.verified = r.verify(t, report)
	}
	store, err := boltstore.Open(r.Path, r.config)
	if err != nil {
		o.refused = true
		return o
	}
	defer store.Close()
	index := projection.New(store, nil)
	if _, err := index.Load(t.Context()); err != nil {
		o.refused = true
		return o
	}
	at := func() time.Time { return time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC) }
	answer, err := validation.New(index, store, at).Validate(t.Context(), validation.Question{
		Workspaces: access.All(), Token: token, Requirement: decide.Requirement{Scope: testedScope},
	})
	o.allowed = answer.Decision == decide.Allowed
	o.dataLoss = errors.Is(err, storage.ErrDamaged)
	if err != nil && !o.dataLoss {
		t.Error(err)
	}
	return o
}

// verify does what keysvc audit verify does, and reports whether it found something.
func (r remembered) verify(t *testing.T, report boltstore.Report) bool {
	t.Helper()
	store, err := boltstore.OpenAudit(t.Context(), r.Path)
	if err != nil {
		return len(report.Problems) > 0
	}
	defer store.Close()
	result, err := sink.Compare(t.Context(), store, []string{r.config.Sink}, sink.CompareOptions{Problems: report.Located})
	if err != nil {
		t.Fatal(err)
	}
	return len(result.Findings) > 0
}

// cells makes a narrowing, puts back one record, each page, and the whole file, and returns what
// happens.
func (r remembered) cells(t *testing.T, n narrowing) (record, page, whole string) {
	t.Helper()
	w := keystest.NewWorld(t, r, rand.NewChaCha8([32]byte{7}))
	for _, member := range []string{"ann", "bob"} {
		w.Put("acme", member, "manager", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
		w.Create("acme", member, testedScope)
	}
	created := w.Create("acme", "ann", testedScope)
	w.Restart(true)
	before := r.files(t)
	n.do(t, w, created.GetKey())
	w.Restart(true)
	after := r.files(t)
	try := func(files map[string][]byte) outcome {
		w.Stop()
		putBack(t, after)
		putBack(t, files)
		return r.try(t, created.GetToken())
	}
	if o := try(nil); o != (outcome{}) {
		t.Fatalf("nothing was put back: %v", o)
	}
	// 1. The record that the narrowing changed.
	old, now := values(t, newFile(t, before[r.Path])), values(t, newFile(t, after[r.Path]))
	altered := newFile(t, after[r.Path])
	withFile(t, altered, func(tx *bolt.Tx) error {
		for name, value := range now {
			if earlier, found := old[name]; found && !bytes.Equal(earlier, value) {
				return tx.Bucket([]byte(name[0])).Put([]byte(name[1]), earlier)
			}
		}
		return errors.New("no record was changed")
	})
	record = try(map[string][]byte{r.Path: read(t, altered)}).String()
	// 2. Each page, the meta pages included.
	page = r.pages(t, before[r.Path], after[r.Path], func(content []byte) outcome { return try(map[string][]byte{r.Path: content}) })
	// 3. The whole file, with what lies beside it.
	files := map[string][]byte{r.Path: before[r.Path]}
	if r.beside {
		files = before
	}
	return record, page, try(files).String()
}

// pages puts back one page after the other, and returns what happens: which of the two ways in which
// a start can find a stale page depends on the layout of the file.
func (remembered) pages(t *testing.T, before, after []byte, try func([]byte) outcome) string {
	t.Helper()
	size := os.Getpagesize()
	all := outcome{checked: true, verified: true}
	found := 0
	for begin := 0; begin+size <= min(len(before), len(after)); begin += size {
		if bytes.Equal(before[begin:begin+size], after[begin:begin+size]) {
			continue
		}
		stale := bytes.Clone(after)
		copy(stale[begin:begin+size], before[begin:])
		o := try(stale)
		all.allowed = all.allowed || o.allowed
		if o.none() {
			continue
		}
		found++
		all.checked, all.verified = all.checked && o.checked, all.verified && o.verified
	}
	if found == 0 {
		t.Error("no stale page had an effect")
	}
	text := all.String()
	if !all.allowed {
		text = "start or loss, " + text
	}
	return text
}

// TestNarrowingsThatWerePutBackAreFoundAsThePageSays computes the table of docs/security.md: nine kinds
// of narrowing, what was put back, and what remembers. Only a whole file that was put back with
// its anchor may be allowed.
func TestNarrowingsThatWerePutBackAreFoundAsThePageSays(t *testing.T) {
	t.Parallel()
	lines := []string{
		"| taken away | record; anchor beside | record; anchor elsewhere | record; sink | page; anchor beside | page; anchor elsewhere | page; sink | whole file; anchor put back with it | whole file; anchor elsewhere | whole file; sink |",
		"|---|---|---|---|---|---|---|---|---|---|",
	}
	for _, n := range narrowings() {
		cells := make([]string, 9)
		for index, r := range rememberings(t) {
			cells[index], cells[3+index], cells[6+index] = r.cells(t, n)
			for place := index; place < 9; place += 3 {
				if strings.Contains(cells[place], "allowed") != (place == 6) {
					t.Errorf("%s, column %d: %s", n.name, place+1, cells[place])
				}
			}
		}
		lines = append(lines, fmt.Sprintf("| %s | %s |", n.name, strings.Join(cells, " | ")))
	}
	table := strings.Join(lines, "\n") + "\n"
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "security.md"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(page), table) {
		t.Errorf("docs/security.md does not have this table:\n%s", table)
	}
}
