package boltstore

import (
	"bytes"
	"context"
	"io"
	"sync"

	bolt "go.etcd.io/bbolt"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// loadViews is load for storage.ViewLoader: parts of the keys are read on all processors, and visited
// in the order of their slots. file is the transaction's file: its pages are read as in a scan.
func loadViews(ctx context.Context, tx *bolt.Tx, file io.ReaderAt, known *damage, visit func(storage.Item) error) error {
	p := pagesOf(ctx, tx, file)
	for _, bucket := range loaded {
		if err := known.visitAbsent(bucket, visit); err != nil {
			return err
		}
		walks := p.newWalks()
		readers := make([]valueReader, len(walks))
		for worker, walk := range walks {
			if bucket == bucketKeys {
				readers[worker] = &viewReader{tx: tx, known: known, walk: walk, visit: visit}
			} else {
				readers[worker] = &itemReader{bucket: bucket, known: known, visit: visit}
			}
		}
		found := bucketOfTransaction(bucket, tx.Bucket([]byte(bucket)))
		err := p.parts(walks, []foundBucket{found}, func(worker int, _ string) valueReader { return readers[worker] })
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// itemReader reads records other than keys, as load does, in one goroutine.
type itemReader struct {
	bucket string
	known  *damage
	visit  func(storage.Item) error
	items  []storage.Item
}

// add implements valueReader.
func (r *itemReader) add(name, value []byte) {
	r.items = append(r.items, r.known.judge(decode(r.bucket, string(name), value)))
}

// end implements valueReader.
func (r *itemReader) end() func() error {
	items := r.items
	r.items = nil
	return func() error {
		for _, item := range items {
			if err := r.visit(item); err != nil {
				return err
			}
		}
		return nil
	}
}

// viewReader reads keys, with the times of their last uses, in one goroutine. Both buckets have the
// same order, so the times are found beside the keys.
type viewReader struct {
	tx    *bolt.Tx
	known *damage
	walk  *pageWalk
	visit func(storage.Item) error

	part *viewPart
	// uses is at the time slot, use.
	uses      *bolt.Cursor
	slot, use []byte
}

// viewPart is what was read of a part of the keys. Views are used again for other parts, because
// their lists keep their memory.
type viewPart struct {
	views []storage.KeyView
	count int
	// others are the items of keys that are damaged, by the number of views before them.
	others []otherItem
	// buffers have what the views refer to.
	buffers *pageBuffers
}

type otherItem struct {
	views int
	item  storage.Item
}

var viewParts = sync.Pool{New: func() any { return &viewPart{buffers: &pageBuffers{}} }}

// Frames of values whose names are not built.
var (
	keyFrames   = storage.FramesUnder(frameName(bucketKeys, ""))
	usageFrames = storage.FramesUnder(frameName(bucketUsage, ""))
)

// add implements valueReader.
func (r *viewReader) add(name, value []byte) {
	if r.part == nil {
		r.part = viewParts.Get().(*viewPart) //nolint:errcheck // the pool has nothing else
		r.part.count, r.part.others = 0, r.part.others[:0]
		r.uses = r.tx.Bucket([]byte(bucketUsage)).Cursor()
		r.slot, r.use = r.uses.Seek(name[:min(numberLength, len(name))])
	}
	for r.slot != nil && len(name) >= numberLength && bytes.Compare(r.slot, name[:numberLength]) < 0 {
		r.slot, r.use = r.uses.Next()
	}
	if r.part.add(r.known, name, value) {
		if r.slot != nil && bytes.Equal(r.slot, name[:numberLength]) {
			use, view := usedAt(r.slot, r.use), &r.part.views[r.part.count-1]
			view.LastUsed, view.SecretUses = use.at, use.secrets
		}
		return
	}
	// A key that is not what it should be is visited as load visits it.
	add := func(item storage.Item) error {
		r.part.others = append(r.part.others, otherItem{r.part.count, item})
		return nil
	}
	_ = add(r.known.judge(decode(bucketKeys, string(name), value))) // neither of them fails
	_ = loadUsage(r.tx, name, add)
}

// end implements valueReader.
func (r *viewReader) end() func() error {
	part := r.part
	if part == nil {
		return nil
	}
	// The views lie in the buffers of the walk, so the walk gets others.
	part.buffers, r.walk.buffers = r.walk.buffers, part.buffers
	r.part = nil
	return func() error {
		defer viewParts.Put(part)
		return part.visit(r.visit)
	}
}

// usedAt returns a stored use; the zero one if it is damaged, as in loadUsage.
func usedAt(slot, use []byte) storedUse {
	payload, is := usageFrames.Payload(slot, use)
	if !is {
		return storedUse{}
	}
	stored, err := parseUse(payload)
	if err != nil {
		return storedUse{}
	}
	return stored
}

// add adds the view of a key, and reports whether the key is what it should be.
func (p *viewPart) add(known *damage, name, value []byte) bool {
	if _, err := checkKeyName(name); err != nil {
		return false
	}
	payload, readable := keyFrames.Payload(name, value)
	if !readable {
		return false
	}
	if p.count == len(p.views) {
		p.views = append(p.views, storage.KeyView{})
	}
	view := &p.views[p.count]
	keyID, workspaceID := name[numberLength:numberLength+keyIDLength], name[numberLength+keyIDLength:]
	if view.Parse(payload) != nil || !bytes.Equal(view.KeyID, keyID) || !bytes.Equal(view.WorkspaceID, workspaceID) {
		return false
	}
	if len(known.records) > 0 && known.records[string(workspaceID)][recordID{kindKey, string(keyID)}] != nil {
		return false
	}
	p.count++
	return true
}

// visit visits what was read, in its order.
func (p *viewPart) visit(visit func(storage.Item) error) error {
	others := p.others
	for index := range p.count + 1 {
		for len(others) > 0 && others[0].views == index {
			if err := visit(others[0].item); err != nil {
				return err
			}
			others = others[1:]
		}
		if index == p.count {
			break
		}
		if err := visit(storage.Item{KeyView: &p.views[index]}); err != nil {
			return err
		}
	}
	return nil
}
