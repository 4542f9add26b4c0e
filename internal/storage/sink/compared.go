package sink

import (
	"cmp"
	"fmt"
	"maps"
	"math/bits"
	"slices"
)

// maxScan is how many events are looked at to find a workspace's event before another one.
const maxScan = 100_000

// problems takes over the contradictions within the store.
func (c *comparison) problems() {
	for _, problem := range c.options.Problems {
		finding := Finding{Kind: KindStore, Text: problem.Text, Revision: problem.Revision, right: problem.Revision - 1}
		place, known := c.stored(problem.Revision)
		finding.name(place, known)
		switch {
		case problem.Record:
			finding.right = problem.Revision // the event is right, and the record is older or newer
		case known && problem.Sequence > 1:
			finding.right = c.eventBefore(place) - 1 // which of the two is wrong is unknown
		}
		c.add(finding)
	}
}

// eventBefore returns the revision of the workspace's event before the one at a place. It looks at
// a limited number of events.
func (c *comparison) eventBefore(place EventPlace) int64 {
	revision := place.Revision - 1
	for range maxScan {
		if before, known := c.stored(revision); revision < 1 || known && before.WorkspaceID == place.WorkspaceID {
			break
		}
		revision--
	}
	return revision
}

// finish looks for what no line has, and completes the findings.
func (c *comparison) finish() error {
	newest := c.store.Newest()
	c.settle(newest + 1)
	c.End, c.Epoch = c.previous.Revision, c.previous.Epoch
	if c.Lines == 0 {
		c.add(Finding{Kind: KindSinkBehind, Count: max(newest, 1), Text: "the sink has no line"})
	} else {
		c.missing(c.Begin+1, min(newest, c.End), KindMissingInSink)
		c.missing(max(c.Begin, c.End)+1, newest, KindSinkBehind)
	}
	if err := c.missingWorkspaces(); err != nil {
		return err
	}
	c.otherHistory()
	if c.Epoch != "" && c.Epoch != c.store.Epoch() {
		text := "the sink is of another store"
		if c.right.before(newest+1) > 0 {
			text = "the store was accepted with keysvc anchor accept, or restored, without this sink"
		}
		c.add(Finding{Kind: KindEpoch, Text: fmt.Sprintf("the sink ends in epoch %s, and the store has epoch %s: %s", c.Epoch, c.store.Epoch(), text)})
	}
	if c.options.Copy && c.behind != nil {
		c.note("the sink goes on after the copy of the store: with %s, up to revision %d", events(c.behind.Count), c.behind.LastRevision)
		c.found = slices.DeleteFunc(c.found, func(finding *Finding) bool { return finding == c.behind })
	}
	if c.Lines > 0 && c.End <= c.Begin && newest > 0 && len(c.found) == 0 {
		c.add(Finding{Kind: KindNothingCompared, Text: "no event was compared: the files have none; give the older files of the sink, too"})
	}
	if c.Begin > 0 {
		c.note("the files begin after revision %d; older events were not compared", c.Begin)
	}
	c.complete()
	return nil
}

// complete sorts the findings and says since when they are there.
func (c *comparison) complete() {
	slices.SortStableFunc(c.found, func(a, b *Finding) int { return cmp.Compare(a.Revision, b.Revision) })
	for _, finding := range c.found {
		finding.describe()
		revision := finding.right
		switch {
		case finding.Revision < 1 || finding.Kind == KindStore && revision < 1:
			revision = 0
		case len(c.Files) > 0 && finding.Kind == KindStore:
			revision = c.right.before(revision + 1)
		case len(c.Files) > 0:
			revision = c.right.before(finding.Revision)
		}
		if place, known := c.stored(revision); known {
			finding.Since = &place
		}
		c.Findings = append(c.Findings, *finding)
	}
}

// missing reports the revisions from one to another without a line.
func (c *comparison) missing(from, to int64, kind Kind) {
	var run *Finding
	for revision := from; revision <= to; revision++ {
		if c.seen.has(revision) {
			run = nil
			continue
		}
		place, known := c.stored(revision)
		if run == nil {
			run = c.add(Finding{Kind: kind, Revision: revision})
		} else {
			run.Count++
			run.LastRevision = revision
		}
		run.name(place, known)
	}
}

