package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/anchor"
)

const (
	// maxFindings is how many findings a comparison describes. It only counts the rest.
	maxFindings = 200
	// maxNamed is how many events a finding names.
	maxNamed = 20
	// maxRevision is the greatest revision that a line may have. No store comes so far.
	maxRevision = 1 << 62
	// progressInterval is the number of lines between two calls of CompareOptions.Progress.
	progressInterval = 10_000
)

// Ledger is the store's side of a comparison: the audit events of a store that does not change
// meanwhile.
type Ledger interface {
	// Epoch returns the identity of the store's history.
	Epoch() string
	// Newest returns the revision of the newest change.
	Newest() int64
	// Pruned returns the revision up to which events may be missing because they are old.
	Pruned() int64
	// EncodedEvent returns the stored bytes of the event of a revision, nil if the store has no such event. The
	// error is a DamagedError.
	EncodedEvent(revision int64) ([]byte, error)
	// HeadSequences returns the sequence of the newest event of each workspace; "" is the policy's.
	HeadSequences() (map[string]int64, error)
}

// Kind is what a finding is about.
type Kind string

// The kinds of findings.
const (
	// KindLine is a line that the server did not write: its readable part is not what its event
	// says, or it is no line of a sink at all.
	KindLine Kind = "line_altered"
	// KindOrder is a line that comes twice or at the wrong place, or a file that does not go on where
	// the one before it ends.
	KindOrder Kind = "wrong_order"
	// KindMissingInSink are events of the store whose lines were removed.
	KindMissingInSink Kind = "missing_in_sink"
	// KindGap are events that are missing between two files: a file was not given, or was cut.
	KindGap Kind = "gap_between_files"
	// KindSinkBehind are the newest events of the store, which the sink does not have.
	KindSinkBehind Kind = "sink_behind"
	// KindMissingInStore are events that were removed from the store.
	KindMissingInStore Kind = "missing_in_store"
	// KindStoreBehind are the newest events of the sink, which the store does not have.
	KindStoreBehind Kind = "store_behind"
	// KindDiffers are events of a workspace that the store has otherwise than the sink.
	KindDiffers Kind = "differs"
	// KindHistory is another history from a revision on.
	KindHistory Kind = "other_history"
	// KindChain is an event that does not chain to the one before it in the sink.
	KindChain Kind = "sink_chain"
	// KindWorkspace is a workspace of the sink that the store does not have.
	KindWorkspace Kind = "workspace_missing"
	// KindStore is a contradiction within the store, as keysvc check finds it.
	KindStore Kind = "store"
	// KindNothingCompared is a sink of which no file has an event, although the store has some.
	KindNothingCompared Kind = "nothing_compared"
	// KindEpoch is a sink of another history of a store.
	KindEpoch Kind = "other_epoch"
)

// EventPlace names an audit event.
type EventPlace struct {
	// WorkspaceID is the workspace; empty is the policy's.
	WorkspaceID string `json:"workspace_id"`
	// Sequence is the event's in the workspace.
	Sequence int64 `json:"sequence"`
	// Revision is that of its change.
	Revision int64 `json:"revision"`
	// Time is the event's.
	Time time.Time `json:"time"`
}

// String returns the place in words.
func (p EventPlace) String() string {
	owner := "workspace " + p.WorkspaceID
	if p.WorkspaceID == "" {
		owner = "the policy"
	}
	return fmt.Sprintf("event %d of %s (revision %d, %s)", p.Sequence, owner, p.Revision, p.Time.UTC().Format(time.RFC3339))
}

// Finding is a difference, or several of the same kind in a row.
type Finding struct {
	// Kind is what it is about.
	Kind Kind
	// Text says in words what was found.
	Text string
	// Revision and LastRevision are those of the first and the last event; 0 if unknown.
	Revision, LastRevision int64
	// Count is the number of events or lines, at least 1.
	Count int64
	// Events are the events, as far as they are known: the first ones, 20 at most.
	Events []EventPlace
	// File and Line are where the first was found in the sink; empty and 0 if it is not there.
	File string
	Line int64
	// Since is the last event that is right before what was found: in the store and in the sink or,
	// without a sink, in the store. Nil if it is unknown.
	Since *EventPlace

	workspaceID string
	// right is the revision of Since, if it is known before.
	right int64
	// broken reports whether the sink's chain is broken there, and ended whether the two agree
	// again afterwards.
	broken, ended bool
}

// CompareOptions say how a store and a sink are compared. The zero value is useful.
type CompareOptions struct {
	// Problems are the contradictions within the store.
	Problems []storage.Problem
	// Copy reports whether the store is a copy that was made while the server went on: then the
	// sink may go on.
	Copy bool
	// Progress, if not nil, is called with the number of lines that were read, from time to time.
	Progress func(lines int64)
}

