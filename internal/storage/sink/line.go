// Package sink writes and reads audit sinks: files outside of a store with a line of JSON for each
// audit event. The store's event is the truth, and the sink follows it. Its last line tells how
// far the store had come, so that a sink is an anchor, too.
//
// # Format
//
// A line is one JSON object and ends with a line feed. Its `type` is "event" or "anchor".
//
// An event's line has the epoch, the revision, the event in readable form, and in `encoded` the
// event's stored bytes. Everything else on the line follows from epoch, revision, `late` and
// `encoded`. Parse makes the line anew from these and compares, so an altered line is found.
// `late` is set on a line that was written after its change was acknowledged, or by a later
// start of the server.
//
// An anchor's line is the first line of every file. It repeats the position of the last event of
// the file before it, or has revision 0. An anchor's line in the middle of a file begins a new
// epoch: a person has accepted a store that did not agree with the sink.
package sink

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/anchor"
)

// format is the version of the format. It is on every line.
const format = 1

// maxLine is the max length of a line, in bytes. It bounds the memory of a reader. The event of the
// largest change has storage.MaxChangeBytes. JSON makes up to six bytes of one, and base64 four of
// three.
const maxLine = 4 << 20

// ErrLine is the error of a line that Parse refuses.
var ErrLine = errors.New("sink: not a line of a sink, or altered")

// Line is one line of a sink.
type Line struct {
	// Mark is the position in the store: epoch, revision, and the hash of the event of this
	// revision.
	Mark anchor.Mark
	// Time is the event's, or the time at which an anchor's line was written.
	Time time.Time
	// Event is the event, nil on an anchor's line.
	Event *storage.AuditEvent
	// Late reports whether the line was written after its change was acknowledged, or by a later
	// start of the server.
	Late bool
}

// EventLine returns the line of an event.
func EventLine(epoch string, revision int64, event storage.AuditEvent, late bool) Line {
	return Line{
		Mark: anchor.Mark{Epoch: epoch, Revision: revision, Hash: storage.HashAudit(event.Encoded)},
		Time: event.Record.GetTime().AsTime(), Event: &event, Late: late,
	}
}

// AnchorLine returns the line of an anchor that is written at now.
func AnchorLine(mark anchor.Mark, now time.Time) Line { return Line{Mark: mark, Time: now.UTC()} }

// The values of `type`.
const (
	typeEvent  = "event"
	typeAnchor = "anchor"
)

// anchorText is an anchor's line in JSON.
type anchorText struct {
	Type     string `json:"type"`
	Format   int    `json:"format"`
	Epoch    string `json:"epoch"`
	Revision int64  `json:"revision"`
	Hash     string `json:"hash"`
	Time     string `json:"time"`
}

// eventText is an event's line in JSON.
type eventText struct {
	Type             string            `json:"type"`
	Format           int               `json:"format"`
	Epoch            string            `json:"epoch"`
	Revision         int64             `json:"revision"`
	WorkspaceID      string            `json:"workspace_id,omitempty"`
	Sequence         int64             `json:"sequence"`
	Hash             string            `json:"hash"`
	PreviousHash     string            `json:"previous_hash,omitempty"`
	Time             string            `json:"time"`
	Action           string            `json:"action"`
	Caller           string            `json:"caller"`
	CallerCredential string            `json:"caller_credential,omitempty"`
	ActorMemberID    string            `json:"actor_member_id,omitempty"`
	RequestID        string            `json:"request_id,omitempty"`
	KeyID            string            `json:"key_id,omitempty"`
	MemberID         string            `json:"member_id,omitempty"`
	Fields           []fieldText       `json:"fields,omitempty"`
	Details          map[string]string `json:"details,omitempty"`
	Late             bool              `json:"late,omitempty"`
	Encoded          []byte            `json:"encoded"`
}

// fieldText is a field before and after a change.
type fieldText struct {
	Field  string   `json:"field"`
	Before []string `json:"before,omitempty"`
	After  []string `json:"after,omitempty"`
}

