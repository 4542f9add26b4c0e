package etcdstore

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/scribe-mail/keysvc/internal/storage"
)

const (
	// roomInterval is how often each member is asked how it is, and roomTimeout how long its answer is
	// awaited.
	roomInterval = 2 * time.Second
	roomTimeout  = time.Second
	// silence is how long a member may give no answer before it counts as silent. One answer that comes
	// late is no reason for an alarm.
	silence = 5 * time.Second
	// outage is for how long nothing may be read before etcd counts as down. An election is no outage.
	// outageInterval is how often etcd is asked then.
	outage         = 4 * time.Second
	outageInterval = 500 * time.Millisecond
	// A member is full once it has used fullShare of ofShare parts of its quota. The rest is kept for
	// narrowing changes.
	fullShare, ofShare = 9, 10
)

// room is what the store knows of its members: which of them answer, and how much room they have.
type room struct {
	// full is set while only narrowing changes are made, and exhausted while etcd refuses these as well. down is set
	// while nothing can be read.
	full, exhausted, down atomic.Bool
	// look gets a value when the members are to be asked now. known is closed once they were asked.
	look  chan struct{}
	known chan struct{}

	// mutex guards members. No other lock is held together with it.
	mutex   sync.Mutex
	members []memberRoom
}

// memberRoom is what is known of one member.
type memberRoom struct {
	storage.StoreMember
	// answered is when the member answered last; the beginning if it never did.
	answered time.Time
	// outOfRoom reports whether etcd has raised its alarm, which ends all writing.
	outOfRoom bool
}

func newRoom(members []*clientv3.Client) *room {
	r := &room{look: make(chan struct{}, 1), known: make(chan struct{})}
	for _, member := range members {
		name := strings.Join(member.Endpoints(), ",")
		r.members = append(r.members, memberRoom{StoreMember: storage.StoreMember{Address: name}, answered: time.Now()})
	}
	return r
}

// watchRoom asks the members how they are until the store closes.
func (s *Store) watchRoom() {
	for first := true; ; first = false {
		s.askMembers()
		if first {
			close(s.room.known)
		}
		next := roomInterval
		if s.room.down.Load() {
			next = outageInterval
		}
		select {
		case <-time.After(next):
		case <-s.room.look:
		case <-s.closing.Done():
			return
		}
	}
}

// askMembers asks all members at once, and judges what they answer.
func (s *Store) askMembers() {
	var asking sync.WaitGroup
	leaders := make([]uint64, len(s.config.Members)) // the term of each member that leads; 0 of others, and of slow ones
	for index, member := range s.config.Members {
		asking.Go(func() {
			ctx, cancel := context.WithTimeout(s.closing, roomTimeout)
			defer cancel()
			connection := member.ActiveConnection()
			if connection == nil {
				return // the client is closed
			}
			asked := time.Now()
			// Not with the client's own Status, which connects anew each time.
			answer, err := etcdserverpb.NewMaintenanceClient(connection).Status(ctx, &etcdserverpb.StatusRequest{})
			if err == nil && s.room.heard(index, answer) && time.Since(asked) < s.config.Hedge {
				leaders[index] = answer.GetRaftTerm()
			}
		})
	}
	asking.Go(s.tryToRead)
	asking.Wait()
	// A leader that was cut off may go on saying that it leads, in an older term.
	if newest := slices.Max(leaders); newest > 0 {
		s.members.leads(slices.Index(leaders, newest))
	}
	if s.closing.Err() == nil {
		s.judgeRoom()
	}
}

// tryToRead reads something if nobody has lately: a member that answers may have lost the others.
func (s *Store) tryToRead() {
	if s.members.sinceHeard() < roomInterval {
		return
	}
	ctx, cancel := context.WithTimeout(s.closing, roomTimeout)
	defer cancel()
	_, _ = s.read(ctx, s.getRevision()) // an answer is noted, and without one so is nothing
}

