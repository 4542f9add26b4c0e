package keyclient_test

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/scribe-mail/keysvc/clients/internal/validatortest"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	"github.com/scribe-mail/keysvc/internal/server/servertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testTime = time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC)

// newClient returns a client of a target on this machine, which closes with the test.
func newClient(t testing.TB, target string, config keyclient.Config) *keyclient.Client {
	t.Helper()
	config.AllowPlaintext = true
	client, err := keyclient.New(target, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return client
}

func TestContract(t *testing.T) {
	validatortest.Run(t, func(t *testing.T) validatortest.Backend {
		clock := servertest.NewClock(testTime)
		keysvc := servertest.Start(t, servertest.Options{Now: clock.Now})
		return &validatortest.Keysvc{
			Under: newClient(t, keysvc.Address, keyclient.Config{}),
			Keys:  keysvc.Keys, Members: keysvc.Members, Clock: clock,
		}
	})
}
