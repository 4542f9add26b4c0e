package main

import (
	"regexp"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// kind returns the type of a field, with links to messages and enums of the API.
func (r *reference) kind(field protoreflect.FieldDescriptor) string {
	switch {
	case field.IsMap():
		return "map&lt;" + r.single(field.MapKey()) + ", " + r.single(field.MapValue()) + "&gt;"
	case field.IsList():
		return "repeated " + r.single(field)
	case field.HasOptionalKeyword():
		return "optional " + r.single(field)
	}
	return r.single(field)
}

// single returns the type of one value of a field.
func (r *reference) single(field protoreflect.FieldDescriptor) string {
	switch {
	case field.Message() != nil:
		return r.link(string(field.Message().Name()))
	case field.Enum() != nil:
		return r.link(string(field.Enum().Name()))
	}
	return field.Kind().String()
}

// remarks returns what the definition of a field says beside its type.
func remarks(field protoreflect.FieldDescriptor) string {
	var text string
	if options, ok := field.Options().(*descriptorpb.FieldOptions); ok && options.GetDeprecated() {
		text += "*Deprecated.* "
	}
	if options, ok := field.Options().(*descriptorpb.FieldOptions); ok && options.GetDebugRedact() {
		text += "*Secret.* "
	}
	if group := field.ContainingOneof(); group != nil && !group.IsSynthetic() {
		text += "*One of " + string(group.Name()) + ".* "
	}
	return text
}

// link returns the name of something of the API with a link to it, and other names as they are.
func (r *reference) link(name string) string {
	if at, ok := r.anchors[name]; ok {
		return "[" + name + "](#" + at + ")"
	}
	return name
}

// comment returns the comment before a definition, without the space that each line begins with.
func comment(of protoreflect.Descriptor) string {
	lines := strings.Split(of.ParentFile().SourceLocations().ByDescriptor(of).LeadingComments, "\n")
	for i, line := range lines {
		lines[i] = strings.TrimRight(strings.TrimPrefix(line, " "), " ")
	}
	return strings.Trim(strings.Join(lines, "\n"), "\n")
}

// prose returns a comment as paragraphs, lists and code, with links. It ends with a new line.
func (r *reference) prose(of protoreflect.Descriptor) string {
	paragraphs := strings.Split(comment(of), "\n\n")
	for i, paragraph := range paragraphs {
		if !strings.HasPrefix(paragraph, "    ") { // code
			paragraphs[i] = r.linked(paragraph, of)
		}
	}
	return strings.Join(paragraphs, "\n\n") + "\n"
}

// cell returns a comment as the text of a cell of a table: one line.
func (r *reference) cell(of protoreflect.Descriptor) string {
	paragraphs := strings.Split(comment(of), "\n\n")
	for i, paragraph := range paragraphs {
		paragraphs[i] = strings.Join(strings.Fields(r.linked(paragraph, of)), " ")
	}
	return strings.ReplaceAll(strings.Join(paragraphs, "<br>"), "|", `\|`)
}

var (
	code = regexp.MustCompile("`[^`]*`")
	// named finds names with a capital letter inside, as messages and calls have them, and their fields, and
	// names with an underscore. A name of one word may be a plain word.
	named = regexp.MustCompile(`\b[A-Z][a-z]+[A-Z]\w*(?:\.\w+)?|\b[A-Za-z0-9]+(?:_[A-Za-z0-9]+)+\b`)
	// special finds what Markdown would take for something else.
	special = regexp.MustCompile(`[<\[\]_]`)
)

// linked returns a text with links for the names in it, other names as code, and with what Markdown would take
// for something else escaped. Code stays as it is. Nothing has a link to itself.
func (r *reference) linked(text string, of protoreflect.Descriptor) string {
	var whole strings.Builder
	escape := func(text string) {
		whole.WriteString(special.ReplaceAllStringFunc(text, func(found string) string { return `\` + found }))
	}
	plain := func(text string) {
		end := 0
		for _, at := range named.FindAllStringIndex(text, -1) {
			escape(text[end:at[0]])
			whole.WriteString(r.name(text[at[0]:at[1]], of))
			end = at[1]
		}
		escape(text[end:])
	}
	end := 0
	for _, at := range code.FindAllStringIndex(text, -1) {
		plain(text[end:at[0]])
		whole.WriteString(text[at[0]:at[1]])
		end = at[1]
	}
	plain(text[end:])
	return whole.String()
}

// name returns a name as a link, as code if it has an underscore, or as it is.
func (r *reference) name(name string, of protoreflect.Descriptor) string {
	base, _, _ := strings.Cut(name, ".")
	for _, each := range []string{name, base} {
		if target, ok := r.anchors[each]; ok && !r.within(of, target) {
			return "[" + name + "](#" + target + ")"
		}
	}
	if strings.Contains(name, "_") {
		return "`" + name + "`"
	}
	return name
}

// within reports whether the section with an anchor is the one that a definition stands in.
func (r *reference) within(of protoreflect.Descriptor, target string) bool {
	for ; of != nil; of = of.Parent() {
		if r.anchors[string(of.Name())] == target {
			return true
		}
	}
	return false
}
