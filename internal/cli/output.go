package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// outputFormat is how an answer is written.
type outputFormat string

const (
	formatTable outputFormat = "table"
	formatWide  outputFormat = "wide"
	formatJSON  outputFormat = "json"
	formatYAML  outputFormat = "yaml"
	formatLines outputFormat = "jsonl"
	formatName  outputFormat = "name"
)

// The output formats of the commands, by the kind of their answer. The first is the default.
var (
	formatsOfAnswers = []outputFormat{formatTable, formatJSON, formatYAML}
	formatsOfThings  = []outputFormat{formatTable, formatJSON, formatYAML, formatName}
	formatsOfLists   = []outputFormat{formatTable, formatWide, formatJSON, formatYAML, formatName}
	formatsOfEvents  = []outputFormat{formatTable, formatJSON}
	formatsOfAudit   = []outputFormat{formatTable, formatWide, formatJSON, formatLines, formatYAML}
)

const (
	jsonHelp = `With -o json or yaml the answer is the API's own response message: its field names,
all of its fields, 64-bit numbers as strings.`
	nameHelp = ` With -o name it is the bare id.`
)

// outputFlag adds -o with the formats that a command has.
func outputFlag(cmd *cobra.Command, formats []outputFormat) *outputFormat {
	format := formatTable
	if len(formats) > 0 {
		choice(cmd, &format, "output", "o", "how to write the answer", formats...)
	}
	return &format
}

// printer writes answers.
type printer struct {
	out    io.Writer
	format outputFormat
	// width is the width in columns of the terminal that the answer goes to; 0 means that out is
	// no terminal.
	width int
	// now is called for each time that is shown, so that a change that was just made lies in
	// the past.
	now func() time.Time
}

// answer writes the response as JSON, as YAML, as lines of JSON or as its ids; for a table it calls
// table.
func (p *printer) answer(response proto.Message, table func() error) error {
	switch p.format {
	case formatJSON:
		return p.json(response)
	case formatYAML:
		return p.yaml(response)
	case formatLines:
		return p.jsonLines(response)
	case formatName:
		return p.names(response)
	case formatTable, formatWide:
	}
	return table()
}

// json writes a message in a fixed layout. The layout of protojson varies on purpose.
func (p *printer) json(message proto.Message) error {
	return p.jsonAs(message, func(layout *bytes.Buffer, text []byte) error { return json.Indent(layout, text, "", "  ") })
}

// plain writes an answer that is no message of the API as JSON, in the same layout.
func (p *printer) plain(answer any) error {
	text, err := json.MarshalIndent(answer, "", "  ")
	if err != nil {
		return fmt.Errorf("answer as JSON: %w", err)
	}
	return p.write(append(text, '\n'))
}

// jsonLine writes a message on one line.
func (p *printer) jsonLine(message proto.Message) error { return p.jsonAs(message, json.Compact) }

// jsonLines writes each event of a response on one line.
func (p *printer) jsonLines(response proto.Message) error {
	list, has := response.(interface {
		GetEvents() []*keysvcv1.AuditEvent
	})
	if !has {
		return p.jsonLine(response)
	}
	for _, event := range list.GetEvents() {
		if err := p.jsonLine(event); err != nil {
			return err
		}
	}
	return nil
}

func (p *printer) jsonAs(message proto.Message, lay func(layout *bytes.Buffer, text []byte) error) error {
	text, err := jsonText(message)
	if err != nil {
		return err
	}
	var layout bytes.Buffer
	if err := lay(&layout, text); err != nil {
		return fmt.Errorf("answer as JSON: %w", err)
	}
	layout.WriteByte('\n')
	return p.write(layout.Bytes())
}

func jsonText(message proto.Message) ([]byte, error) {
	text, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(message)
	if err != nil {
		return nil, fmt.Errorf("answer as JSON: %w", err)
	}
	return text, nil
}

// yaml writes a message as one document.
func (p *printer) yaml(message proto.Message) error {
	text, err := jsonText(message)
	if err != nil {
		return err
	}
	text, err = yamlFromJSON(text)
	if err != nil {
		return fmt.Errorf("answer as YAML: %w", err)
	}
	return p.write(text)
}

// names writes the id of each key, member or workspace of a response on a line.
func (p *printer) names(response proto.Message) error {
	var ids []string
	switch response := response.(type) {
	case interface{ GetKeys() []*keysvcv1.Key }:
		for _, key := range response.GetKeys() {
			ids = append(ids, key.GetKeyId())
		}
	case interface{ GetMembers() []*keysvcv1.Member }:
		for _, member := range response.GetMembers() {
			ids = append(ids, member.GetMemberId())
		}
	case interface{ GetWorkspaces() []*keysvcv1.Workspace }:
		for _, workspace := range response.GetWorkspaces() {
			ids = append(ids, workspace.GetWorkspaceId())
		}
	case interface{ GetKey() *keysvcv1.Key }:
		ids = []string{response.GetKey().GetKeyId()}
	case interface{ GetMember() *keysvcv1.Member }:
		ids = []string{response.GetMember().GetMemberId()}
	case interface{ GetKeyId() string }:
		ids = []string{response.GetKeyId()}
	}
	for _, id := range ids {
		if err := p.line("%s", id); err != nil {
			return err
		}
	}
	return nil
}