// heard takes over the answer of a member, and reports whether it leads.
func (r *room) heard(index int, answer *etcdserverpb.StatusResponse) (leads bool) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	member := &r.members[index]
	member.answered = time.Now()
	member.Leads = answer.GetLeader() != 0 && answer.GetLeader() == answer.GetHeader().GetMemberId()
	member.DatabaseBytes, member.QuotaBytes = answer.GetDbSize(), answer.GetDbSizeQuota()
	member.FreeBytes = max(0, answer.GetDbSize()-answer.GetDbSizeInUse())
	member.outOfRoom = slices.ContainsFunc(answer.GetErrors(), func(text string) bool { return strings.Contains(text, alarmNoSpace) })
	return member.Leads
}

// alarmNoSpace is in the errors of a member's status while etcd's alarm for lack of room stands.
var alarmNoSpace = etcdserverpb.AlarmType_NOSPACE.String()

// isFull reports whether a member has no room for changes that do not narrow. etcd before 3.6 does not say
// what its quota is.
func (m *memberRoom) isFull() bool {
	return m.outOfRoom || m.QuotaBytes > 0 && m.DatabaseBytes >= m.QuotaBytes/ofShare*fullShare
}

// snapshot returns what is known of the members, with those marked that are silent.
func (r *room) snapshot() []memberRoom {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	members := slices.Clone(r.members)
	for index := range members {
		members[index].Silent = time.Since(members[index].answered) > silence
	}
	return members
}

// judgeRoom decides which changes are made. A member that is silent has no say: it may be gone for good.
func (s *Store) judgeRoom() {
	full, exhausted, fullest := false, false, memberRoom{}
	for _, member := range s.room.snapshot() {
		if !member.Silent && member.isFull() {
			if !full {
				fullest = member
			}
			full, exhausted = true, exhausted || member.outOfRoom
		}
	}
	s.judgeOutage()
	attributes := []any{"member", fullest.Address, "database_bytes", fullest.DatabaseBytes, "quota_bytes", fullest.QuotaBytes}
	switch before := s.room.exhausted.Swap(exhausted); {
	case exhausted && !before:
		s.config.Log.Error("etcd has no room left: no change is made, not even a revoke. Compact and defragment etcd, or raise its quota, and disarm its alarm", attributes...)
	case before && !exhausted:
		s.config.Log.Info("etcd makes changes again")
	}
	switch before := s.room.full.Swap(full); {
	case full && !before:
		s.config.Log.Warn("a member of etcd has used nine tenths of its quota: only changes that take something away are made", attributes...)
	case before && !full:
		s.config.Log.Info("the members of etcd have room again: all changes are made")
	}
}

// judgeOutage decides whether etcd answers.
func (s *Store) judgeOutage() {
	down := s.members.sinceHeard() > outage
	switch before := s.room.down.Swap(down); {
	case down && !before:
		s.config.Log.Error("nothing can be read from etcd: nothing is changed, and no token is decided on", "since", outage.String())
	case before && !down:
		s.config.Log.Info("etcd answers again")
	}
}

// admit refuses what does not narrow while a member is full. The error is ErrFull.
func (s *Store) admit(narrows bool) error {
	if narrows || !s.room.full.Load() {
		return nil
	}
	return fmt.Errorf("%w: a member of etcd has used nine tenths of its quota", storage.ErrFull)
}

// ranOut notes that etcd has refused a write for lack of room. It returns ErrFull.
func (s *Store) ranOut(cause error) error {
	s.room.full.Store(true)
	select {
	case s.room.look <- struct{}{}:
	default: // the members are asked soon
	}
	return fmt.Errorf("%w: %s", storage.ErrFull, cause.Error())
}

var _ storage.StatusReader = (*Store)(nil)

// Status implements storage.StatusReader. It waits for the first answers of the members only.
func (s *Store) Status(ctx context.Context) storage.Status {
	select {
	case <-s.room.known:
	case <-ctx.Done():
	}
	status := storage.Status{Full: s.room.full.Load(), Exhausted: s.room.exhausted.Load(), Down: s.room.down.Load()}
	for _, member := range s.room.snapshot() {
		status.Members = append(status.Members, member.StoreMember)
	}
	return status
}
