package server_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/race"
	"github.com/scribe-mail/keysvc/internal/server"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
	"github.com/scribe-mail/keysvc/internal/storage/sink"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// sunkHistory is a store with a random history and its sink of three files.
type sunkHistory struct {
	random *rand.Rand
	folder string
	// store is the store's file, and older that file as of revision olderRevision.
	store, older  string
	olderRevision int64
	sink          []string // the newest comes last
	events        []recorded
	workspaces    []*storagetest.Workspace
}

// recorded is an event as it was committed.
type recorded struct {
	place sink.EventPlace
	event *storagev1.AuditRecord
}

// newHistory makes a store in a new folder, in which changes are made with and without rotations of
// the sink.
func newHistory(t *testing.T, random *rand.Rand) *sunkHistory {
	t.Helper()
	folder := t.TempDir()
	h := &sunkHistory{random: random, folder: folder, store: filepath.Join(folder, "store"), older: filepath.Join(folder, "older")}
	for index := range 4 {
		h.workspaces = append(h.workspaces, storagetest.NewWorkspace(fmt.Sprintf("w%d", index)))
	}
	path := filepath.Join(folder, "audit")
	for part := range 3 {
		if part > 0 {
			h.sink = append(h.sink, fmt.Sprintf("%s.%d", path, part))
			must(t, os.Rename(path, h.sink[part-1]))
		}
		if part == 2 {
			h.older, h.olderRevision = copied(t, h.store), h.events[len(h.events)-1].place.Revision
		}
		h.serve(t, path, 8+random.IntN(6))
	}
	h.sink = append(h.sink, path)
	return h
}

// serve makes random changes.
func (h *sunkHistory) serve(t *testing.T, path string, changes int) {
	t.Helper()
	store, err := boltstore.Open(h.store, boltstore.Config{Create: boltstore.CreateIfAbsent, Sink: path, SinkReserve: -1, Reserve: -1})
	must(t, err)
	defer store.Close()
	_, err = store.Load(t.Context(), func(storage.Item) error { return nil })
	must(t, err)
	for number := range changes {
		workspace := h.workspaces[(number+h.random.IntN(2))%len(h.workspaces)]
		change := workspace.PutMember(fmt.Sprintf("m%d", h.random.IntN(2)), []string{"admin", "viewer"}[h.random.IntN(2)])
		if workspace.Head.Sequence > 0 && h.random.IntN(3) == 0 {
			change = workspace.CreateKey(storagetest.KeyID(h.random.IntN(1 << 30)))
		}
		revision, err := store.Commit(t.Context(), change)
		must(t, err)
		workspace.Follow(change)
		h.events = append(h.events, recorded{sink.EventPlace{
			WorkspaceID: workspace.ID, Sequence: change.Event.GetSequence(), Revision: revision, Time: change.Event.GetTime().AsTime(),
		}, proto.CloneOf(change.Event)})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// copied copies a file into a new folder.
func copied(t *testing.T, path string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), filepath.Base(path))
	content, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(to, content, 0o600))
	return to
}

// tampered is a copy of a history that a test tampers with.
type tampered struct {
	*sunkHistory
	store string
	sink  []string
}

func (h *sunkHistory) copied(t *testing.T) *tampered {
	t.Helper()
	c := &tampered{sunkHistory: h, store: copied(t, h.store)}
	for _, file := range h.sink {
		c.sink = append(c.sink, copied(t, file))
	}
	return c
}

// some returns a random event that is not the last of its workspace, nor the first one of all.
func (h *sunkHistory) some() recorded {
	for {
		event := h.events[1+h.random.IntN(len(h.events)-2)]
		for _, later := range h.events {
			if later.place.WorkspaceID == event.place.WorkspaceID && later.place.Sequence > event.place.Sequence {
				return event
			}
		}
	}
}

