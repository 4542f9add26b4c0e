// Package strictyaml reads YAML documents that people write by hand, and refuses what they
// did not mean: unknown and repeated fields, values of another type, second documents, and
// the parts of YAML that let one text mean another (aliases, anchors, merge keys, tags).
// Every mistake is reported with file, line and column, not only the first.
//
// The package knows nothing of what a document is about. A caller asks for the fields that
// it allows, takes their values, and adds what breaks its own rules to the same Mistakes:
//
//	root, mistakes := strictyaml.Parse("p.yaml", text, strictyaml.Form{MaxBytes: 1 << 20})
//	fields := root.Mapping("name", "size")
//	name := fields["name"].Text()
//	if name == "" {
//		mistakes.Add("name", "is missing, allowed is a name")
//	}
//	return name, mistakes.Err()
package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// maxDepth is how deep values may be nested. No document of keysvc needs more than five
// levels.
const maxDepth = 32

// Form is what Parse demands of a document as a whole.
type Form struct {
	// MaxBytes bounds the text before any of it is looked at. Required.
	MaxBytes int
	// AllowEmpty accepts a text without a value, such as a file of comments. Parse then
	// returns a Value that is not Present.
	AllowEmpty bool
	// Expected completes the error for an empty text: "one YAML document with …".
	Expected string
}

// Parse reads a text with one YAML document. file is for messages only. The Value is not
// Present if the text as a whole was refused; Mistakes then has the reason.
func Parse(file string, text []byte, form Form) (Value, *Mistakes) {
	m := &Mistakes{file: file, positions: map[string]position{}, unread: map[string]bool{}}
	return Value{node: m.parse(text, form), mistakes: m}, m
}

// parse returns the root of the document, or nil.
func (m *Mistakes) parse(text []byte, form Form) *yaml.Node {
	switch {
	case len(text) > form.MaxBytes:
		m.addAt(position{line: 1}, Document, "has %d bytes, allowed are up to %d", len(text), form.MaxBytes)
		return nil
	case !utf8.Valid(text):
		line := 1 + bytes.Count(text[:invalidUTF8(text)], []byte("\n"))
		m.addAt(position{line: line}, Document, "is not valid UTF-8, allowed is UTF-8 only")
		return nil
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var first, second yaml.Node
	if err := decoder.Decode(&first); err != nil {
		m.addSyntax(err, form)
		return nil
	}
	switch err := decoder.Decode(&second); {
	case err == nil:
		m.addAt(positionOf(&second), Document, "has a second YAML document here, allowed is one")
		return nil
	case !errors.Is(err, io.EOF):
		m.addSyntax(err, form)
		return nil
	}
	root := first.Content[0]
	if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" {
		m.addSyntax(io.EOF, form)
		return nil
	}
	if deep := tooDeep(root, maxDepth-1); deep != nil {
		m.addAt(positionOf(deep), Document, "is nested deeper here than the %d levels that are allowed", maxDepth)
		return nil
	}
	return root
}

// invalidUTF8 returns the index of the first byte that is not UTF-8.
func invalidUTF8(text []byte) int {
	for i := 0; i < len(text); {
		character, size := utf8.DecodeRune(text[i:])
		if character == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return len(text)
}

var syntaxLine = regexp.MustCompile(`^yaml: line (\d+): `)

// addSyntax records an error of the YAML library. The library gives the line in its text
// only, never the column, and for some errors the line where the block around the mistake
// begins.
func (m *Mistakes) addSyntax(err error, form Form) {
	if errors.Is(err, io.EOF) {
		if !form.AllowEmpty {
			m.addAt(position{line: 1}, Document, "is empty, allowed is one YAML document%s", prefixed(" with ", form.Expected))
		}
		return
	}
	line, text := 1, err.Error()
	if match := syntaxLine.FindStringSubmatch(text); match != nil {
		line, _ = strconv.Atoi(match[1]) // digits only
		text = text[len(match[0]):]
	}
	m.addAt(position{line: max(1, line)}, Document,
		"is not valid YAML here or further down (%s), allowed is one YAML document", strings.TrimPrefix(text, "yaml: "))
}

func prefixed(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}

// tooDeep returns a node that has more than the given levels above it, or nil.
func tooDeep(node *yaml.Node, levels int) *yaml.Node {
	if levels < 0 {
		return node
	}
	for _, child := range node.Content {
		if deep := tooDeep(child, levels-1); deep != nil {
			return deep
		}
	}
	return nil
}

func positionOf(node *yaml.Node) position { return position{node.Line, node.Column} }

// Value is a value of a document: the root, a field or an element of a list. A method that
// finds a value of another type records the mistake and returns a zero value. The methods of
// a Value that is not Present return zero values and record nothing: whether a field may be
// left out is for the caller to say.
type Value struct {
	node     *yaml.Node
	mistakes *Mistakes
	path     string // "" for the root
}

// Present reports whether the document has the value.
func (v Value) Present() bool { return v.node != nil }

// Line returns the line that the value begins on, from 1; 0 if it is not Present.
func (v Value) Line() int {
	if v.node == nil {
		return 0
	}
	return v.node.Line
}

// Column returns the column that the value begins at, from 1; 0 if it is not Present.
func (v Value) Column() int {
	if v.node == nil {
		return 0
	}
	return v.node.Column
}

// IsText reports whether the value is a text. It records nothing.
func (v Value) IsText() bool {
	return v.node != nil && v.node.Kind == yaml.ScalarNode && v.node.ShortTag() == "!!str"
}

// Refuse records that the value cannot be used, and why. The rules that are applied later
// record nothing about it. The value must be Present.
func (v Value) Refuse(format string, arguments ...any) {
	v.mistakes.addUnread(positionOf(v.node), v.field(), format, arguments...)
}

// Mapping returns the fields of a mapping by name; nil if the value is no mapping. Fields
// that are not allowed, and fields that come twice, are mistakes.
func (v Value) Mapping(allowed ...string) map[string]Value {
	if !v.is(yaml.MappingNode, "!!map", "a mapping of "+strings.Join(allowed, ", ")) {
		return nil
	}
	fields := make(map[string]Value, len(allowed))
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		key, value := v.node.Content[i], v.node.Content[i+1]
		at := positionOf(key)
		switch {
		case key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str" || !slices.Contains(allowed, key.Value):
			v.mistakes.addAt(at, v.field(), "has an unknown field %s, allowed are %s", Quote(key.Value), strings.Join(allowed, ", "))
		case decorated(key):
			v.mistakes.addAt(at, v.field(), "has a tag or an anchor at the field %s, allowed is neither", key.Value)
		case fields[key.Value].Present():
			v.mistakes.addAt(at, v.field(), "has %s twice, allowed is once", key.Value)
		default:
			fields[key.Value] = Value{node: value, mistakes: v.mistakes, path: join(v.path, key.Value)}
		}
	}
	return fields
}

