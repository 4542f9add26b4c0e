package keys

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/giveway"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/token"
)

const noticeDay = 24 * time.Hour

// noticeLeads are how long before a key's end there are notices, ascending.
var noticeLeads = []time.Duration{noticeDay, 7 * noticeDay, 30 * noticeDay}

const (
	// noticeMargin is how much longer than a lead a key must have been given at least. Without it, a key
	// that is made for 30 days would have its first notice at once.
	noticeMargin = time.Hour
	// usedWithin is how long ago the last use of a key in use may be.
	usedWithin = 30 * noticeDay
)

// NoticeLeads returns how long before a key's end there are notices, ascending.
func NoticeLeads() []time.Duration { return append([]time.Duration(nil), noticeLeads...) }

// UsedSince returns from when on a use makes a key one in use.
func UsedSince(now time.Time) time.Time { return now.Add(-usedWithin) }

// Notice says that a key ends soon.
type Notice struct {
	// ID identifies the notice: the same for the same key, end and lead, at any time and in any process.
	ID string
	// Days is how many days before the key's end the notice fell due, and DueTime when that was.
	Days    int
	DueTime time.Time
	// InUse is set if the key was used within the 30 days before the read.
	InUse bool
	// Key is the key as it is now.
	Key *Key
}

// NoticePlace is a place in the list of notices.
type NoticePlace struct {
	// Due is the due time of a notice, and KeyID its key: the place is behind this notice. Without a
	// KeyID it is behind all notices that fell due before.
	Due   time.Time
	KeyID string
	// NotEndedBy leaves out notices of keys that ended at that time or before.
	NotEndedBy time.Time
}

// Compare compares the places of two notices, as cmp.Compare does.
func (p NoticePlace) Compare(other NoticePlace) int { return p.ending().Compare(other.ending()) }

func (p NoticePlace) ending() projection.EndingPlace {
	return projection.EndingPlace{Due: p.Due, KeyID: p.KeyID}
}

// AllNotices returns the place before the present notices of the keys that have not ended at now.
func AllNotices(now time.Time) NoticePlace { return NoticePlace{NotEndedBy: now} }

// NoticeQuery selects the notices that ListNotices returns.
type NoticeQuery struct {
	// WorkspaceID is the workspace of the keys; empty means all, for a caller that sees all.
	WorkspaceID string
	// InUse, if set, selects notices of keys in use, or of unused keys.
	InUse *bool
	// DueAfter, if set, selects notices that fell due after it. Otherwise those of keys that have ended
	// are left out.
	DueAfter *time.Time
	// PageSize is the max number of notices on a page: up to MaxPageSize, 0 for DefaultPageSize.
	PageSize int
	// PageToken is NextPageToken of the page before, given with the same filters; empty for the
	// first page.
	PageToken string
}

// NoticePage is one page of a list of notices.
type NoticePage struct {
	// Position is that of the page: every notice is as of it, or later.
	Position

	// Notices are by the time at which they fell due.
	Notices []*Notice
	// Next is the place to go on from, and NextPageToken the PageToken for it; never empty, except
	// with an error.
	Next          NoticePlace
	NextPageToken string
	// Waiting is how many keys fell due after this page: about as many notices follow now.
	Waiting int
}

// ListNotices reads a page of the notices that keys of workspaces that the caller sees end soon, by
// due time. Errors: CALLER_NOT_ALLOWED if the caller sees no workspace, FIELD_INVALID if it sees some and
// names none, the error of
// Config.ClockTrusted, other *problem.Error, and those of the store and the context.
func (m *Manager) ListNotices(ctx context.Context, visible access.Workspaces, query NoticeQuery) (*NoticePage, error) {
	if err := named(visible, "workspace_id", query.WorkspaceID); err != nil {
		return nil, err
	}
	var fields problem.Fields
	checkOptionalID(&fields, "workspace_id", query.WorkspaceID)
	size := pageSize(&fields, query.PageSize)
	dueAfter := checkTime(&fields, "due_after", query.DueAfter)
	if err := fields.Err(); err != nil {
		return nil, err // a page token cannot be compared with bad filters
	}
	digest := pageDigest("notices", []any{query.WorkspaceID, query.InUse})
	place, err := parseNoticePlace(parsePageToken(&fields, query.PageToken, digest))
	switch {
	case fields.Err() != nil:
		return nil, fields.Err()
	case err != nil:
		return nil, asPageTokenInvalid(err)
	case query.PageToken != "":
	case dueAfter != nil:
		place = NoticePlace{Due: later(*dueAfter, time.Unix(0, 0).UTC()), KeyID: afterAllKeys}
	default:
		place = AllNotices(m.clock())
	}
	page, err := m.noticesAfter(ctx, visible, query, place, size)
	if err != nil {
		return nil, err
	}
	page.NextPageToken = makePageToken(page.Next.String(), digest)
	return page, nil
}

