package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

const (
	formatVersion = 1

	// maxFile bounds the text before any of it is looked at, in bytes.
	maxFile = 1 << 20
)

// Parse reads a policy from a YAML document, as in scribe.yaml. Left out,
// token_prefix, limits and retention_days have their defaults; everything else
// must be there and nothing else may. filename is for messages only.
//
// The error is an Errors with every mistake, each with its line.
func Parse(filename string, data []byte) (*Policy, error) {
	if filename == "" {
		filename = "policy"
	}
	r := reader{mistakes{file: filename, lines: map[string]int{}, unread: map[string]bool{}}}
	root := r.parseYAML(data)
	if root == nil {
		return nil, r.err()
	}
	p := r.policy(root)
	p.check(&r.mistakes)
	if err := r.err(); err != nil {
		return nil, err
	}
	return p, nil
}

// reader takes a Policy out of YAML nodes. It is written by hand because
// decoding into structs loses the lines that the rules need later, lets
// repeated and null values pass, and stops early.
type reader struct{ mistakes }

// parseYAML returns the one value of the text, or nil after noting why not.
func (r *reader) parseYAML(data []byte) *yaml.Node {
	switch {
	case len(data) > maxFile:
		r.addAt(1, document, "has %d bytes, allowed are up to %d", len(data), maxFile)
		return nil
	case !utf8.Valid(data):
		line := 1 + bytes.Count(data[:invalidUTF8(data)], []byte("\n"))
		r.addAt(line, document, "is not valid UTF-8, allowed is UTF-8 only")
		return nil
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var first, second yaml.Node
	if err := decoder.Decode(&first); err != nil {
		r.addSyntax(err)
		return nil
	}
	switch err := decoder.Decode(&second); {
	case err == nil:
		r.addAt(second.Line, document, "has a second YAML document here, allowed is one")
		return nil
	case !errors.Is(err, io.EOF):
		r.addSyntax(err)
		return nil
	}
	root := first.Content[0]
	if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" {
		r.addSyntax(io.EOF)
		return nil
	}
	return root
}

func invalidUTF8(data []byte) int {
	for i := 0; i < len(data); {
		character, size := utf8.DecodeRune(data[i:])
		if character == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return len(data)
}

var syntaxLine = regexp.MustCompile(`^yaml: line (\d+): `)

// addSyntax notes an error of the YAML library, which tells the line only in its
// text, and for some errors that of the block which the mistake is in.
func (r *reader) addSyntax(err error) {
	if errors.Is(err, io.EOF) {
		r.addAt(1, document, "is empty, allowed is one YAML document with version, resources and roles")
		return
	}
	line, text := 1, err.Error()
	if match := syntaxLine.FindStringSubmatch(text); match != nil {
		line, _ = strconv.Atoi(match[1]) // digits only
		text = text[len(match[0]):]
	}
	r.addAt(max(1, line), document, "is not valid YAML here or further down (%s), allowed is one YAML document", strings.TrimPrefix(text, "yaml: "))
}

func (r *reader) policy(root *yaml.Node) *Policy {
	p := &Policy{
		TokenPrefix: DefaultTokenPrefix,
		Limits: Limits{
			LiveKeysPerWorkspace: DefaultLiveKeysPerWorkspace,
			ScopesPerKey:         DefaultScopesPerKey,
			KeyNameCharacters:    DefaultKeyNameCharacters,
		},
		Retention: DefaultRetention,
	}
	fields := r.mapping(root, "", "version", "token_prefix", "resources", "roles", "limits", "retention_days")
	if fields == nil {
		// Not a mapping, so there is nothing to say of single fields.
		for _, field := range []string{"resources", "roles"} {
			r.unread[field] = true
		}
		return p
	}
	if node := fields["version"]; node == nil {
		r.addAt(r.line("version"), "version", "is missing, allowed is %d", formatVersion)
	} else if number, ok := r.number(node, "version"); ok && number != formatVersion {
		r.add("version", "is %d, allowed is %d", number, formatVersion)
	}
	if node := fields["token_prefix"]; node != nil {
		p.TokenPrefix = r.text(node, "token_prefix")
	}
	for i, node := range r.sequence(fields["resources"], "resources") {
		p.Resources = append(p.Resources, r.resource(node, fmt.Sprintf("resources[%d]", i)))
	}
	for i, node := range r.sequence(fields["roles"], "roles") {
		p.Roles = append(p.Roles, r.role(node, fmt.Sprintf("roles[%d]", i)))
	}
	if node := fields["limits"]; node != nil {
		r.limits(node, &p.Limits)
	}
	if node := fields["retention_days"]; node != nil {
		if number, ok := r.number(node, "retention_days"); ok {
			p.Retention = time.Duration(number) * Day
			if number < 1 || number > int(maxRetention/Day) { // the product may have overflowed
				r.addUnread(node.Line, "retention_days", "is %d, %s", number, allowedRetention)
			}
		}
	}
	return p
}

func (r *reader) resource(node *yaml.Node, path string) Resource {
	fields := r.mapping(node, path, "name", "actions")
	return Resource{
		Name:    r.text(fields["name"], path+".name"),
		Actions: r.texts(fields["actions"], path+".actions"),
	}
}

func (r *reader) role(node *yaml.Node, path string) Role {
	fields := r.mapping(node, path, "name", "scopes")
	if fields != nil && fields["scopes"] == nil {
		r.add(path+".scopes", "is missing, allowed is a list, [] for none")
	}
	return Role{
		Name:   r.text(fields["name"], path+".name"),
		Scopes: r.texts(fields["scopes"], path+".scopes"),
	}
}

func (r *reader) limits(node *yaml.Node, limits *Limits) {
	targets := map[string]*int{
		"live_keys_per_workspace": &limits.LiveKeysPerWorkspace,
		"scopes_per_key":          &limits.ScopesPerKey,
		"key_name_characters":     &limits.KeyNameCharacters,
	}
	fields := r.mapping(node, "limits", "live_keys_per_workspace", "scopes_per_key", "key_name_characters")
	for name, value := range fields {
		if number, ok := r.number(value, "limits."+name); ok {
			*targets[name] = number
		}
	}
}

// mapping returns the values of a mapping by name, or nil if node is none. Names
// that are not allowed or come twice are mistakes. path is "" for the whole.
func (r *reader) mapping(node *yaml.Node, path string, allowed ...string) map[string]*yaml.Node {
	where := path
	if where == "" {
		where = document
	}
	if !r.is(node, yaml.MappingNode, "!!map", where, "a mapping of "+strings.Join(allowed, ", ")) {
		return nil
	}
	fields := make(map[string]*yaml.Node, len(allowed))
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		switch {
		case key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str" || !slices.Contains(allowed, key.Value):
			r.addAt(key.Line, where, "has an unknown field %s, allowed are %s", quote(key.Value), strings.Join(allowed, ", "))
		case fields[key.Value] != nil:
			r.addAt(key.Line, where, "has %s twice, allowed is once", key.Value)
		default:
			fields[key.Value] = value
		}
	}
	return fields
}

