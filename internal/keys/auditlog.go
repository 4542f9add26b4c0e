package keys

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/storage"
)

const (
	// maxAuditReads is how many times one page of a list reads the store, storage.MaxPage events
	// at most each time.
	maxAuditReads = 10
	// maxCallerBytes is how long the name of a caller may be as a filter.
	maxCallerBytes = 1024
)

// AuditQuery selects the events that ListAuditEvents returns. An event must pass every filter that
// is set.
type AuditQuery struct {
	// WorkspaceID is the workspace of the events; empty means all workspaces and the policy.
	WorkspaceID string
	// KeyID selects events that changed the key.
	KeyID string
	// MemberID selects events that changed the member or one of its keys.
	MemberID string
	// Caller selects events of a caller of keysvc.
	Caller string
	// Since and Until select events at or after, and before, these times.
	Since, Until *time.Time
	// AfterRevision and BeforeRevision select events with a later and an earlier revision; 0 selects
	// all.
	AfterRevision, BeforeRevision int64
	// Refused asks for what was refused, in place of what was changed.
	Refused bool
	// PageSize is the max number of events on a page: up to MaxPageSize, 0 for DefaultPageSize.
	PageSize int
	// PageToken is NextPageToken of the page before, given with the same filters; empty for the
	// first page.
	PageToken string
}

// AuditEvent is a change that was made, or what was refused. One of Record and Refusal is set.
type AuditEvent struct {
	// Revision of the change, or number of the refusal.
	Revision int64
	// Record is the event of a change, and Hash its hash.
	Record *storagev1.AuditRecord
	Hash   [32]byte
	// Refusal is what was refused.
	Refusal *storagev1.RefusalRecord
}

// AuditPage is one page of a list of events.
type AuditPage struct {
	// Position is that of the first read for the page. Of refusals the Revision is the number of the
	// newest one.
	Position

	// Events are newest first.
	Events []AuditEvent
	// NextPageToken is the PageToken of the next page; empty on the last page.
	NextPageToken string
}

// AuditSource is where events are read from: a store, or the file of a store that nobody serves.
// It may offer storage.RefusalReader as well.
type AuditSource interface {
	ScanAuditEvents(ctx context.Context, query storage.AuditQuery) (storage.AuditScan, error)
}

// ListAuditEvents reads a page of events, newest first. A page ends when its stored events reach
// storage.MaxPageBytes, or after maxAuditReads reads of the store, so it may be empty although
// another page follows. Errors: *problem.Error, and those of the store and the context.
func (m *Manager) ListAuditEvents(ctx context.Context, visible access.Workspaces, query AuditQuery) (*AuditPage, error) {
	seen, err := sees(visible, query.WorkspaceID)
	if err != nil {
		return nil, err
	}
	if !seen {
		if _, err := query.check(); err != nil {
			return nil, err
		}
		position, err := m.nothing(ctx)
		return &AuditPage{Position: position}, err
	}
	page, err := ReadAuditLog(ctx, m.store, m.projection.Epoch(), query)
	if err != nil || query.Refused {
		return page, err
	}
	return page, m.reached(ctx, page.Revision, nil)
}

// ReadAuditLog is ListAuditEvents for a reader that sees everything. epoch is that of the source.
func ReadAuditLog(ctx context.Context, source AuditSource, epoch string, query AuditQuery) (*AuditPage, error) {
	checked, err := query.check()
	if err != nil {
		return nil, err
	}
	page := &AuditPage{Position: Position{Epoch: epoch}}
	var next string
	if query.Refused {
		next, err = checked.refusals(ctx, source, page)
	} else {
		next, err = checked.events(ctx, source, page)
	}
	if err != nil {
		return nil, asPageTokenInvalid(err)
	}
	page.NextPageToken = makePageToken(next, checked.digest)
	return page, nil
}

// auditSelection is a checked AuditQuery.
type auditSelection struct {
	AuditQuery

	size       int
	cursor     string
	digest     []byte
	isFiltered bool
}

