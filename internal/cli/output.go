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
)

// outputFormat is how an answer is written.
type outputFormat string

const (
	formatTable outputFormat = "table"
	formatJSON  outputFormat = "json"
)

const jsonHelp = `With -o json the answer is the API's own response message as JSON: its field names,
all of its fields, 64-bit numbers as strings.`

func outputFlag(cmd *cobra.Command) *outputFormat {
	format := formatTable
	choice(cmd, &format, "output", "o", "how to write the answer", formatTable, formatJSON)
	return &format
}

// printer writes answers.
type printer struct {
	out    io.Writer
	format outputFormat
	// now is read when a time is shown, so that what just happened is past.
	now func() time.Time
}

// answer writes the response as JSON, or calls table.
func (p *printer) answer(response proto.Message, table func() error) error {
	if p.format == formatJSON {
		return p.json(response)
	}
	return table()
}

// json writes a message in one and the same layout always; protojson's own is
// made to vary.
func (p *printer) json(message proto.Message) error {
	return p.jsonAs(message, func(layout *bytes.Buffer, text []byte) error { return json.Indent(layout, text, "", "  ") })
}

// jsonLine writes a message on one line.
func (p *printer) jsonLine(message proto.Message) error { return p.jsonAs(message, json.Compact) }

func (p *printer) jsonAs(message proto.Message, lay func(layout *bytes.Buffer, text []byte) error) error {
	text, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(message)
	if err != nil {
		return fmt.Errorf("answer as JSON: %w", err)
	}
	var layout bytes.Buffer
	if err := lay(&layout, text); err != nil {
		return fmt.Errorf("answer as JSON: %w", err)
	}
	layout.WriteByte('\n')
	return p.write(layout.Bytes())
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

// record writes one thing, a line for each field that is not empty.
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

// table lays out rows in columns. Unlike text/tabwriter it can be emptied in
// between: what follows keeps to the widths so far, so that the pages of a long
// list line up.
type table struct {
	widths []int
	rows   [][]string
}

func (t *table) add(cells ...string) {
	row := make([]string, len(cells))
	for i, cell := range cells {
		row[i] = printable(cell)
		if i == len(t.widths) {
			t.widths = append(t.widths, 0)
		}
		t.widths[i] = max(t.widths[i], utf8.RuneCountInString(row[i]))
	}
	t.rows = append(t.rows, row)
}

// take returns the rows that were added since the last call.
func (t *table) take() string {
	var text strings.Builder
	for _, row := range t.rows {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString(cell)
			line.WriteString(strings.Repeat(" ", t.widths[i]-utf8.RuneCountInString(cell)+2))
		}
		text.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	t.rows = nil
	return text.String()
}

// printable returns text with what could steer a terminal, or break a line, as
// escapes.
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

// isShown reports whether a terminal may get a character as it is: the printable ones, and
// the two joiners that names in Persian and emoji have.
func isShown(r rune) bool {
	const nonJoiner, joiner = '\u200c', '\u200d'
	return unicode.IsPrint(r) || r == nonJoiner || r == joiner
}

// enumWord returns the value of an enum as people write it: "active" for
// KEY_STATE_ACTIVE, and a number for one that is newer than this command.
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

// minute returns t, which is past, to the minute and how long ago it was, or absent.
func (p *printer) minute(t *timestamppb.Timestamp, absent string) string {
	if t == nil {
		return absent
	}
	return t.AsTime().Format(minuteLayout) + ", " + p.away(t)
}

// deadline is minute for a time that something waits for.
func (p *printer) deadline(t *timestamppb.Timestamp, absent string) string {
	if t == nil {
		return absent
	}
	return t.AsTime().Format(minuteLayout) + ", " + p.left(t)
}

// left is away for a time that something waits for: before it comes, it is not "just
// now".
func (p *printer) left(t *timestamppb.Timestamp) string {
	if distance := t.AsTime().Sub(p.now()); distance > 0 && distance < time.Minute {
		return "in less than a minute"
	}
	return p.away(t)
}

// away says how far t is from now, in the largest unit of which there are two
// whole ones. The server's clock may be ahead of this one, so what is less than a
// minute off, either way, is just now.
func (p *printer) away(t *timestamppb.Timestamp) string {
	distance := t.AsTime().Sub(p.now())
	if distance.Abs() < time.Minute {
		return "just now"
	}
	// Rounded, so that what lives 12 days does not end "in 11 days" at once.
	length := distance.Abs().Round(time.Minute)
	var words string
	switch {
	case length == time.Minute:
		words = "a minute"
	case length < 2*time.Hour:
		words = fmt.Sprintf("%d minutes", length/time.Minute)
	case length < 2*24*time.Hour:
		words = fmt.Sprintf("%d hours", length/time.Hour)
	default:
		words = fmt.Sprintf("%d days", length/(24*time.Hour))
	}
	if distance > 0 {
		return "in " + words
	}
	return words + " ago"
}

// count returns "1 key", "2 keys".
func count(number int64, singular string) string {
	if number == 1 {
		return "1 " + singular
	}
	return fmt.Sprintf("%d %ss", number, singular)
}
