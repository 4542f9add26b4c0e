// Package roster reads what a product's own directory has, one thing on each line of a file: the
// members of its workspaces (Read), and the keys of an earlier system (ReadKeys).
//
// A file is CSV (RFC 4180) with a header, or JSON lines: an object on each line. The columns, and
// the names in the objects, are for members workspace, member, role, state and source_version. A file
// whose first character is { is JSON lines.
package roster

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// State is a member's state.
type State string

// The states of a member.
const (
	// Active is the state of a member whose keys work. It is the default.
	Active State = "active"
	// Suspended is the state of a member whose keys do not work for now.
	Suspended State = "suspended"
	// Removed is the state of a member that is to be removed. A member of a workspace that the file
	// has other members of, and that has no line itself, is to be removed, too.
	Removed State = "removed"
)

// Member is one line of a file.
type Member struct {
	// Line is the number of the line, from 1.
	Line int
	// WorkspaceID and MemberID are the product's own ids.
	WorkspaceID, MemberID string
	// Role is the name of a role. It may be empty if State is Removed.
	Role string
	// State is one of the three.
	State State
	// SourceVersion is the directory's version of the member; nil if the line has none.
	SourceVersion *int64
}

// LineError is what is wrong with one line.
type LineError struct {
	// Line is the number of the line, from 1.
	Line int
	// Text says what is wrong and what is allowed. It repeats no value of the file.
	Text string
}

// Error returns "line 7: the text".
func (m LineError) Error() string { return fmt.Sprintf("line %d: %s", m.Line, m.Text) }

// LineErrors are what is wrong with a file, by line.
type LineErrors []LineError

// Error returns the mistakes, one on each line.
func (m LineErrors) Error() string {
	var lines []string
	for _, each := range m {
		lines = append(lines, each.Error())
	}
	return strings.Join(lines, "\n")
}

const (
	// maxMistakes is how many mistakes of a file are reported.
	maxMistakes = 100
	// maxLine is the max length of a line of JSON, in bytes.
	maxLine = 64 << 10
	// maxSourceVersion is the largest source version.
	maxSourceVersion = 4_000_000_000_000_000_000
)

// format is what the lines of a file have.
type format struct {
	// names are the names of the columns, and the first of them, required, must be there.
	names    []string
	required int
	// kinds are what JSON may have in the place of a text.
	kinds map[string]kind
}

// kind is what a field of an object may be beside a text.
type kind int

const (
	kindNumber kind = iota + 1
	kindList
	kindLabels
)

// members is the format of Read.
var members = format{
	names: []string{"workspace", "member", "role", "state", "source_version"}, required: 3,
	kinds: map[string]kind{"source_version": kindNumber},
}

// cell is the value of a field: a text, or what JSON has in its place.
type cell struct {
	text   string
	list   []string
	labels map[string]string
}

