package boltstore

import (
	"encoding/hex"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/scribe-mail/keysvc/internal/flat"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// keyPart is what was read of a part of the keys.
type keyPart struct {
	ids  []flat.ID
	keys []keyRead
	// isOdd is set if some id is not that of a key; its place in ids is zero.
	isOdd bool
	// requests are the request ids of the keys that have some.
	requests []keyRequests
	strays   []strayKey
	problem  error
}

// keyRead is one key's record.
type keyRead struct {
	id        [keyIDLength]byte
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
// nearly all the work of opening a large file. While keys are read, the index gets no workspaces.
type keyReader struct {
	scan   *scan
	hasher *integrity.Hasher
	frames storage.Frames
	// sums are the sums of the keys that this reader has read, by the number of their workspace.
	sums []integrity.Sum
	part *keyPart
}

func newKeyReader(s *scan) *keyReader {
	return &keyReader{
		scan: s, hasher: integrity.NewHasher(), frames: storage.FramesUnder(frameName(bucketKeys, "")),
		sums: make([]integrity.Sum, len(s.index.numbered)),
	}
}

// add implements valueReader. Keys of workspaces without a head are noted apart.
func (r *keyReader) add(name, value []byte) {
	if r.part == nil {
		r.part = keyParts.Get().(*keyPart) //nolint:errcheck // the pool has nothing else
		*r.part = keyPart{ids: r.part.ids[:0], keys: r.part.keys[:0]}
	}
	slot, err := checkKeyName(name)
	if err != nil {
		r.fail(&storage.DamagedError{Kind: "key", Name: hex.EncodeToString(name), Problem: err.Error()})
		return
	}
	keyID, workspaceID := name[numberLength:numberLength+keyIDLength], name[numberLength+keyIDLength:]
	workspace := r.scan.index.workspaces[string(workspaceID)]
	payload, readable := r.frames.Payload(name, value)
	var element integrity.Element
	var requestIDs []string
	if readable { // reads of another key return the damage
		if requestIDs, err = requestIDsOf(payload); err != nil {
			r.fail(&storage.DamagedError{Kind: "key", Name: string(keyID), Problem: err.Error()})
			return
		}
		element = r.hasher.KeyElement(workspaceID, keyID, payload)
	}
	if workspace == nil {
		r.part.strays = append(r.part.strays, strayKey{string(keyID), string(workspaceID), slot, readable, element, requestIDs})
		return
	}
	if readable {
		r.sums[workspace.number] = r.sums[workspace.number].Add(element)
	}
	if len(requestIDs) > 0 {
		r.part.requests = append(r.part.requests, keyRequests{string(keyID), requestIDs})
	}
	id, is := flat.PackBytes(keyID)
	if !is {
		r.part.isOdd = true
	}
	r.part.ids = append(r.part.ids, id)
	r.part.keys = append(r.part.keys, keyRead{[keyIDLength]byte(keyID), slot, workspace, element.Short()})
}

func (r *keyReader) fail(err error) {
	if r.part.problem == nil {
		r.part.problem = err
	}
}

// end implements valueReader.
func (r *keyReader) end() func() error {
	part := r.part
	if part == nil {
		return nil
	}
	r.part = nil
	return func() error {
		r.scan.addKeys(part)
		return nil
	}
}

// addKeys adds a part of the keys to the index.
func (s *scan) addKeys(part *keyPart) {
	if part.problem != nil {
		s.fail(part.problem)
	}
	ids := part.ids
	if part.isOdd { // only in a damaged file
		ids = nil
		for index := range part.keys {
			key := &part.keys[index]
			if !s.index.addKey(key.workspace, string(key.id[:]), key.slot, key.element) {
				s.fail(storedTwice(string(key.id[:])))
			}
		}
	}
	s.index.ids.HoldAll(ids, flat.Store, func(index int, number uint32, before bool) {
		if before {
			s.fail(storedTwice(part.ids[index].String()))
			return
		}
		key := &part.keys[index]
		s.index.place(key.workspace, number, key.slot, key.element)
	})
	for _, each := range part.requests {
		s.index.setRequestIDs(each.keyID, each.requestIDs)
	}
	s.strays = append(s.strays, part.strays...)
	keyParts.Put(part)
}

// endKeys ends the reading of keys.
func (s *scan) endKeys() {
	// 1. Add up what the readers have added up.
	for _, readers := range s.readers {
		reader, has := readers[bucketKeys].(*keyReader)
		if !has {
			continue
		}
		for number, sum := range reader.sums {
			entry := s.index.numbered[number]
			entry.sum = entry.sum.Plus(sum)
		}
	}
	// 2. Add the keys of workspaces without a head. The order of slots holds in each workspace, and
	// that is where it matters.
	for _, key := range s.strays {
		entry := s.index.workspace(key.workspaceID)
		if !s.index.addKey(entry, key.keyID, key.slot, key.element.Short()) {
			s.fail(storedTwice(key.keyID))
		}
		if key.readable {
			entry.sum = entry.sum.Add(key.element)
		}
		if len(key.requestIDs) > 0 {
			s.index.setRequestIDs(key.keyID, key.requestIDs)
		}
	}
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
		// Most fields have a number and a length of one byte each.
		if len(payload) > 1 && payload[0] < 0x80 && payload[0]&7 == byte(protowire.BytesType) && payload[0]>>3 != field && payload[0]>>3 > 0 &&
			payload[1] < 0x80 && 2+int(payload[1]) <= len(payload) {
			payload = payload[2+int(payload[1]):]
			continue
		}
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
