package server_test

import (
	"bytes"
	"runtime"
	"runtime/pprof"
	"testing"
)

// Validations find goroutines whose stacks have grown.
func TestServerHasStreamWorkersForEachProcessor(t *testing.T) {
	start(t, options{})
	var goroutines bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&goroutines, 2); err != nil {
		t.Fatal(err)
	}
	const created, each = "created by google.golang.org/grpc.(*Server).initServerWorkers", 32
	if got := bytes.Count(goroutines.Bytes(), []byte(created)); got < each*runtime.GOMAXPROCS(0) {
		t.Errorf("%d stream workers, want %d for each processor", got, each)
	}
}
