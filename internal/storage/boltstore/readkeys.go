package boltstore

import (
	"bytes"
	"encoding/hex"
	"sync"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// nameRange are names of a bucket: from low on and before high; nil is no bound.
type nameRange struct{ low, high []byte }

// Bounds of the parts of a bucket that are read at a time.
const (
	partNames = 1024
	maxParts  = 16384
)

// numberRanges divides a bucket whose names begin with numbers. Numbers are given out one after the
// other, so ranges of equally many numbers have about equally many names.
func numberRanges(bucket *bolt.Bucket) []nameRange {
	cursor := bucket.Cursor()
	first, _ := cursor.First()
	last, _ := cursor.Last()
	low, err := parseNumber(first)
	high, err2 := parseNumber(last)
	if err != nil || err2 != nil {
		return []nameRange{{}} // there are none, or whoever reads them reports the damage
	}
	count := min((high-low)/partNames+1, maxParts)
	step := (high-low)/count + 1
	ranges := make([]nameRange, count)
	for index := range ranges[1:] {
		bound := []byte(number(low + step*int64(index+1)))
		ranges[index].high, ranges[index+1].low = bound, bound
	}
	return ranges
}

// each visits the names of a range.
func (r nameRange) each(bucket *bolt.Bucket, visit func(name, value []byte) error) error {
	cursor := bucket.Cursor()
	name, value := cursor.First()
	if r.low != nil {
		name, value = cursor.Seek(r.low)
	}
	for ; name != nil && (r.high == nil || bytes.Compare(name, r.high) < 0); name, value = cursor.Next() {
		if err := visit(name, value); err != nil {
			return err
		}
	}
	return nil
}

// keyPart is what was read of a range of keys.
type keyPart struct {
	keys []keyRead
	// requests are the request ids of the keys that have some.
	requests []keyRequests
}

// keyRead is one key's record.
type keyRead struct {
	name      []byte // bbolt's memory
	slot      int64
	workspace *indexedWorkspace
	element   uint64
}

type keyRequests struct {
	keyID      string
	requestIDs []string
}

// strayKey is a key of a workspace that has no head.
type strayKey struct {
	keyID, workspaceID string
	slot               int64
	readable           bool
	element            integrity.Element
	requestIDs         []string
}

var keyParts = sync.Pool{New: func() any { return &keyPart{} }}

// keyReader reads keys in one goroutine. It computes what follows from each key alone: that is
// nearly all the work of opening a large file.
type keyReader struct {
	index  *fileIndex
	hasher *integrity.Hasher
	frames storage.Frames
	// sums are the sums of the keys that this reader has read, by the number of their workspace.
	sums []integrity.Sum
}

func newKeyReader(index *fileIndex) *keyReader {
	return &keyReader{
		index: index, hasher: integrity.NewHasher(), frames: storage.FramesUnder(frameName(bucketKeys, "")),
		sums: make([]integrity.Sum, len(index.numbered)),
	}
}

// read reads a range of keys. Keys of workspaces without a head are returned apart. The index is
// only read.
func (r *keyReader) read(bucket *bolt.Bucket, names nameRange) (*keyPart, []strayKey, error) {
	part := keyParts.Get().(*keyPart) //nolint:errcheck // the pool has nothing else
	part.keys, part.requests = part.keys[:0], part.requests[:0]
	var strays []strayKey
	err := names.each(bucket, func(name, value []byte) error {
		slot, err := checkKeyName(name)
		if err != nil {
			return &storage.DamagedError{Kind: "key", Name: hex.EncodeToString(name), Problem: err.Error()}
		}
		keyID := name[numberLength : numberLength+keyIDLength]
		workspace := r.index.workspaces[string(name[numberLength+keyIDLength:])]
		payload, readable := r.frames.Payload(name, value)
		var element integrity.Element
		var requestIDs []string
		if readable { // reads of another key return the damage
			if requestIDs, err = requestIDsOf(payload); err != nil {
				return &storage.DamagedError{Kind: "key", Name: string(keyID), Problem: err.Error()}
			}
			workspaceID := string(name[numberLength+keyIDLength:])
			element = r.hasher.Element(integrity.KindKey, workspaceID, string(keyID), integrity.HashPayload(payload))
		}
		if workspace == nil {
			strays = append(strays, strayKey{string(keyID), string(name[numberLength+keyIDLength:]), slot, readable, element, requestIDs})
			return nil
		}
		if readable {
			r.sums[workspace.number] = r.sums[workspace.number].Add(element)
		}
		if len(requestIDs) > 0 {
			part.requests = append(part.requests, keyRequests{string(keyID), requestIDs})
		}
		part.keys = append(part.keys, keyRead{name, slot, workspace, element.Short()})
		return nil
	})
	return part, strays, err
}

// readKeys adds the keys to the index, and to the sum of each workspace.
func (o *opened) readKeys(tx *bolt.Tx) error {
	ranges := numberRanges(tx.Bucket([]byte(bucketKeys)))
	readers := make([]*keyReader, workerCount())
	strays := make([][]strayKey, len(ranges))
	// 1. Read ranges on all processors, and add them to the index in the order of the slots.
	err := inOrder(len(ranges), func(worker, part int) (func() error, error) {
		if readers[worker] == nil {
			readers[worker] = newKeyReader(o.index)
		}
		read, apart, err := readers[worker].read(tx.Bucket([]byte(bucketKeys)), ranges[part])
		strays[part] = apart
		return func() error { return o.addKeys(read) }, err
	})
	if err != nil {
		return err
	}
	// 2. Add up what the readers have added up.
	for _, reader := range readers {
		if reader == nil {
			continue
		}
		for number, sum := range reader.sums {
			entry := o.index.numbered[number]
			entry.sum = entry.sum.Plus(sum)
		}
	}
	// 3. Add the keys of workspaces without a head. This comes last because the readers use the map
	// of workspaces. The order of slots holds in each workspace, and that is where it matters.
	for _, apart := range strays {
		if err := o.addStrays(apart); err != nil {
			return err
		}
	}
	return nil
}

// addKeys adds a range of keys to the index.
func (o *opened) addKeys(part *keyPart) error {
	for index := range part.keys {
		key := &part.keys[index]
		keyID := key.name[numberLength : numberLength+keyIDLength]
		if !o.index.addKey(key.workspace, string(keyID), key.slot, key.element) {
			return storedTwice(string(keyID))
		}
	}
	for _, each := range part.requests {
		o.index.setRequestIDs(each.keyID, each.requestIDs)
	}
	keyParts.Put(part)
	return nil
}

func (o *opened) addStrays(strays []strayKey) error {
	for _, key := range strays {
		entry := o.index.workspace(key.workspaceID)
		if !o.index.addKey(entry, key.keyID, key.slot, key.element.Short()) {
			return storedTwice(key.keyID)
		}
		if key.readable {
			entry.sum = entry.sum.Add(key.element)
		}
		if len(key.requestIDs) > 0 {
			o.index.setRequestIDs(key.keyID, key.requestIDs)
		}
	}
	return nil
}

func storedTwice(keyID string) error {
	return &storage.DamagedError{Kind: "key", Name: keyID, Problem: "stored twice"}
}

// requestIDsOf reads the request ids of an encoded KeyRecord without decoding the rest.
// Decoding all records would double the time that opening a large store takes.
func requestIDsOf(payload []byte) ([]string, error) {
	const field = 14 // KeyRecord.request_ids
	var requestIDs []string
	for len(payload) > 0 {
		number, kind, length := protowire.ConsumeTag(payload)
		if length < 0 {
			return nil, protowire.ParseError(length)
		}
		payload = payload[length:]
		if number == field && kind == protowire.BytesType {
			value, length := protowire.ConsumeBytes(payload)
			if length < 0 {
				return nil, protowire.ParseError(length)
			}
			requestIDs = append(requestIDs, string(value))
			payload = payload[length:]
			continue
		}
		if length = protowire.ConsumeFieldValue(number, kind, payload); length < 0 {
			return nil, protowire.ParseError(length)
		}
		payload = payload[length:]
	}
	return requestIDs, nil
}
