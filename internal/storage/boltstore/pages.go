package boltstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/bits"
	"strconv"

	"github.com/scribe-mail/keysvc/internal/giveway"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// bbolt trusts its file: only the meta pages have checksums. A damaged page elsewhere makes
// bbolt read outside of the page, loop, leave out records, or find old records on free
// pages. A damaged meta page makes bbolt silently serve the state before the newest change.
// So before bbolt opens a file, every page in use is checked here: each page is used once
// or free, its elements fill it without gap or overlap, and names ascend. After that a
// flipped byte can only be in a name or a value, and values have checksums of their own.
//
// The layout is bbolt's, version 2, in the byte order of the machine:
//
//	page     id uint64, flags uint16, count uint16, overflow uint32, elements, data
//	meta     magic, version, page size, flags uint32; root, sequence, freelist,
//	         high water mark, transaction uint64; FNV-1a of these
//	branch   position uint32, name size uint32, child uint64
//	leaf     flags, position, name size, value size uint32
//	bucket   root uint64, sequence uint64; if root is 0, its only page follows
const (
	pageHeader   = 16
	elementSize  = 16
	bucketHeader = 16

	metaMagic    = 0xED0CDAED
	metaVersion  = 2
	metaChecked  = 56
	metaSize     = 64
	minPageSize  = 1 << 10
	maxPageSize  = 1 << 24
	maxTreeDepth = 64

	branchPage   = 0x01
	leafPage     = 0x02
	freelistPage = 0x10
	bucketFlag   = 0x01
)

var order = binary.NativeEndian

// pages checks the page structure of one file. Several goroutines check parts of the tree, each
// with a walk of its own.
type pages struct {
	ctx  context.Context //nolint:containedctx // that of one check
	work *giveway.Work   // of the only walk; nil if there are several
	file io.ReaderAt
	size int64
	// count is the number of pages below the high water mark.
	count uint64
	// free has the free pages.
	free pageSet
}

func newPages(ctx context.Context, file io.ReaderAt, size int64, count uint64) *pages {
	return &pages{ctx: ctx, work: giveway.From(ctx), file: file, size: size, count: count, free: newPageSet(count)}
}

// meta is the content of a meta page.
type meta struct {
	pageSize                                   int64
	root, freelist, highWaterMark, transaction uint64
}

// pageSet is a set of pages, with a bit for each.
type pageSet []uint64

func newPageSet(count uint64) pageSet { return make(pageSet, count/64+1) }

func (s pageSet) has(id uint64) bool { return s[id/64]&(1<<(id%64)) != 0 }
func (s pageSet) add(id uint64)      { s[id/64] |= 1 << (id % 64) }

// verifyPages checks the page structure of a file that nobody writes. Errors: DamagedError, the
// context's, and those of reading.
func verifyPages(ctx context.Context, file io.ReaderAt, fileSize int64) error {
	return verifyAndScan(ctx, file, fileSize, nil)
}

// verifyAndScan is verifyPages, and hands the values in the file to a scan, unless it is nil. What the
// scan has is good only if there is no error.
func verifyAndScan(ctx context.Context, file io.ReaderAt, fileSize int64, into *scan) error {
	newest, err := readMeta(file)
	if err != nil {
		return err
	}
	if newest.highWaterMark < 4 || newest.highWaterMark > uint64(fileSize/newest.pageSize) { //nolint:gosec // sizes are positive
		return damagedPage(0, "the file is truncated: %d bytes for %d pages", fileSize, newest.highWaterMark)
	}
	p := newPages(ctx, file, newest.pageSize, newest.highWaterMark)
	// 1. Note the free pages.
	top := p.newWalk()
	top.used.add(0)
	top.used.add(1)
	if err := top.freelist(newest.freelist); err != nil {
		return err
	}
	// 2. Find the buckets. All of them are in the tree at the root.
	if err := top.tree(subtree{id: newest.root}); err != nil {
		return err
	}
	// 3. Check the trees of the buckets, and read their values.
	walks := p.newWalks()
	if err := into.buckets(p, walks, top.found); err != nil {
		return err
	}
	// 4. Check that each page is used once or free. Each walk has looked at its own pages; one that
	// two walks use shows only now.
	return p.checkUse(append(walks, top))
}

