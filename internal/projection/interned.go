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
// the value is new, it is what value returns.
func (i *interned[Value]) hold(text []byte, value func() Value) uint32 {
	if len(text) == 0 {
		return 0
	}
	hash := maphash.Bytes(i.seed, text)
	number := i.index.Find(hash, func(number uint32) bool { return i.entries.At(number).text == string(text) })
	if number == 0 {
		number = i.entries.Add()
		*i.entries.At(number) = internedEntry[Value]{text: string(text), value: value()}
		i.index.Insert(hash, number, i.hashOf)
	}
	i.entries.At(number).count++
	return number
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

// get returns the value of a number; zero for 0.
func (i *interned[Value]) get(number uint32) (value Value) {
	if number == 0 {
		return value
	}
	return i.entries.At(number).value
}

func (i *interned[Value]) hashOf(number uint32) uint64 {
	return maphash.String(i.seed, i.entries.At(number).text)
}
