package etcdstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"

	"github.com/scribe-mail/keysvc/internal/backoff"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// This file sends requests to members, so that no member can hold a call (R3 and R4 of
// docs/replication.md).

// request is a request to one member.
type request func(ctx context.Context, member *clientv3.Client) (*clientv3.TxnResponse, error)

// members are the members of the cluster, as their numbers in Config.Members.
type members struct {
	clients []*clientv3.Client
	// preferred is the member that answered last, or the leader since it said so. It is asked first, so that in a healthy
	// cluster each request is sent once, and to the member to which the others would pass it on.
	preferred atomic.Int64
	// woken is when each member was last told to connect again, in Unix nanoseconds.
	woken []atomic.Int64
	// hearing is what is known of each member's answers.
	hearing []hearing
}

func newMembers(clients []*clientv3.Client) members {
	return members{clients: clients, woken: make([]atomic.Int64, len(clients)), hearing: make([]hearing, len(clients))}
}

// wakeInterval is how long the store waits until it tells a member again to connect.
const wakeInterval = 500 * time.Millisecond

// order returns all members, in the order in which to ask them. Those that are silent or without a connection are last. The
// latter are told to connect again at once: left to itself, a client waits up to two minutes after a long outage.
func (m *members) order(from int) []int {
	order, last := make([]int, 0, len(m.clients)), []int(nil)
	for offset := range m.clients {
		index := (from + offset) % len(m.clients)
		isDown := m.isDown(index)
		if isDown {
			m.wake(index)
		}
		if isDown || m.isSilent(index) {
			last = append(last, index)
		} else {
			order = append(order, index)
		}
	}
	return append(order, last...)
}

// first returns the member to ask first.
func (m *members) first() int { return int(m.preferred.Load()) }

// answered notes that a member has answered.
func (m *members) answered(index int) {
	m.heard(index)
	if m.first() != index {
		m.preferred.Store(int64(index))
	}
}

// leads notes that a member has said that it leads.
func (m *members) leads(index int) {
	if !m.isDown(index) && !m.isSilent(index) {
		m.preferred.Store(int64(index))
	}
}

// silent notes that a member has not answered in time: the next one is asked first.
func (m *members) silent(index int) {
	m.preferred.CompareAndSwap(int64(index), int64((index+1)%len(m.clients)))
}

// isDown reports whether there is no connection to a member, so that a request would not even be sent.
func (m *members) isDown(index int) bool {
	connection := m.clients[index].ActiveConnection()
	return connection != nil && connection.GetState() == connectivity.TransientFailure
}

// allDown reports whether there is no connection to any member.
func (m *members) allDown() bool {
	for index := range m.clients {
		if !m.isDown(index) {
			return false
		}
	}
	return true
}

func (m *members) wake(index int) {
	last, now := m.woken[index].Load(), time.Now().UnixNano()
	if now-last > int64(wakeInterval) && m.woken[index].CompareAndSwap(last, now) {
		m.clients[index].ActiveConnection().ResetConnectBackoff()
	}
}

// read reads all parts in one transaction, at one revision. A member that has not answered after
// Config.Hedge does not hold up the call, because the next one is asked as well. Each of these reads is
// linearizable, so the first answer is as good as any. Errors: the context's; errCompacted;
// ErrHistoryChanged if etcd has not come to the revision of a part; or another ErrUnavailable.
func (s *Store) read(ctx context.Context, parts ...clientv3.Op) (*clientv3.TxnResponse, error) {
	return s.ask(ctx, s.config.Hedge, s.config.Timeout, func(ctx context.Context, member *clientv3.Client) (*clientv3.TxnResponse, error) {
		return member.Txn(ctx).Then(parts...).Commit()
	})
}

// repeat sends a request that writes to one member after another until one answers. The request may
// be executed more than once. Errors: those of read, and ErrFull.
func (s *Store) repeat(ctx context.Context, send request) (*clientv3.TxnResponse, error) {
	return s.ask(ctx, 0, s.config.Attempt, send)
}

// answer is the answer of a member to a request.
type answer struct {
	member   int
	response *clientv3.TxnResponse
	err      error
}

// ask sends a request to one member after another until one has answered, or Config.Timeout is over.
// An attempt at one member lasts no longer than attempt. The next member is asked when an attempt has
// failed and, if hedge is not 0, when there was no answer for that long. Without hedge, an attempt has also failed when its
// member turns out to be silent.
func (s *Store) ask(ctx context.Context, hedge, attempt time.Duration, send request) (*clientv3.TxnResponse, error) {
	limited, cancel := context.WithTimeout(ctx, s.config.Timeout)
	defer cancel() // ends the attempts that nobody needs any more
	var ticker *time.Ticker
	var silence, again <-chan time.Time
	if hedge > 0 && len(s.members.clients) > 1 {
		ticker = time.NewTicker(hedge)
		defer ticker.Stop()
		silence = ticker.C
	}
	// A member has one attempt at a time, so there is always room for an answer that comes too late.
	answers := make(chan answer, len(s.members.clients))
	waiting, failed := s.members.order(s.members.first()), []int(nil)
	begin := func() {
		index := waiting[0]
		waiting = waiting[1:]
		if ticker != nil {
			ticker.Reset(hedge)
		}
		go func() {
			own, end := context.WithTimeout(limited, attempt)
			defer end()
			if hedge == 0 {
				defer s.whenSilent(own, index, end)()
			}
			response, err := send(own, s.members.clients[index])
			answers <- answer{index, response, err}
		}()
	}
	begin()
	retries, last := newBackoff(), error(nil)
	for {
		select {
		case got := <-answers:
			if got.err == nil {
				s.members.answered(got.member)
				raise(&s.seen, got.response.Header.GetRevision())
				if s.room.down.Load() {
					s.judgeOutage() // it has ended
				}
				return got.response, nil
			}
			if final := s.finalError(got.err); final != nil && limited.Err() == nil {
				return nil, final
			}
			last = got.err
			if errors.Is(got.err, rpctypes.ErrLeaderChanged) {
				retries.Reset() // there is a leader now
			}
			s.members.silent(got.member)
			failed = append(failed, got.member)
			if len(waiting) > 0 {
				begin()
			} else if again == nil {
				again = time.After(retries.Next())
			}
		case <-silence:
			if len(waiting) > 0 {
				begin()
			}
		case <-again:
			again, failed, waiting = nil, nil, failed
			begin()
		case <-limited.Done():
			switch {
			case s.closing.Err() != nil:
				return nil, storage.ErrUnavailable
			case ctx.Err() != nil:
				return nil, ctx.Err()
			}
			return nil, unavailable(fmt.Errorf("no answer in %s: %w", s.config.Timeout, cmp.Or(last, limited.Err())))
		}
	}
}

// finalError returns what a call returns if one member has answered with err; nil if another member
// may have a better answer.
func (s *Store) finalError(err error) error {
	switch {
	case errors.Is(err, rpctypes.ErrCompacted):
		return errCompacted
	case errors.Is(err, rpctypes.ErrFutureRev):
		return fmt.Errorf("%w: %w: %s", storage.ErrUnavailable, storage.ErrHistoryChanged, err.Error())
	case isFull(err):
		return s.ranOut(err)
	case isRefusal(err):
		return unavailable(err)
	}
	return nil
}

// newBackoff returns the waits between attempts to reach etcd.
func newBackoff() *backoff.Backoff { return backoff.New(30*time.Millisecond, 500*time.Millisecond) }
