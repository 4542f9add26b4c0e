package etcdstore

import (
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// This file is the only one that handles errors of etcd's client. The other files see the
// errors of package storage, with etcd's errors as text only.

// errCompacted is the error of a read whose revision etcd has compacted. The read starts
// over, or fails as unavailable.
var errCompacted = fmt.Errorf("%w: etcd has been compacted meanwhile", storage.ErrUnavailable)

// refusals are errors that etcd returns before it has executed anything, and would return
// again. ErrNoSpace is not among them: etcd may return it for what it has executed.
var refusals = []error{
	rpctypes.ErrEmptyKey, rpctypes.ErrTooManyOps, rpctypes.ErrDuplicateKey, rpctypes.ErrRequestTooLarge,
	rpctypes.ErrPermissionDenied, rpctypes.ErrUserEmpty, rpctypes.ErrInvalidAuthToken,
	rpctypes.ErrAuthFailed, rpctypes.ErrPermissionNotGranted,
}

// isRefusal reports whether etcd refused a request, so that the request has had no effect.
func isRefusal(err error) bool {
	return slices.ContainsFunc(refusals, func(refusal error) bool { return errors.Is(err, refusal) })
}

// isOverloaded reports whether a member refused a request for now, so that the request has had no
// effect. Another member may take it.
func isOverloaded(err error) bool { return errors.Is(err, rpctypes.ErrTooManyRequests) }

// isFull reports whether etcd says that its quota is used up.
func isFull(err error) bool { return errors.Is(err, rpctypes.ErrNoSpace) }

// unavailable returns the error for a failure between this process and etcd.
func unavailable(err error) error {
	return fmt.Errorf("%w: %s", storage.ErrUnavailable, err.Error())
}

// name returns the name of a stored pair, without the prefix.
func (s *Store) name(pair *mvccpb.KeyValue) string { return string(pair.Key[len(s.config.Prefix):]) }

func (s *Store) get(name string, options ...clientv3.OpOption) clientv3.Op {
	return clientv3.OpGet(s.config.Prefix+name, options...)
}

// getRevision reads the store's revision, as revision returns it.
func (s *Store) getRevision() clientv3.Op { return s.get(nameFeedHead, clientv3.WithKeysOnly()) }

// list reads the pairs from one name to the end of a folder, at most limit, at an etcd
// revision; 0 is the newest.
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

// isAbsent compares that nothing is stored under a name.
func (s *Store) isAbsent(name string) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(s.config.Prefix+name), "=", 0)
}

// isThere compares that something is stored under a name.
func (s *Store) isThere(name string) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(s.config.Prefix+name), ">", 0)
}

// holds compares a stored value with value: relation is "=", or "<" for times.
func (s *Store) holds(name, relation, value string) clientv3.Cmp {
	return clientv3.Compare(clientv3.Value(s.config.Prefix+name), relation, value)
}

// pairs returns what a get or list of a transaction found. index is the operation's.
func pairs(response *clientv3.TxnResponse, index int) []*mvccpb.KeyValue {
	return found(response, index).GetKvs()
}

func found(response *clientv3.TxnResponse, index int) *etcdserverpb.RangeResponse {
	return response.Responses[index].GetResponseRange()
}

// first returns what a get of a transaction found, nil if nothing is stored.
func first(response *clientv3.TxnResponse, index int) *mvccpb.KeyValue {
	if all := pairs(response, index); len(all) > 0 {
		return all[0]
	}
	return nil
}
