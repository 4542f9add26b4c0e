package etcdstore

import (
	"context"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// RepairTime sets the store's time and the last-used times to now if they are later: the clock of a process
// was ahead when they were written. No process should serve the store. Records with such times must have been
// repaired before. RepairTime returns the number of last-used times that it set. A time that is changed meanwhile stays. Errors:
// ErrUnavailable, ErrDamaged, or the context's.
func (s *Store) RepairTime(ctx context.Context, now time.Time) (uses int, err error) {
	ctx, done, err := s.beginRead(ctx)
	if err != nil {
		return 0, err
	}
	defer done()
	position, at, err := s.position(ctx)
	if err != nil {
		return 0, err
	}
	// 1. The last-used times. Those that cannot be read are of no use anyway.
	err = s.stream(ctx, folderUsage, endOf(folderUsage), at, func(some *chunk) error {
		defer some.release()
		for _, found := range some.pairs {
			name, value := string(found.name), string(found.value)
			use, err := decodeUsage(name, name[len(folderUsage):], found.value)
			if err != nil {
				continue
			}
			late := use.Time.After(now)
			if late {
				use.Time = now
			}
			for index := range use.Secrets {
				if use.Secrets[index].Time.After(now) {
					use.Secrets[index].Time, late = now, true
				}
			}
			if !late {
				continue
			}
			if err := s.replaceTime(ctx, name, value, encodeUsage(name, *use)); err != nil {
				return err
			}
			uses++
		}
		return nil
	})
	if err != nil || !position.Time.After(now) {
		return uses, err
	}
	// 2. The store's own time comes last: until then a start is refused.
	return uses, s.replaceTime(ctx, nameTime, encodeTime(nameTime, position.Time), encodeTime(nameTime, now))
}

// replaceTime replaces a stored value if it still is what was read.
func (s *Store) replaceTime(ctx context.Context, name, before, after string) error {
	response, err := s.repeat(ctx, func(ctx context.Context, member *clientv3.Client) (*clientv3.TxnResponse, error) {
		return member.Txn(ctx).If(s.holds(nameHeader, "=", s.header), s.holds(name, "=", before)).
			Then(s.put(name, after)).Else(s.get(nameHeader)).Commit()
	})
	if err == nil && !response.Succeeded {
		err = s.checkHeader(response)
	}
	return err
}
