// Package integrity computes what ties the records of a workspace to its head, so that
// a record which is stale, put back, missing or left over is found although its own
// checksum is good.
//
// Each record has an element, a keyed hash of what it is and of its payload. The
// elements of a workspace add up to a Sum. The head's tag is a keyed hash of the head
// and the sum. Sums are kept in memory only, and computed from the records at each load.
//
// The keys are derived from a root that is, for now, 32 zero bytes: everybody can
// compute them. So this finds accidents, not forgers.
//
// All numbers are big-endian. Strings are preceded by their length in 2 bytes.
//
//	key     = HKDF-SHA-256(root, no salt, "keysvc set key v1" or "keysvc head key v1")
//	element = HMAC-SHA-256(set key, "keysvc set element v1" 00, kind, workspace, name,
//	          SHA-256 of the payload)
//	sum     = the elements' sum modulo 2^256
//	tag     = HMAC-SHA-256(head key, "keysvc head v1" 00, epoch, workspace, sequence (8
//	          bytes), hash of the newest audit event, count (8 bytes), sum (32 bytes))
//
// The head's fence is not covered: it changes without an event.
package integrity

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"math/bits"
	"sync"
)

// KeyVersion names the keys that this package computes with. It is stored beside each
// tag, so that another root can be introduced later.
const KeyVersion = 1

// The names of the kinds of records, as elements have them. They are never changed.
const (
	KindPolicy    = "policy"
	KindWorkspace = "workspace"
	KindMember    = "member"
	KindKey       = "key"
)

const (
	setKeyLabel  = "keysvc set key v1"
	headKeyLabel = "keysvc head key v1"
	setDomain    = "keysvc set element v1\x00"
	headDomain   = "keysvc head v1\x00"
)

// Hash is the SHA-256 of a record's payload.
type Hash = [sha256.Size]byte

// HashPayload returns the hash of a record's payload as it is stored.
func HashPayload(payload []byte) Hash { return sha256.Sum256(payload) }

// Element is what one record adds to the sum of its workspace.
type Element [sha256.Size]byte

// Short returns the first 8 bytes of the element: enough to notice an accident, and
// little enough to be kept of each record.
func (e Element) Short() uint64 { return binary.BigEndian.Uint64(e[:]) }

// Sum is what the elements of a workspace's records add up to, modulo 2^256. The zero
// value is that of no records.
type Sum struct {
	// words are the digits in base 2^64, the lowest first.
	words [4]uint64
	count uint64
}

// Count returns how many records there are.
func (s Sum) Count() uint64 { return s.count }

// Add returns the sum with one more record.
func (s Sum) Add(element Element) Sum {
	var carry uint64
	for index := range s.words {
		s.words[index], carry = bits.Add64(s.words[index], element.word(index), carry)
	}
	s.count++
	return s
}

// Remove returns the sum without a record that is in it.
func (s Sum) Remove(element Element) Sum {
	var borrow uint64
	for index := range s.words {
		s.words[index], borrow = bits.Sub64(s.words[index], element.word(index), borrow)
	}
	s.count--
	return s
}

// word returns a digit of the element in base 2^64; 0 is the lowest.
func (e Element) word(index int) uint64 {
	return binary.BigEndian.Uint64(e[len(e)-8*(index+1):])
}

// appendTo appends count and sum as the tag covers them.
func (s Sum) appendTo(data []byte) []byte {
	data = binary.BigEndian.AppendUint64(data, s.count)
	for index := len(s.words) - 1; index >= 0; index-- {
		data = binary.BigEndian.AppendUint64(data, s.words[index])
	}
	return data
}

// Head is what a tag covers besides the sum.
type Head struct {
	// Epoch of the store.
	Epoch string
	// WorkspaceID is the workspace's; empty is the policy's.
	WorkspaceID string
	// Sequence and EventHash are those of its newest audit event.
	Sequence  int64
	EventHash [sha256.Size]byte
}

// Hasher computes elements and tags. It serves one goroutine at a time; many that share
// none are faster than one that is shared.
type Hasher struct {
	set, head hash.Hash
	data      []byte
	result    [sha256.Size]byte
}

// keys are derived once: the root does not change while the program runs.
var keys = sync.OnceValue(func() (derived struct{ set, head []byte }) {
	root := make([]byte, 32)
	for label, key := range map[string]*[]byte{setKeyLabel: &derived.set, headKeyLabel: &derived.head} {
		var err error
		if *key, err = hkdf.Key(sha256.New, root, nil, label, sha256.Size); err != nil {
			panic(err) // only for lengths that HKDF cannot give
		}
	}
	return derived
})

// NewHasher returns a Hasher.
func NewHasher() *Hasher {
	derived := keys()
	return &Hasher{set: hmac.New(sha256.New, derived.set), head: hmac.New(sha256.New, derived.head)}
}

// Element returns the element of a record. name is the logical one: a key id or a member
// id, empty for a workspace and the policy.
func (h *Hasher) Element(kind, workspaceID, name string, payload Hash) Element {
	h.data = append(h.data[:0], setDomain...)
	h.data = appendString(h.data, kind)
	h.data = appendString(h.data, workspaceID)
	h.data = appendString(h.data, name)
	h.data = append(h.data, payload[:]...)
	return Element(h.mac(h.set))
}

// Tag returns the tag of a head over the records that add up to sum.
func (h *Hasher) Tag(head Head, sum Sum) [sha256.Size]byte {
	h.data = append(h.data[:0], headDomain...)
	h.data = appendString(h.data, head.Epoch)
	h.data = appendString(h.data, head.WorkspaceID)
	h.data = binary.BigEndian.AppendUint64(h.data, uint64(head.Sequence)) //nolint:gosec // never negative
	h.data = append(h.data, head.EventHash[:]...)
	h.data = sum.appendTo(h.data)
	return h.mac(h.head)
}

// mac returns the keyed hash of data.
func (h *Hasher) mac(keyed hash.Hash) [sha256.Size]byte {
	keyed.Reset()
	keyed.Write(h.data)
	keyed.Sum(h.result[:0])
	return h.result
}

// appendString appends a string with its length. Longer ones than 65,535 bytes do not
// occur: ids have at most 128.
func appendString(data []byte, text string) []byte {
	data = binary.BigEndian.AppendUint16(data, uint16(len(text))) //nolint:gosec // see above
	return append(data, text...)
}