// edit changes the store's file.
func (c *tampered) edit(t *testing.T, change func(tx *bolt.Tx) error) {
	t.Helper()
	database, err := bolt.Open(c.store, 0o600, &bolt.Options{NoSync: true})
	must(t, err)
	must(t, errors.Join(database.Update(change), database.Close()))
}

func numberName(revision int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(revision)) }

// rewriteEvents passes all events from a revision on to change, with mended checksums.
func rewriteEvents(tx *bolt.Tx, from int64, change func(revision int64, event *storagev1.AuditRecord)) error {
	bucket := tx.Bucket([]byte("audit"))
	for revision := from; ; revision++ {
		name := numberName(revision)
		value := bucket.Get(name)
		if value == nil {
			return nil
		}
		payload := bytes.Clone(storage.Payload(value))
		event := &storagev1.AuditRecord{}
		if err := proto.Unmarshal(payload[8:], event); err != nil {
			return err
		}
		before := proto.CloneOf(event)
		if change(revision, event); proto.Equal(before, event) {
			continue
		}
		encoded, err := storage.Encode(event)
		if err != nil {
			return err
		}
		if err := bucket.Put(name, storage.Frame("audit/"+string(name), append(payload[:8:8], encoded...))); err != nil {
			return err
		}
	}
}

// relink returns a function that alters one event and mends the chain of its workspace behind it,
// as a careful editor would.
func relink(at recorded) func(revision int64, event *storagev1.AuditRecord) {
	var last []byte
	return func(revision int64, event *storagev1.AuditRecord) {
		switch {
		case revision == at.place.Revision:
			event.Caller = "somebody else"
		case event.GetWorkspaceId() != at.place.WorkspaceID || last == nil:
			return
		default:
			event.PreviousHash = last
		}
		encoded, _ := storage.Encode(event)
		hash := storage.HashAudit(encoded)
		last = hash[:]
	}
}

// lines passes the lines of all files of the sink to change, which returns them in their new form.
func (c *tampered) lines(t *testing.T, change func(file int, lines [][]byte) [][]byte) {
	t.Helper()
	for index, path := range c.sink {
		content, err := os.ReadFile(path)
		must(t, err)
		lines := change(index, bytes.SplitAfter(bytes.TrimSuffix(content, []byte("\n")), []byte("\n")))
		for number := range lines {
			lines[number] = append(bytes.TrimSuffix(lines[number], []byte("\n")), '\n')
		}
		must(t, os.WriteFile(path, bytes.Join(lines, nil), 0o600))
	}
}

// at finds the line of an event.
func at(t *testing.T, lines [][]byte, event recorded) int {
	t.Helper()
	return slices.IndexFunc(lines, func(text []byte) bool {
		line, err := sink.Parse(text)
		return err == nil && line.Event != nil && line.Mark.Revision == event.place.Revision
	})
}

// rewriteLines makes lines anew whose events change alters.
func rewriteLines(t *testing.T, lines [][]byte, change func(revision int64, event *storagev1.AuditRecord)) [][]byte {
	t.Helper()
	for index, text := range lines {
		line, err := sink.Parse(text)
		must(t, err)
		if line.Event == nil {
			continue
		}
		before := proto.CloneOf(line.Event.Record)
		if change(line.Mark.Revision, line.Event.Record); proto.Equal(before, line.Event.Record) {
			continue
		}
		encoded, err := storage.Encode(line.Event.Record)
		must(t, err)
		lines[index], err = sink.EventLine(line.Mark.Epoch, line.Mark.Revision, storage.AuditEvent{Record: line.Event.Record, Encoded: encoded}, line.Late).Append(nil)
		must(t, err)
	}
	return lines
}

// tampering changes a history, and returns the kind of the finding that must name the event, and
// words of its text.
type tampering func(t *testing.T, c *tampered) (sink.Kind, recorded, string)

// tamperings are all ways in which a test tampers with a history.
func tamperings() map[string]tampering {
	all := storeTamperings()
	maps.Copy(all, sinkTamperings())
	return all
}

