package integrity

import (
	"bytes"
	"iter"
)

// Examination finds out which records of a workspace are wrong. It compares the stored records with what
// the workspace's audit events list, from the newest event backwards. ID names a record in the workspace.
type Examination[ID comparable] struct {
	element    func(ID, Hash) Element
	stored     map[ID]Hash
	unreadable map[ID]error
	// last holds, for each record, the hash from the newest event that lists it; empty if that event
	// deleted the record.
	last map[ID][]byte
	sum  Sum
}

// Verdict is what an Examination says of a record.
type Verdict struct {
	// Known is set if Element is that of the record that should be there.
	Known   bool
	Element Element
	// Problem is one of the Problem constants; "" if nothing is wrong, or if Unreadable is set.
	Problem string
	// Unreadable is why the record cannot be read; nil if it can, or is not stored.
	Unreadable error
}

// NewExamination returns an Examination of no records. element returns the element of a record in the
// workspace.
func NewExamination[ID comparable](element func(ID, Hash) Element) *Examination[ID] {
	return &Examination[ID]{
		element: element, stored: make(map[ID]Hash), unreadable: make(map[ID]error), last: make(map[ID][]byte),
	}
}

// Stored takes a stored record. Call it, and Unreadable, before List.
func (e *Examination[ID]) Stored(id ID, hash Hash) {
	e.stored[id] = hash
	e.sum = e.sum.Add(e.element(id, hash))
}

// Unreadable takes a stored record that cannot be read.
func (e *Examination[ID]) Unreadable(id ID, err error) { e.unreadable[id] = err }

// List takes what an event lists of a record, if no newer event lists the record. after is the hash of the
// record that was put, empty if it was deleted.
func (e *Examination[ID]) List(id ID, after []byte) {
	if _, newer := e.last[id]; newer {
		return
	}
	e.last[id] = after
	if hash, stored := e.stored[id]; stored {
		e.sum = e.sum.Remove(e.element(id, hash))
	}
	if len(after) == len(Hash{}) {
		e.sum = e.sum.Add(e.element(id, Hash(after)))
	}
}

// Sum returns the sum of the stored records, corrected by what the events list.
func (e *Examination[ID]) Sum() Sum { return e.sum }

// AllListed reports whether some event lists each record that can be read.
func (e *Examination[ID]) AllListed() bool {
	for id := range e.stored {
		if _, listed := e.last[id]; !listed {
			return false
		}
	}
	return true
}

// Verdicts yields each record that is stored, or that an event lists, once.
func (e *Examination[ID]) Verdicts() iter.Seq2[ID, Verdict] {
	return func(yield func(ID, Verdict) bool) {
		for id, after := range e.last {
			hash, stored := e.stored[id]
			verdict := Verdict{Unreadable: e.unreadable[id], Known: len(after) == len(Hash{})}
			if verdict.Known {
				verdict.Element = e.element(id, Hash(after))
			}
			switch {
			case verdict.Unreadable != nil, stored && bytes.Equal(hash[:], after):
			case !stored && len(after) == 0:
			case stored && len(after) == 0:
				verdict.Problem = ProblemSurplus
			case stored:
				verdict.Problem = ProblemStale
			default:
				verdict.Problem = ProblemMissing
			}
			if !yield(id, verdict) {
				return
			}
		}
		for id, hash := range e.stored {
			if _, listed := e.last[id]; !listed && !yield(id, Verdict{Known: true, Element: e.element(id, hash)}) {
				return
			}
		}
		for id, err := range e.unreadable {
			if _, listed := e.last[id]; !listed && !yield(id, Verdict{Unreadable: err}) {
				return
			}
		}
	}
}
