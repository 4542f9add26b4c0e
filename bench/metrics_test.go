package bench

import (
	"flag"
	"os"
	"testing"
	"time"
)

var metricsTime = flag.Duration("metrics.time", 60*time.Second, "how long TestMeasureMetrics takes")

// TestMeasureMetrics prints what a validation costs a server with metrics, and one without: "before" is
// without. Both are BENCH_AFTER, which must be set.
//
//	go build -o /tmp/keysvc ./cmd/keysvc
//	BENCH_AFTER=/tmp/keysvc go test ./bench -run '^TestMeasureMetrics$' -count=1 -v
func TestMeasureMetrics(t *testing.T) {
	binary := os.Getenv(afterVariable)
	if binary == "" {
		t.Skip("measures, if " + afterVariable + " names a keysvc")
	}
	servers := []*quickServer{
		newQuickServer(t, "empty", startServer(t, emptyServer)),
		newQuickServer(t, "keysvc", startBinary(t, binary, "serve", "--dev", "--listener", "metrics=127.0.0.1:0")),
		newQuickServer(t, "keysvc", startBinary(t, binary, "serve", "--dev")),
	}
	servers[2].name = "before"
	for _, server := range servers {
		server.ask(t, time.Second)
	}
	measureQuick(t, servers, quickPairs, *metricsTime/time.Duration(quickPairs*len(servers)*quickRounds))
	t.Log(describeQuick(servers))
}
