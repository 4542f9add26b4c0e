// Package sink writes and reads audit sinks, and compares a store with its sink. A sink is one or
// several files outside of a store, with a line of JSON for each audit event. The store's event is
// the truth, and the sink follows it. Its last line tells how far the store had come, so that a sink
// is an anchor, too.
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
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
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

// Append appends the line, with its line feed, to text.
func (l Line) Append(text []byte) ([]byte, error) {
	o := &object{text: text}
	if l.Event == nil {
		o.begin(typeAnchor, l.Mark)
		o.hex("hash", l.Mark.Hash[:])
		o.time("time", l.Time)
		return o.end()
	}
	record := l.Event.Record
	o.begin(typeEvent, l.Mark)
	o.optional("workspace_id", record.GetWorkspaceId())
	o.number("sequence", record.GetSequence())
	o.hex("hash", l.Mark.Hash[:])
	if previous := record.GetPreviousHash(); len(previous) > 0 {
		o.hex("previous_hash", previous)
	}
	o.time("time", l.Time)
	action := int32(record.GetAction())
	o.string("action", strings.TrimPrefix(cmp.Or(storagev1.AuditAction_name[action], strconv.Itoa(int(action))), "AUDIT_ACTION_"))
	o.string("caller", record.GetCaller())
	o.optional("caller_credential", record.GetCallerCredential())
	o.optional("actor_member_id", record.GetActorMemberId())
	o.optional("request_id", record.GetRequestId())
	o.optional("key_id", record.GetKeyId())
	o.optional("member_id", record.GetMemberId())
	if fields := record.GetFields(); len(fields) > 0 {
		o.name("fields")
		for index, field := range fields {
			o.text = append(o.text, "[,"[min(index, 1)])
			o.text = append(o.text, `{"field":`...)
			o.quote(field.GetField())
			o.list("before", field.GetBefore())
			o.list("after", field.GetAfter())
			o.text = append(o.text, '}')
		}
		o.text = append(o.text, ']')
	}
	if details := record.GetDetails(); len(details) > 0 {
		o.name("details")
		for index, name := range slices.Sorted(maps.Keys(details)) {
			o.text = append(o.text, "{,"[min(index, 1)])
			o.quote(name)
			o.text = append(o.text, ':')
			o.quote(details[name])
		}
		o.text = append(o.text, '}')
	}
	if l.Late {
		o.name("late")
		o.text = append(o.text, "true"...)
	}
	o.name("encoded")
	o.text = append(o.text, '"')
	o.text = base64.StdEncoding.AppendEncode(o.text, l.Event.Encoded)
	o.text = append(o.text, '"')
	return o.end()
}

// Parse reads a line, with or without its line feed. It accepts only what Append makes: it makes
// the line anew from what it read, and compares the two. The error is ErrLine.
func Parse(text []byte) (Line, error) {
	text = bytes.TrimSuffix(text, []byte("\n"))
	var shown parsed
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

// parsed are the fields of a line from which the others follow.
type parsed struct {
	Type     string `json:"type"`
	Format   int    `json:"format"`
	Epoch    string `json:"epoch"`
	Revision int64  `json:"revision"`
	Hash     string `json:"hash"`
	Time     string `json:"time"`
	Late     bool   `json:"late"`
	Encoded  []byte `json:"encoded"`
}

// line returns the line that was parsed. The caller checks the readable fields of an event.
func (t parsed) line() (Line, error) {
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