// List returns the elements of a list.
func (v Value) List() []Value {
	if !v.is(yaml.SequenceNode, "!!seq", "a list") {
		return nil
	}
	elements := make([]Value, len(v.node.Content))
	for i, node := range v.node.Content {
		elements[i] = Value{node: node, mistakes: v.mistakes, path: fmt.Sprintf("%s[%d]", v.path, i)}
	}
	return elements
}

// Texts returns the elements of a list of texts; nil if there are none.
func (v Value) Texts() []string {
	var texts []string
	for _, element := range v.List() {
		texts = append(texts, element.Text())
	}
	return texts
}

// Text returns a text, or "" if the value is not a text.
func (v Value) Text() string {
	text, _ := v.TextOK()
	return text
}

// TextOK returns a text. ok is false if the value is not a text.
func (v Value) TextOK() (text string, ok bool) {
	return v.TextOf("text, in quotes where YAML would take it for something else")
}

// TextOf is TextOK with words for the mistake: what is allowed.
func (v Value) TextOf(allowed string) (text string, ok bool) {
	if !v.is(yaml.ScalarNode, "!!str", allowed) {
		return "", false
	}
	return v.node.Value, true
}

// decimal excludes the forms that readers of YAML disagree about: octal with a leading
// zero, hexadecimal, underscores, fractions, exponents.
var decimal = regexp.MustCompile(`^(0|-?[1-9][0-9]{0,9})$`)

// Number returns a whole number of max. 10 decimal digits, and whether the value is one.
func (v Value) Number() (number int, ok bool) {
	const allowed = "a whole number in plain decimal digits"
	if !v.is(yaml.ScalarNode, "!!int", allowed) {
		return 0, false
	}
	number, err := strconv.Atoi(v.node.Value) // fails over 32 bits where int has no more
	if err != nil || !decimal.MatchString(v.node.Value) {
		v.Refuse("is %s, allowed is %s of at most 10 digits", Quote(v.node.Value), allowed)
		return 0, false
	}
	return number, true
}

// Bool returns a boolean, and whether the value is one. Words such as yes and on are texts.
func (v Value) Bool() (value, ok bool) {
	const allowed = "true or false"
	if !v.is(yaml.ScalarNode, "!!bool", allowed) {
		return false, false
	}
	if text := v.node.Value; text != "true" && text != "false" {
		v.Refuse("is %s, allowed is %s", Quote(text), allowed)
		return false, false
	}
	return v.node.Value == "true", true
}

// is notes the position of the value and reports whether it is of the wanted kind; if not, that is
// a mistake. An alias never has the wanted kind, so no alias is followed.
func (v Value) is(kind yaml.Kind, tag, allowed string) bool {
	if v.node == nil {
		return false
	}
	v.mistakes.positions[v.field()] = positionOf(v.node)
	switch {
	case v.node.Kind != kind || v.node.ShortTag() != tag:
		v.Refuse("is %s, allowed is %s", describe(v.node), allowed)
		return false
	case decorated(v.node):
		v.Refuse("has a tag or an anchor, allowed is neither")
		return false
	}
	return true
}

// field returns the path of the value as mistakes have it.
func (v Value) field() string {
	if v.path == "" {
		return Document
	}
	return v.path
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// decorated reports whether a node has a tag, written out, or an anchor.
func decorated(node *yaml.Node) bool { return node.Style&yaml.TaggedStyle != 0 || node.Anchor != "" }

// describe says what a node is, for a message.
func describe(node *yaml.Node) string {
	switch {
	case node.Kind == yaml.AliasNode:
		return "a YAML alias"
	case node.Style&yaml.TaggedStyle != 0:
		return "a value of type " + Quote(node.ShortTag())
	case node.Kind == yaml.MappingNode:
		return "a mapping"
	case node.Kind == yaml.SequenceNode:
		return "a list"
	}
	switch tag := node.ShortTag(); tag {
	case "!!null":
		return "empty"
	case "!!str":
		return "the text " + Quote(node.Value)
	case "!!int", "!!float":
		return "the number " + Quote(node.Value)
	case "!!bool":
		return "the boolean " + Quote(node.Value)
	default:
		return "a value of type " + Quote(tag)
	}
}