func storeTamperings() map[string]tampering {
	return map[string]tampering{
		"store: event altered": func(t *testing.T, c *tampered) (sink.Kind, recorded, string) {
			event := c.some()
			c.edit(t, func(tx *bolt.Tx) error {
				return rewriteEvents(tx, 1, func(revision int64, record *storagev1.AuditRecord) {
					if revision == event.place.Revision {
						record.Caller = "somebody else"
					}
				})
			})
			return sink.KindDiffers, event, "the store was altered"
		},
		"store: event altered and chain mended": func(t *testing.T, c *tampered) (sink.Kind, recorded, string) {
			event := c.some()
			c.edit(t, func(tx *bolt.Tx) error { return rewriteEvents(tx, 1, relink(event)) })
			return sink.KindDiffers, event, "in all later ones"
		},
		"store: event removed": func(t *testing.T, c *tampered) (sink.Kind, recorded, string) {
			event := c.some()
			c.edit(t, func(tx *bolt.Tx) error { return tx.Bucket([]byte("audit")).Delete(numberName(event.place.Revision)) })
			return sink.KindMissingInStore, event, "it was removed"
		},
		"store: events swapped": func(t *testing.T, c *tampered) (sink.Kind, recorded, string) {
			event := c.some()
			c.edit(t, func(tx *bolt.Tx) error {
				bucket := tx.Bucket([]byte("audit"))
				one, two := numberName(event.place.Revision), numberName(event.place.Revision+1)
				first, second := bytes.Clone(storage.Payload(bucket.Get(one))), bytes.Clone(storage.Payload(bucket.Get(two)))
				return errors.Join(bucket.Put(one, storage.Frame("audit/"+string(one), second)), bucket.Put(two, storage.Frame("audit/"+string(two), first)))
			})
			return sink.KindDiffers, event, ""
		},
		"store: last event removed": func(t *testing.T, c *tampered) (sink.Kind, recorded, string) {
			event := c.events[len(c.events)-1]
			c.edit(t, func(tx *bolt.Tx) error { return tx.Bucket([]byte("audit")).Delete(numberName(event.place.Revision)) })
			return sink.KindMissingInStore, event, ""
		},
		"store: older file put back": func(_ *testing.T, c *tampered) (sink.Kind, recorded, string) {
			c.store = c.older
			return sink.KindStoreBehind, c.events[c.olderRevision], "an older file was put back"
		},
		"store: workspace removed": func(t *testing.T, c *tampered) (sink.Kind, recorded, string) {
			id := c.workspaces[c.random.IntN(len(c.workspaces))].ID
			first := c.events[slices.IndexFunc(c.events, func(event recorded) bool { return event.place.WorkspaceID == id })]
			c.edit(t, func(tx *bolt.Tx) error { return removeWorkspace(tx, id) })
			return sink.KindWorkspace, first, "does not have the workspace"
		},
		"store: record put back": func(t *testing.T, c *tampered) (sink.Kind, recorded, string) {
			return sink.KindStore, c.putRecordBack(t), "it is not the record that audit event"
		},
	}
}

// removeWorkspace removes everything of a workspace, events included.
func removeWorkspace(tx *bolt.Tx, id string) error {
	return tx.ForEach(func(bucket []byte, content *bolt.Bucket) error {
		var names [][]byte
		err := content.ForEach(func(name, value []byte) error {
			owned := string(name) == id || strings.HasPrefix(string(name), id+"\x00") || string(bucket) == "keys" && strings.HasSuffix(string(name), id)
			record := &storagev1.AuditRecord{}
			if string(bucket) == "audit" {
				owned = proto.Unmarshal(storage.Payload(value)[8:], record) == nil && record.GetWorkspaceId() == id
			}
			if owned {
				names = append(names, bytes.Clone(name))
			}
			return nil
		})
		for _, name := range names {
			err = errors.Join(err, content.Delete(name))
		}
		return err
	})
}

