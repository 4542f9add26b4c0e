package feed

import (
	"sort"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// event is one change in the ring.
type event struct {
	revision int64
	// texts are workspace, subject and hash. They are one string, because a ring has many events and
	// the garbage collector visits every string.
	texts string
	// time is when the change was made, in Unix nanoseconds; 0 if that is not known.
	time int64
	// workspaceEnd and end are where workspace and subject end. An id has at most 128 bytes.
	workspaceEnd, end uint16
	kind              keysvcv1.SyncEventKind
}

func (e *event) workspaceID() string { return e.texts[:e.workspaceEnd] }
func (e *event) subject() string     { return e.texts[e.workspaceEnd:e.end] }
func (e *event) hash() string        { return e.texts[e.end:] }

func eventOf(record *storagev1.FeedRecord) event {
	workspaceID, subject := record.GetWorkspaceId(), record.GetSubject()
	return event{
		revision:     record.GetRevision(),
		texts:        workspaceID + subject + string(record.GetAuditHash()),
		workspaceEnd: uint16(len(workspaceID)),                //nolint:gosec // G115: see above
		end:          uint16(len(workspaceID) + len(subject)), //nolint:gosec // G115: see above
		kind:         kindOf(record.GetKind()),
	}
}

// kindOf returns the kind that clients are told. A kind that this program does not know becomes
// UNSPECIFIED, which concerns everything.
func kindOf(kind storagev1.FeedKind) keysvcv1.SyncEventKind {
	switch kind {
	case storagev1.FeedKind_FEED_KIND_KEY:
		return keysvcv1.SyncEventKind_SYNC_EVENT_KIND_KEY
	case storagev1.FeedKind_FEED_KIND_MEMBER:
		return keysvcv1.SyncEventKind_SYNC_EVENT_KIND_MEMBER
	case storagev1.FeedKind_FEED_KIND_WORKSPACE:
		return keysvcv1.SyncEventKind_SYNC_EVENT_KIND_WORKSPACE
	case storagev1.FeedKind_FEED_KIND_POLICY:
		return keysvcv1.SyncEventKind_SYNC_EVENT_KIND_POLICY
	case storagev1.FeedKind_FEED_KIND_PURGE:
		return keysvcv1.SyncEventKind_SYNC_EVENT_KIND_PURGE
	case storagev1.FeedKind_FEED_KIND_UNSPECIFIED:
	}
	return keysvcv1.SyncEventKind_SYNC_EVENT_KIND_UNSPECIFIED
}

// message returns the event as it is sent.
func (e *event) message() *keysvcv1.SyncEvent {
	message := &keysvcv1.SyncEvent{
		Revision: e.revision, WorkspaceId: e.workspaceID(), Kind: e.kind, Subject: e.subject(), AuditHash: []byte(e.hash()),
	}
	if e.time != 0 {
		message.Time = timestamppb.New(time.Unix(0, e.time))
	}
	return message
}

// ring holds the newest changes. The index of each change is one more than that of the change
// before it. It stays the same when older changes fall out.
type ring struct {
	// events is circular and grows up to size.
	events []event
	size   int
	// start is the index of the oldest change, end the index after the newest.
	start, end int64
}

// add adds the next change. If the ring is full, the oldest falls out.
func (r *ring) add(next event) {
	if r.end-r.start == int64(len(r.events)) {
		if len(r.events) < r.size {
			r.grow()
		} else {
			r.start++
		}
	}
	*r.at(r.end) = next
	r.end++
}

func (r *ring) grow() {
	larger := make([]event, min(max(2*len(r.events), 64), r.size))
	for index := r.start; index < r.end; index++ {
		larger[index%int64(len(larger))] = *r.at(index)
	}
	r.events = larger
}

// at returns the change at an index.
func (r *ring) at(index int64) *event { return &r.events[index%int64(len(r.events))] }

// after returns the index of the first change after a revision. If older changes have fallen
// out, that may be the oldest one left.
func (r *ring) after(revision int64) int64 {
	count := sort.Search(int(r.end-r.start), func(index int) bool { return r.at(r.start+int64(index)).revision > revision })
	return r.start + int64(count)
}

// clear removes all changes. Every index that was returned before has then fallen out of the
// ring.
func (r *ring) clear() {
	r.events = nil
	r.end++ // so that the index at the end has fallen out, too
	r.start = r.end
}
