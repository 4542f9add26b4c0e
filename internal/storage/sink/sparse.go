package sink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// SparseStore is the store's side of CompareSparse: the audit events of a store whose revisions have gaps, because
// others use them as well, and where several events may have one revision.
type SparseStore struct {
	// Epoch is the identity of the store's history, Newest the revision of its newest change, and Pruned the
	// one up to which events may be missing because they are old.
	Epoch          string
	Newest, Pruned int64
	// Heads are the sequences of the newest event of each workspace, 0 if its head is damaged; "" is the policy's.
	Heads map[string]int64
	// Events are the events of each workspace, by ascending sequence.
	Events map[string][]SparseEvent
	// Sunk is the revision up to which the store knows that a sink has its events; 0 if it knows of none.
	Sunk int64
	// Problems are the contradictions within the store.
	Problems []storage.Problem
	// More is how many more contradictions there are.
	More int
}

// SparseEvent is an audit event of a SparseStore.
type SparseEvent struct {
	// Sequence is the event's in its workspace, and Revision that of its change.
	Sequence, Revision int64
	// Time is the event's.
	Time time.Time
	// Hash is that of the event, and Previous that of the event before it.
	Hash, Previous [32]byte
	// Damaged is set if the event cannot be read. Then only Sequence and Revision are known.
	Damaged bool
}

// SparseOptions say how a SparseStore and a sink are compared.
type SparseOptions struct {
	// Fresh is the time of the oldest event that a writer of the sink may not have written yet.
	Fresh time.Time
	// Progress, if not nil, is called with the number of lines that were read, from time to time.
	Progress func(lines int64)
}

// sparseLine is the event of a line.
type sparseLine struct {
	SparseEvent
	epoch  string
	file   string
	number int64
}

// sparse is a CompareSparse. It has about 200 bytes in memory for each line and for each event.
type sparse struct {
	Comparison
	options SparseOptions
	store   SparseStore
	lines   map[string][]sparseLine
	// epochs are those of the lines, and givenUp is how many events of former epochs the store does not have.
	epochs  map[string]bool
	list    []*Finding
	givenUp int64
	// right is the newest event of a workspace so far that is the same on both sides.
	right *EventPlace
}

// CompareSparse compares the audit events of a store with its sink, whose files may be given in any order, and may be those
// of several writers. It compares event by event: each workspace has a chain of its own, and the lines of events that the
// store has pruned must close it. The store is read by load, after the sink, so that servers can go on meanwhile. An
// event that is in the sink twice counts once. Errors: those of load, of the file system, and the context's.
func CompareSparse(ctx context.Context, files []string, load func() (SparseStore, error), options SparseOptions) (Comparison, SparseStore, error) {
	ordered, err := Order(files)
	if err != nil {
		return Comparison{}, SparseStore{}, err
	}
	c := &sparse{options: options, lines: make(map[string][]sparseLine), epochs: make(map[string]bool)}
	c.Files = ordered
	if err := c.read(ctx); err != nil {
		return Comparison{}, SparseStore{}, err
	}
	if c.store, err = load(); err != nil {
		return Comparison{}, SparseStore{}, err
	}
	c.More += c.store.More
	for _, problem := range c.store.Problems {
		c.add(Finding{Kind: KindStore, Text: problem.Text, Revision: problem.Revision})
	}
	if len(files) > 0 {
		c.compare()
	}
	for _, finding := range c.list {
		finding.describe()
		c.Findings = append(c.Findings, *finding)
	}
	return c.Comparison, c.store, nil
}

// add adds a finding, and returns it. Beyond maxFindings it is only counted.
func (c *sparse) add(finding Finding) *Finding {
	finding.Count = max(finding.Count, 1)
	finding.LastRevision = max(finding.LastRevision, finding.Revision)
	if finding.Since == nil {
		finding.Since = c.right
	}
	if len(c.list) == maxFindings {
		c.More++
	} else {
		c.list = append(c.list, &finding)
	}
	return &finding
}

func (c *sparse) note(format string, arguments ...any) {
	if len(c.Notes) < maxFindings {
		c.Notes = append(c.Notes, fmt.Sprintf(format, arguments...))
	}
}

// read reads the lines.
func (c *sparse) read(ctx context.Context) error {
	reader := NewReader(c.Files...)
	defer reader.Close() //nolint:errcheck // only read
	for {
		line, err := reader.Next()
		file, number := reader.Where()
		broken := (*LineError)(nil)
		switch {
		case errors.Is(err, io.EOF):
			return ctx.Err()
		case errors.Is(err, ErrTorn):
			c.note("%s ends in the middle of a line, as after a kill or while the server writes: that is right", file)
		case errors.As(err, &broken):
			c.Lines++
			c.add(Finding{Kind: KindLine, File: file, Line: number, Text: fmt.Sprintf("the line is not one that the server wrote: %v", broken.Err)})
		case err != nil:
			return err
		default:
			c.Lines++
			c.line(line, file, number)
		}
		if c.Lines%progressInterval == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			if c.options.Progress != nil {
				c.options.Progress(c.Lines)
			}
		}
	}
}