func (p *printer) line(format string, arguments ...any) error {
	return p.write([]byte(printable(fmt.Sprintf(format, arguments...)) + "\n"))
}

func (p *printer) write(text []byte) error {
	if _, err := p.out.Write(text); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	return nil
}

// field is a line of a record.
type field struct{ name, value string }

// record writes a line for each field that is not empty.
func (p *printer) record(fields ...field) error {
	return p.write([]byte(record(fields...)))
}

func record(fields ...field) string {
	var t table
	for _, f := range fields {
		if f.value != "" {
			t.add(f.name, f.value)
		}
	}
	return t.take()
}

// printable escapes the characters of text that could control a terminal or break a line.
func printable(text string) string {
	if strings.IndexFunc(text, func(r rune) bool { return !isShown(r) }) < 0 && utf8.ValidString(text) {
		return text
	}
	var safe strings.Builder
	for i, r := range text {
		switch {
		case isShown(r) && (r != utf8.RuneError || strings.HasPrefix(text[i:], string(utf8.RuneError))):
			safe.WriteRune(r)
		case r == utf8.RuneError:
			fmt.Fprintf(&safe, `\x%02x`, text[i])
		default:
			safe.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return safe.String()
}

// isShown reports whether a character is written without an escape: printable characters, and
// the two joiners that occur in Persian names and in emoji.
func isShown(r rune) bool {
	const nonJoiner, joiner = '\u200c', '\u200d'
	return unicode.IsPrint(r) || r == nonJoiner || r == joiner
}

// enumWord returns the value of an enum as the command line has it: "active" for
// KEY_STATE_ACTIVE, and the number of a value that this command does not know.
func enumWord(value fmt.Stringer, prefix string) string {
	return strings.ToLower(strings.TrimPrefix(value.String(), prefix))
}

const (
	minuteLayout = "2006-01-02 15:04 UTC"
	dateLayout   = "2006-01-02"
)

// day returns the date of t, or absent if there is no time.
func day(t *timestamppb.Timestamp, absent string) string {
	if t == nil {
		return absent
	}
	return t.AsTime().Format(dateLayout)
}

// minute returns a past time to the minute, with how long ago it was; absent if t is nil.
func (p *printer) minute(t *timestamppb.Timestamp, absent string) string {
	if t == nil {
		return absent
	}
	return t.AsTime().Format(minuteLayout) + ", " + p.away(t)
}

// deadline is minute for a time in the future.
func (p *printer) deadline(t *timestamppb.Timestamp, absent string) string {
	if t == nil {
		return absent
	}
	return t.AsTime().Format(minuteLayout) + ", " + p.left(t)
}

// left is away for a time in the future: until it has come, it is never "just now".
func (p *printer) left(t *timestamppb.Timestamp) string {
	if distance := t.AsTime().Sub(p.now()); distance > 0 && distance < time.Minute {
		return "in less than a minute"
	}
	return p.away(t)
}

// away returns the distance of t from now, in the largest unit of which it has at least two.
// A distance below a minute is "just now", before or after: the clock of the server may be
// ahead.
func (p *printer) away(t *timestamppb.Timestamp) string {
	distance := t.AsTime().Sub(p.now())
	if distance.Abs() < time.Minute {
		return "just now"
	}
	// Rounded, so that a key that was just made for 12 days ends "in 12 days", not in 11.
	length := distance.Abs().Round(time.Minute)
	var words string
	switch {
	case length == time.Minute:
		words = "a minute"
	case length < 2*time.Hour:
		words = count(int64(length/time.Minute), "minute")
	case length < 2*24*time.Hour:
		words = count(int64(length/time.Hour), "hour")
	default:
		words = count(int64(length/(24*time.Hour)), "day")
	}
	if distance > 0 {
		return "in " + words
	}
	return words + " ago"
}

// age returns the distance of t from now in a few characters, as in "3h ago" and "in 12d".
func (p *printer) age(t *timestamppb.Timestamp) string {
	distance := t.AsTime().Sub(p.now())
	length := distance.Abs().Round(time.Minute)
	var words string
	switch {
	case distance.Abs() < time.Minute:
		return "now"
	case length < 2*time.Hour:
		words = fmt.Sprintf("%dm", length/time.Minute)
	case length < 2*24*time.Hour:
		words = fmt.Sprintf("%dh", length/time.Hour)
	default:
		words = fmt.Sprintf("%dd", length/(24*time.Hour))
	}
	if distance > 0 {
		return "in " + words
	}
	return words + " ago"
}

// ageLeft is age for a time in the future: until it has come, it is never "now".
func (p *printer) ageLeft(t *timestamppb.Timestamp) string {
	if distance := t.AsTime().Sub(p.now()); distance > 0 && distance < time.Minute {
		return "in <1m"
	}
	return p.age(t)
}

// count returns "1 key", "2 keys".
func count(number int64, singular string) string {
	if number == 1 {
		return "1 " + singular
	}
	return fmt.Sprintf("%d %ss", number, singular)
}

// countWere returns "1 key was", "2 keys were".
func countWere(number int64, singular string) string {
	if number == 1 {
		return count(number, singular) + " was"
	}
	return count(number, singular) + " were"
}
