// Package integrity computes the tag that ties the records of a workspace to its head. The tag
// shows that a record is stale, put back, missing or left over, even if the record's own
// checksum is right.
//
// Each record has an element: a keyed hash of its identity and its payload. The elements
// of a workspace add up to a Sum. The tag of the head is a keyed hash of the head and the
// sum. Sums are kept in memory only; they are computed from the records at each load.
//
// The keys are derived from a root that is, for now, 32 zero bytes. Everybody can compute
// them, so tags detect accidents, not forgery.
//
// All numbers are big-endian. Strings are preceded by their length in 2 bytes. HKDF is
// RFC 5869, HMAC RFC 2104.
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

// KeyVersion names the keys that this package uses. It is stored beside each tag, so that
// another root can be introduced later.
const KeyVersion = 1

// Names of the kinds of records in elements. They never change.
const (
	KindPolicy    = "policy"
	KindWorkspace = "workspace"
	KindMember    = "member"
	KindKey       = "key"
	KindSettings  = "settings"
)

const (
	setKeyLabel  = "keysvc set key v1"
	headKeyLabel = "keysvc head key v1"
	setDomain    = "keysvc set element v1\x00"
	headDomain   = "keysvc head v1\x00"
)

// Hash is the SHA-256 of a record's payload.
type Hash = [sha256.Size]byte

// HashPayload returns the hash of a record's payload in its stored form.
func HashPayload(payload []byte) Hash { return sha256.Sum256(payload) }

// Element is what one record adds to the sum of its workspace.
type Element [sha256.Size]byte

// Short returns the first 8 bytes of the element: enough to detect an accident, and small
// enough to keep for every record.
func (e Element) Short() uint64 { return binary.BigEndian.Uint64(e[:]) }

// Sum is the sum of the elements of a workspace's records, modulo 2^256. The zero value is
// the sum of no records.
type Sum struct {
	// words are the digits in base 2^64, the lowest first.
	words [4]uint64
	count uint64
}

// Add returns the sum with one more record.
func (s Sum) Add(element Element) Sum {
	var carry uint64
	for index := range s.words {
		s.words[index], carry = bits.Add64(s.words[index], element.word(index), carry)
	}
	s.count++
	return s
}

// Remove returns the sum without a record that is part of it.
func (s Sum) Remove(element Element) Sum {
	var borrow uint64
	for index := range s.words {
		s.words[index], borrow = bits.Sub64(s.words[index], element.word(index), borrow)
	}
	s.count--
	return s
}

// Plus returns the sum of the records of both sums.
func (s Sum) Plus(other Sum) Sum {
	var carry uint64
	for index := range s.words {
		s.words[index], carry = bits.Add64(s.words[index], other.words[index], carry)
	}
	s.count += other.count
	return s
}

// word returns a digit of the element in base 2^64; 0 is the lowest.
func (e Element) word(index int) uint64 {
	return binary.BigEndian.Uint64(e[len(e)-8*(index+1):])
}

// appendTo appends count and sum in the form that the tag covers.
func (s Sum) appendTo(data []byte) []byte {
	data = binary.BigEndian.AppendUint64(data, s.count)
	for index := len(s.words) - 1; index >= 0; index-- {
		data = binary.BigEndian.AppendUint64(data, s.words[index])
	}
	return data
}

// Head is what a tag covers in addition to the sum.
type Head struct {
	// Epoch of the store.
	Epoch string
	// WorkspaceID names the workspace. The empty one is the policy's.
	WorkspaceID string
	// Sequence and EventHash are those of the workspace's newest audit event.
	Sequence  int64
	EventHash [sha256.Size]byte
}

// Hasher computes elements and tags. One goroutine may use it at a time. A Hasher for each
// goroutine is faster than a shared one.
type Hasher struct {
	set, head hash.Hash
	data      []byte
	result    [sha256.Size]byte
}

// keys are derived once, because the root does not change while the program runs.
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

// Element returns the element of a record. name is the key id or member id; it is empty for
// a workspace and for the policy.
func (h *Hasher) Element(kind, workspaceID, name string, payload Hash) Element {
	h.data = append(h.data[:0], setDomain...)
	h.data = appendString(h.data, kind)
	h.data = appendString(h.data, workspaceID)
	h.data = appendString(h.data, name)
	h.data = append(h.data, payload[:]...)
	return Element(h.mac(h.set))
}

// Tag returns the tag of a head over the records whose sum is sum.
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

// appendString appends a string with its length. Ids have at most 128 bytes, far less than
// the 65,535 that fit.
func appendString(data []byte, text string) []byte {
	data = binary.BigEndian.AppendUint16(data, uint16(len(text))) //nolint:gosec // see above
	return append(data, text...)
}

// KeyElement is Element for a key's record.
func (h *Hasher) KeyElement(workspaceID, keyID, payload []byte) Element {
	h.data = append(h.data[:0], setDomain...)
	h.data = appendString(h.data, KindKey)
	h.data = appendString(h.data, string(workspaceID))
	h.data = appendString(h.data, string(keyID))
	hash := sha256.Sum256(payload)
	h.data = append(h.data, hash[:]...)
	return Element(h.mac(h.set))
}
