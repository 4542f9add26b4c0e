package etcd_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
	"github.com/scribe-mail/keysvc/internal/storage/sink"
	"github.com/scribe-mail/keysvc/internal/storage/sinkwriter"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// verified is a store with a sink, of which old events may be pruned.
type verified struct {
	*pruned
	path string
}

func newVerified(t *testing.T) *verified {
	t.Helper()
	v := &verified{newPruned(t), filepath.Join(t.TempDir(), "audit.jsonl")}
	v.change(60)
	v.write()
	return v
}

// write writes the sink up to the newest change.
func (v *verified) write() {
	v.t.Helper()
	writer, err := sinkwriter.New(sinkwriter.Config{Store: v.store, Path: v.path})
	if err != nil {
		v.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(v.t.Context())
	defer cancel()
	var running sync.WaitGroup
	running.Go(func() { writer.Run(ctx) })
	reaches(v.t, writer, v.newest)
	cancel()
	running.Wait()
}

// found returns the kinds of what is found, sorted.
func (v *verified) found(files ...string) []string {
	v.t.Helper()
	if len(files) == 0 {
		files = []string{v.path}
	}
	result, _, err := sink.CompareSparse(v.t.Context(), files, func() (sink.SparseStore, error) {
		_, store, err := etcdstore.ReadAudit(v.t.Context(), etcdConfig(v.t, v.prefix))
		return store, err
	}, sink.SparseOptions{Fresh: time.Now().Add(time.Hour)})
	if err != nil {
		v.t.Fatal(err)
	}
	kinds := []string{}
	for _, finding := range result.Findings {
		v.t.Logf("%s: %s", finding.Kind, finding.Text)
		kinds = append(kinds, string(finding.Kind))
	}
	slices.Sort(kinds)
	return slices.Compact(kinds)
}

// want fails the test unless exactly these kinds are found.
func (v *verified) want(what string, kinds ...sink.Kind) {
	v.t.Helper()
	wanted := []string{}
	for _, kind := range kinds {
		wanted = append(wanted, string(kind))
	}
	slices.Sort(wanted)
	if got := v.found(); !slices.Equal(got, wanted) {
		v.t.Errorf("%s: found %q, want %q", what, got, wanted)
	}
}

// lines calls edit with the lines of the sink, and replaces them for the time of the test do.
func (v *verified) lines(edit func(lines [][]byte) [][]byte, do func()) {
	v.t.Helper()
	before, err := os.ReadFile(v.path)
	if err != nil {
		v.t.Fatal(err)
	}
	after := bytes.Join(edit(bytes.SplitAfter(slices.Clone(before), []byte("\n"))), nil)
	if err := os.WriteFile(v.path, after, 0o600); err != nil {
		v.t.Fatal(err)
	}
	do()
	if err := os.WriteFile(v.path, before, 0o600); err != nil {
		v.t.Fatal(err)
	}
}

// without deletes names in etcd for the time of do. Their revisions are others afterwards.
func (v *verified) without(name string, do func()) {
	v.t.Helper()
	client := newClient(v.t)
	deleted, err := client.Delete(v.t.Context(), v.prefix+name, clientv3.WithPrefix(), clientv3.WithPrevKV())
	if err != nil || deleted.Deleted == 0 {
		v.t.Fatal(deleted, err)
	}
	do()
	for _, pair := range deleted.PrevKvs {
		mustPut(v.t, client, string(pair.Key), string(pair.Value))
	}
}

// TestVerifyOverEtcdFindsWhatWasChanged: the judgement of keysvc audit verify over etcd.
func TestVerifyOverEtcdFindsWhatWasChanged(t *testing.T) {
	sequential(t)
	t.Parallel()
	v := newVerified(t)
	v.want("untouched")
	v.lines(func(lines [][]byte) [][]byte { return slices.Delete(lines, 20, 21) }, func() {
		v.want("a line was removed", sink.KindMissingInSink)
	})
	v.lines(func(lines [][]byte) [][]byte { return slices.Insert(lines, 20, lines[20]) }, func() { v.want("a line is there twice") })
	v.lines(func(lines [][]byte) [][]byte { lines[20][80] ^= 1; return lines }, func() {
		v.want("a line was altered", sink.KindLine, sink.KindMissingInSink)
	})
	v.lines(func(lines [][]byte) [][]byte { return lines[:30] }, func() { v.want("the end was cut", sink.KindSinkBehind) })
	v.lines(func(lines [][]byte) [][]byte { return lines[1:] }, func() { v.want("the first line was removed", sink.KindLine) })
	newest := v.workspaces[0].Head.Sequence
	event := "data/audit/a\x00" + complementOf(newest/2)
	v.without(event, func() { v.want("an event was removed", sink.KindMissingInStore, sink.KindStore) })
	v.without("data/audit/a\x00", func() {
		v.without("data/heads/a", func() {
			v.without("data/workspaces/a", func() {
				v.without("data/members/a\x00", func() {
					if got := v.found(); !slices.Contains(got, string(sink.KindWorkspace)) {
						t.Errorf("a workspace was removed: found %q", got)
					}
				})
			})
		})
	})
}

// complementOf returns what the name of an event ends with.
func complementOf(sequence int64) string {
	const digits = "0123456789abcdef"
	text, rest := make([]byte, 16), uint64(1<<63-1-sequence)
	for index := range text {
		text[15-index] = digits[rest&15]
		rest >>= 4
	}
	return string(text)
}

// TestVerifyOverEtcdClosesPrunedChains: events that were pruned are accepted as far as the store says that they may be, and the
// sink's lines must close the chain.
func TestVerifyOverEtcdClosesPrunedChains(t *testing.T) {
	sequential(t)
	t.Parallel()
	v := newVerified(t)
	before := storagetest.ListAuditEvents(t, v.store, "a", 1000)
	if deleted := v.prune(time.Now().Add(time.Hour)); deleted == 0 {
		t.Fatal("nothing was pruned")
	}
	left := make(map[int64]bool)
	for _, event := range storagetest.ListAuditEvents(t, v.store, "a", 1000) {
		left[event.Record.GetSequence()] = true
	}
	gone := int64(0)
	for _, event := range before {
		if sequence := event.Record.GetSequence(); !left[sequence] {
			gone = sequence
		}
	}
	v.change(5)
	v.write()
	v.want("pruned")
	isGone := func(line []byte) bool {
		parsed, err := sink.Parse(line)
		return err == nil && parsed.Event != nil && parsed.Event.Record.GetWorkspaceId() == "a" && parsed.Event.Record.GetSequence() == gone
	}
	v.lines(func(lines [][]byte) [][]byte { return slices.DeleteFunc(lines, isGone) }, func() {
		v.want("the line of a pruned event was removed", sink.KindMissingInSink)
	})
	v.lines(func(lines [][]byte) [][]byte {
		index := slices.IndexFunc(lines, isGone)
		parsed, err := sink.Parse(lines[index])
		if err != nil {
			t.Fatal(err)
		}
		parsed.Event.Record.Caller = "somebody else" // a line that is right in itself
		lines[index] = forged(t, parsed)
		return lines
	}, func() {
		v.want("the line of a pruned event was forged", sink.KindChain)
	})
	// The mark says how far events may be missing: without it, all that are missing were removed.
	mark := "data/pruned"
	v.without(mark, func() {
		if got := v.found(); !slices.Contains(got, string(sink.KindMissingInStore)) || !slices.Contains(got, string(sink.KindStore)) {
			t.Errorf("without the mark: found %q", got)
		}
	})
	// A young event is never pruned.
	v.without("data/audit/a\x00"+complementOf(v.workspaces[0].Head.Sequence-1), func() {
		if got := v.found(); !slices.Contains(got, string(sink.KindMissingInStore)) {
			t.Errorf("a young event was removed: found %q", got)
		}
	})
}

// TestVerifyOverEtcdKnowsAnotherHistory: a store with other events, and a sink of another store.
func TestVerifyOverEtcdKnowsAnotherHistory(t *testing.T) {
	sequential(t)
	t.Parallel()
	v, other := newVerified(t), newVerified(t)
	if got := v.found(other.path); !slices.Contains(got, string(sink.KindEpoch)) || !slices.Contains(got, string(sink.KindDiffers)) {
		t.Errorf("the sink of another store: found %q", got)
	}
	// The sink ends as the store does, and goes on: the store was put back.
	v.lines(func(lines [][]byte) [][]byte {
		parsed, err := sink.Parse(lines[len(lines)-2]) // behind the last one there is nothing
		if err != nil {
			t.Fatal(err)
		}
		parsed.Event.Record.Sequence++
		parsed.Mark.Revision++
		return append(lines, forged(t, parsed))
	}, func() { v.want("the store was put back", sink.KindStoreBehind) })
}

// forged returns a line that is whole, with its event encoded anew.
func forged(t *testing.T, line sink.Line) []byte {
	t.Helper()
	event := *line.Event
	encoded, err := storage.Encode(event.Record)
	if err != nil {
		t.Fatal(err)
	}
	event.Encoded = encoded
	text, err := sink.EventLine(line.Mark.Epoch, line.Mark.Revision, event, true).Append(nil)
	if err != nil || !strings.HasSuffix(string(text), "\n") {
		t.Fatalf("%q, %v", text, err)
	}
	return text
}

// TestSinkOfImportedEvents: events that were imported share revisions. A writer that ended between two of them goes on with the
// next one, also if etcd has compacted that revision.
func TestSinkOfImportedEvents(t *testing.T) {
	sequential(t)
	// Not parallel: it compacts the etcd of all tests, and others read its history.
	prefix := newPrefix()
	report := toEtcd(t, newFile(t, 150), prefix)
	v := &verified{&pruned{t: t, prefix: prefix, store: open(t, etcdConfig(t, prefix))}, filepath.Join(t.TempDir(), "audit.jsonl")}
	v.newest = allEvents(t, v.store, 1)[0].Revision
	for _, cut := range []int{0, 3, 50, 101, 151} {
		if cut == 50 { // from here on the past is compacted
			if _, err := newClient(t).Compact(t.Context(), report.Revision+1); err != nil {
				t.Fatal(err)
			}
		}
		if cut > 0 {
			text, err := os.ReadFile(v.path)
			if err != nil {
				t.Fatal(err)
			}
			// What the store remembers is behind what is durable.
			mustDelete(t, newClient(t), prefix+"sink")
			lines := bytes.SplitAfter(text, []byte("\n"))
			if err := os.WriteFile(v.path, bytes.Join(lines[:len(lines)-cut], nil), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		v.write()
		v.until(report.Counts[storage.PortableEvent] + 1)
		v.want("written on")
	}
}

// until writes until the sink has a number of lines.
func (v *verified) until(lines int64) {
	v.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; {
		text, err := os.ReadFile(v.path)
		if err != nil {
			v.t.Fatal(err)
		}
		if got := int64(bytes.Count(text, []byte("\n"))); got == lines {
			return
		} else if got > lines || time.Now().After(end) {
			v.t.Fatalf("%d lines, want %d", got, lines)
		}
		v.write()
	}
}
