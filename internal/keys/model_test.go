package keys_test

import (
	"flag"
	"testing"

	"github.com/scribe-mail/keysvc/internal/keys/keystest"
)

// The full campaign is `go test ./internal/keys -run TestModel -operations 100000`.
var (
	operationsFlag = flag.Int("operations", 4000, "random operations of the model test")
	seedFlag       = flag.Uint64("seed", 1, "seed of the model test")
)

func TestModel(t *testing.T) {
	t.Logf("seed %d: %s", *seedFlag, keystest.Run(t, keystest.NewBolt(t), *seedFlag, *operationsFlag))
}