// putRecordBack puts the record of a member of the older file into the store. It returns the event
// that put the newer one.
func (c *tampered) putRecordBack(t *testing.T) (changed recorded) {
	t.Helper()
	old, err := bolt.Open(c.older, 0o600, nil)
	must(t, err)
	values := make(map[string][]byte)
	must(t, errors.Join(old.View(func(tx *bolt.Tx) error {
		return tx.Bucket([]byte("members")).ForEach(func(name, value []byte) error {
			values[string(name)] = bytes.Clone(value)
			return nil
		})
	}), old.Close()))
	c.edit(t, func(tx *bolt.Tx) error {
		bucket := tx.Bucket([]byte("members"))
		for _, name := range slices.Sorted(maps.Keys(values)) {
			now := &storagev1.MemberRecord{}
			if err := proto.Unmarshal(storage.Payload(bucket.Get([]byte(name))), now); err != nil {
				return err
			}
			if bytes.Equal(bucket.Get([]byte(name)), values[name]) {
				continue
			}
			for _, event := range c.events {
				if event.place.WorkspaceID == now.GetWorkspaceId() && event.place.Sequence == now.GetChangeSequence() {
					changed = event
				}
			}
			return bucket.Put([]byte(name), values[name])
		}
		return errors.New("no member changed after the older file")
	})
	return changed
}

func sinkTamperings() map[string]tampering {
	return map[string]tampering{
		"sink: line altered": func(t *testing.T, c *tampered) (sink.Kind, recorded, string) {
			event := c.some()
			c.lines(t, func(_ int, lines [][]byte) [][]byte {
				if index := at(t, lines, event); index >= 0 {
					lines[index] = bytes.Replace(lines[index], []byte(`"caller":"`), []byte(`"caller":"x`), 1)
				}
				return lines
			})
			return sink.KindLine, event, "not one that the server wrote"
		},
		"sink: line made anew": func(t *testing.T, c *tampered) (sink.Kind, recorded, string) {
			event := c.some()
			c.lines(t, func(_ int, lines [][]byte) [][]byte {
				return rewriteLines(t, lines, func(revision int64, record *storagev1.AuditRecord) {
					if revision == event.place.Revision {
						record.Caller = "somebody else"
					}
				})
			})
			return sink.KindDiffers, event, "the sink was altered"
		},
		"sink: line made anew and chain mended": func(t *testing.T, c *tampered) (sink.Kind, recorded, string) {
			event := c.some()
			mend := relink(event)
			c.lines(t, func(_ int, lines [][]byte) [][]byte { return rewriteLines(t, lines, mend) })
			return sink.KindDiffers, event, "in all later ones"
		},
		"sink: line removed": func(t *testing.T, c *tampered) (sink.Kind, recorded, string) {
			event := c.some()
			for isEnd := true; isEnd; { // the last line of a file is another case
				event = c.some()
				isEnd = false
				c.lines(t, func(_ int, lines [][]byte) [][]byte {
					isEnd = isEnd || at(t, lines, event) == len(lines)-1
					return lines
				})
			}
			c.lines(t, func(_ int, lines [][]byte) [][]byte {
				if index := at(t, lines, event); index >= 0 {
					return slices.Delete(lines, index, index+1)
				}
				return lines
			})
			return sink.KindMissingInSink, event, "it was removed"
		},
		"sink: lines swapped": func(t *testing.T, c *tampered) (sink.Kind, recorded, string) {
			var event recorded
			c.lines(t, func(file int, lines [][]byte) [][]byte {
				if file == 1 {
					index := 1 + c.random.IntN(len(lines)-2)
					line, err := sink.Parse(lines[index])
					must(t, err)
					event = c.events[line.Mark.Revision-1]
					lines[index], lines[index+1] = lines[index+1], lines[index]
				}
				return lines
			})
			return sink.KindOrder, event, "comes after that of revision"
		},
		"sink: end cut": func(t *testing.T, c *tampered) (sink.Kind, recorded, string) {
			count := 1 + c.random.IntN(5)
			c.lines(t, func(file int, lines [][]byte) [][]byte {
				if file == 2 {
					return lines[:len(lines)-count]
				}
				return lines
			})
			return sink.KindSinkBehind, c.events[len(c.events)-count], "its end was cut"
		},
		"sink: end of a rotated file cut": func(t *testing.T, c *tampered) (sink.Kind, recorded, string) {
			var event recorded
			c.lines(t, func(file int, lines [][]byte) [][]byte {
				if file != 0 {
					return lines
				}
				line, err := sink.Parse(lines[len(lines)-1])
				must(t, err)
				event = c.events[line.Mark.Revision-1]
				return lines[:len(lines)-1]
			})
			return sink.KindGap, event, "a file between them is missing"
		},
		"sink: file missing": func(t *testing.T, c *tampered) (sink.Kind, recorded, string) {
			lines := readLines(t, c.sink[1])
			line, err := sink.Parse(lines[1])
			must(t, err)
			c.sink = slices.Delete(c.sink, 1, 2)
			return sink.KindGap, c.events[line.Mark.Revision-1], "a file between them is missing"
		},
		"sink: newest file missing": func(t *testing.T, c *tampered) (sink.Kind, recorded, string) {
			line, err := sink.Parse(readLines(t, c.sink[2])[1])
			must(t, err)
			c.sink = c.sink[:2]
			return sink.KindSinkBehind, c.events[line.Mark.Revision-1], ""
		},
	}
}

