package budget

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Limits are how many elements a repeated field or a map may have in one message, by the full name
// of the field. A field of another name may have DefaultElements.
type Limits map[protoreflect.FullName]int

const (
	// DefaultElements is how many elements a repeated field may have in one message, in all its
	// nested messages together, if Limits says nothing else.
	DefaultElements = 4096
	// maxElements is how many elements all repeated fields of one message may have together.
	maxElements = 65536
	// maxDepth is how deep messages may be nested.
	maxDepth = 100
)

// tooManyError says which field of a message has too many elements.
type tooManyError struct {
	// field is the path of the field, in the names of the proto file.
	field          string
	count, allowed int
}

// Error implements error.
func (t *tooManyError) Error() string { return "budget: too many elements in " + t.field }

// errTooDeep is returned for a message that is nested too deep.
var errTooDeep = errors.New("budget: the message is nested too deep")

// counter counts the elements of messages in their wire form, before they are decoded: an element
// of two bytes takes a hundred times as much when it is decoded. Its methods may be called from
// many goroutines.
type counter struct {
	limits Limits
	// shapes has a *shape for each protoreflect.MessageDescriptor that was counted.
	shapes sync.Map
}

// shape is what the counter has to know of a type of message: its fields that are repeated, and
// its messages in which there is something to count.
type shape struct {
	fields map[protowire.Number]*member
}

// member is a field of a shape.
type member struct {
	name     string
	repeated bool
	// element is the size of a packed element: 4, 8, or 0 for a varint. packable is set if
	// elements can be packed.
	packable bool
	element  int
	limit    int
	// message is the type of a field that is a message or a map; nil for another one, and for a
	// message in which there is nothing to count.
	message protoreflect.MessageDescriptor
}

// shapeOf returns the shape of a type.
func (c *counter) shapeOf(descriptor protoreflect.MessageDescriptor) *shape {
	if known, has := c.shapes.Load(descriptor); has {
		return known.(*shape) //nolint:errcheck,forcetypeassert // nothing else is stored
	}
	made := &shape{fields: make(map[protowire.Number]*member)}
	for index := range descriptor.Fields().Len() {
		field := descriptor.Fields().Get(index)
		repeated, nested := field.IsList() || field.IsMap(), field.Message()
		if nested != nil && !hasElements(nested, nil) {
			nested = nil // nothing to count in there
		}
		if !repeated && nested == nil {
			continue
		}
		limit, has := c.limits[field.FullName()]
		if !has {
			limit = DefaultElements
		}
		packable, element := packed(field.Kind())
		made.fields[field.Number()] = &member{
			name: string(field.Name()), repeated: repeated, packable: packable && repeated, element: element, limit: limit, message: nested,
		}
	}
	known, _ := c.shapes.LoadOrStore(descriptor, made)
	return known.(*shape) //nolint:errcheck,forcetypeassert // nothing else is stored
}

// hasElements reports whether a type has a repeated field, in its nested messages too. Types in
// above are being looked at.
func hasElements(descriptor protoreflect.MessageDescriptor, above []protoreflect.FullName) bool {
	if slices.Contains(above, descriptor.FullName()) {
		return false
	}
	above = append(above, descriptor.FullName())
	for index := range descriptor.Fields().Len() {
		field := descriptor.Fields().Get(index)
		if field.IsList() || field.IsMap() || field.Message() != nil && hasElements(field.Message(), above) {
			return true
		}
	}
	return false
}

// packed returns whether elements of a kind can be packed, and the size of one; 0 for a varint.
func packed(kind protoreflect.Kind) (packable bool, size int) {
	switch kind {
	case protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind, protoreflect.FloatKind:
		return true, 4
	case protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind, protoreflect.DoubleKind:
		return true, 8
	case protoreflect.StringKind, protoreflect.BytesKind, protoreflect.MessageKind, protoreflect.GroupKind:
		return false, 0
	}
	return true, 0
}

// count is one count of a message.
type count struct {
	*counter
	of    map[*member]int
	total int
}

// count returns how many elements the repeated fields of a message have, in its nested messages
// too. It counts at least as many as decoding makes. Errors: *tooManyError, errTooDeep. What is
// malformed ends the count without an error: the decoder will say what is wrong with it.
func (c *counter) count(descriptor protoreflect.MessageDescriptor, wire []byte) (elements int, err error) {
	counting := count{counter: c, of: make(map[*member]int)}
	err = counting.message(c.shapeOf(descriptor), wire, 0)
	return counting.total, err
}

// message counts the elements of a message.
func (c *count) message(shape *shape, wire []byte, depth int) error {
	if depth > maxDepth {
		return errTooDeep
	}
	for len(wire) > 0 {
		number, kind, length := protowire.ConsumeTag(wire)
		if length < 0 {
			return nil
		}
		wire = wire[length:]
		if length = protowire.ConsumeFieldValue(number, kind, wire); length < 0 {
			return nil
		}
		value := wire[:length]
		wire = wire[length:]
		field := shape.fields[number]
		if field == nil {
			continue
		}
		if err := c.field(field, kind, value, depth); err != nil {
			return err
		}
	}
	return nil
}

// field counts the elements of one occurrence of a field.
func (c *count) field(field *member, kind protowire.Type, value []byte, depth int) error {
	var content []byte
	switch kind {
	case protowire.BytesType:
		content, _ = protowire.ConsumeBytes(value)
	case protowire.StartGroupType:
		content = value // with the tag of its end, which counts as nothing
	case protowire.VarintType, protowire.Fixed32Type, protowire.Fixed64Type, protowire.EndGroupType:
	}
	if field.repeated {
		found := 1
		if field.packable && kind == protowire.BytesType {
			found = unpack(field, content)
		}
		c.of[field] += found
		c.total += found
		if count := c.of[field]; count > field.limit {
			return &tooManyError{field: field.name, count: count, allowed: field.limit}
		}
		if c.total > maxElements {
			return &tooManyError{field: field.name, count: c.total, allowed: maxElements}
		}
	}
	if field.message == nil || content == nil {
		return nil
	}
	err := c.message(c.shapeOf(field.message), content, depth+1)
	if many, is := errors.AsType[*tooManyError](err); is {
		many.field = field.path(c.of[field]-1, many.field)
	}
	return err
}

// path returns the path of a field in an element of this field, which has an index if this field is
// repeated.
func (m *member) path(index int, within string) string {
	switch {
	case m.message.FullName() == "google.protobuf.FieldMask":
		return m.name // a mask is one text in JSON
	case m.repeated:
		return fmt.Sprintf("%s[%d].%s", m.name, index, within)
	}
	return m.name + "." + within
}

// unpack returns how many elements a packed field has.
func unpack(field *member, content []byte) (elements int) {
	if field.element > 0 {
		return len(content) / field.element
	}
	for _, each := range content {
		if each < 0x80 { // the last byte of a varint
			elements++
		}
	}
	return elements
}