// check checks the fields of a query.
func (q AuditQuery) check() (*auditSelection, error) {
	var fields problem.Fields
	checkOptionalID(&fields, "workspace_id", q.WorkspaceID)
	if q.KeyID != "" {
		checkKeyID(&fields, q.KeyID)
	}
	checkOptionalID(&fields, "member_id", q.MemberID)
	if len(q.Caller) > maxCallerBytes {
		fields.Add("caller", "has %d bytes; at most %d are allowed", len(q.Caller), maxCallerBytes)
	} else {
		refuseToken(&fields, "caller", q.Caller)
	}
	since, until := checkTime(&fields, "since", q.Since), checkTime(&fields, "until", q.Until)
	if q.AfterRevision < 0 {
		fields.Add("after_revision", "is negative; 0 or a revision that keysvc gave is required")
	}
	if q.BeforeRevision < 0 {
		fields.Add("before_revision", "is negative; 0 or a revision that keysvc gave is required")
	}
	checked := &auditSelection{AuditQuery: q, size: pageSize(&fields, q.PageSize)}
	if err := fields.Err(); err != nil {
		return nil, err // a page token cannot be compared with bad filters
	}
	checked.Since, checked.Until = since, until
	checked.PageSize, checked.PageToken = 0, ""
	checked.digest = pageDigest("audit events", checked.AuditQuery)
	checked.cursor = parsePageToken(&fields, q.PageToken, checked.digest)
	checked.isFiltered = q.KeyID != "" || q.MemberID != "" || q.Caller != "" || q.Since != nil || q.Until != nil
	return checked, fields.Err()
}

// limit returns how many events to read at once for a page that has count.
func (s *auditSelection) limit(count int) int {
	if s.isFiltered {
		return storage.MaxPage
	}
	return s.size - count
}

// events fills a page with changes, and returns the cursor of the next page.
func (s *auditSelection) events(ctx context.Context, source AuditSource, page *AuditPage) (next string, err error) {
	from := auditCursor{before: s.BeforeRevision}
	if s.cursor != "" {
		var ok bool
		if from, ok = parseAuditCursor(s.cursor); !ok {
			return "", storage.ErrInvalidCursor
		}
	}
	before := from.before
	// at is the revision of the event that was looked at last, and passed how many of its events were. A
	// migration into etcd gives several events one revision.
	at, passed := from.before-1, 0
	room, older := storage.MaxPageBytes, 0
	for range maxAuditReads {
		scan, err := source.ScanAuditEvents(ctx, storage.AuditQuery{
			All: s.WorkspaceID == "", WorkspaceID: s.WorkspaceID, Before: before, After: s.AfterRevision,
			Limit: s.limit(len(page.Events)), MaxBytes: room,
		})
		if err != nil {
			return "", err
		}
		if page.Revision == 0 {
			page.Revision = scan.Revision
		}
		for _, event := range scan.Events {
			if event.Revision != at {
				at, passed = event.Revision, 0
			}
			if at == from.before-1 && passed < from.passed {
				passed++ // the page before had it
				continue
			}
			if len(page.Events) == s.size || room < 1 {
				return auditCursor{at + 1, passed}.String(), nil
			}
			passed++
			if older++; s.Since == nil || !timeOf(event.Record.GetTime()).Before(*s.Since) {
				older = 0
			}
			if s.admits(event.Record) {
				page.Events = append(page.Events, shownEvent(event))
				room -= proto.Size(event.Record)
			}
		}
		if before = scan.Next; before == 0 {
			return "", nil
		}
		if len(page.Events) == s.size || room < 1 {
			break
		}
	}
	if older >= maxAuditReads*storage.MaxPage {
		return "", nil // all that was read for this page is older, and so is the rest
	}
	return auditCursor{before: before}.String(), nil
}

// auditCursor is where a page of events begins: below a revision, and behind those events of the
// newest revision there that earlier pages had.
type auditCursor struct {
	before int64
	passed int
}

// String returns the revision, and after a dot the number if it is not 0.
func (c auditCursor) String() string {
	text := strconv.FormatInt(c.before, 10)
	if c.passed > 0 {
		text += "." + strconv.Itoa(c.passed)
	}
	return text
}

