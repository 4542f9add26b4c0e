package etcdstore

import (
	"bytes"
	"errors"
	"math"

	"github.com/scribe-mail/keysvc/internal/flat"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// maxHeld is how many bytes of one workspace's keys are held. The keys of a workspace are stored
// newest first and visited oldest first, so they are held until the workspace has no more. A larger
// workspace is read in windows of sequences, the oldest first.
const maxHeld = 32 << 20

// firstWindow is how many sequences the first window of a large workspace has.
const firstWindow = 4096

// decodedKeys is what a chunk of keys holds.
type decodedKeys struct {
	// keys are those of the pairs, by index. views are the views of keys that can be read; for others, and
	// in a Load without views, decoded.items has an item.
	keys  []decodedKey
	views []storage.KeyView
	runs  []keyRun
	// open is how many runs were not visited yet.
	open int
}

// decodedKey is one key of a chunk.
type decodedKey struct {
	packed   flat.ID
	isPacked bool
	isView   bool
	readable bool
	short    uint64 // the beginning of the record's element
}

// keyRun is the keys from first up to after, which are neighbours in a chunk and of one workspace. sum is
// the sum of those that can be read.
type keyRun struct {
	workspaceID  []byte
	first, after int
	sum          integrity.Sum
	invalid      []byte // the name of a pair that is not the name of a key; then the run has no other
}

// keyFrames checks the frames of keys' records without building their names.
var keyFrames = storage.FramesUnder(folderKeys)

// decodeKeys decodes a chunk of keys.
func (c *chunk) decodeKeys(asViews bool) {
	count := len(c.pairs)
	if cap(c.keys) < count {
		c.keys = make([]decodedKey, count+count/8)
	}
	if asViews {
		for len(c.views) < count {
			c.views = append(c.views, storage.KeyView{})
		}
	}
	c.keys, c.runs = c.keys[:count], c.runs[:0]
	c.items = c.items[:0]
	hasher := integrity.Borrow()
	defer hasher.Return()
	for index := range c.pairs {
		name, value := c.pairs[index].name, c.pairs[index].value
		c.items = append(c.items, storage.Item{})
		key := &c.keys[index]
		*key = decodedKey{}
		workspaceID, sequence, keyID, ok := splitKeyName(name)
		if !ok {
			c.runs = append(c.runs, keyRun{invalid: name, first: index, after: index + 1})
			continue
		}
		if last := len(c.runs) - 1; last < 0 || c.runs[last].invalid != nil || !bytes.Equal(c.runs[last].workspaceID, workspaceID) {
			c.runs = append(c.runs, keyRun{workspaceID: workspaceID, first: index})
		}
		run := &c.runs[len(c.runs)-1]
		run.after = index + 1
		key.packed, key.isPacked = flat.PackBytes(keyID)
		payload, isFrame := keyFrames.Payload(name[len(folderKeys):], value)
		if asViews && isFrame {
			view := &c.views[index]
			key.isView = view.Parse(payload) == nil && bytes.Equal(view.KeyID, keyID) &&
				bytes.Equal(view.WorkspaceID, workspaceID) && view.Sequence == sequence
		}
		if !key.isView {
			c.items[index] = decodeItem(string(name), value)
		}
		if key.readable = key.isView || c.items[index].Key != nil; key.readable {
			element := hasher.KeyElement(workspaceID, keyID, payload)
			key.short, run.sum = element.Short(), run.sum.Add(element)
		}
	}
	c.open = len(c.runs)
}

// splitKeyName is parseKeyName for a name in bytes.
func splitKeyName(name []byte) (workspaceID []byte, sequence int64, keyID []byte, ok bool) {
	if len(name) < len(folderKeys) || string(name[:len(folderKeys)]) != folderKeys {
		return nil, 0, nil, false
	}
	workspaceID, rest, ok := bytes.Cut(name[len(folderKeys):], []byte(separator))
	if !ok || len(rest) != numberLength+storage.KeyIDLength {
		return nil, 0, nil, false
	}
	sequence, ok = parseComplement(string(rest[:numberLength])) // does not allocate
	return workspaceID, sequence, rest[numberLength:], ok
}

// loadedKeys are the keys of one workspace that a loader holds.
type loadedKeys struct {
	workspaceID string
	// held are the runs of the workspace that were received, newest first, and heldBytes their size.
	held      []heldRun
	heldBytes int
	// newest is the sequence of the workspace's newest key. windowed reports whether the workspace is
	// read in windows.
	newest   int64
	windowed bool
	// ids, numbers are used again for each run.
	ids     []flat.ID
	numbers []uint32
}

type heldRun struct {
	of  *chunk
	run *keyRun
}

// errLarge ends the stream of keys at a workspace whose keys are too large to be held.
var errLarge = errors.New("a large workspace")

// keys visits all keys.
func (l *loader) keys() error {
	for from := folderKeys; ; {
		err := l.keysBetween(from, endOf(folderKeys))
		if err == nil {
			err = l.flush()
		}
		if !errors.Is(err, errLarge) {
			l.dropHeld()
			return err
		}
		folder := keyFolder(l.workspaceID)
		if err := l.windows(folder); err != nil {
			l.dropHeld()
			return err
		}
		from = endOf(folder)
	}
}

func (l *loader) keysBetween(from, to string) error {
	asViews := l.expect != nil
	return l.store.piped(l.ctx, from, to, l.at, func(some *chunk) { some.decodeKeys(asViews) }, l.someKeys)
}

// windows visits the keys of the present workspace, which is a large one.
func (l *loader) windows(folder string) error {
	l.dropHeld()
	l.windowed = true
	defer func() { l.windowed = false }()
	to := endOf(folder)
	for oldest, size := int64(0), int64(firstWindow); ; {
		newest := l.newest
		if newest-oldest >= size {
			newest = oldest + size - 1
		}
		// The name of a sequence sorts before the names of lower ones.
		from := folder + complement(newest)
		if err := l.keysBetween(from, to); err != nil {
			return err
		}
		switch {
		case l.heldBytes > maxHeld:
			size = max(1, size/2)
		case l.heldBytes < maxHeld/4:
			size = min(2*size, math.MaxInt64/4)
		}
		if err := l.flush(); err != nil {
			return err
		}
		if newest == l.newest {
			return nil
		}
		oldest, to = newest+1, from
	}
}

// someKeys takes a chunk of keys, and visits those of workspaces that have no more.
func (l *loader) someKeys(some *chunk) error {
	if len(some.runs) == 0 {
		some.release()
		return nil
	}
	if l.isNew {
		return errNotNew
	}
	for index := range some.runs {
		run := &some.runs[index]
		if run.invalid != nil {
			return &storage.DamagedError{Kind: "key", Name: string(run.invalid), Problem: "not the name of a key"}
		}
		if string(run.workspaceID) != l.workspaceID {
			if err := l.flush(); err != nil {
				return err
			}
			l.workspaceID = string(run.workspaceID)
			_, l.newest, _, _ = splitKeyName(some.pairs[run.first].name)
		}
		l.held = append(l.held, heldRun{some, run})
	}
	l.heldBytes += len(some.bytes)
	if l.heldBytes > maxHeld && !l.windowed {
		return errLarge
	}
	return nil
}

// dropHeld lets go of what is held.
func (l *loader) dropHeld() {
	for _, each := range l.held {
		each.done()
	}
	clear(l.held)
	l.held, l.heldBytes = l.held[:0], 0
}

// done counts the run as visited, and releases its chunk with the last one.
func (r heldRun) done() {
	if r.of.open--; r.of.open == 0 {
		r.of.release()
	}
}

// flush visits the keys of a workspace that are held, oldest first.
func (l *loader) flush() error {
	if len(l.held) == 0 {
		return nil
	}
	entry := l.memory.workspace(l.workspaceID)
	for index := len(l.held) - 1; index >= 0; index-- {
		each := l.held[index]
		entry.sum = entry.sum.Plus(each.run.sum)
		if err := l.visitRun(each); err != nil {
			return err
		}
		each.done()
		l.held[index] = heldRun{}
		l.held = l.held[:index]
	}
	l.heldBytes = 0
	return nil
}

// visitRun puts the keys of a run into the memory and visits them, the last one first.
func (l *loader) visitRun(each heldRun) error {
	keys, items := each.of.keys, each.of.items
	// 1. Give numbers to all of them: that is faster together.
	l.ids = l.ids[:0]
	for index := each.run.after - 1; index >= each.run.first; index-- {
		if key := &keys[index]; key.readable && key.isPacked {
			l.ids = append(l.ids, key.packed)
		}
	}
	l.numbers = l.numbers[:0]
	l.memory.ids.HoldAll(l.ids, flat.Store, func(_ int, number uint32, _ bool) { l.numbers = append(l.numbers, number) })
	// 2. Note their elements, and visit them.
	next := 0
	for index := each.run.after - 1; index >= each.run.first; index-- {
		key := &keys[index]
		switch {
		case key.readable && key.isPacked:
			number := l.numbers[next]
			next++
			l.memory.keys.Grow(number)
			*l.memory.keys.At(number) = key.short
		case key.readable:
			_, _, keyID, _ := splitKeyName(each.of.pairs[index].name)
			l.memory.put(l.workspaceID, recordID{kindKey, string(keyID)}, key.short)
		}
		item := items[index]
		if key.isView {
			item = storage.Item{KeyView: &each.of.views[index]}
		} else if item.Damaged != nil {
			l.shown[shownName(l.workspaceID, recordID{kindKey, item.Damaged.KeyID})] = true
		}
		if err := l.visit(item); err != nil {
			return err
		}
	}
	return nil
}
