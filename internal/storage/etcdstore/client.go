package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"

	"github.com/scribe-mail/keysvc/internal/backoff"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// What etcd answers ends in this file: above it there are the errors of storage, with
// etcd's own in their text alone.

// errCompacted says that the revision that a read had begun at is gone. The read
// begins anew, or ends as unavailable.
var errCompacted = fmt.Errorf("%w: etcd has been compacted meanwhile", storage.ErrUnavailable)

// refusals are what etcd answers before it has done anything, and would again. That
// there is no space is none of them: it may say so of what it has done.
var refusals = []error{
	rpctypes.ErrEmptyKey, rpctypes.ErrTooManyOps, rpctypes.ErrDuplicateKey, rpctypes.ErrRequestTooLarge,
	rpctypes.ErrPermissionDenied, rpctypes.ErrUserEmpty, rpctypes.ErrInvalidAuthToken,
	rpctypes.ErrAuthFailed, rpctypes.ErrPermissionNotGranted,
}

// isRefusal says whether etcd has refused a request, so that it has had no effect.
func isRefusal(err error) bool {
	// A member that is overloaded refuses as well, but that passes.
	return errors.Is(err, rpctypes.ErrTooManyRequests) || slices.ContainsFunc(refusals, func(refusal error) bool { return errors.Is(err, refusal) })
}

// isFull says whether etcd answers that its quota is used up.
func isFull(err error) bool { return errors.Is(err, rpctypes.ErrNoSpace) }

// isDown says whether there is no connection to etcd, so that a request would not even
// be sent.
func (s *Store) isDown() bool {
	connection := s.client.ActiveConnection()
	return connection != nil && connection.GetState() == connectivity.TransientFailure
}

// unavailable is the answer to whatever went wrong between here and etcd.
func unavailable(err error) error {
	return fmt.Errorf("%w: %s", storage.ErrUnavailable, err.Error())
}

// name returns what lies under a full name after the prefix.
func (s *Store) name(entry *mvccpb.KeyValue) string { return string(entry.Key[len(s.config.Prefix):]) }

func (s *Store) get(name string, options ...clientv3.OpOption) clientv3.Op {
	return clientv3.OpGet(s.config.Prefix+name, options...)
}

// getRevision reads the store's revision: that of the change that put the feed's head.
func (s *Store) getRevision() clientv3.Op { return s.get(nameFeedHead, clientv3.WithKeysOnly()) }

// list reads what lies from one name up to the end of a folder, at most limit entries,
// at a revision of etcd, 0 for the newest.
func (s *Store) list(from, folder string, limit int, at int64) clientv3.Op {
	return s.get(from,
		clientv3.WithRange(clientv3.GetPrefixRangeEnd(s.config.Prefix+folder)),
		clientv3.WithLimit(int64(limit)), clientv3.WithRev(at))
}

func (s *Store) put(name, value string) clientv3.Op {
	return clientv3.OpPut(s.config.Prefix+name, value)
}

func (s *Store) putFrame(name string, payload []byte) clientv3.Op {
	return s.put(name, string(storage.Frame(name, payload)))
}

func (s *Store) delete(name string) clientv3.Op { return clientv3.OpDelete(s.config.Prefix + name) }

// isAbsent and isThere compare whether there is something under a name.
func (s *Store) isAbsent(name string) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(s.config.Prefix+name), "=", 0)
}

func (s *Store) isThere(name string) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(s.config.Prefix+name), ">", 0)
}

// holds compares a stored value: "=", or "<" for times.
func (s *Store) holds(name, relation, value string) clientv3.Cmp {
	return clientv3.Compare(clientv3.Value(s.config.Prefix+name), relation, value)
}

// entries returns what a get or list of a transaction found.
func entries(response *clientv3.TxnResponse, index int) []*mvccpb.KeyValue {
	return found(response, index).GetKvs()
}

func found(response *clientv3.TxnResponse, index int) *etcdserverpb.RangeResponse {
	return response.Responses[index].GetResponseRange()
}

// first returns what a get of a transaction found, nil if there is nothing.
func first(response *clientv3.TxnResponse, index int) *mvccpb.KeyValue {
	if all := entries(response, index); len(all) > 0 {
		return all[0]
	}
	return nil
}

// read reads in one transaction, so that all parts are of one revision. The error is
// the context's, errCompacted, or another ErrUnavailable.
func (s *Store) read(ctx context.Context, parts ...clientv3.Op) (*clientv3.TxnResponse, error) {
	return s.repeat(ctx, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return s.client.Txn(ctx).Then(parts...).Commit()
	})
}

// repeat makes a request that may be made twice, until it is answered or the timeout is
// over. Its errors are those of read.
func (s *Store) repeat(ctx context.Context, request func(context.Context) (*clientv3.TxnResponse, error)) (*clientv3.TxnResponse, error) {
	limited, cancel := context.WithTimeout(ctx, s.config.Timeout)
	defer cancel()
	retries := newBackoff()
	for {
		response, err := request(limited)
		if err == nil {
			raise(&s.seen, response.Header.GetRevision())
			return response, nil
		}
		switch {
		case s.closing.Err() != nil:
			return nil, storage.ErrUnavailable
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, rpctypes.ErrCompacted):
			return nil, errCompacted
		case isRefusal(err) || isFull(err) || !retries.Wait(limited):
			return nil, unavailable(err)
		}
	}
}

// newBackoff returns the waits between attempts at etcd.
func newBackoff() *backoff.Backoff { return backoff.New(30*time.Millisecond, 1500*time.Millisecond) }
