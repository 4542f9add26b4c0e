package etcdstore

import (
	"context"
	"fmt"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// electionTTL is how long etcd waits for a sign of the elected process before it takes another one.
const electionTTL = 10 * time.Second

var _ storage.Elector = (*Store)(nil)

// Lead implements storage.Elector with an election of etcd's. If its member hangs, a candidate stands again at
// another one.
func (s *Store) Lead(ctx context.Context, work func(ctx context.Context)) {
	ctx, done, err := s.beginRead(ctx)
	if err != nil {
		return
	}
	defer done()
	retries := newBackoff()
	for ctx.Err() == nil {
		order := s.members.order(s.members.first())
		err := s.stand(ctx, s.config.Members[order[0]], work)
		if ctx.Err() != nil {
			return
		}
		s.config.Log.InfoContext(ctx, "this process stands again for the work that one process does at a time", "error", err)
		s.members.silent(order[0])
		retries.Wait(ctx)
	}
}

// stand stands for the work at one member, and does it once this process is elected. It returns when the
// process is not, or may not be, a candidate any more, with the reason.
func (s *Store) stand(ctx context.Context, member *clientv3.Client, work func(ctx context.Context)) error {
	// 1. A lease of etcd's: it ends if this process gives no sign.
	limited, cancel := context.WithTimeout(ctx, s.config.Timeout)
	defer cancel()
	lease, err := member.Grant(limited, int64(electionTTL/time.Second))
	if err != nil {
		return fmt.Errorf("a lease: %w", err)
	}
	defer s.resign(ctx, member, lease.ID)
	// The requests of the session end with this context.
	own, end := context.WithCancel(ctx)
	defer end()
	session, err := concurrency.NewSession(member, concurrency.WithLease(lease.ID), concurrency.WithContext(own))
	if err != nil {
		return fmt.Errorf("a session: %w", err)
	}
	defer session.Orphan()
	stop := context.AfterFunc(session.Ctx(), end)
	defer stop()
	// 2. Wait until all earlier candidates are gone.
	election := concurrency.NewElection(session, s.config.Prefix+folderElection[:len(folderElection)-1])
	if err := election.Campaign(own, candidateName()); err != nil {
		return fmt.Errorf("the election: %w", err)
	}
	// 3. Work, for as long as the lease is kept.
	s.config.Log.InfoContext(ctx, "this process is elected: it purges and prunes, writes the audit sink, and sends notices")
	work(own)
	if ctx.Err() == nil {
		return fmt.Errorf("no sign of etcd for %s", electionTTL)
	}
	return ctx.Err()
}

// resign gives back a lease, so that another process is elected at once.
func (s *Store) resign(ctx context.Context, member *clientv3.Client, lease clientv3.LeaseID) {
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.Attempt)
	defer cancel()
	if _, err := member.Revoke(limited, lease); err != nil {
		s.config.Log.InfoContext(ctx, "the election goes on only after the lease has ended", "lease", electionTTL.String(), "error", err)
	}
}

// candidateName names this process for people who look into etcd.
func candidateName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s process %d", host, os.Getpid())
}