// Comparison is the result of Compare.
type Comparison struct {
	// Files are the files of the sink, in the order in which they were read.
	Files []string
	// Lines is the number of lines. Begin is the revision before the first event that they have,
	// and End that of the last one. Epoch is that of the last line.
	Lines, Begin, End int64
	Epoch             string
	// Findings are the differences, at most 200, and More is how many more there are.
	Findings []Finding
	More     int
	// Notes say what is no difference but good to know.
	Notes []string
}

// comparison is a comparison in progress. Its memory is bounded by the number of workspaces, and
// two bits for each revision of the store.
type comparison struct {
	Comparison
	store   Ledger
	options CompareOptions
	found   []*Finding
	// seen has the revisions whose lines were read, and right those whose events are the same in
	// both.
	seen, right bitSet
	workspaces  map[string]*followed
	// previous is the position of the newest line, its epoch empty at the beginning. file is its file.
	previous anchor.Mark
	file     string
	// altered are the lines since then that could not be read.
	altered []*Finding
	// disorder is the finding of the line before this one, if that was in the wrong order, and
	// behind the one of the lines after the store's end.
	disorder, behind *Finding
}

// followed is what a comparison knows of one workspace of the sink.
type followed struct {
	// chain ends in the newest line. It is unknown if known is false.
	chain storage.Head
	known bool
	// first is the place of the first event, and last the newest one up to the store's revision.
	first, last EventPlace
	// differs and lost are the findings of the newest line, if it was one.
	differs, lost *Finding
}

// Compare compares the audit events of a store with its sink, whose files may be given in any
// order. Without files there are only the findings of options.Problems. Compare holds one line in memory, and not the events. Errors: those of the file system, and the
// context's.
func Compare(ctx context.Context, store Ledger, files []string, options CompareOptions) (Comparison, error) {
	ordered, err := Order(files)
	if err != nil {
		return Comparison{}, err
	}
	c := &comparison{store: store, options: options, workspaces: make(map[string]*followed)}
	c.Files = ordered
	c.problems()
	if len(files) == 0 {
		c.complete()
		return c.Comparison, nil
	}
	reader := NewReader(ordered...)
	defer reader.Close() //nolint:errcheck // only read
	for {
		line, err := reader.Next()
		file, number := reader.Where()
		broken := (*LineError)(nil)
		switch {
		case errors.Is(err, io.EOF):
			if err := c.finish(); err != nil {
				return Comparison{}, err
			}
			return c.Comparison, nil
		case errors.Is(err, ErrTorn):
			c.note("%s ends in the middle of a line, as after a kill or while the server writes: that is right", file)
		case errors.As(err, &broken):
			c.Lines++
			c.alteredLine(file, number, broken.Err)
		case err != nil:
			return Comparison{}, err
		default:
			c.Lines++
			c.line(line, file, number)
		}
		if c.Lines%progressInterval == 0 {
			if err := ctx.Err(); err != nil {
				return Comparison{}, err
			}
			if options.Progress != nil {
				options.Progress(c.Lines)
			}
		}
	}
}

func (c *comparison) note(format string, arguments ...any) {
	if len(c.Notes) < maxFindings {
		c.Notes = append(c.Notes, fmt.Sprintf(format, arguments...))
	}
}

// add adds a finding. Beyond maxFindings the finding is only counted.
func (c *comparison) add(finding Finding) *Finding {
	finding.Count = max(finding.Count, 1)
	finding.LastRevision = max(finding.LastRevision, finding.Revision)
	if len(c.found) == maxFindings {
		c.More++
	} else {
		c.found = append(c.found, &finding)
	}
	return &finding
}

// alteredLine takes a line that cannot be read.
func (c *comparison) alteredLine(file string, number int64, err error) {
	finding := c.add(Finding{Kind: KindLine, File: file, Line: number, Text: fmt.Sprintf("the line is not one that the server wrote: %v", err)})
	c.altered = append(c.altered, finding)
	if len(c.altered) > maxFindings {
		c.altered = c.altered[:maxFindings] // too many to be told apart; the events count as missing
	}
}

// settle tells which events the unreadable lines before the line of revision next had, if as many
// are missing.
func (c *comparison) settle(next int64) {
	if missing := next - 1 - c.previous.Revision; missing > 0 && missing == int64(len(c.altered)) {
		for index, finding := range c.altered {
			revision := c.previous.Revision + 1 + int64(index)
			finding.Revision, finding.LastRevision = revision, revision
			finding.name(c.stored(revision))
			c.see(revision)
		}
	}
	c.altered = nil
}

// name adds an event to the events of a finding.
func (f *Finding) name(place EventPlace, known bool) {
	if known && len(f.Events) < maxNamed {
		f.Events = append(f.Events, place)
	}
}

