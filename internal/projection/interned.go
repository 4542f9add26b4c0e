package projection

import (
	"hash/maphash"

	"github.com/scribe-mail/keysvc/internal/flat"
)

// interned holds values that many records have in common, each once. A value is found by a text.
// Records refer to values by number; the number of the empty text is 0. A value is removed when
// nothing refers to it any more.
type interned[Value any] struct {
	seed    maphash.Seed
	entries flat.Arena[internedEntry[Value]]
	index   *flat.Index
	none    Value
}

type internedEntry[Value any] struct {
	text  string
	value Value
	count uint32
}

func newInterned[Value any]() *interned[Value] {
	return &interned[Value]{seed: maphash.MakeSeed(), index: flat.NewIndex(0)}
}

// hold returns the number of the value of a text, to which one more record refers from now on. If
// the value is new, it is what value returns, which may keep its text.
func (i *interned[Value]) hold(text []byte, value func(text string) Value) uint32 {
	if len(text) == 0 {
		return 0
	}
	number := i.find(text)
	if number == 0 {
		number = i.entries.Add()
		kept := string(text)
		*i.entries.At(number) = internedEntry[Value]{text: kept, value: value(kept)}
		i.index.Insert(i.hashOf(number), number, i.hashOf)
	}
	i.entries.At(number).count++
	return number
}

// find returns the number of the value of a text; 0 if nothing has it.
func (i *interned[Value]) find(text []byte) uint32 {
	hash := maphash.Bytes(i.seed, text)
	return i.index.Find(hash, func(number uint32) bool { return i.entries.At(number).text == string(text) })
}

// drop ends that one record refers to a number. It reports whether that was the last one, and the
// value is gone.
func (i *interned[Value]) drop(number uint32) (isGone bool) {
	if number == 0 {
		return false
	}
	entry := i.entries.At(number)
	if entry.count--; entry.count > 0 {
		return false
	}
	i.index.Remove(i.hashOf(number), number, i.hashOf)
	i.entries.Free(number)
	return true
}

// get returns the value of a number; zero for 0. It must not be changed, and is zero after the last
// drop of the number.
func (i *interned[Value]) get(number uint32) *Value {
	if number == 0 {
		return &i.none
	}
	return &i.entries.At(number).value
}

func (i *interned[Value]) hashOf(number uint32) uint64 {
	return maphash.String(i.seed, i.entries.At(number).text)
}