// parseAuditCursor is the inverse of String.
func parseAuditCursor(text string) (cursor auditCursor, ok bool) {
	revision, number, isPart := strings.Cut(text, ".")
	var err, partErr error
	cursor.before, err = strconv.ParseInt(revision, 10, 64)
	if isPart {
		cursor.passed, partErr = strconv.Atoi(number)
	}
	return cursor, err == nil && partErr == nil && cursor.before >= 1 && cursor.String() == text
}

func shownEvent(event storage.AuditEvent) AuditEvent {
	return AuditEvent{Revision: event.Revision, Record: event.Record, Hash: storage.HashAudit(event.Encoded)}
}

// admits reports whether an event passes every filter.
func (s *auditSelection) admits(event *storagev1.AuditRecord) bool {
	return (s.KeyID == "" || changesRecord(event, storagev1.RecordKind_RECORD_KIND_KEY, s.KeyID)) &&
		(s.MemberID == "" || changesRecord(event, storagev1.RecordKind_RECORD_KIND_MEMBER, s.MemberID)) &&
		(s.Caller == "" || event.GetCaller() == s.Caller) &&
		(s.Since == nil || !timeOf(event.GetTime()).Before(*s.Since)) &&
		(s.Until == nil || timeOf(event.GetTime()).Before(*s.Until))
}

// changesRecord reports whether an event changed a key, or a member or one of its keys.
func changesRecord(event *storagev1.AuditRecord, kind storagev1.RecordKind, name string) bool {
	named := event.GetKeyId()
	if kind == storagev1.RecordKind_RECORD_KIND_MEMBER {
		named = event.GetMemberId()
	}
	return named == name || slices.ContainsFunc(event.GetChanges(), func(change *storagev1.RecordChange) bool {
		return change.GetKind() == kind && change.GetName() == name
	})
}

// refusals fills a page with what was refused, and returns the cursor of the next page: the number
// below which it begins.
func (s *auditSelection) refusals(ctx context.Context, source AuditSource, page *AuditPage) (next string, err error) {
	reader, has := storage.As[storage.RefusalReader](source)
	if !has {
		return "", problem.New(problem.NotImplemented, "the store of this server does not keep what was refused")
	}
	cursor := s.cursor
	if cursor == "" && s.BeforeRevision > 0 {
		cursor = strconv.FormatInt(s.BeforeRevision, 10)
	}
	for range maxAuditReads {
		read, err := reader.ListRefusals(ctx, storage.Query{WorkspaceID: s.WorkspaceID, Cursor: cursor, Limit: s.limit(len(page.Events))})
		if err != nil {
			return "", err
		}
		for _, refusal := range read.Refusals {
			page.Revision = max(page.Revision, refusal.GetSequence())
			switch {
			case refusal.GetSequence() <= s.AfterRevision:
				return "", nil
			case len(page.Events) == s.size:
				return strconv.FormatInt(refusal.GetSequence()+1, 10), nil
			case s.admitsRefusal(refusal):
				page.Events = append(page.Events, AuditEvent{Revision: refusal.GetSequence(), Refusal: refusal})
			}
		}
		if cursor = read.Next; cursor == "" || len(page.Events) == s.size {
			break
		}
	}
	page.Revision = max(page.Revision, s.AfterRevision)
	return cursor, nil
}

func (s *auditSelection) admitsRefusal(refusal *storagev1.RefusalRecord) bool {
	// The last of equal refusals counts: it is the one that may have happened since.
	return (s.KeyID == "" || refusal.GetKeyId() == s.KeyID) &&
		(s.MemberID == "" || refusal.GetMemberId() == s.MemberID) &&
		(s.Caller == "" || refusal.GetCaller() == s.Caller) &&
		(s.Since == nil || !timeOf(refusal.GetLastTime()).Before(*s.Since)) &&
		(s.Until == nil || timeOf(refusal.GetTime()).Before(*s.Until))
}