// missingWorkspaces reports the workspaces that the store has no head of.
func (c *comparison) missingWorkspaces() error {
	heads, err := c.store.HeadSequences()
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(c.workspaces)) {
		workspace := c.workspaces[id]
		if _, has := heads[id]; has || workspace.last.Revision == 0 {
			continue
		}
		c.found = slices.DeleteFunc(c.found, func(finding *Finding) bool {
			return finding.Kind == KindMissingInStore && finding.workspaceID == id
		})
		c.add(Finding{
			Kind: KindWorkspace, Revision: workspace.first.Revision, LastRevision: workspace.last.Revision,
			Events: []EventPlace{workspace.first, workspace.last},
		})
	}
	return nil
}

// otherHistory makes one finding of those of all workspaces, if the two never agree again after a
// revision and several workspaces differ from there on.
func (c *comparison) otherHistory() {
	var open []*Finding
	first := int64(0)
	for _, finding := range c.found {
		if finding.Kind == KindDiffers && !finding.ended && !finding.broken {
			open = append(open, finding)
			if first == 0 || finding.Revision < first {
				first = finding.Revision
			}
		}
	}
	if len(open) == 0 || c.right.before(c.store.Newest()+1) > first {
		return
	}
	whole := Finding{Kind: KindHistory, Revision: first}
	for _, finding := range open {
		if finding.Revision == first {
			whole.File, whole.Line, whole.Events = finding.File, finding.Line, finding.Events[:min(1, len(finding.Events))]
		}
		whole.Count += finding.Count
		whole.LastRevision = max(whole.LastRevision, finding.LastRevision)
	}
	c.found = slices.DeleteFunc(c.found, func(finding *Finding) bool { return slices.Contains(open, finding) })
	c.add(whole)
}

// describe completes the text of a finding.
func (f *Finding) describe() {
	if f.Text != "" {
		return
	}
	first := fmt.Sprintf("revision %d", f.Revision)
	if len(f.Events) > 0 {
		first = f.Events[0].String()
	}
	switch f.Kind {
	case KindMissingInSink:
		f.Text = fmt.Sprintf("the sink has no line of %s: it was removed", first)
	case KindSinkBehind:
		f.Text = fmt.Sprintf("the sink ends before %s: its end was cut, or the server could not write it yet", first)
	case KindMissingInStore:
		f.Text = fmt.Sprintf("the store does not have %s: it was removed", first)
	case KindStoreBehind:
		f.Text = fmt.Sprintf("the store ends before %s: an older file was put back, or its end was cut", first)
	case KindWorkspace:
		f.Text = fmt.Sprintf("the store does not have the workspace any more: the sink has its events from %s to %s", first, f.Events[1])
	case KindHistory:
		f.Text = fmt.Sprintf("from %s on the store has another history than the sink: an older file was put back and served on, or one of the two was written anew", first)
	case KindDiffers:
		f.Text = "the store and the sink differ in " + first
		switch {
		case f.broken:
			f.Text += ": the sink was altered, because its chain is broken there"
		case f.ended:
			f.Text += ": the store was altered, because the sink's chain goes on through its own event"
		default:
			f.Text += " and, of this workspace, in all later ones: one of the two was written anew from there on"
		}
	case KindNothingCompared, KindLine, KindOrder, KindGap, KindChain, KindEpoch, KindStore: // have their text
	}
	if f.Count > 1 && f.Kind != KindWorkspace {
		f.Text += fmt.Sprintf(" (%s, the last of revision %d)", events(f.Count), f.LastRevision)
	}
}

// bitSet is a set of numbers that are not negative.
type bitSet []uint64

func (b *bitSet) set(number int64) {
	for int64(len(*b)) <= number/64 {
		*b = append(*b, 0)
	}
	(*b)[number/64] |= 1 << (number % 64)
}

func (b *bitSet) has(number int64) bool {
	return number/64 < int64(len(*b)) && (*b)[number/64]&(1<<(number%64)) != 0
}

// cut removes the numbers after the given one.
func (b *bitSet) cut(last int64) {
	for number := last + 1; number < int64(len(*b))*64; number++ {
		(*b)[number/64] &^= 1 << (number % 64)
	}
}

// before returns the greatest number in the set below the given one, 0 if all are greater.
func (b *bitSet) before(number int64) int64 {
	if number = min(number, int64(len(*b))*64); number <= 0 {
		return 0
	}
	word := (number - 1) / 64
	masked := (*b)[word] & (^uint64(0) >> (63 - (number-1)%64))
	for masked == 0 {
		if word--; word < 0 {
			return 0
		}
		masked = (*b)[word]
	}
	return word*64 + int64(bits.Len64(masked)) - 1
}

// events returns "1 event", "2 events".
func events(number int64) string {
	if number == 1 {
		return "1 event"
	}
	return fmt.Sprintf("%d events", number)
}