// grow adds an event to a finding of several in a row.
func (f *Finding) grow(place EventPlace) {
	f.Count++
	f.LastRevision = max(f.LastRevision, place.Revision)
	f.name(place, true)
}

// stored returns the place of the store's event of a revision, and reports whether the store has
// the event.
func (c *comparison) stored(revision int64) (EventPlace, bool) {
	if revision < 1 {
		return EventPlace{}, false
	}
	encoded, err := c.store.EncodedEvent(revision)
	record := &storagev1.AuditRecord{}
	if err != nil || encoded == nil || proto.Unmarshal(encoded, record) != nil {
		return EventPlace{}, false
	}
	return placeOf(record, revision), true
}

func placeOf(record *storagev1.AuditRecord, revision int64) EventPlace {
	return EventPlace{WorkspaceID: record.GetWorkspaceId(), Sequence: record.GetSequence(), Revision: revision, Time: record.GetTime().AsTime()}
}

// line takes a readable line.
func (c *comparison) line(line Line, file string, number int64) {
	revision := line.Mark.Revision
	if revision > maxRevision || line.Event != nil && revision < 1 {
		c.alteredLine(file, number, fmt.Errorf("%w: revision %d", ErrLine, revision))
		return
	}
	if line.Event == nil {
		c.anchorLine(line, file, number)
		return
	}
	switch {
	case c.previous.Epoch == "" && len(c.altered) == 0:
		c.add(Finding{Kind: KindLine, File: file, Line: number, Text: "the file does not begin with an anchor's line, which was removed"})
		fallthrough
	case c.previous.Epoch == "":
		c.previous = anchor.Mark{Epoch: line.Mark.Epoch, Revision: revision - 1}
		c.Begin = revision - 1
		c.altered = nil
	case c.previous.Epoch != line.Mark.Epoch:
		c.add(Finding{
			Kind: KindEpoch, Revision: revision, File: file, Line: number,
			Text: fmt.Sprintf("the epoch changes from %s to %s without an anchor's line that says so", c.previous.Epoch, line.Mark.Epoch),
		})
		c.previous.Epoch = line.Mark.Epoch
	case number == 1 && file != c.file && c.file != "":
		c.add(Finding{Kind: KindLine, File: file, Line: number, Text: "the file does not begin with an anchor's line, which was removed"})
	}
	place := placeOf(line.Event.Record, revision)
	c.settle(revision)
	c.order(place, file, number)
	if revision > c.previous.Revision {
		c.previous = line.Mark
	}
	c.file = file
	c.event(line.Event, place, file, number)
	c.see(revision)
}

// see notes that there is a line of a revision. Revisions that the store does not have are not
// noted, so that an absurd number in a line costs no memory.
func (c *comparison) see(revision int64) {
	if revision <= c.store.Newest() {
		c.seen.set(revision)
	}
}

// order checks that a line comes after the one before it.
func (c *comparison) order(place EventPlace, file string, number int64) {
	switch {
	case place.Revision > c.previous.Revision:
		c.disorder = nil
		return
	case c.disorder != nil:
		c.disorder.grow(place)
		return
	}
	text := fmt.Sprintf("the line comes after that of revision %d", c.previous.Revision)
	if c.seen.has(place.Revision) {
		text = "there is a line of this revision before this one"
	}
	c.disorder = c.add(Finding{Kind: KindOrder, Revision: place.Revision, File: file, Line: number, Events: []EventPlace{place}, Text: text})
}

// anchorLine takes an anchor's line.
func (c *comparison) anchorLine(line Line, file string, number int64) {
	mark, before := line.Mark, c.previous
	c.disorder = nil
	switch {
	case before.Epoch == "":
		c.Begin, c.altered = mark.Revision, nil
		c.previous = mark
	case mark.Epoch != before.Epoch:
		c.accepted(line)
	case mark == before:
		c.settle(mark.Revision + 1)
	case mark.Revision == before.Revision:
		c.add(Finding{
			Kind: KindDiffers, Revision: mark.Revision, File: file, Line: number, broken: true,
			Text: "the anchor's line has another event at this revision than the line before it",
		})
	case mark.Revision < before.Revision:
		c.add(Finding{
			Kind: KindOrder, Revision: mark.Revision, LastRevision: before.Revision, File: file, Line: number,
			Text: fmt.Sprintf("the anchor's line stands at revision %d, and the lines before it, in %s, go to %d", mark.Revision, c.file, before.Revision),
		})
	default:
		if c.settle(mark.Revision + 1); !c.seen.has(mark.Revision) {
			gap := c.add(Finding{
				Kind: KindGap, Revision: before.Revision + 1, LastRevision: mark.Revision, Count: mark.Revision - before.Revision,
				File: file, Line: number, Text: fmt.Sprintf("%s ends at revision %d, and %s begins at %d: a file between them is missing, or the first of the two was cut",
					c.file, before.Revision, file, mark.Revision),
			})
			for revision := gap.Revision; revision <= min(mark.Revision, c.store.Newest()); revision++ {
				gap.name(c.stored(revision))
				c.see(revision)
			}
		}
		c.previous = mark
		for _, workspace := range c.workspaces {
			workspace.known = false
		}
	}
	c.file = file
}

