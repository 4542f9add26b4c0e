package etcdstore

import (
	"context"
	"errors"
	"strconv"
	"sync/atomic"
	"time"
)

// This file finds out which member says nothing, so that nobody waits for it as long as for a cluster that is
// slow (R4 and R6 of docs/replication.md). A member that was stopped, or is cut off from the others, looks
// like a slow cluster to whoever waits for its answer. So it is compared with the others: all are asked to read.

const (
	// A member is silent if it has answered nothing for shortestSilence, and for slower times as long as the
	// fastest of the others has taken to answer.
	shortestSilence = 75 * time.Millisecond
	slower          = 4
	// knownSilence is how long a member that was silent counts as such without being asked again.
	knownSilence = time.Second
)

// errSilent is the error of an attempt that was given up because its member is silent.
var errSilent = errors.New("the member answers nothing, and another one does")

// whenSilent calls a function once it turns out that a member is silent: at the earliest after Config.Hedge, or at once if
// that is known. It calls it at most once, from another goroutine, and perhaps a moment after stop or the context has ended
// it.
func (s *Store) whenSilent(ctx context.Context, member int, call func()) (stop func()) {
	if len(s.members.clients) < 2 {
		return func() {}
	}
	wait := s.config.Hedge
	if s.members.isSilent(member) {
		wait = 0
	}
	ctx, cancel := context.WithCancel(ctx)
	timer := time.AfterFunc(wait, func() {
		for ctx.Err() == nil {
			if s.members.isSilent(member) || s.findsSilent(ctx, member) {
				call()
				return
			}
			select {
			case <-time.After(s.config.Hedge):
			case <-ctx.Done():
			}
		}
	})
	return func() { timer.Stop(); cancel() }
}

// findsSilent compares a member with the others, for all who want to know it at the same time. It reports false if the
// context ends.
func (s *Store) findsSilent(ctx context.Context, member int) bool {
	found := s.comparisons.DoChan(strconv.Itoa(member), func() (any, error) {
		done, err := s.begin(s.closing)
		if err != nil {
			return false, nil // the store is closed: nobody asks any more
		}
		defer done()
		silent := s.compareMember(member)
		if silent {
			s.members.foundSilent(member)
		}
		return silent, nil
	})
	select {
	case result := <-found:
		silent, is := result.Val.(bool)
		return is && silent
	case <-ctx.Done():
		return false
	}
}

// compareMember asks all members to read, and reports whether this one is silent. It reports false if none answers within
// Config.Attempt.
func (s *Store) compareMember(member int) bool {
	ctx, cancel := context.WithTimeout(s.closing, s.config.Attempt)
	defer cancel()
	begun := time.Now()
	answered := make(chan int, len(s.members.clients))
	for index, client := range s.members.clients {
		go func() {
			if _, err := client.Txn(ctx).Then(s.getRevision()).Commit(); err == nil {
				s.members.heard(index)
				answered <- index
			}
		}()
	}
	var end <-chan time.Time
	limit := time.Duration(0)
	for {
		select {
		case from := <-answered:
			if from == member {
				return false
			}
			if end == nil {
				limit = max(shortestSilence, slower*time.Since(begun))
				timer := time.NewTimer(limit - time.Since(begun))
				defer timer.Stop()
				end = timer.C
			}
		case <-end:
			// If this process has stood still, it says nothing about the member.
			return !s.members.heardSince(member, begun) && time.Since(begun) < 2*limit
		case <-ctx.Done():
			return false
		}
	}
}

// hearing is what is known of one member: when it last answered a linearizable request, and when it was last found
// silent, both in Unix nanoseconds.
type hearing struct{ heard, silent atomic.Int64 }

// heard notes that a member has answered a linearizable request.
func (m *members) heard(index int) { raise(&m.hearing[index].heard, time.Now().UnixNano()) }

// sinceHeard returns how long ago any member has answered a linearizable request.
func (m *members) sinceHeard() time.Duration {
	newest := int64(0)
	for index := range m.hearing {
		newest = max(newest, m.hearing[index].heard.Load())
	}
	return time.Duration(time.Now().UnixNano() - newest)
}

// heardSince reports whether a member has answered since a moment.
func (m *members) heardSince(index int, moment time.Time) bool {
	return m.hearing[index].heard.Load() >= moment.UnixNano()
}

// foundSilent notes that a member is silent: the next one is asked first.
func (m *members) foundSilent(index int) {
	m.hearing[index].silent.Store(time.Now().UnixNano())
	m.silent(index)
}

// isSilent reports whether a member was found silent lately, and has not answered since.
func (m *members) isSilent(index int) bool {
	found := m.hearing[index].silent.Load()
	return found > m.hearing[index].heard.Load() && time.Now().UnixNano()-found < int64(knownSilence)
}
