package etcd_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// errLost is the error that the client returns when a connection breaks.
var errLost = status.Error(codes.Unavailable, "error reading from server: EOF")

// sent is a transaction that was sent. It may be delivered more than once.
type sent struct {
	kv    clientv3.KV
	ctx   context.Context
	cmps  []clientv3.Cmp
	then  []clientv3.Op
	other []clientv3.Op
}

// deliver passes the transaction to etcd, even if its sender has given up.
func (s *sent) deliver() (*clientv3.TxnResponse, error) {
	return s.kv.Txn(context.WithoutCancel(s.ctx)).If(s.cmps...).Then(s.then...).Else(s.other...).Commit()
}

// lose is what the sender sees if its transaction or the answer was lost.
func lose() (*clientv3.TxnResponse, error) { return nil, errLost }

// network decides what happens to transactions that write, whichever member they are sent to. Reads
// pass.
type network struct {
	mutex sync.Mutex
	fault func(*sent) (*clientv3.TxnResponse, error)
}

// clients returns a client of each member behind the network.
func (n *network) clients(t testing.TB) []*clientv3.Client {
	t.Helper()
	clients := newClients(t)
	for _, client := range clients {
		client.KV = &faultyKV{client.KV, n}
	}
	return clients
}

// faultyKV is the network on the way to one member.
type faultyKV struct {
	clientv3.KV
	network *network
}

// Txn implements clientv3.KV.
func (kv *faultyKV) Txn(ctx context.Context) clientv3.Txn {
	return &transaction{network: kv.network, sent: sent{kv: kv.KV, ctx: ctx}}
}

// next sets what happens to the next transactions, one function each. The ones after them
// pass.
func (n *network) next(faults ...func(*sent) (*clientv3.TxnResponse, error)) {
	n.set(func(s *sent) (*clientv3.TxnResponse, error) {
		n.mutex.Lock()
		if len(faults) == 0 {
			n.mutex.Unlock()
			return s.deliver()
		}
		fault := faults[0]
		faults = faults[1:]
		n.mutex.Unlock()
		return fault(s)
	})
}

// set sets what happens to all transactions from now on.
func (n *network) set(fault func(*sent) (*clientv3.TxnResponse, error)) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	n.fault = fault
}

type transaction struct {
	network *network
	sent    sent
}

func (t *transaction) If(cmps ...clientv3.Cmp) clientv3.Txn { t.sent.cmps = cmps; return t }
func (t *transaction) Then(ops ...clientv3.Op) clientv3.Txn { t.sent.then = ops; return t }
func (t *transaction) Else(ops ...clientv3.Op) clientv3.Txn { t.sent.other = ops; return t }

// Commit implements clientv3.Txn.
func (t *transaction) Commit() (*clientv3.TxnResponse, error) {
	t.network.mutex.Lock()
	fault := t.network.fault
	t.network.mutex.Unlock()
	if fault == nil || !t.writes() {
		return t.sent.kv.Txn(t.sent.ctx).If(t.sent.cmps...).Then(t.sent.then...).Else(t.sent.other...).Commit()
	}
	return fault(&t.sent)
}

func (t *transaction) writes() bool {
	for _, part := range t.sent.then {
		if !part.IsGet() {
			return true
		}
	}
	return false
}

// What may happen to a transaction.

func loseTransaction(*sent) (*clientv3.TxnResponse, error) { return lose() }

func loseAnswer(s *sent) (*clientv3.TxnResponse, error) {
	if _, err := s.deliver(); err != nil {
		return nil, errors.Join(errLost, err)
	}
	return lose()
}

// hang never answers.
func hang(s *sent) (*clientv3.TxnResponse, error) {
	<-s.ctx.Done()
	return nil, s.ctx.Err()
}
