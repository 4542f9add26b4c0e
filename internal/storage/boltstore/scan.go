package boltstore

import (
	"context"
	"io"

	bolt "go.etcd.io/bbolt"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// scan reads what the index needs of all values of a file, in the same pass in which the pages are
// checked: the pages come from the page cache once, in large pieces, and not through the mapping, where
// each page would be a fault. What is wrong with values is kept until the pages were found good.
type scan struct {
	// header and position are those of the file; nil if they cannot be read, or if the file has another
	// schema. Nothing else is read then.
	header   *storagev1.HeaderRecord
	position *storagev1.PositionRecord
	// index is what was read. Its workspaces are not compared with their tags yet.
	index *fileIndex
	// links are those of the audit events, as each goroutine has found them.
	links []*eventLinks
	// problem is the first error of a value.
	problem error

	// expected is about how many keys there are.
	expected int
	// readers are the readers of each goroutine, by bucket.
	readers []map[string]valueReader
	strays  []strayKey
}

// valueReader reads the values of one bucket in one goroutine, part by part.
type valueReader interface {
	// add reads one value. The bytes are valid until the function that end returned was called.
	add(name, value []byte)
	// end ends a part. It returns a function that passes on what was read; nil if there is nothing. These
	// functions are called one at a time, in the order of the parts.
	end() func() error
}

// Steps of a scan. Keys are added to the workspaces that have a head. Other records add workspaces, so
// they come after the keys, which are read beside everything that has no reader.
const (
	stepMeta = iota
	stepHeads
	stepKeys
	stepMembers
	stepWorkspaces

	scanSteps
)

// stepOf returns the step in which a bucket is read.
func stepOf(bucket string) int {
	switch bucket {
	case bucketMeta:
		return stepMeta
	case bucketHeads:
		return stepHeads
	case bucketMembers:
		return stepMembers
	case bucketPolicy, bucketWorkspaces:
		return stepWorkspaces
	}
	return stepKeys
}

// scanTransaction scans what a transaction shows. file is the transaction's file.
func scanTransaction(ctx context.Context, tx *bolt.Tx, file io.ReaderAt) (*scan, error) {
	into := &scan{}
	pages, found, err := bucketsOf(ctx, tx, file)
	if err == nil {
		err = into.buckets(pages, pages.newWalks(), found)
	}
	return into, err
}

// bucketsOf returns the buckets that a transaction shows.
func bucketsOf(ctx context.Context, tx *bolt.Tx, file io.ReaderAt) (*pages, []foundBucket, error) {
	var found []foundBucket
	err := tx.ForEach(func(name []byte, bucket *bolt.Bucket) error {
		found = append(found, bucketOfTransaction(string(name), bucket))
		return nil
	})
	return pagesOf(ctx, tx, file), found, err
}

// pagesOf returns the pages that a transaction shows.
func pagesOf(ctx context.Context, tx *bolt.Tx, file io.ReaderAt) *pages {
	size := int64(tx.DB().Info().PageSize)
	return newPages(ctx, file, size, uint64(tx.Size()/size)) //nolint:gosec // G115: sizes are positive
}

func bucketOfTransaction(name string, bucket *bolt.Bucket) foundBucket {
	found := foundBucket{name: name, tree: subtree{id: uint64(bucket.Root())}}
	if found.tree.id == 0 {
		found.inline = func(visit func(name, value []byte)) {
			_ = bucket.ForEach(func(name, value []byte) error { visit(name, value); return nil }) // visit has no error
		}
	}
	return found
}

// buckets checks and reads buckets. A nil scan reads nothing.
func (s *scan) buckets(p *pages, walks []*pageWalk, found []foundBucket) error {
	if s != nil {
		s.readers = make([]map[string]valueReader, len(walks))
		for worker := range s.readers {
			s.readers[worker] = make(map[string]valueReader)
		}
		for _, bucket := range found {
			if bucket.name == bucketKeys && bucket.inline == nil {
				s.expected = p.estimate(bucket.tree)
			}
		}
	}
	for step := range scanSteps {
		var some []foundBucket
		for _, bucket := range found {
			if stepOf(bucket.name) == step {
				some = append(some, bucket)
			}
		}
		err := p.parts(walks, some, s.reader)
		if err != nil {
			return err
		}
		if s != nil && s.index != nil && step == stepKeys {
			s.endKeys()
		}
	}
	return nested(walks)
}

// nested checks the buckets that lie in other buckets. No store has some.
func nested(walks []*pageWalk) error {
	for _, walk := range walks {
		for len(walk.found) > 0 {
			bucket := walk.found[0]
			walk.found = walk.found[1:]
			if bucket.inline != nil { // it was checked where it was found
				continue
			}
			walk.buffers.reset()
			walk.visit = nil
			if err := walk.tree(bucket.tree); err != nil {
				return err
			}
		}
	}
	return nil
}

// parts checks buckets on all processors, and gives their values to readers. reader returns that of a
// worker for a bucket, or nil.
func (p *pages) parts(walks []*pageWalk, found []foundBucket, reader func(worker int, bucket string) valueReader) error {
	// 1. Divide the trees. The walk that does it keeps names of branches until all parts were checked.
	top := &pageWalk{pages: p, used: walks[0].used, buffers: &pageBuffers{}}
	var all []foundBucket
	for _, bucket := range found {
		if bucket.inline != nil {
			all = append(all, bucket)
			continue
		}
		trees, err := top.split(bucket.tree)
		if err != nil {
			return err
		}
		for _, tree := range trees {
			all = append(all, foundBucket{name: bucket.name, tree: tree})
		}
	}
	// 2. Check the parts, and read them.
	return inOrder(len(walks), len(all), func(worker, part int) (func() error, error) {
		walk, bucket := walks[worker], all[part]
		into := reader(worker, bucket.name)
		walk.buffers.reset()
		walk.visit = nil
		if into != nil {
			walk.visit = into.add
		}
		switch {
		case bucket.inline == nil:
			if err := walk.tree(bucket.tree); err != nil {
				return nil, err
			}
		case into != nil:
			bucket.inline(into.add)
		}
		if into == nil {
			return nil, nil
		}
		return into.end(), nil
	})
}

// split divides a tree into parts: the branches that are right above the leaves.
func (p *pageWalk) split(tree subtree) ([]subtree, error) {
	parts := []subtree{tree}
	for range p.height(tree.id) - 1 {
		var below []subtree
		read, err := p.fetch(parts)
		if err != nil {
			return nil, err
		}
		for index, each := range parts {
			if page := read[index]; page != nil && order.Uint16(page[8:]) == leafPage {
				below = append(below, each) // no tree of bbolt has leaves of different depth
				continue
			}
			children, err := p.page(each, read[index])
			if err != nil {
				return nil, err
			}
			below = append(below, children...)
		}
		parts = below
	}
	return parts, nil
}

// height returns how many branches are above the first leaf of a tree. It checks nothing: the pages
// are checked later.
func (p *pageWalk) height(id uint64) int {
	page := make([]byte, p.size)
	for height := range maxTreeDepth {
		if !p.isBranch(id, page) {
			return height
		}
		id = childOf(page, 0)
	}
	return maxTreeDepth
}

// isBranch reads a page, and reports whether it is a branch with children.
func (p *pages) isBranch(id uint64, page []byte) bool {
	return id < p.count && readFull(p.file, page, id, int64(id)*p.size) == nil && //nolint:gosec // below the high water mark
		order.Uint16(page[8:]) == branchPage && order.Uint16(page[10:]) > 0
}

// childOf returns a child of a branch; 0 if the page is too small for so many.
func childOf(page []byte, index int) uint64 {
	if end := pageHeader + (index+1)*elementSize; end <= len(page) {
		return order.Uint64(page[end-8:])
	}
	return 0
}

// estimate returns about how many values a tree has, from a few of its leaves. It checks nothing.
func (p *pages) estimate(tree subtree) int {
	const samples = 16
	total := 0
	page := make([]byte, p.size)
	for sample := range samples {
		count, id, spread := 1, tree.id, sample
		for range maxTreeDepth {
			if !p.isBranch(id, page) {
				break
			}
			children := int(order.Uint16(page[10:]))
			count *= children
			id, spread = childOf(page, spread*children/samples%children), spread*7
			if count > int(p.count) { //nolint:gosec // G115: the number of pages of a file
				break
			}
		}
		total += count * int(order.Uint16(page[10:]))
	}
	return min(total/samples, int(p.count)*int(p.size)/64) //nolint:gosec // G115: as above
}

// reader returns the reader of a worker for a bucket, or nil if its values are not read.
func (s *scan) reader(worker int, bucket string) valueReader {
	if s == nil {
		return nil
	}
	reader, has := s.readers[worker][bucket]
	if !has {
		reader = s.newReader(bucket)
		s.readers[worker][bucket] = reader
	}
	return reader
}

func (s *scan) newReader(bucket string) valueReader {
	if bucket == bucketMeta {
		return &metaReader{scan: s}
	}
	if s.index == nil {
		return nil
	}
	switch bucket {
	case bucketHeads:
		return &headReader{scan: s}
	case bucketKeys:
		return newKeyReader(s)
	case bucketAudit:
		links := newEventLinks(s.position.GetRevision())
		s.links = append(s.links, links)
		return links
	case bucketMembers, bucketWorkspaces, bucketPolicy:
		return &recordReader{scan: s, bucket: bucket, hasher: integrity.NewHasher()}
	}
	return nil
}

// fail notes the error of a value.
func (s *scan) fail(err error) {
	if s.problem == nil {
		s.problem = err
	}
}
