package policy

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Error is one mistake in a policy.
type Error struct {
	// File and Line say where it stands, from 1; they are "" and 0 for a policy
	// that did not come from a file.
	File string
	Line int
	// Field is the path of what is wrong, as in "roles[2].scopes[0]", counted
	// from 0, or "document" for the whole.
	Field string
	// Problem says what is wrong and what is allowed.
	Problem string
}

// Error returns "file:line: field: problem", or "field: problem" without a file.
func (e *Error) Error() string {
	if e.File == "" {
		return e.Field + ": " + e.Problem
	}
	return fmt.Sprintf("%s:%d: %s: %s", e.File, e.Line, e.Field, e.Problem)
}

// Errors is every mistake of a policy in the order of its lines, 100 at most
// and then a note that there are more. It is what Parse and Validate return;
// get it with errors.As.
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
	// document is the Field of mistakes that concern the whole.
	document = "document"

	// maxMistakes bounds the answer to a document that is wrong all over.
	maxMistakes = 100
)

// mistakes gathers what is wrong with a policy, and knows where fields stand.
type mistakes struct {
	file  string
	lines map[string]int // of each field in the YAML text; nil for a policy that is not text
	// unread has the fields whose text could not be taken over into the Policy.
	// What the rules say of those would be wrong or said twice.
	unread map[string]bool
	list   Errors
	more   bool
}

// add notes a mistake against the rules, unless the field could not be read.
func (m *mistakes) add(field, format string, arguments ...any) {
	for f := field; f != ""; f = parent(f) {
		if m.unread[f] {
			return
		}
	}
	m.addAt(m.line(field), field, format, arguments...)
}

// addUnread notes that the text of a field could not be read.
func (m *mistakes) addUnread(line int, field, format string, arguments ...any) {
	m.unread[field] = true
	m.addAt(line, field, format, arguments...)
}

func (m *mistakes) addAt(line int, field, format string, arguments ...any) {
	if len(m.list) == maxMistakes {
		m.more = true
		return
	}
	m.list = append(m.list, &Error{File: m.file, Line: line, Field: field, Problem: fmt.Sprintf(format, arguments...)})
}

// anyUnread reports whether something could not be read in field or below it.
func (m *mistakes) anyUnread(field string) bool {
	for f := range m.unread {
		if strings.HasPrefix(f, field) {
			return true
		}
	}
	return false
}

// line returns the line of the field or, if it was left out, of what it should
// stand in.
func (m *mistakes) line(field string) int {
	if m.lines == nil {
		return 0
	}
	for f := field; f != ""; f = parent(f) {
		if line, known := m.lines[f]; known {
			return line
		}
	}
	return max(1, m.lines[document])
}

// err returns an Errors, or nil if there is no mistake.
func (m *mistakes) err() error {
	if len(m.list) == 0 {
		return nil
	}
	slices.SortStableFunc(m.list, func(a, b *Error) int { return a.Line - b.Line })
	if m.more {
		last := m.list[len(m.list)-1]
		m.list = append(m.list, &Error{
			File: m.file, Line: last.Line, Field: document,
			Problem: fmt.Sprintf("has more mistakes than the %d shown", maxMistakes),
		})
	}
	return m.list
}

// parent returns the path without its last part: "roles[2].scopes" for
// "roles[2].scopes[0]", "roles[2]" for that, and "" after "roles".
func parent(field string) string {
	return field[:max(0, strings.LastIndexAny(field, ".["))]
}

// quote returns text in quotes, short enough for a message.
func quote(text string) string {
	const most = 80
	if len(text) <= most {
		return fmt.Sprintf("%q", text)
	}
	end := most
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return fmt.Sprintf("%q…", text[:end])
}
