package connection_test

import (
	"runtime"
	"testing"
)

// TestSilentConnectionsNeedLittleMemory: gRPC keeps no buffers of 32 KiB for a connection that is silent.
func TestSilentConnectionsNeedLittleMemory(t *testing.T) {
	const connections = 400
	r := serveLoopback(t, nil)
	measure := func() uint64 {
		runtime.GC()
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.HeapInuse + stats.StackInuse
	}
	before := measure()
	open := make([]*hostile, 0, connections)
	for range connections {
		h := r.attack(t)
		h.greet()
		h.call("/t/who", new(string))
		if !h.flush() {
			t.Fatal("refused")
		}
		open = append(open, h)
	}
	waitUntil(t, "all connections", func() bool { c := r.set.Counts(); return c.Open == connections && c.Young == 0 })
	for _, h := range open {
		buffer := make([]byte, 4096)
		_, _ = h.socket.Read(buffer)
	}
	const most = 40
	if each := (measure() - before) / connections >> 10; each > most {
		t.Errorf("%d KiB for each connection, with the client's part; want at most %d", each, most)
	}
	runtime.KeepAlive(open)
}
