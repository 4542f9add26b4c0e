package keyclient_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/internal/validatortest"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	"github.com/scribe-mail/keysvc/internal/server/servertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait. Only a wait that hangs reaches it.
const patience = 20 * time.Second

var testTime = time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC)

// newClient returns a client of a target on this machine, which closes with the test.
func newClient(t testing.TB, target string, config keyclient.Config) *keyclient.Client {
	t.Helper()
	config.AllowPlaintext = config.TransportCredentials == nil
	client, err := keyclient.New(target, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Some tests closed it already.
		if err := client.Close(); err != nil && status.Code(err) != codes.Canceled {
			t.Errorf("Close: %v", err)
		}
	})
	return client
}

// counter counts calls.
type counter struct{ calls atomic.Int64 }

func (c *counter) option() grpc.DialOption {
	return grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
			c.calls.Add(1)
			return invoke(ctx, method, request, reply, conn, options...)
		})
}

// backend is a validatortest.Counter.
type backend struct {
	*validatortest.Keysvc
	counter *counter
}

func (b backend) Calls() int { return int(b.counter.calls.Load()) }

var _ validatortest.Counter = backend{}

func TestClientKeepsTheContract(t *testing.T) {
	validatortest.Run(t, func(t *testing.T) validatortest.Backend {
		clock := servertest.NewClock(testTime)
		keysvc := servertest.Start(t, servertest.Options{Now: clock.Now})
		counter := &counter{}
		return backend{
			Keysvc: &validatortest.Keysvc{
				Under: newClient(t, keysvc.Address, keyclient.Config{
					WithoutNearCache:  true,
					ValidationTimeout: patience, DialOptions: []grpc.DialOption{counter.option()},
				}),
				Keys: keysvc.Keys, Members: keysvc.Members, Clock: clock,
			},
			counter: counter,
		}
	})
}
