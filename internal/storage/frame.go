package storage

import (
	"encoding/binary"
	"hash/crc32"

	"google.golang.org/protobuf/proto"
)

// A stored value is a frame: a format byte, a CRC-32C (RFC 3720) of name and payload, and
// the payload. The checksum covers the name, so that a value under a wrong name counts as
// damaged. It detects accidents, and does not protect against an adversary.
const (
	frameFormat = 1
	frameHeader = 1 + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Encode encodes a record deterministically. Hashes are computed over the stored bytes,
// never over a second encoding.
func Encode(record proto.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(record)
}

// Frame returns the stored value that holds payload under name.
func Frame(name string, payload []byte) []byte {
	value := make([]byte, frameHeader, frameHeader+len(payload))
	value[0] = frameFormat
	binary.BigEndian.PutUint32(value[1:], checksum(name, payload))
	return append(value, payload...)
}

// Unframe returns the payload of a value stored under name. The payload aliases the value.
// The error is a DamagedError with the given kind.
func Unframe(kind, name string, value []byte) ([]byte, error) {
	if len(value) < frameHeader {
		return nil, &DamagedError{Kind: kind, Name: name, Problem: "truncated"}
	}
	payload := value[frameHeader:]
	if value[0] != frameFormat || binary.BigEndian.Uint32(value[1:]) != checksum(name, payload) {
		return nil, &DamagedError{Kind: kind, Name: name, Problem: "checksum mismatch"}
	}
	return payload, nil
}

// Payload returns the payload of a value that Unframe or Decode has accepted. The payload
// aliases the value.
func Payload(value []byte) []byte { return value[frameHeader:] }

// Decode decodes the record in a value stored under name. The record shares no memory with
// the value. The error is a DamagedError with the given kind, also for a record that needs a schema beyond
// Newest.
func Decode(kind, name string, value []byte, record proto.Message) error {
	payload, err := Unframe(kind, name, value)
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(payload, record); err != nil {
		return &DamagedError{Kind: kind, Name: name, Problem: "not a record"}
	}
	if requiring, is := record.(requiring); is {
		if problem := requires(uint64(requiring.GetMinSchema())); problem != "" {
			return &DamagedError{Kind: kind, Name: name, Problem: problem, Newer: true}
		}
	}
	return nil
}

func checksum(name string, payload []byte) uint32 {
	sum := crc32.Update(0, castagnoli, []byte(name))
	return crc32.Update(sum, castagnoli, payload)
}

// Frames checks frames under names that begin with the same text, without building the names.
type Frames struct{ sum uint32 }

// FramesUnder returns the Frames for names that begin with prefix.
func FramesUnder(prefix string) Frames {
	return Frames{crc32.Update(0, castagnoli, []byte(prefix))}
}

// Payload is Unframe for a value under prefix and name. It reports whether the value is a frame.
func (f Frames) Payload(name, value []byte) (payload []byte, is bool) {
	if len(value) < frameHeader || value[0] != frameFormat {
		return nil, false
	}
	payload = value[frameHeader:]
	sum := crc32.Update(crc32.Update(f.sum, castagnoli, name), castagnoli, payload)
	return payload, binary.BigEndian.Uint32(value[1:]) == sum
}
