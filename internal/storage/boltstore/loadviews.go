package boltstore

import (
	"bytes"
	"context"
	"sync"

	bolt "go.etcd.io/bbolt"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// loadViews is load for storage.ViewLoader: ranges of keys are read on all processors, and visited
// in the order of their slots.
func loadViews(ctx context.Context, tx *bolt.Tx, known *damage, visit func(storage.Item) error) error {
	others := loaded[:len(loaded)-1]
	if err := loadBuckets(ctx, tx, known, others, visit); err != nil {
		return err
	}
	if err := known.visitAbsent(bucketKeys, visit); err != nil {
		return err
	}
	ranges := numberRanges(tx.Bucket([]byte(bucketKeys)))
	return inOrder(len(ranges), func(_, part int) (func() error, error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		views := viewParts.Get().(*viewPart) //nolint:errcheck // the pool has nothing else
		err := views.read(tx, known, ranges[part])
		return func() error {
			defer viewParts.Put(views)
			return views.visit(visit)
		}, err
	})
}

// viewPart is what was read of a range of keys. Views are used again for other ranges, because
// their lists keep their memory.
type viewPart struct {
	views []storage.KeyView
	count int
	// others are the items of keys that are damaged, by the number of views before them.
	others []otherItem
}

type otherItem struct {
	views int
	item  storage.Item
}

var viewParts = sync.Pool{New: func() any { return &viewPart{} }}

// Frames of values whose names are not built.
var (
	keyFrames   = storage.FramesUnder(frameName(bucketKeys, ""))
	usageFrames = storage.FramesUnder(frameName(bucketUsage, ""))
)

// read reads a range of keys, with the times of their last uses. Both buckets have the same order,
// so the times are found beside the keys.
func (p *viewPart) read(tx *bolt.Tx, known *damage, names nameRange) error {
	p.count, p.others = 0, p.others[:0]
	uses := tx.Bucket([]byte(bucketUsage)).Cursor()
	slot, use := uses.First()
	if names.low != nil {
		slot, use = uses.Seek(names.low)
	}
	return names.each(tx.Bucket([]byte(bucketKeys)), func(name, value []byte) error {
		for slot != nil && len(name) >= numberLength && bytes.Compare(slot, name[:numberLength]) < 0 {
			slot, use = uses.Next()
		}
		var lastUsed int64
		if len(name) >= numberLength && bytes.Equal(slot, name[:numberLength]) {
			lastUsed = usedAt(slot, use)
		}
		if p.add(known, name, value) {
			p.views[p.count-1].LastUsed = lastUsed
			return nil
		}
		// A key that is not what it should be is visited as load visits it.
		add := func(item storage.Item) error {
			p.others = append(p.others, otherItem{p.count, item})
			return nil
		}
		if err := add(known.judge(decode(bucketKeys, string(name), value))); err != nil {
			return err
		}
		return loadUsage(tx, name, add)
	})
}

// usedAt returns a stored time in Unix nanoseconds; 0 if it is damaged, as in loadUsage.
func usedAt(slot, use []byte) int64 {
	payload, is := usageFrames.Payload(slot, use)
	if !is {
		return 0
	}
	nanoseconds, err := parseNumber(payload)
	if err != nil {
		return 0
	}
	return nanoseconds
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
