package blind_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// unpack returns what was said over a connection in one direction, as it was before HTTP/2 packed it:
// the headers, which HPACK compresses, and the data of each stream in one piece, however it was cut into frames.
func unpack(t *testing.T, recorded []byte) []byte {
	t.Helper()
	recorded = bytes.TrimPrefix(recorded, []byte(http2.ClientPreface))
	framer := http2.NewFramer(io.Discard, bytes.NewReader(recorded))
	framer.SetMaxReadFrameSize(1<<24 - 1)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var headers bytes.Buffer
	streams := make(map[uint32][]byte)
	for {
		frame, err := framer.ReadFrame()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break // the connection is open still, or was cut
		}
		if err != nil {
			t.Fatalf("what was recorded is not HTTP/2: %v", err)
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			for _, field := range frame.Fields {
				fmt.Fprintf(&headers, "%s: %s\n", field.Name, field.Value)
			}
		case *http2.DataFrame:
			streams[frame.StreamID] = append(streams[frame.StreamID], frame.Data()...)
		case *http2.GoAwayFrame:
			headers.Write(frame.DebugData())
			headers.WriteByte('\n')
		}
	}
	for _, number := range slices.Sorted(maps.Keys(streams)) {
		headers.Write(streams[number])
		headers.WriteByte('\n')
	}
	return headers.Bytes()
}