// lowestBit returns the number of the lowest bit that is set; 64 if no bit is.
func lowestBit(word uint64) uint64 {
	return uint64(bits.TrailingZeros64(word)) //nolint:gosec // G115: at most 64
}

// checkUse checks that each page is free or used by one walk.
func (p *pages) checkUse(walks []*pageWalk) error {
	for index := range p.free {
		once, twice := p.free[index], uint64(0)
		for _, walk := range walks {
			twice |= once & walk.used[index]
			once |= walk.used[index]
		}
		first := uint64(index) * 64
		if twice != 0 {
			return damagedPage(first+lowestBit(twice), "used twice, or free and used")
		}
		if unknown := first + lowestBit(^once); ^once != 0 && unknown < p.count {
			return damagedPage(unknown, "neither used nor free")
		}
	}
	return nil
}

// pageWalk is what one goroutine knows of the pages.
type pageWalk struct {
	*pages

	// used has the pages that this walk has found in use.
	used pageSet
	read int
	// buffers have the pages that the walk has read since they were reset.
	buffers *pageBuffers
	// visit, unless it is nil, gets the values of the leaves that are checked. They lie in buffers.
	visit func(name, value []byte)
	// found are the buckets that were found in leaves.
	found []foundBucket
}

// foundBucket is a bucket in a leaf. Its values are in a tree of pages, or in one page that lies in
// the leaf.
type foundBucket struct {
	name string
	tree subtree
	// inline visits the values, if there is no tree.
	inline func(visit func(name, value []byte))
}

func (p *pages) newWalk() *pageWalk {
	return &pageWalk{pages: p, used: newPageSet(p.count), buffers: &pageBuffers{}}
}

// newWalks returns a walk for each goroutine of inParallel.
func (p *pages) newWalks() []*pageWalk {
	walks := make([]*pageWalk, workerCount(p.ctx))
	for worker := range walks {
		walks[worker] = p.newWalk()
	}
	return walks
}

// subtree is a page and everything below it. Names must sort at or after low, and before high; nil
// is no bound.
type subtree struct {
	id        uint64
	low, high []byte
	depth     int
}

// readMeta returns the newer of the two meta pages. Both must be good. If one is damaged, it
// may have been the newer one, and serving the other would undo the newest change, perhaps a
// revocation. A crash damages neither, because a meta page fits into one sector.
func readMeta(file io.ReaderAt) (*meta, error) {
	first, err := readMetaAt(file, 0, 0)
	if err != nil {
		return nil, err
	}
	second, err := readMetaAt(file, 1, first.pageSize)
	if err != nil {
		return nil, err
	}
	if first.pageSize != second.pageSize {
		return nil, damagedPage(1, "another page size than page 0")
	}
	if second.transaction > first.transaction {
		return second, nil
	}
	return first, nil
}

func readMetaAt(file io.ReaderAt, id uint64, offset int64) (*meta, error) {
	page := make([]byte, pageHeader+metaSize)
	if err := readFull(file, page, id, offset); err != nil {
		return nil, err
	}
	body := page[pageHeader:]
	hash := fnv.New64a()
	hash.Write(body[:metaChecked])
	switch {
	case order.Uint32(body) != metaMagic || order.Uint32(body[4:]) != metaVersion:
		return nil, damagedPage(id, "not a meta page of a store")
	case order.Uint64(body[metaChecked:]) != hash.Sum64():
		return nil, damagedPage(id, "checksum mismatch of a meta page; the newest change may be lost")
	}
	read := &meta{
		pageSize:      int64(order.Uint32(body[8:])),
		root:          order.Uint64(body[16:]),
		freelist:      order.Uint64(body[32:]),
		highWaterMark: order.Uint64(body[40:]),
		transaction:   order.Uint64(body[48:]),
	}
	if read.pageSize < minPageSize || read.pageSize > maxPageSize || read.pageSize&(read.pageSize-1) != 0 {
		return nil, damagedPage(id, "page size %d", read.pageSize)
	}
	return read, nil
}