// Append appends the line, with its line feed, to text.
func (l Line) Append(text []byte) ([]byte, error) {
	hash := hex.EncodeToString(l.Mark.Hash[:])
	at := l.Time.UTC().Format(time.RFC3339Nano)
	if l.Event == nil {
		return appendJSON(text, anchorText{typeAnchor, format, l.Mark.Epoch, l.Mark.Revision, hash, at})
	}
	record := l.Event.Record
	shown := eventText{
		Type: typeEvent, Format: format, Epoch: l.Mark.Epoch, Revision: l.Mark.Revision,
		WorkspaceID: record.GetWorkspaceId(), Sequence: record.GetSequence(), Hash: hash,
		PreviousHash: hex.EncodeToString(record.GetPreviousHash()), Time: at,
		Action: strings.TrimPrefix(record.GetAction().String(), "AUDIT_ACTION_"),
		Caller: record.GetCaller(), CallerCredential: record.GetCallerCredential(),
		ActorMemberID: record.GetActorMemberId(), RequestID: record.GetRequestId(),
		KeyID: record.GetKeyId(), MemberID: record.GetMemberId(),
		Details: record.GetDetails(), Late: l.Late, Encoded: l.Event.Encoded,
	}
	for _, field := range record.GetFields() {
		shown.Fields = append(shown.Fields, fieldText{field.GetField(), field.GetBefore(), field.GetAfter()})
	}
	return appendJSON(text, shown)
}

// appendJSON appends a value as one line of JSON.
func appendJSON(text []byte, value any) ([]byte, error) {
	buffer := bytes.NewBuffer(text)
	encoder := json.NewEncoder(buffer)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return text, err
	}
	return buffer.Bytes(), nil
}

// Parse reads a line, with or without its line feed. It accepts only what Append makes: it makes
// the line anew from what it read, and compares the two. The error is ErrLine.
func Parse(text []byte) (Line, error) {
	text = bytes.TrimSuffix(text, []byte("\n"))
	var shown eventText // it has every field of anchorText
	if err := json.Unmarshal(text, &shown); err != nil {
		return Line{}, fmt.Errorf("%w: %w", ErrLine, err)
	}
	if shown.Format != format {
		return Line{}, fmt.Errorf("%w: format %d, this version knows %d", ErrLine, shown.Format, format)
	}
	line, err := shown.line()
	if err != nil {
		return Line{}, fmt.Errorf("%w: %w", ErrLine, err)
	}
	again, err := line.Append(make([]byte, 0, len(text)+1))
	if err != nil || !bytes.Equal(again[:len(again)-1], text) {
		return Line{}, fmt.Errorf("%w: it is not what its event says", ErrLine)
	}
	return line, nil
}

// line returns the line that was parsed. The caller checks the readable fields of an event.
func (t eventText) line() (Line, error) {
	if t.Epoch == "" || t.Revision < 0 {
		return Line{}, errors.New("no epoch, or a negative revision")
	}
	if t.Type == typeEvent {
		if len(t.Encoded) == 0 {
			return Line{}, errors.New("an event without its stored bytes")
		}
		event := storage.AuditEvent{Record: &storagev1.AuditRecord{}, Encoded: t.Encoded}
		if err := proto.Unmarshal(t.Encoded, event.Record); err != nil {
			return Line{}, err
		}
		return EventLine(t.Epoch, t.Revision, event, t.Late), nil
	}
	if t.Type != typeAnchor {
		return Line{}, fmt.Errorf("a line of type %q", t.Type)
	}
	at, err := time.Parse(time.RFC3339Nano, t.Time)
	if err != nil {
		return Line{}, err
	}
	line := AnchorLine(anchor.Mark{Epoch: t.Epoch, Revision: t.Revision}, at)
	if hash, err := hex.DecodeString(t.Hash); err != nil || copy(line.Mark.Hash[:], hash) != len(line.Mark.Hash) {
		return Line{}, errors.New("a hash that is not 32 bytes")
	}
	return line, nil
}