// NoticesAfter reads up to limit notices of all workspaces from a place on. Errors: those of
// ListNotices.
func (m *Manager) NoticesAfter(ctx context.Context, visible access.Workspaces, place NoticePlace, limit int) (*NoticePage, error) {
	if !visible.IsAll() {
		return nil, notAllowed()
	}
	return m.noticesAfter(ctx, visible, NoticeQuery{}, place, limit)
}

// noticesAfter reads a page of up to size notices.
func (m *Manager) noticesAfter(
	ctx context.Context, visible access.Workspaces, query NoticeQuery, place NoticePlace, size int,
) (*NoticePage, error) {
	// 1. A clock that may be ahead makes keys fall due that do not end soon.
	if err := m.trusted(); err != nil {
		return nil, err
	}
	// 2. The projection is read alone, so it must first have every change that was acknowledged
	//    before the call.
	if err := m.projection.Fresh(ctx); err != nil {
		return nil, err
	}
	now := m.clock()
	page := &NoticePage{Position: m.at(m.projection.Revision())}
	wanted := projection.EndingQuery{
		Now: now, Leads: noticeLeads, After: place.ending(), NotEndedBy: place.NotEndedBy,
		InUse: query.InUse, UsedSince: UsedSince(now), Limit: size,
		Limited: !visible.IsAll(), Among: visible.Names(),
	}
	if query.WorkspaceID != "" {
		wanted.Limited, wanted.Among = true, nil
		if visible.Has(query.WorkspaceID) {
			wanted.Among = []string{query.WorkspaceID}
		}
	}
	found, count := m.projection.Ending(ctx, wanted)
	page.Waiting = count - len(found)
	// 3. If the page has all that fell due, the next one begins at now. A key that falls due before
	//    now cannot come later: it was issued noticeMargin earlier. A place never goes back.
	page.Next = NoticePlace{Due: now, KeyID: afterAllKeys, NotEndedBy: place.NotEndedBy}
	if len(found) > 0 && page.Waiting > 0 {
		last := found[len(found)-1]
		page.Next.Due, page.Next.KeyID = last.Due, last.KeyID
	}
	if page.Next.Compare(place) < 0 {
		page.Next = place
	}
	// 4. The rest comes from the store. A page ends before it is too large for a client.
	work, room := giveway.From(ctx), storage.MaxPageBytes
	for index, each := range found {
		work.GiveWay()
		notice, size, err := m.notice(ctx, each, now)
		if err != nil {
			return nil, err
		}
		if notice != nil {
			page.Notices = append(page.Notices, notice)
		}
		if room -= size; room < 1 && index < len(found)-1 {
			page.Next.Due, page.Next.KeyID = each.Due, each.KeyID
			page.Waiting = count - index - 1
			break
		}
	}
	return page, nil
}

