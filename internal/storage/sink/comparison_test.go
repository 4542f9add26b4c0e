package sink_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/anchor"
	"github.com/scribe-mail/keysvc/internal/storage/sink"
)

// ledger is a store's side in memory: the event of revision 1 is the first one. An event without
// bytes is missing.
type ledger struct {
	encoded [][]byte
	pruned  int64
}

func (ledger) Epoch() string   { return "e1" }
func (l ledger) Newest() int64 { return int64(len(l.encoded)) }
func (l ledger) Pruned() int64 { return l.pruned }

func (l ledger) EncodedEvent(revision int64) ([]byte, error) {
	if revision < 1 || revision > l.Newest() {
		return nil, nil
	}
	return l.encoded[revision-1], nil
}

func (l ledger) HeadSequences() (map[string]int64, error) {
	return map[string]int64{"acme": l.Newest()}, nil
}

// chained returns the events of a workspace, of the revisions 1 to count.
func chained(t testing.TB, count int) []storage.AuditEvent {
	t.Helper()
	var events []storage.AuditEvent
	head := storage.Head{}
	for sequence := range int64(count) {
		made := event(t, sequence+1)
		made.Record.WorkspaceId = "acme"
		head.Link(made.Record)
		encoded, err := storage.Encode(made.Record)
		if err != nil {
			t.Fatal(err)
		}
		made.Encoded = encoded
		head = storage.Head{Sequence: sequence + 1, Hash: storage.HashAudit(encoded)}
		events = append(events, made)
	}
	return events
}

// sunkLines returns a ledger with count events, and the lines of its sink: an anchor's line and those of
// the events.
func sunkLines(t testing.TB, count int) (ledger, [][]byte) {
	t.Helper()
	var store ledger
	lines := [][]byte{textOf(t, sink.AnchorLine(anchor.Mark{Epoch: "e1"}, at))}
	for index, each := range chained(t, count) {
		store.encoded = append(store.encoded, each.Encoded)
		lines = append(lines, textOf(t, sink.EventLine("e1", int64(index+1), each, false)))
	}
	return store, lines
}

// compare compares a ledger with a sink of one file, and returns the findings as "kind revision".
func compare(t *testing.T, store ledger, lines ...[]byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit")
	write(t, path, lines...)
	result, err := sink.Compare(t.Context(), store, []string{path}, sink.CompareOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, each := range result.Findings {
		text := fmt.Sprintf("%s %d", each.Kind, each.Revision)
		if each.LastRevision > each.Revision {
			text += fmt.Sprintf("-%d", each.LastRevision)
		}
		found = append(found, text)
	}
	return strings.Join(found, ", ")
}

// TestCompareNamesOddLines has what an editor of a sink can do beside the tampering in the server's
// TestEveryTamperingIsNamed.
func TestCompareNamesOddLines(t *testing.T) {
	t.Parallel()
	store, lines := sunkLines(t, 6)
	events := chained(t, 6)
	textAs := func(epoch string, revision int64) []byte {
		return textOf(t, sink.EventLine(epoch, revision, events[2], false))
	}
	with := func(index int, line ...[]byte) [][]byte { return slices.Insert(slices.Clone(lines), index, line...) }
	instead := func(index int, line []byte) [][]byte {
		changed := slices.Clone(lines)
		changed[index] = line
		return changed
	}
	pruned := store
	pruned.encoded = append([][]byte{nil, nil, nil}, store.encoded[3:]...)
	pruned.pruned = 3
	for name, test := range map[string]struct {
		store ledger
		lines [][]byte
		want  string
	}{
		"right":                             {store, lines, ""},
		"no line":                           {store, nil, "sink_behind 0"},
		"line twice":                        {store, with(4, lines[3]), "wrong_order 3"},
		"words":                             {store, with(4, []byte("words\n")), "line_altered 0"},
		"first line removed":                {store, lines[1:], "line_altered 0"},
		"first line altered":                {store, instead(0, []byte("words\n")), "line_altered 0"},
		"revision altered":                  {store, instead(3, textAs("e1", 5)), "missing_in_sink 3, wrong_order 4-5, differs 5"},
		"revision beyond the store":         {store, with(7, textAs("e1", 1<<62)), fmt.Sprintf("store_behind %d, sink_chain %d", 1<<62, 1<<62)},
		"anchor far beyond the store":       {store, with(7, textOf(t, sink.AnchorLine(anchor.Mark{Epoch: "e1", Revision: 1 << 62}, at))), fmt.Sprintf("gap_between_files 7-%d", 1<<62)},
		"revision 0":                        {store, with(4, textAs("e1", 0)), "line_altered 0"},
		"epoch altered":                     {store, instead(3, textAs("e2", 3)), "other_epoch 3, other_epoch 4"},
		"pruned":                            {pruned, lines, ""},
		"pruned, line removed":              {pruned, slices.Delete(slices.Clone(lines), 2, 3), "missing_in_sink 2, sink_chain 3"},
		"pruned, line made anew":            {pruned, instead(2, textOf(t, sink.EventLine("e1", 2, chainedFrom(t, events[1], "eve"), false))), "sink_chain 3"},
		"pruned, and lost after the prune":  {ledger{append([][]byte{nil, nil, nil, nil}, store.encoded[4:]...), 3}, lines, "missing_in_store 4"},
		"an anchor within that says so":     {store, with(4, textOf(t, sink.AnchorLine(anchor.Mark{Epoch: "e1", Revision: 3, Hash: storage.HashAudit(events[2].Encoded)}, at))), ""},
		"an anchor within of another event": {store, with(4, textOf(t, sink.AnchorLine(anchor.Mark{Epoch: "e1", Revision: 3}, at))), "differs 3"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := compare(t, test.store, test.lines...); got != test.want {
				t.Errorf("found %s, want %s", got, test.want)
			}
		})
	}
}

