package boltstore

import (
	"bytes"
	"fmt"

	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/integrity"
)

// metaReader reads header and position.
type metaReader struct{ scan *scan }

// add implements valueReader.
func (r *metaReader) add(name, value []byte) {
	read := func(record proto.Message) bool {
		return storage.Decode(bucketMeta, frameName(bucketMeta, string(name)), value, record) == nil
	}
	switch string(name) {
	case nameHeader:
		if header := (&storagev1.HeaderRecord{}); read(header) && header.GetSchema() >= storage.Schema && header.GetSchema() <= storage.Newest {
			r.scan.header = header
		}
	case namePosition:
		if position := (&storagev1.PositionRecord{}); read(position) {
			r.scan.position = position
		}
	}
}

// end implements valueReader.
func (r *metaReader) end() func() error {
	return func() error {
		if s := r.scan; s.header != nil && s.position != nil && s.index == nil {
			s.index = newFileIndex(s.expected)
		}
		return nil
	}
}

// headReader reads heads.
type headReader struct {
	scan  *scan
	heads []headRead
}

type headRead struct {
	workspaceID string
	head        storage.Head
	damaged     error
	record      *storagev1.HeadRecord
}

// add implements valueReader.
func (r *headReader) add(name, value []byte) {
	read := headRead{workspaceID: parseHeadName(string(name)), record: &storagev1.HeadRecord{}}
	read.head, read.damaged = decodeHead(string(name), value, read.record)
	r.heads = append(r.heads, read)
}

// end implements valueReader.
func (r *headReader) end() func() error {
	heads := r.heads
	r.heads = nil
	return func() error {
		for index := range heads {
			r.scan.addHead(&heads[index])
		}
		return nil
	}
}

// addHead adds a head to the index.
func (s *scan) addHead(read *headRead) {
	entry := s.index.workspace(read.workspaceID)
	entry.head, entry.damagedHead = read.head, read.damaged
	entry.headRevision, entry.tag = read.record.GetRevision(), read.record.GetTag()
	if version := read.record.GetTagKeyVersion(); version > integrity.KeyVersion {
		s.fail(fmt.Errorf("%w: head tags of version %d, this version knows up to %d", storage.ErrNewer, version, integrity.KeyVersion))
	}
	if entry.damagedHead == nil && len(entry.tag) != len(integrity.Hash{}) {
		entry.damagedHead = &storage.DamagedError{Kind: "head", Name: entry.id, Problem: "it has no tag"}
	}
	if entry.headRevision > s.position.GetRevision() {
		s.fail(&storage.DamagedError{Kind: "position", Name: namePosition, Problem: "a head is ahead of it"})
	}
}

// recordReader reads members, workspaces, or the policy.
type recordReader struct {
	scan    *scan
	bucket  string
	hasher  *integrity.Hasher
	records []recordRead
}

type recordRead struct {
	workspaceID string
	id          recordID
	element     integrity.Element
	readable    bool
}

// add implements valueReader.
func (r *recordReader) add(name, value []byte) {
	read := recordRead{}
	switch r.bucket {
	case bucketMembers:
		workspaceID, memberID, _ := bytes.Cut(name, []byte{0})
		read.workspaceID, read.id = string(workspaceID), recordID{kindMember, string(memberID)}
	case bucketWorkspaces:
		read.workspaceID, read.id = string(name), recordID{kind: kindWorkspace}
	default:
		if string(name) != nameActive {
			return
		}
		read.id = recordID{kind: kindPolicy}
	}
	kind := integrity.KindName(read.id.kind)
	payload, err := storage.Unframe(kind, frameName(r.bucket, string(name)), value)
	if err == nil {
		read.element = r.hasher.Element(kind, read.workspaceID, read.id.name, integrity.HashPayload(payload))
	}
	read.readable = err == nil
	r.records = append(r.records, read)
}

// end implements valueReader.
func (r *recordReader) end() func() error {
	records := r.records
	r.records = nil
	return func() error {
		for index := range records {
			r.scan.addRecord(&records[index])
		}
		return nil
	}
}

// addRecord adds a record to the index, and to the sum of its workspace. If it is not readable, only
// its workspace is added: then the sum does not match the head's tag.
func (s *scan) addRecord(read *recordRead) {
	entry := s.index.workspace(read.workspaceID)
	if read.readable {
		entry.sum = entry.sum.Add(read.element)
		s.index.setElement(entry, read.id, read.element.Short())
	}
}