// Still returns a notice with its key as it is now; nil if the key was rotated, revoked or purged
// since, or has a newer notice. Errors: those of ListNotices.
func (m *Manager) Still(ctx context.Context, visible access.Workspaces, notice *Notice) (*Notice, error) {
	if !visible.Has(notice.Key.WorkspaceID) {
		return nil, notAllowed()
	}
	if err := m.trusted(); err != nil {
		return nil, err
	}
	now, lead := m.clock(), notice.Key.ExpireTime.Sub(notice.DueTime)
	if newer := slices.Index(noticeLeads, lead) - 1; newer >= 0 && !now.Before(notice.Key.ExpireTime.Add(-noticeLeads[newer])) {
		return nil, nil
	}
	again, _, err := m.notice(ctx, projection.EndingKey{
		EndingPlace: projection.EndingPlace{Due: notice.DueTime, KeyID: notice.Key.ID}, WorkspaceID: notice.Key.WorkspaceID,
		Expire: notice.Key.ExpireTime, Lead: lead,
	}, now)
	return again, err
}

// notice returns the notice of a key that ends soon, and the size of the key's record; nil if the key
// has no notice. A key that cannot be read has no notice: each of its validations tells of the damage.
func (m *Manager) notice(ctx context.Context, ending projection.EndingKey, now time.Time) (*Notice, int, error) {
	record, revision, err := m.store.GetKey(ctx, ending.WorkspaceID, ending.KeyID)
	err = m.reached(ctx, revision, err)
	if err == nil {
		err = m.learnUses(ctx, record)
	}
	var key *Key
	if err == nil {
		key, err = m.show(record, now, m.readMember(ctx))
	}
	switch {
	case errors.Is(err, storage.ErrNotFound), errors.Is(err, storage.ErrDamaged):
		return nil, 0, nil
	case err != nil:
		return nil, 0, err
	case key.State == KeyRevoked, len(key.Secrets) == 0, !key.ExpireTime.Equal(ending.Expire):
		return nil, 0, nil
	case key.Secrets[0].CreateTime.Add(noticeMargin).After(ending.Due):
		return nil, 0, nil
	}
	days := int(ending.Lead / noticeDay)
	return &Notice{
		ID:   fmt.Sprintf("key_end_%s_%d_%d", key.ID, key.ExpireTime.UnixMicro(), days),
		Days: days, DueTime: ending.Due, InUse: !key.LastUsedTime.Before(UsedSince(now)), Key: key,
	}, proto.Size(record), nil
}

// afterAllKeys is behind the ids of all keys.
const afterAllKeys = "~"

// String returns the place as ParseNoticePlace takes it, in printable ASCII without spaces.
func (p NoticePlace) String() string {
	return strings.Join([]string{microsOf(p.Due), p.KeyID, microsOf(p.NotEndedBy)}, ":")
}

// microsOf returns a time in Unix microseconds; "" for the zero Time.
func microsOf(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return strconv.FormatInt(at.UnixMicro(), 10)
}

func later(one, other time.Time) time.Time {
	if one.Before(other) {
		return other
	}
	return one
}

var errNotAPlace = fmt.Errorf("%w: not a place in the list of notices", storage.ErrInvalidCursor)

// ParseNoticePlace returns the place that a text of NoticePlace.String names. The error is
// storage.ErrInvalidCursor if it names none.
func ParseNoticePlace(text string) (NoticePlace, error) {
	if text == "" {
		return NoticePlace{}, errNotAPlace
	}
	return parseNoticePlace(text)
}

// parseNoticePlace is ParseNoticePlace; the zero NoticePlace for no text.
func parseNoticePlace(text string) (place NoticePlace, err error) {
	if text == "" {
		return place, nil
	}
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return place, errNotAPlace
	}
	place.KeyID = parts[1]
	for index, into := range map[int]*time.Time{0: &place.Due, 2: &place.NotEndedBy} {
		if parts[index] == "" {
			continue
		}
		micros, err := strconv.ParseInt(parts[index], 10, 64)
		if err != nil || micros < 0 || micros > maxMicros {
			return NoticePlace{}, errNotAPlace
		}
		*into = time.UnixMicro(micros).UTC()
	}
	if !token.ValidID(place.KeyID) && place.KeyID != afterAllKeys && place.KeyID != "" || place.String() != text {
		return NoticePlace{}, errNotAPlace
	}
	return place, nil
}

// maxMicros is the end of the year 9999.
var maxMicros = time.Date(9999, time.December, 31, 23, 59, 59, 0, time.UTC).UnixMicro()
