package flat

import (
	"hash/maphash"
	"strings"
	"sync"
)

// idLength is the length of a key's id.
const idLength = 16

// ID is the id of a key, 16 base62 characters, in 12 bytes: 8 characters are 6 bytes.
type ID [12]byte

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// digits are the values of base62 characters; 255 for any other byte.
var digits = func() (values [256]byte) {
	for index := range values {
		values[index] = 255
	}
	for value := range len(base62) {
		values[base62[value]] = byte(value)
	}
	return values
}()

// Pack returns the ID of a text, and reports whether the text is 16 base62 characters.
func Pack(text string) (id ID, is bool) { return pack(text) }

// PackBytes is Pack for a text in bytes.
func PackBytes(text []byte) (id ID, is bool) { return pack(text) }

func pack[Text string | []byte](text Text) (id ID, is bool) {
	if len(text) != idLength {
		return ID{}, false
	}
	for half := range 2 {
		var number uint64
		for index := range idLength / 2 {
			digit := digits[text[half*idLength/2+index]]
			if digit == 255 {
				return ID{}, false
			}
			number = number*62 + uint64(digit)
		}
		for index := range 6 {
			id[half*6+5-index] = byte(number)
			number >>= 8
		}
	}
	return id, true
}

// Append appends the id's 16 characters to text.
func (id ID) Append(text []byte) []byte {
	var characters [idLength]byte
	for half := range 2 {
		var number uint64
		for index := range 6 {
			number = number<<8 | uint64(id[half*6+index])
		}
		for index := range idLength / 2 {
			characters[half*idLength/2+idLength/2-1-index] = base62[number%62]
			number /= 62
		}
	}
	return append(text, characters[:]...)
}

// String returns the id's 16 characters.
func (id ID) String() string {
	var characters [idLength]byte
	return string(id.Append(characters[:0]))
}

// Holder is one of the tables that share the numbers of an IDs.
type Holder uint8

// The holders.
const (
	// Store is the directory of a store.
	Store Holder = iota
	// Projection is the table that decisions are made from.
	Projection

	holders
)

// IDs gives each key id a number, which a table uses as the place of its record. The tables that
// share an IDs use the same number for a key, so each of them saves an index of its own. A number
// belongs to an id as long as one of the tables holds it; after that it may be given to another
// id. All methods may be called from many goroutines.
//
// Lock: mutex guards everything. No other lock is taken with it held.
type IDs struct {
	seed maphash.Seed

	mutex sync.RWMutex
	index *Index
	ids   Arena[ID]
	// held has a bit for each number, by holder.
	held [holders]Chunks[uint64]
	// others are ids that are not 16 base62 characters. There are none in a sound store.
	others     map[string]uint32
	otherNames map[uint32]string
	// warmed keeps the compiler from leaving out what HoldAll reads in advance.
	warmed uint32
}

// minExpected is for how many keys the index is divided at least. It costs 0.1 MB, and makes a
// server that began empty as fast with ten million keys as one that began with them.
const minExpected = 4 << 20

// NewIDs returns an IDs without ids, for about that many.
func NewIDs(expected int) *IDs {
	s := &IDs{seed: maphash.MakeSeed(), index: NewIndex(max(expected, minExpected))}
	s.index.Reserve(expected)
	return s
}

// hash returns the seeded hash of an id.
func (s *IDs) hash(id ID) uint64 { return maphash.Bytes(s.seed, id[:]) }

// hashOf returns the hash of the id that has a number.
func (s *IDs) hashOf(number uint32) uint64 { return s.hash(*s.ids.At(number)) }

// Find returns the number of an id that a holder holds, or 0.
func (s *IDs) Find(id string, by Holder) uint32 {
	packed, is := Pack(id)
	var hash uint64
	if is {
		hash = s.hash(packed) // before the lock
	}
	s.mutex.RLock()
	defer s.mutex.RUnlock()
	number := s.others[id]
	if is {
		number = s.find(packed, hash)
	}
	if number == 0 || !s.holds(number, by) {
		return 0
	}
	return number
}

func (s *IDs) find(id ID, hash uint64) uint32 {
	return s.index.Find(hash, func(number uint32) bool { return *s.ids.At(number) == id })
}

// Hold makes a holder hold an id, and returns the id's number and whether the holder held it
// before.
func (s *IDs) Hold(id string, by Holder) (number uint32, before bool) {
	packed, is := Pack(id)
	hash := s.hash(packed)
	s.mutex.Lock()
	defer s.mutex.Unlock()
	switch {
	case !is:
		number = s.other(id)
	default:
		if number = s.find(packed, hash); number == 0 {
			number = s.ids.Add()
			*s.ids.At(number) = packed
			s.index.Insert(hash, number, s.hashOf)
		}
	}
	return number, s.join(number, by)
}

// join makes a holder hold a number, and reports whether it did before.
func (s *IDs) join(number uint32, by Holder) (before bool) {
	s.held[by].Grow(number / 64)
	word, bit := s.held[by].At(number/64), uint64(1)<<(number%64)
	before = *word&bit != 0
	*word |= bit
	return before
}

// other returns the number of an id that is not 16 base62 characters.
func (s *IDs) other(id string) uint32 {
	number := s.others[id]
	if number == 0 {
		number = s.ids.Add()
		if s.others == nil {
			s.others, s.otherNames = make(map[string]uint32), make(map[uint32]string)
		}
		id = strings.Clone(id)
		s.others[id], s.otherNames[number] = number, id
	}
	return number
}

// holds reports whether a holder holds a number.
func (s *IDs) holds(number uint32, by Holder) bool {
	return s.held[by].Has(number/64) && *s.held[by].At(number / 64)&(1<<(number%64)) != 0
}

// Release ends that a holder holds a number. If no other holder holds it, the id is forgotten and
// its number may be given to another id.
func (s *IDs) Release(number uint32, by Holder) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if !s.holds(number, by) {
		return
	}
	*s.held[by].At(number / 64) &^= 1 << (number % 64)
	for other := range holders {
		if s.holds(number, other) {
			return
		}
	}
	if name, is := s.otherNames[number]; is {
		delete(s.others, name)
		delete(s.otherNames, number)
	} else {
		s.index.Remove(s.hashOf(number), number, s.hashOf)
	}
	s.ids.Free(number)
}

// ID returns the id of a number that is held.
func (s *IDs) ID(number uint32) string {
	s.mutex.RLock()
	defer s.mutex.RUnlock()
	if name, is := s.otherNames[number]; is {
		return name
	}
	return s.ids.At(number).String()
}

// AppendID appends the id of a number to a text.
func (s *IDs) AppendID(text []byte, number uint32) []byte {
	s.mutex.RLock()
	defer s.mutex.RUnlock()
	if name, is := s.otherNames[number]; is {
		return append(text, name...)
	}
	return s.ids.At(number).Append(text)
}

// Len returns how many ids have a number.
func (s *IDs) Len() int {
	s.mutex.RLock()
	defer s.mutex.RUnlock()
	return s.ids.Len()
}