func (c *sparse) line(line Line, file string, number int64) {
	mark := line.Mark
	if c.Lines == 1 && line.Event == nil {
		c.Begin = mark.Revision
	}
	if line.Event == nil && len(c.epochs) > 0 && mark.Epoch != c.Epoch {
		c.note("a new epoch begins at %s: the store was accepted, restored or migrated at revision %d", line.Time.UTC().Format(time.RFC3339), mark.Revision)
	}
	if number == 1 && line.Event != nil {
		c.add(Finding{Kind: KindLine, File: file, Line: number, Text: "the file does not begin with an anchor's line, which was removed"})
	}
	if c.Epoch != mark.Epoch {
		c.Epoch, c.End = mark.Epoch, 0
	}
	c.epochs[mark.Epoch] = true
	c.End = max(c.End, mark.Revision)
	if line.Event == nil {
		return
	}
	record := line.Event.Record
	event := sparseLine{epoch: mark.Epoch, file: file, number: number, SparseEvent: SparseEvent{
		Sequence: record.GetSequence(), Revision: mark.Revision, Time: record.GetTime().AsTime(), Hash: storage.HashAudit(line.Event.Encoded),
	}}
	copy(event.Previous[:], record.GetPreviousHash())
	id := record.GetWorkspaceId()
	c.lines[id] = append(c.lines[id], event)
}

// isFormer reports whether a line is of an epoch that a person has ended: the sink has lines of the store's epoch, and this line is not
// one of them. What such a line has, and the store does not, was given up.
func (c *sparse) isFormer(line sparseLine) bool {
	return c.epochs[c.store.Epoch] && line.epoch != c.store.Epoch
}

