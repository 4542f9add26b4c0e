package etcd_test

import (
	"context"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
)

// candidate is a process that stands for election.
type candidate struct {
	// elected gets a value when the candidate begins to work, and ended when it no longer does.
	elected, ended chan struct{}
	stop           func()
}

func stand(t *testing.T, store *etcdstore.Store) *candidate {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c := &candidate{elected: make(chan struct{}, 10), ended: make(chan struct{}, 10)}
	var leading sync.WaitGroup
	leading.Go(func() {
		store.Lead(ctx, func(ctx context.Context) {
			c.elected <- struct{}{}
			<-ctx.Done()
			c.ended <- struct{}{}
		})
	})
	c.stop = func() { cancel(); leading.Wait() }
	t.Cleanup(c.stop)
	return c
}

// await fails the test if there is no value in time.
func await(t *testing.T, what string, events <-chan struct{}, within time.Duration) time.Duration {
	t.Helper()
	began := time.Now()
	select {
	case <-events:
	case <-time.After(within):
		t.Fatalf("%s: not within %s", what, within)
	}
	return time.Since(began)
}

// TestOneProcessIsElected: a process that stops makes room at once, and a killed process is replaced
// once its lease has ended.
func TestOneProcessIsElected(t *testing.T) {
	t.Parallel()
	prefix := newPrefix()
	newStore := func(client *clientv3.Client) *etcdstore.Store {
		return open(t, etcdstore.Config{Members: []*clientv3.Client{client}, Prefix: prefix})
	}
	// 1. The first candidate works, and the second waits.
	first := stand(t, newStore(newClient(t)))
	await(t, "the first candidate", first.elected, 10*time.Second)
	dying, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	second := stand(t, newStore(dying))
	select {
	case <-second.elected:
		t.Fatal("two processes are elected")
	case <-time.After(200 * time.Millisecond):
	}
	// 2. The first one stops.
	first.stop()
	t.Logf("after a stop the next one works after %s", await(t, "the second candidate after a stop", second.elected, 5*time.Second))
	// 3. The second one is cut off for good, as if it were killed: its lease is not given back.
	third := stand(t, newStore(newClient(t)))
	dying.Close()
	t.Logf("after a death the next one works after %s", await(t, "the third candidate after a death", third.elected, 25*time.Second))
	await(t, "the end of the work that is cut off", second.ended, 15*time.Second)
	mustBeSound(t, prefix)
}
