package sink

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"time"

	"github.com/scribe-mail/keysvc/internal/storage/anchor"
)

// object is a JSON object that is being written. It writes what encoding/json would write, without
// escapes for HTML, and several times as fast: a server writes a line for each change.
type object struct {
	text []byte
	err  error
}

// begin begins the object with the fields of every line.
func (o *object) begin(kind string, mark anchor.Mark) {
	o.text = append(o.text, `{"type":"`...)
	o.text = append(o.text, kind...)
	o.text = append(o.text, '"')
	o.number("format", format)
	o.string("epoch", mark.Epoch)
	o.number("revision", mark.Revision)
}

// end ends the object, and the line.
func (o *object) end() ([]byte, error) { return append(o.text, "}\n"...), o.err }

// name begins a field. Names need no escapes.
func (o *object) name(name string) {
	o.text = append(o.text, `,"`...)
	o.text = append(o.text, name...)
	o.text = append(o.text, `":`...)
}

func (o *object) number(name string, value int64) {
	o.name(name)
	o.text = strconv.AppendInt(o.text, value, 10)
}

func (o *object) hex(name string, value []byte) {
	o.name(name)
	o.text = append(o.text, '"')
	o.text = hex.AppendEncode(o.text, value)
	o.text = append(o.text, '"')
}

func (o *object) time(name string, value time.Time) {
	o.name(name)
	o.text = append(o.text, '"')
	o.text = value.UTC().AppendFormat(o.text, time.RFC3339Nano)
	o.text = append(o.text, '"')
}

// optional adds a field, unless its value is empty.
func (o *object) optional(name, value string) {
	if value != "" {
		o.string(name, value)
	}
}

func (o *object) string(name, value string) {
	o.name(name)
	o.quote(value)
}

// list adds a field that is a list, unless the list is empty.
func (o *object) list(name string, values []string) {
	if len(values) == 0 {
		return
	}
	o.name(name)
	for index, value := range values {
		o.text = append(o.text, "[,"[min(index, 1)])
		o.quote(value)
	}
	o.text = append(o.text, ']')
}

// quote writes a string.
func (o *object) quote(value string) {
	if isPlain(value) {
		o.text = append(o.text, '"')
		o.text = append(o.text, value...)
		o.text = append(o.text, '"')
		return
	}
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		o.err = err
	}
	o.text = append(o.text, bytes.TrimSuffix(buffer.Bytes(), []byte("\n"))...)
}

// isPlain reports whether a string is the same in JSON.
func isPlain(value string) bool {
	for index := range len(value) {
		if each := value[index]; each < ' ' || each > '~' || each == '"' || each == '\\' {
			return false
		}
	}
	return true
}
