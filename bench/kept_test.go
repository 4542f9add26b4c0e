package bench

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that keeping encodes with
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// keeping is a codec that keeps answers as they come. To decode a page of 1,000 keys takes the
// generator as long as it takes the server to make it.
type keeping struct{}

// kept is an answer that was not decoded.
type kept struct{ data []byte }

// Marshal implements encoding.CodecV2.
func (keeping) Marshal(message any) (mem.BufferSlice, error) {
	return encoding.GetCodecV2("proto").Marshal(message)
}

// Unmarshal implements encoding.CodecV2.
func (keeping) Unmarshal(data mem.BufferSlice, into any) error {
	answer, is := into.(*kept)
	if !is {
		return fmt.Errorf("an answer is kept as %T", into)
	}
	answer.data = data.Materialize()
	return nil
}

// Name implements encoding.CodecV2.
func (keeping) Name() string { return "proto" }

// pageToken returns the next page's token of an answer of ListKeys.
func pageToken(answer []byte) (token string, err error) {
	want := (&keysvcv1.ListKeysResponse{}).ProtoReflect().Descriptor().Fields().ByName("next_page_token").Number()
	for len(answer) > 0 {
		number, kind, length := protowire.ConsumeTag(answer)
		if length < 0 {
			return "", protowire.ParseError(length)
		}
		answer = answer[length:]
		if number == want && kind == protowire.BytesType {
			value, length := protowire.ConsumeBytes(answer)
			return string(value), protowire.ParseError(min(length, 0))
		}
		if length = protowire.ConsumeFieldValue(number, kind, answer); length < 0 {
			return "", protowire.ParseError(length)
		}
		answer = answer[length:]
	}
	return "", nil
}