// chainedFrom returns an event with another caller, in its place in the chain.
func chainedFrom(t *testing.T, before storage.AuditEvent, caller string) storage.AuditEvent {
	t.Helper()
	before.Record.Caller = caller
	encoded, err := storage.Encode(before.Record)
	if err != nil {
		t.Fatal(err)
	}
	return storage.AuditEvent{Record: before.Record, Encoded: encoded}
}

// TestManyFindingsAreCounted: the memory of a comparison is bounded.
func TestManyFindingsAreCounted(t *testing.T) {
	t.Parallel()
	store, lines := sunkLines(t, 3)
	path := filepath.Join(t.TempDir(), "audit")
	write(t, path, append(lines, bytes.Repeat([]byte("words\n"), 1000))...)
	result, err := sink.Compare(t.Context(), store, []string{path}, sink.CompareOptions{})
	if err != nil || len(result.Findings)+result.More != 1000 || len(result.Findings) > 200 {
		t.Errorf("%d findings and %d more, %v", len(result.Findings), result.More, err)
	}
}

// FuzzCompare: a sink in which nothing is found has every event of the store, in order.
func FuzzCompare(f *testing.F) {
	store, lines := sunkLines(f, 4)
	f.Add(bytes.Join(lines, nil))
	f.Add(bytes.Join(slices.Delete(slices.Clone(lines), 2, 3), nil))
	f.Add(bytes.Join(append(slices.Clone(lines), lines[0], lines[1]), nil))
	f.Add(append(bytes.Join(lines[:3], nil), textOf(f, sink.AnchorLine(anchor.Mark{Epoch: "e2", Revision: 1}, at))...))
	path := filepath.Join(f.TempDir(), "audit")
	f.Fuzz(func(t *testing.T, text []byte) {
		write(t, path, text)
		result, err := sink.Compare(t.Context(), store, []string{path}, sink.CompareOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(result.Findings)+result.More > 0 || len(result.Notes) > 0 {
			return
		}
		rest := text
		for _, line := range lines[1:] {
			index := bytes.Index(rest, line)
			if index < 0 {
				t.Fatalf("nothing was found in %q", text)
			}
			rest = rest[index+len(line):]
		}
	})
}