// accepted begins a new epoch: a person has accepted the store, or restored a copy of it. What the
// lines before it have beyond that revision was given up; a restore has narrowed it again.
func (c *comparison) accepted(line Line) {
	mark, before := line.Mark, c.previous
	at := line.Time.UTC().Format(time.RFC3339)
	switch {
	case mark.Revision < before.Revision:
		c.note("a new epoch begins at %s: the store was accepted or restored at revision %d, and the events %d to %d of the sink were given up", at, mark.Revision, mark.Revision+1, before.Revision)
	case mark.Revision > before.Revision:
		c.note("a new epoch begins at %s: the store was accepted or restored at revision %d, and the sink does not have its events %d to %d", at, mark.Revision, before.Revision+1, mark.Revision)
	default:
		c.note("a new epoch begins at %s, at revision %d: the store was accepted or restored", at, mark.Revision)
	}
	c.seen.cut(mark.Revision)
	c.right.cut(mark.Revision)
	for revision := before.Revision + 1; revision <= min(mark.Revision, c.store.Newest()); revision++ {
		c.see(revision)
	}
	c.found = slices.DeleteFunc(c.found, func(finding *Finding) bool {
		ofStore := finding.Kind == KindDiffers || finding.Kind == KindMissingInStore || finding.Kind == KindStoreBehind
		return ofStore && finding.Revision > mark.Revision
	})
	for id, workspace := range c.workspaces {
		workspace.known, workspace.differs, workspace.lost = false, nil, nil
		if workspace.first.Revision > mark.Revision {
			delete(c.workspaces, id)
		}
	}
	c.previous, c.altered, c.behind = mark, nil, nil
}

// event compares the event of a line with the store's.
func (c *comparison) event(event *storage.AuditEvent, place EventPlace, file string, number int64) {
	workspace := c.workspaces[place.WorkspaceID]
	if workspace == nil {
		workspace = &followed{known: c.Begin == 0, first: place}
		c.workspaces[place.WorkspaceID] = workspace
	}
	chains := !workspace.known || workspace.chain.Follows(event.Record)
	workspace.chain, workspace.known = storage.Head{Sequence: place.Sequence, Hash: storage.HashAudit(event.Encoded)}, true
	if place.Revision > c.store.Newest() {
		if c.behind == nil {
			c.behind = c.add(Finding{Kind: KindStoreBehind, Revision: place.Revision, File: file, Line: number, Events: []EventPlace{place}})
		} else {
			c.behind.grow(place)
		}
		c.chain(chains, place, file, number)
		return
	}
	workspace.last = place
	stored, err := c.store.EncodedEvent(place.Revision)
	switch {
	case err == nil && bytes.Equal(stored, event.Encoded):
		if workspace.differs != nil {
			workspace.differs.ended = true
			workspace.differs.broken = workspace.differs.broken || !chains
		}
		workspace.differs, workspace.lost = nil, nil
		c.right.set(place.Revision)
		return
	case err == nil && stored == nil && place.Revision <= c.store.Pruned():
		c.chain(chains, place, file, number)
	case err == nil && stored == nil && workspace.lost != nil:
		workspace.lost.grow(place)
	case err == nil && stored == nil:
		workspace.lost = c.add(Finding{Kind: KindMissingInStore, Revision: place.Revision, File: file, Line: number, Events: []EventPlace{place}, workspaceID: place.WorkspaceID})
	case workspace.differs != nil:
		workspace.differs.grow(place)
		workspace.differs.broken = workspace.differs.broken || !chains
	default:
		workspace.differs = c.add(Finding{Kind: KindDiffers, Revision: place.Revision, File: file, Line: number, Events: []EventPlace{place}, broken: !chains, workspaceID: place.WorkspaceID})
	}
}

// chain reports an event that the store does not have for comparison, and that does not chain to
// the workspace's event before it.
func (c *comparison) chain(chains bool, place EventPlace, file string, number int64) {
	if !chains {
		c.add(Finding{
			Kind: KindChain, Revision: place.Revision, File: file, Line: number, Events: []EventPlace{place},
			Text: "the event does not chain to the line of the workspace before it: one of the two was altered, or one between them removed",
		})
	}
}