func readLines(t *testing.T, path string) [][]byte {
	t.Helper()
	content, err := os.ReadFile(path)
	must(t, err)
	return bytes.SplitAfter(content, []byte("\n"))
}

func verify(t *testing.T, store string, files []string) server.Verification {
	t.Helper()
	given := slices.Clone(files)
	slices.Reverse(given) // the order does not matter
	result, err := server.VerifyAudit(t.Context(), store, server.VerifyOptions{Sink: given})
	must(t, err)
	return result
}

func describe(result server.Verification) string {
	var text strings.Builder
	for _, found := range result.Findings {
		fmt.Fprintf(&text, "  %s %d–%d %v: %s (since %v)\n", found.Kind, found.Revision, found.LastRevision, found.Events, found.Text, found.Since)
	}
	return text.String() + strings.Join(result.Notes, "\n")
}

// TestEveryTamperingIsNamed tampers with random histories of a real store and its sink, in every way
// that tamperings has. Verifying must name what was tampered with, and say until when everything is
// right. Without tampering it finds nothing.
func TestEveryTamperingIsNamed(t *testing.T) {
	t.Parallel()
	for round := range race.Rounds(2, 1) {
		random := rand.New(rand.NewPCG(uint64(round), 13))
		history := newHistory(t, random)
		if result := verify(t, history.store, history.sink); len(result.Findings) > 0 || len(result.Notes) > 0 || result.End != int64(len(history.events)) {
			t.Fatalf("round %d: nothing was tampered with: %s", round, describe(result))
		}
		all := tamperings()
		for _, name := range slices.Sorted(maps.Keys(all)) {
			c := history.copied(t)
			kind, event, words := all[name](t, c)
			result := verify(t, c.store, c.sink)
			named := slices.ContainsFunc(result.Findings, func(found sink.Finding) bool {
				since := int64(0)
				if found.Since != nil {
					since = found.Since.Revision
				}
				want := event.place.Revision - 1 // everything before it is right
				if kind == sink.KindStore {
					want++
				}
				return found.Kind == kind && found.Revision == event.place.Revision && strings.Contains(found.Text, words) &&
					(len(found.Events) > 0 && found.Events[0].Sequence == event.place.Sequence && found.Events[0].WorkspaceID == event.place.WorkspaceID) &&
					since == want
			})
			if !named {
				t.Errorf("round %d, %s, %v: found\n%s", round, name, event.place, describe(result))
			}
		}
	}
}

