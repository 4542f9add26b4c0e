package etcdstore

import (
	"errors"

	"google.golang.org/protobuf/encoding/protowire"
)

var errMessage = errors.New("a message of etcd that cannot be read")

// Fields of etcd's messages (RangeStreamResponse, RangeResponse and KeyValue).
const (
	fieldResponse = 1

	fieldHeader = 1
	fieldPairs  = 2
	fieldCount  = 4

	fieldKey      = 1
	fieldCreated  = 2
	fieldModified = 3
	fieldValue    = 5
)

// parse sets the pairs of the chunk, and last and count, from its bytes. prefix is the length of what
// all names begin with. The pairs are slices of the bytes.
func (c *chunk) parse(prefix int) error {
	c.pairs, c.last, c.count = c.pairs[:0], false, 0
	response := messageReader{rest: c.bytes}
	for response.next() {
		if response.field != fieldResponse || response.kind != protowire.BytesType {
			continue
		}
		if err := c.parseResponse(response.bytes, prefix); err != nil {
			return err
		}
	}
	return response.err
}

func (c *chunk) parseResponse(message []byte, prefix int) error {
	reader := messageReader{rest: message}
	for reader.next() {
		switch {
		case reader.field == fieldHeader && reader.kind == protowire.BytesType:
			c.last = true // only the last message of a stream has a header
		case reader.field == fieldCount && reader.kind == protowire.VarintType:
			c.count = reader.integer()
		case reader.field == fieldPairs && reader.kind == protowire.BytesType:
			found, err := parsePair(reader.bytes)
			if err != nil || len(found.name) < prefix {
				return errMessage
			}
			found.name = found.name[prefix:]
			c.pairs = append(c.pairs, found)
		}
	}
	return reader.err
}

func parsePair(message []byte) (found pair, err error) {
	reader := messageReader{rest: message}
	for reader.next() {
		switch {
		case reader.field == fieldKey && reader.kind == protowire.BytesType:
			found.name = reader.bytes
		case reader.field == fieldValue && reader.kind == protowire.BytesType:
			found.value = reader.bytes
		case reader.field == fieldCreated && reader.kind == protowire.VarintType:
			found.created = reader.integer()
		case reader.field == fieldModified && reader.kind == protowire.VarintType:
			found.modified = reader.integer()
		}
	}
	return found, reader.err
}

// messageReader reads the fields of one message, one after the other.
type messageReader struct {
	rest  []byte
	field protowire.Number
	kind  protowire.Type
	// number is the value of a varint, bytes that of a field with a length.
	number uint64
	bytes  []byte
	err    error
}

// next goes to the next field, and reports whether there is one.
func (r *messageReader) next() bool {
	if len(r.rest) == 0 || r.err != nil {
		return false
	}
	field, kind, length := protowire.ConsumeTag(r.rest)
	if length < 0 {
		r.err = errMessage
		return false
	}
	r.field, r.kind, r.rest = field, kind, r.rest[length:]
	switch kind { // nobody reads the others
	case protowire.VarintType:
		r.number, length = protowire.ConsumeVarint(r.rest)
	case protowire.BytesType:
		r.bytes, length = protowire.ConsumeBytes(r.rest)
	default:
		length = protowire.ConsumeFieldValue(field, kind, r.rest)
	}
	if length < 0 {
		r.err = errMessage
		return false
	}
	r.rest = r.rest[length:]
	return true
}

func (r *messageReader) integer() int64 {
	return int64(r.number) //nolint:gosec // G115: as proto.Unmarshal does
}