// freelist notes the free pages.
func (p *pageWalk) freelist(id uint64) error {
	page, err := p.claim(id, nil)
	if err != nil {
		return err
	}
	if order.Uint16(page[8:]) != freelistPage {
		return damagedPage(id, "not the list of free pages")
	}
	count, list := uint64(order.Uint16(page[10:])), page[pageHeader:]
	if count == 0xffff {
		count, list = order.Uint64(list), list[8:]
	}
	if count > uint64(len(list)/8) {
		return damagedPage(id, "a list of %d free pages is too long", count)
	}
	before := uint64(1)
	for index := range count {
		free := order.Uint64(list[8*index:])
		if free <= before || free >= p.count || p.used.has(free) {
			return damagedPage(id, "page %d cannot be free", free)
		}
		p.free.add(free)
		before = free
	}
	return nil
}

// claim marks a page, and the pages that it overflows to, as used, and returns them. first is the
// page if it was read already; nil to read it.
func (p *pageWalk) claim(id uint64, first []byte) ([]byte, error) {
	if p.read++; p.read%contextInterval == 0 && p.ctx.Err() != nil {
		return nil, p.ctx.Err()
	}
	p.work.GiveWay()
	if id >= p.count {
		return nil, damagedPage(id, "beyond the end")
	}
	offset := int64(id) * p.size //nolint:gosec // below the high water mark
	page := first
	if page == nil {
		page = p.buffers.take(int(p.size))
		if err := readFull(p.file, page, id, offset); err != nil {
			return nil, err
		}
	}
	if order.Uint64(page) != id {
		return nil, damagedPage(id, "it says that it is page %d", order.Uint64(page))
	}
	overflow := uint64(order.Uint32(page[12:]))
	if overflow >= p.count-id {
		return nil, damagedPage(id, "overflows beyond the end")
	}
	for used := id; used <= id+overflow; used++ {
		if p.used.has(used) || p.free.has(used) {
			return nil, damagedPage(used, "used twice, or free and used")
		}
		p.used.add(used)
	}
	if overflow > 0 {
		whole := p.buffers.take(int(p.size) * int(overflow+1)) //nolint:gosec // within the file
		copy(whole, page)
		page = whole
		if err := readFull(p.file, page[p.size:], id, offset+p.size); err != nil {
			return nil, err
		}
	}
	return page, nil
}

// tree checks a page and everything below it.
func (p *pageWalk) tree(tree subtree) error { return p.treeAt(tree, nil) }

// treeAt is tree for a page that was read already, or is nil.
func (p *pageWalk) treeAt(tree subtree, page []byte) error {
	below, err := p.page(tree, page)
	if err != nil || len(below) == 0 {
		return err
	}
	read, err := p.fetch(below)
	if err != nil {
		return err
	}
	for index, child := range below {
		if err := p.treeAt(child, read[index]); err != nil {
			return err
		}
	}
	return nil
}

// page checks a page and returns what is below it. It visits the values of a leaf. first is as in
// claim.
func (p *pageWalk) page(tree subtree, first []byte) ([]subtree, error) {
	if tree.depth > maxTreeDepth {
		return nil, damagedPage(tree.id, "more than %d pages deep", maxTreeDepth)
	}
	page, err := p.claim(tree.id, first)
	if err != nil {
		return nil, err
	}
	switch order.Uint16(page[8:]) {
	case leafPage:
		return nil, p.leaf(tree, page)
	case branchPage:
		return children(tree, page)
	default:
		return nil, damagedPage(tree.id, "neither branch nor leaf")
	}
}

// leaf checks a leaf, and visits its values.
func (p *pageWalk) leaf(tree subtree, page []byte) error {
	return elements(tree.id, page, tree.low, tree.high, func(element, name, value []byte) error {
		if order.Uint32(element) == 0 {
			if p.visit != nil {
				p.visit(name, value)
			}
			return nil
		}
		root, err := bucketRoot(tree.id, element, value)
		if err != nil {
			return err
		}
		bucket := foundBucket{name: string(name), tree: subtree{id: root, depth: tree.depth + 1}}
		if root == 0 {
			page := bytes.Clone(value[bucketHeader:])
			bucket.inline = func(visit func(name, value []byte)) {
				_ = elements(tree.id, page, nil, nil, func(_, name, value []byte) error { visit(name, value); return nil }) // bucketRoot has checked it
			}
		}
		p.found = append(p.found, bucket)
		return nil
	})
}

