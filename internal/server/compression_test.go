package server_test

import (
	"testing"

	"google.golang.org/grpc/encoding"
)

// TestNothingIsCompressed: sessions share encoded messages. That is correct only as long as no
// import of the server registers a compressor that a client could ask for.
func TestNothingIsCompressed(t *testing.T) {
	for _, name := range []string{"gzip", "deflate", "snappy", "s2", "zstd", "lz4", "br"} {
		if encoding.GetCompressor(name) != nil {
			t.Errorf("%s is registered: service/sync.go must not share a PreparedMsg between streams then", name)
		}
	}
}