func (c *sparse) compare() {
	if c.Lines == 0 {
		c.add(Finding{Kind: KindSinkBehind, Count: max(1, c.store.Newest), Text: "the sink has no line"})
		return
	}
	ids := slices.Sorted(maps.Keys(c.lines))
	for id := range c.store.Events {
		if _, has := c.lines[id]; !has {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	anyRight := false
	for _, id := range ids {
		c.right = nil
		c.workspace(id)
		anyRight = anyRight || c.right != nil
	}
	c.right = nil
	if !c.epochs[c.store.Epoch] {
		text := "the sink is of another store"
		if anyRight {
			text = "the store was accepted, restored or migrated without this sink"
		}
		c.add(Finding{Kind: KindEpoch, Text: fmt.Sprintf("the sink ends in epoch %s, and the store has epoch %s: %s", c.Epoch, c.store.Epoch, text)})
	}
	if c.givenUp > 0 {
		c.note("%s of former epochs were given up when the store was accepted or restored", events(c.givenUp))
	}
	if c.Begin > 0 {
		c.note("the files begin after revision %d; older events were not compared", c.Begin)
	}
}

func (e SparseEvent) place(workspaceID string) EventPlace {
	return EventPlace{WorkspaceID: workspaceID, Sequence: e.Sequence, Revision: e.Revision, Time: e.Time}
}

// lost is what was found last, to which the next event of the same kind is added.
type lost struct {
	finding  *Finding
	sequence int64
}

// found adds an event to the findings.
func (c *sparse) found(last *lost, kind Kind, place EventPlace, line *sparseLine, text string) {
	if f := last.finding; f != nil && f.Kind == kind && f.Text == text && place.Sequence == last.sequence+1 {
		f.grow(place)
		last.sequence = place.Sequence
		return
	}
	finding := Finding{Kind: kind, Revision: place.Revision, Events: []EventPlace{place}, Text: text, workspaceID: place.WorkspaceID, broken: kind == KindDiffers && text != ""}
	if line != nil {
		finding.File, finding.Line = line.file, line.number
	}
	*last = lost{c.add(finding), place.Sequence}
}

// workspace compares the events of one workspace.
func (c *sparse) workspace(id string) {
	lines, stored := c.lines[id], c.store.Events[id]
	slices.SortStableFunc(lines, func(a, b sparseLine) int { return cmp.Compare(a.Sequence, b.Sequence) })
	head := c.store.Heads[id]
	if head == 0 && len(stored) == 0 {
		c.withoutWorkspace(id, lines)
		return
	}
	if head == 0 && len(stored) > 0 { // the head is damaged, and the check says so
		head = stored[len(stored)-1].Sequence
	}
	lowest, highest := int64(0), int64(0)
	if len(lines) > 0 {
		lowest, highest = lines[0].Sequence, lines[len(lines)-1].Sequence
	}
	written := c.written(lines, stored)
	// want is the hash that the event at a sequence must have, because the event after it says so. It is known from the top
	// down, so the sequences are visited downwards first.
	at := func(sequence int64) []sparseLine {
		from, _ := slices.BinarySearchFunc(lines, sequence, func(line sparseLine, to int64) int { return cmp.Compare(line.Sequence, to) })
		to := from
		for to < len(lines) && lines[to].Sequence == sequence {
			to++
		}
		return lines[from:to]
	}
	type judged struct {
		sequence int64
		kind     Kind
		place    EventPlace
		line     *sparseLine
		text     string
	}
	var all []judged
	var want [32]byte
	known, mayMiss := false, false
	next := len(stored) - 1
	for sequence := max(head, highest); sequence > 0; sequence-- {
		candidates := at(sequence)
		var event *SparseEvent
		if next >= 0 && stored[next].Sequence == sequence {
			event = &stored[next]
			next--
		}
		if event == nil && len(candidates) == 0 {
			if mayMiss && (c.Begin == 0 || sequence > lowest) && len(lines) > 0 {
				all = append(all, judged{sequence: sequence, kind: KindMissingInSink, place: EventPlace{WorkspaceID: id, Sequence: sequence}, text: "neither the store nor the sink has the event: the store has pruned it, and its line was removed"})
			}
			known = false // the check reports a gap that pruning has not made
			continue
		}
		var same *sparseLine
		for index := range candidates {
			line := &candidates[index]
			isSame := event != nil && (event.Damaged || line.Hash == event.Hash) || event == nil && sequence <= head && mayMiss && (!known || line.Hash == want)
			switch {
			case isSame:
				same = line
			case c.isFormer(*line):
				c.givenUp++
			case event != nil:
				all = append(all, judged{sequence, KindDiffers, event.place(id), line, ""})
			case sequence > head:
				all = append(all, judged{sequence, KindStoreBehind, line.place(id), line, ""})
			case mayMiss:
				all = append(all, judged{sequence, KindChain, line.place(id), line, "the store has pruned the event, and the line does not chain to the event after it: the line was altered"})
			default:
				all = append(all, judged{sequence, KindMissingInStore, line.place(id), line, ""})
			}
		}
		switch {
		case event != nil:
			if same == nil && len(candidates) == 0 || same == nil && !slices.ContainsFunc(candidates, func(line sparseLine) bool { return !c.isFormer(line) }) {
				if kind := c.missing(*event, sequence, lowest, written); kind != "" {
					all = append(all, judged{sequence, kind, event.place(id), nil, ""})
				}
			}
			if known && mayMiss && !event.Damaged && event.Hash != want {
				all = append(all, judged{sequence, KindChain, event.place(id), nil, "the lines of the events that the store has pruned do not chain to this event"})
			}
			want, known, mayMiss = event.Previous, !event.Damaged, event.Revision <= c.store.Pruned
			if same != nil {
				all = append(all, judged{sequence: sequence, place: event.place(id)})
			}
		case same != nil:
			want, known = same.Previous, true
			all = append(all, judged{sequence: sequence, place: same.place(id)})
		default:
			known = false
		}
	}
	var last lost
	for _, each := range slices.Backward(all) {
		if each.kind == "" {
			place := each.place
			c.right = &place
			continue
		}
		c.found(&last, each.kind, each.place, each.line, each.text)
	}
}

// written returns up to which sequence the sink has the history of the store. Lines that were given up have the sequences of later
// events, whose own lines may still come.
func (c *sparse) written(lines []sparseLine, stored []SparseEvent) int64 {
	for _, line := range slices.Backward(lines) {
		if !c.isFormer(line) {
			return line.Sequence
		}
		index, has := slices.BinarySearchFunc(stored, line.Sequence, func(event SparseEvent, to int64) int { return cmp.Compare(event.Sequence, to) })
		if has && stored[index].Hash == line.Hash {
			return line.Sequence
		}
	}
	return 0
}

// missing returns what it means that the sink has no line of a stored event: nothing if its line may be in a file that was not
// given, or may not have been written yet. The sink has the lines from the sequence lowest to the sequence written.
func (c *sparse) missing(event SparseEvent, sequence, lowest, written int64) Kind {
	isOld := c.Begin > 0 && (lowest > 0 && sequence < lowest || lowest == 0 && event.Revision <= c.Begin)
	switch {
	case event.Damaged, isOld:
		return ""
	case sequence < written:
		return KindMissingInSink
	case event.Revision > c.store.Sunk && event.Time.After(c.options.Fresh):
		return "" // it is written soon
	}
	return KindSinkBehind
}

// withoutWorkspace judges the lines of a workspace that the store does not have.
func (c *sparse) withoutWorkspace(id string, lines []sparseLine) {
	own := slices.DeleteFunc(slices.Clone(lines), c.isFormer)
	c.givenUp += int64(len(lines) - len(own))
	if len(own) == 0 {
		return
	}
	first, last := own[0], own[len(own)-1]
	c.add(Finding{
		Kind: KindWorkspace, Revision: first.Revision, LastRevision: last.Revision, File: first.file, Line: first.number,
		Events: []EventPlace{first.place(id), last.place(id)}, Count: int64(len(own)),
	})
}