// TestOtherHistoriesAreNamed: a store that was put back and served on, an accepted store, and the
// sink of another store.
func TestOtherHistoriesAreNamed(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 13))
	one, two := newHistory(t, random), newHistory(t, random)
	result := verify(t, one.store, two.sink)
	if !slices.ContainsFunc(result.Findings, func(found sink.Finding) bool { return found.Kind == sink.KindEpoch }) ||
		!slices.ContainsFunc(result.Findings, func(found sink.Finding) bool { return found.Kind == sink.KindHistory && found.Revision == 1 }) {
		t.Errorf("the sink of another store: %s", describe(result))
	}

	// The store and its sink are put back, and serve on.
	branch := &sunkHistory{random: random, store: one.older, workspaces: one.workspaces}
	for _, workspace := range branch.workspaces {
		workspace.Head = storage.Head{}
		for _, event := range one.events[:one.olderRevision] {
			if event.place.WorkspaceID == workspace.ID {
				encoded, err := storage.Encode(event.event)
				must(t, err)
				workspace.Head = storage.Head{Sequence: event.place.Sequence, Hash: storage.HashAudit(encoded)}
			}
		}
	}
	kept := one.copied(t)
	must(t, os.Remove(one.sink[2]))
	branch.serve(t, one.sink[2], 12)
	result = verify(t, branch.store, kept.sink)
	if !slices.ContainsFunc(result.Findings, func(found sink.Finding) bool {
		return found.Kind == sink.KindHistory && found.Revision == one.olderRevision+1 && found.Since != nil && found.Since.Revision == one.olderRevision
	}) {
		t.Errorf("a store that was put back and served on: %s", describe(result))
	}
	if result = verify(t, branch.store, one.sink); len(result.Findings) > 0 {
		t.Errorf("the store with the sink that it wrote: %s", describe(result))
	}
}

// TestAcceptedStoreIsRight: what a person accepted is a note, and no finding.
func TestAcceptedStoreIsRight(t *testing.T) {
	t.Parallel()
	h := newHistory(t, rand.New(rand.NewPCG(2, 13)))
	content, err := os.ReadFile(h.older)
	must(t, err)
	must(t, os.WriteFile(h.store, content, 0o600))
	_, err = boltstore.AcceptAnchor(h.store, boltstore.Config{})
	must(t, err)
	store, err := boltstore.Open(h.store, boltstore.Config{Sink: boltstore.SinkAsBefore})
	must(t, err)
	must(t, store.Close())
	result := verify(t, h.store, h.sink)
	if len(result.Findings) > 0 || len(result.Notes) != 1 || !strings.Contains(result.Notes[0], "were given up") {
		t.Errorf("an accepted store: %s", describe(result))
	}
}

// TestCopyAndTornLineAreRight: a copy of a store may be older than its sink, if the person says so,
// and a sink may end in the middle of a line.
func TestCopyAndTornLineAreRight(t *testing.T) {
	t.Parallel()
	h := newHistory(t, rand.New(rand.NewPCG(3, 13)))
	result, err := server.VerifyAudit(t.Context(), h.older, server.VerifyOptions{Copy: true})
	must(t, err)
	if len(result.Findings) > 0 || len(result.Files) != 3 || len(result.Notes) != 1 || !strings.Contains(result.Notes[0], "goes on after the copy") {
		t.Errorf("a copy: %s", describe(result))
	}
	file, err := os.OpenFile(h.sink[2], os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = io.WriteString(file, `{"type":"event","form`)
	must(t, errors.Join(err, file.Close()))
	result = verify(t, h.store, h.sink)
	if len(result.Findings) > 0 || len(result.Notes) != 1 || !strings.Contains(result.Notes[0], "ends in the middle of a line") {
		t.Errorf("a torn line: %s", describe(result))
	}
	result, err = server.VerifyAudit(t.Context(), h.store, server.VerifyOptions{Sink: []string{"off"}})
	must(t, err)
	if len(result.Findings) > 0 || len(result.Notes) != 1 {
		t.Errorf("without a sink: %s", describe(result))
	}
}
