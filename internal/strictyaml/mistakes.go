package strictyaml

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Error is one mistake in a value.
type Error struct {
	// File is the name that was given to Parse; "" if the value did not come from a file.
	File string
	// Line and Column are the position of the mistake, from 1. Line is 0 without a file.
	// Column counts characters; it is 0 if only the line is known.
	Line, Column int
	// Field is the path of what is wrong, as in "roles[2].scopes[0]" with indexes from 0,
	// or "document" for the whole.
	Field string
	// Problem says what is wrong and what is allowed.
	Problem string
}

// Error returns "file:line:column: field: problem", without what is not known.
func (e *Error) Error() string {
	switch {
	case e.File == "":
		return e.Field + ": " + e.Problem
	case e.Column == 0:
		return fmt.Sprintf("%s:%d: %s: %s", e.File, e.Line, e.Field, e.Problem)
	}
	return fmt.Sprintf("%s:%d:%d: %s: %s", e.File, e.Line, e.Column, e.Field, e.Problem)
}

// Errors is every mistake of a value, in the order of the text. After 100 mistakes there is
// one Error more, which says that the list is not complete. Get it with errors.As.
type Errors []*Error

// Error returns one line for each mistake.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, mistake := range e {
		lines[i] = mistake.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives the mistakes to errors.Is and errors.As.
func (e Errors) Unwrap() []error {
	list := make([]error, len(e))
	for i, mistake := range e {
		list[i] = mistake
	}
	return list
}

const (
	// Document is the Field of a mistake that concerns the whole.
	Document = "document"

	// maxMistakes bounds the answer to a document that is wrong all over.
	maxMistakes = 100
)

// position is where a field stands in the text.
type position struct{ line, column int }

// Mistakes collects what is wrong with a value. Parse returns one that knows where the
// fields of the document stand; the zero Mistakes is for a value that did not come from a
// document.
type Mistakes struct {
	file string
	// positions has each field that was read; nil without a document.
	positions map[string]position
	// unread has the fields whose text could not be read. A rule that is applied to them
	// would report nonsense, or the same mistake again.
	unread map[string]bool
	list   Errors
	more   bool
}

// Add records that a field breaks a rule. It does nothing if the field, or a field that
// contains it, could not be read: that mistake has been recorded already.
func (m *Mistakes) Add(field, format string, arguments ...any) {
	if m.unread[Document] {
		return
	}
	for f := field; f != ""; f = parent(f) {
		if m.unread[f] {
			return
		}
	}
	m.addAt(m.position(field), field, format, arguments...)
}

// Len returns how many mistakes are recorded, which is 100 or less.
func (m *Mistakes) Len() int { return len(m.list) }

// AnyUnread reports whether the field, or a field below it, could not be read.
func (m *Mistakes) AnyUnread(field string) bool {
	for f := range m.unread {
		if strings.HasPrefix(f, field) {
			return true
		}
	}
	return false
}

// Err returns an Errors, or nil if there is no mistake.
func (m *Mistakes) Err() error {
	if len(m.list) == 0 {
		return nil
	}
	slices.SortStableFunc(m.list, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	if !m.more {
		return m.list
	}
	last := m.list[len(m.list)-1]
	return append(slices.Clone(m.list), &Error{
		File: m.file, Line: last.Line, Field: Document,
		Problem: fmt.Sprintf("has more mistakes than the %d shown", maxMistakes),
	})
}

// addUnread records that the text of a field could not be read, once.
func (m *Mistakes) addUnread(at position, field, format string, arguments ...any) {
	if m.unread[field] {
		return
	}
	m.unread[field] = true
	m.addAt(at, field, format, arguments...)
}

func (m *Mistakes) addAt(at position, field, format string, arguments ...any) {
	if len(m.list) == maxMistakes {
		m.more = true
		return
	}
	m.list = append(m.list, &Error{
		File: m.file, Line: at.line, Column: at.column, Field: field, Problem: fmt.Sprintf(format, arguments...),
	})
}

// position returns where the field stands or, if the document does not have it, where the
// value stands that should contain it.
func (m *Mistakes) position(field string) position {
	if m.positions == nil {
		return position{}
	}
	for f := field; f != ""; f = parent(f) {
		if at, known := m.positions[f]; known {
			return at
		}
	}
	if at, known := m.positions[Document]; known {
		return at
	}
	return position{line: 1}
}

// parent returns the path without its last part: "roles[2].scopes" for
// "roles[2].scopes[0]", "roles[2]" for "roles[2].scopes", and "" for "roles".
func parent(field string) string {
	return field[:max(0, strings.LastIndexAny(field, ".["))]
}

// Quote returns text in quotes, cut to 80 bytes so that it fits into a message.
func Quote(text string) string {
	const limit = 80
	if len(text) <= limit {
		return fmt.Sprintf("%q", text)
	}
	end := limit
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return fmt.Sprintf("%q…", text[:end])
}