// sequence returns the elements of a list. A list that was left out is empty
// here; whether it may be is for the rules.
func (r *reader) sequence(node *yaml.Node, path string) []*yaml.Node {
	if node == nil || !r.is(node, yaml.SequenceNode, "!!seq", path, "a list") {
		return nil
	}
	return node.Content
}

func (r *reader) texts(node *yaml.Node, path string) []string {
	var texts []string
	for i, element := range r.sequence(node, path) {
		texts = append(texts, r.text(element, fmt.Sprintf("%s[%d]", path, i)))
	}
	return texts
}

// text returns "" for what was left out or is no text.
func (r *reader) text(node *yaml.Node, path string) string {
	if node == nil || !r.is(node, yaml.ScalarNode, "!!str", path, "text, in quotes where YAML would take it for something else") {
		return ""
	}
	return node.Value
}

// decimal leaves out what readers of YAML disagree about: octal with a leading
// zero, hexadecimal, underscores, fractions, exponents.
var decimal = regexp.MustCompile(`^(0|-?[1-9][0-9]{0,9})$`)

func (r *reader) number(node *yaml.Node, path string) (int, bool) {
	const allowed = "a whole number in plain decimal digits"
	if !r.is(node, yaml.ScalarNode, "!!int", path, allowed) {
		return 0, false
	}
	if !decimal.MatchString(node.Value) {
		r.addUnread(node.Line, path, "is %s, allowed is %s of at most 10 digits", quote(node.Value), allowed)
		return 0, false
	}
	number, err := strconv.Atoi(node.Value)
	if err != nil { // over 32 bits, where int has no more
		r.addUnread(node.Line, path, "is %s, allowed is %s of at most 10 digits", quote(node.Value), allowed)
		return 0, false
	}
	return number, true
}

// is remembers the line of a field and reports whether its node is of the wanted
// kind; if not, that is a mistake. Aliases never are, so none is ever expanded.
func (r *reader) is(node *yaml.Node, kind yaml.Kind, tag, path, allowed string) bool {
	r.lines[path] = node.Line
	if node.Kind == kind && node.ShortTag() == tag {
		return true
	}
	r.addUnread(node.Line, path, "is %s, allowed is %s", describe(node), allowed)
	return false
}

func describe(node *yaml.Node) string {
	switch node.Kind {
	case yaml.AliasNode:
		return "a YAML alias"
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch tag := node.ShortTag(); tag {
	case "!!null":
		return "empty"
	case "!!str":
		return "the text " + quote(node.Value)
	case "!!int", "!!float":
		return "the number " + quote(node.Value)
	case "!!bool":
		return "the boolean " + quote(node.Value)
	default:
		return "a value of type " + quote(tag)
	}
}