var (
	validID   = regexp.MustCompile(`^[A-Za-z0-9._:@-]{1,128}$`)
	validRole = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,63}$`)
)

// Read reads a file. Errors: LineErrors, or that of in.
func Read(in io.Reader) ([]Member, error) {
	r := &reader{format: members}
	lines := make(map[[2]string]int)
	var found []Member
	r.add = func(line int, fields map[string]cell) bool {
		member, goesOn := r.member(line, fields, lines)
		if member != nil {
			found = append(found, *member)
		}
		return goesOn
	}
	if err := r.read(in); err != nil {
		return nil, err
	}
	return found, nil
}

// read reads a file. Errors: LineErrors, or that of in.
func (r *reader) read(in io.Reader) error {
	buffered := bufio.NewReaderSize(in, maxLine)
	if mark, err := buffered.Peek(3); err == nil && string(mark) == "\uFEFF" {
		_, _ = buffered.Discard(len(mark))
	}
	first, err := buffered.Peek(1)
	switch {
	case errors.Is(err, io.EOF):
		r.mistake(1, "the file is empty; a header of CSV or lines of JSON are required")
		err = nil
	case err != nil:
	case first[0] == '{':
		err = r.readJSON(buffered)
	default:
		err = r.readCSV(buffered)
	}
	if err == nil && len(r.mistakes) > 0 {
		return r.mistakes
	}
	return err
}

// reader reads the lines of a file.
type reader struct {
	format   format
	mistakes LineErrors
	// add takes a line and reports whether reading goes on.
	add func(line int, fields map[string]cell) bool
}

// mistake notes what is wrong with a line and reports whether reading goes on.
func (r *reader) mistake(line int, format string, arguments ...any) bool {
	r.mistakes = append(r.mistakes, LineError{Line: line, Text: fmt.Sprintf(format, arguments...)})
	return len(r.mistakes) < maxMistakes
}

// readCSV reads CSV. Errors: those of in.
func (r *reader) readCSV(in io.Reader) error {
	records := csv.NewReader(in)
	records.FieldsPerRecord = -1
	var header []string
	for {
		record, err := records.Read()
		if wrong, is := errors.AsType[*csv.ParseError](err); is {
			r.mistake(wrong.StartLine, "is not CSV: %s", wrong.Err)
			return nil // where the next line begins is not known
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		line, _ := records.FieldPos(0)
		switch {
		case header == nil:
			if header = record; !r.checkHeader(line, header) {
				return nil
			}
		case len(record) != len(header):
			if !r.mistake(line, "has %d fields; the header has %d", len(record), len(header)) {
				return nil
			}
		default:
			fields := make(map[string]cell, len(header))
			for index, name := range header {
				fields[name] = cell{text: record[index]}
			}
			if !r.add(line, fields) {
				return nil
			}
		}
	}
}

// checkHeader reports whether a header names every column that is needed, and no other.
func (r *reader) checkHeader(line int, header []string) bool {
	for index, name := range header {
		switch {
		case !slices.Contains(r.format.names, name):
			r.mistake(line, "column %d of the header is not known; allowed are %s", index+1, strings.Join(r.format.names, ", "))
		case slices.Contains(header[:index], name):
			r.mistake(line, "the header has %s twice", name)
		}
	}
	for _, name := range r.format.names[:r.format.required] {
		if !slices.Contains(header, name) {
			r.mistake(line, "the header lacks %s", name)
		}
	}
	return len(r.mistakes) == 0
}

// readJSON reads JSON lines. Errors: those of in.
func (r *reader) readJSON(in io.Reader) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxLine)
	number := 0
	for lines.Scan() {
		number++
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		fields, problem := r.format.object(lines.Bytes())
		if problem != "" {
			if !r.mistake(number, "%s", problem) {
				return nil
			}
			continue
		}
		if !r.add(number, fields) {
			return nil
		}
	}
	if err := lines.Err(); !errors.Is(err, bufio.ErrTooLong) {
		return err
	}
	r.mistake(number+1, "is longer than %d bytes", maxLine)
	return nil
}

// object returns the fields of a line of JSON, or what is wrong with it. encoding/json alone would
// take names in other cases, and the last of two equal names.
func (f *format) object(line []byte) (fields map[string]cell, problem string) {
	const shape = "is not an object of JSON with texts in it"
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.UseNumber()
	if begin, err := decoder.Token(); err != nil || begin != json.Delim('{') {
		return nil, shape
	}
	fields = make(map[string]cell, len(f.names))
	for decoder.More() {
		token, err := decoder.Token()
		name, _ := token.(string)
		if err != nil {
			return nil, shape
		}
		if !slices.Contains(f.names, name) {
			return nil, "has a name that is not known; allowed are " + strings.Join(f.names, ", ")
		}
		if _, twice := fields[name]; twice {
			return nil, "has " + name + " twice"
		}
		value, err := decoder.Token()
		if err != nil {
			return nil, shape
		}
		if fields[name], problem = f.kinds[name].cell(decoder, name, value); problem != "" {
			return nil, problem
		}
	}
	if end, err := decoder.Token(); err != nil || end != json.Delim('}') {
		return nil, shape
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, "has more than one object"
	}
	return fields, ""
}

// cell returns the value of a field, which begins with a token of JSON, or what is wrong with it.
func (k kind) cell(decoder *json.Decoder, name string, value json.Token) (found cell, problem string) {
	number, isNumber := value.(json.Number)
	text, isText := value.(string)
	switch {
	case isText:
		return cell{text: text}, ""
	case isNumber && k == kindNumber:
		return cell{text: number.String()}, ""
	case value == json.Delim('[') && k == kindList:
		found.list, problem = texts(decoder, name)
		return found, problem
	case value == json.Delim('{') && k == kindLabels:
		found.labels, problem = labels(decoder, name)
		return found, problem
	}
	return cell{}, name + map[kind]string{
		0: " must be a text", kindNumber: " must be a text", kindList: " must be a text or a list of texts", kindLabels: " must be a text or an object of texts",
	}[k]
}

// texts reads a list of texts after its bracket. It is not nil.
func texts(decoder *json.Decoder, name string) (list []string, problem string) {
	list = []string{}
	for decoder.More() {
		value, err := decoder.Token()
		text, is := value.(string)
		if err != nil || !is {
			return nil, name + " must be a list of texts"
		}
		list = append(list, text)
	}
	if _, err := decoder.Token(); err != nil {
		return nil, name + " must be a list of texts"
	}
	return list, ""
}

// labels reads an object of texts after its brace. It is not nil.
func labels(decoder *json.Decoder, name string) (found map[string]string, problem string) {
	found = make(map[string]string)
	for decoder.More() {
		key, err := decoder.Token()
		label, _ := key.(string)
		if err != nil {
			return nil, name + " must be an object of texts"
		}
		value, err := decoder.Token()
		text, is := value.(string)
		if err != nil || !is {
			return nil, name + " must be an object of texts"
		}
		if _, twice := found[label]; twice {
			return nil, name + " has a name twice"
		}
		found[label] = text
	}
	if _, err := decoder.Token(); err != nil {
		return nil, name + " must be an object of texts"
	}
	return found, ""
}

// member returns the member of a line, nil if the line has mistakes, and reports whether reading goes on. lines
// has the line of each workspace and member.
func (r *reader) member(line int, fields map[string]cell, lines map[[2]string]int) (found *Member, goesOn bool) {
	member := Member{
		Line: line, WorkspaceID: fields["workspace"].text, MemberID: fields["member"].text, Role: fields["role"].text,
		State: State(fields["state"].text),
	}
	if member.State == "" {
		member.State = Active
	}
	goesOn = true
	wrong := func(format string, arguments ...any) { goesOn = goesOn && r.mistake(line, format, arguments...) }
	before := len(r.mistakes)
	if !validID.MatchString(member.WorkspaceID) {
		wrong("workspace must be 1 to 128 characters of [A-Za-z0-9._:@-]")
	}
	if !validID.MatchString(member.MemberID) {
		wrong("member must be 1 to 128 characters of [A-Za-z0-9._:@-]")
	}
	switch member.State {
	case Active, Suspended, Removed:
	default:
		wrong("state must be active, suspended or removed; empty means active")
	}
	if !validRole.MatchString(member.Role) && (member.Role != "" || member.State != Removed) {
		wrong("role must be the name of a role, [a-z][a-z0-9_-]{0,63}")
	}
	if text := fields["source_version"].text; text != "" {
		version, err := strconv.ParseInt(text, 10, 64)
		if err != nil || version < 0 || version > maxSourceVersion {
			wrong("source_version must be a number from 0 to %d", int64(maxSourceVersion))
		}
		member.SourceVersion = &version
	}
	if len(r.mistakes) > before {
		return nil, goesOn
	}
	id := [2]string{member.WorkspaceID, member.MemberID}
	if other, twice := lines[id]; twice {
		return nil, r.mistake(line, "has the workspace and member of line %d", other)
	}
	lines[id] = line
	return &member, true
}