// children returns the subtrees below a branch page.
func children(tree subtree, page []byte) ([]subtree, error) {
	below := make([]subtree, 0, order.Uint16(page[10:]))
	err := elements(tree.id, page, tree.low, tree.high, func(element, name, _ []byte) error {
		if last := len(below) - 1; last >= 0 {
			below[last].high = name
		}
		below = append(below, subtree{id: order.Uint64(element[8:]), low: name, high: tree.high, depth: tree.depth + 1})
		return nil
	})
	if err == nil && len(below) == 0 {
		err = damagedPage(tree.id, "a branch without children")
	}
	return below, err
}

// bucketRoot returns the root page of a leaf element that is a bucket. It returns 0 for an inline
// bucket, which it checks.
func bucketRoot(id uint64, element, value []byte) (uint64, error) {
	if order.Uint32(element) != bucketFlag {
		return 0, damagedPage(id, "an element with unknown flags")
	}
	if len(value) < bucketHeader {
		return 0, damagedPage(id, "a truncated bucket")
	}
	inline := value[bucketHeader:]
	if root := order.Uint64(value); root != 0 {
		if len(inline) > 0 {
			return 0, damagedPage(id, "a bucket with two pages")
		}
		return root, nil
	}
	if len(inline) < pageHeader || order.Uint64(inline) != 0 || order.Uint16(inline[8:]) != leafPage || order.Uint32(inline[12:]) != 0 {
		return 0, damagedPage(id, "a damaged inline bucket")
	}
	return 0, elements(id, inline, nil, nil, func(element, _, _ []byte) error {
		if order.Uint32(element) != 0 {
			return damagedPage(id, "an element with unknown flags")
		}
		return nil
	})
}

// elements visits the elements of a branch or leaf page. Before each visit it checks that the
// element follows on the previous one without a gap, as bbolt writes them, and that names
// ascend.
func elements(id uint64, page, low, high []byte, visit func(element, name, value []byte) error) error {
	leaf, count := order.Uint16(page[8:]) == leafPage, int(order.Uint16(page[10:]))
	end := int64(pageHeader + count*elementSize)
	if end > int64(len(page)) {
		return damagedPage(id, "%d elements do not fit", count)
	}
	before, inclusive := low, true
	for index := range count {
		start := pageHeader + index*elementSize
		element := page[start : start+elementSize]
		position, nameSize, valueSize := order.Uint32(element), order.Uint32(element[4:]), uint32(0)
		if leaf {
			position, nameSize, valueSize = order.Uint32(element[4:]), order.Uint32(element[8:]), order.Uint32(element[12:])
		}
		nameEnd := end + int64(nameSize)
		valueEnd := nameEnd + int64(valueSize)
		if int64(start)+int64(position) != end || nameSize == 0 || valueEnd > int64(len(page)) {
			return damagedPage(id, "element %d is not where it belongs", index)
		}
		name, value := page[end:nameEnd], page[nameEnd:valueEnd]
		if compared := bytes.Compare(before, name); compared > 0 || compared == 0 && !inclusive {
			return damagedPage(id, "names do not ascend at element %d", index)
		}
		if high != nil && bytes.Compare(name, high) >= 0 {
			return damagedPage(id, "element %d belongs to a later page", index)
		}
		if err := visit(element, name, value); err != nil {
			return err
		}
		before, inclusive, end = name, false, valueEnd
	}
	return checkRest(id, page[end:], count)
}

// checkRest checks the bytes after the last element of a page. Without elements, all of
// them must be zero: a damaged count may hide elements, and bbolt fills new pages with
// zeros.
func checkRest(id uint64, rest []byte, count int) error {
	if count == 0 && len(bytes.Trim(rest, "\x00")) > 0 {
		return damagedPage(id, "no elements, but content")
	}
	return nil
}

func readFull(file io.ReaderAt, buffer []byte, id uint64, offset int64) error {
	read, err := file.ReadAt(buffer, offset)
	switch {
	case read == len(buffer):
		return nil
	case errors.Is(err, io.EOF):
		return damagedPage(id, "the file is truncated")
	default:
		return fmt.Errorf("reading page %d: %w", id, err)
	}
}

func damagedPage(id uint64, format string, arguments ...any) error {
	return &storage.DamagedError{Kind: "page", Name: strconv.FormatUint(id, 10), Problem: fmt.Sprintf(format, arguments...)}
}
