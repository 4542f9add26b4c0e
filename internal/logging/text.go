package logging

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"unicode"
)

// textTime is how Text writes the time of a line: RFC 3339 with milliseconds.
const textTime = "2006-01-02T15:04:05.000Z07:00"

// A Sentence puts attributes of a record into words. It returns the words, and the keys of the
// attributes that need not be written as well.
type Sentence func(attributes map[string]slog.Value) (text string, said []string)

// TextConfig configures a Text.
type TextConfig struct {
	// Level is the lowest level that is written.
	Level slog.Leveler
	// Replace is called for each attribute before it is written or given to a Sentence, as
	// slog.HandlerOptions.ReplaceAttr is. nil replaces nothing.
	Replace func(groups []string, attribute slog.Attr) slog.Attr
	// Sentences are used for the records whose message is the key. A record in a group is
	// written as it is.
	Sentences map[string]Sentence
}

// Text is a slog.Handler that writes lines for people: time, level, message, and the
// attributes as key=value. Its methods may be called from many goroutines.
type Text struct {
	config TextConfig
	output *textOutput
	// attributes writes to the buffer of output.
	attributes slog.Handler
	grouped    bool
}

// textOutput is what all handlers that come from one share.
type textOutput struct {
	mutex  sync.Mutex
	out    io.Writer
	buffer bytes.Buffer
}

// NewText returns a handler that writes each line to out with one Write.
func NewText(out io.Writer, config TextConfig) *Text {
	output := &textOutput{out: out}
	return &Text{config: config, output: output, attributes: slog.NewTextHandler(&output.buffer, &slog.HandlerOptions{
		Level: config.Level,
		ReplaceAttr: func(groups []string, attribute slog.Attr) slog.Attr {
			if len(groups) == 0 && slices.Contains([]string{slog.TimeKey, slog.LevelKey, slog.MessageKey}, attribute.Key) {
				return slog.Attr{} // Text writes these itself
			}
			if config.Replace != nil {
				return config.Replace(groups, attribute)
			}
			return attribute
		},
	})}
}

// Enabled implements slog.Handler.
func (t *Text) Enabled(ctx context.Context, level slog.Level) bool {
	return t.attributes.Enabled(ctx, level)
}

// WithAttrs implements slog.Handler.
func (t *Text) WithAttrs(attributes []slog.Attr) slog.Handler {
	derived := *t
	derived.attributes = t.attributes.WithAttrs(attributes)
	return &derived
}

// WithGroup implements slog.Handler.
func (t *Text) WithGroup(name string) slog.Handler {
	derived := *t
	derived.attributes, derived.grouped = t.attributes.WithGroup(name), true
	return &derived
}

// Handle implements slog.Handler.
func (t *Text) Handle(ctx context.Context, record slog.Record) error {
	text := record.Message
	if sentence := t.config.Sentences[text]; sentence != nil && !t.grouped {
		text, record = t.said(sentence, record)
	}
	o := t.output
	o.mutex.Lock()
	defer o.mutex.Unlock()
	o.buffer.Reset()
	if !record.Time.IsZero() {
		o.buffer.WriteString(record.Time.Format(textTime) + " ")
	}
	fmt.Fprintf(&o.buffer, "%-5s %s ", record.Level, oneLine(text))
	if err := t.attributes.Handle(ctx, record); err != nil {
		return err
	}
	line := o.buffer.Bytes()
	if rest, bare := bytes.CutSuffix(line, []byte(" \n")); bare { // a record without attributes
		line = line[:len(rest)+1]
		line[len(rest)] = '\n'
	}
	_, err := o.out.Write(line)
	return err
}

// said returns the words for a record, and the record without the attributes that they say.
func (t *Text) said(sentence Sentence, record slog.Record) (string, slog.Record) {
	values := make(map[string]slog.Value, record.NumAttrs())
	record.Attrs(func(attribute slog.Attr) bool {
		if t.config.Replace != nil {
			attribute = t.config.Replace(nil, attribute)
		}
		values[attribute.Key] = attribute.Value.Resolve()
		return true
	})
	text, said := sentence(values)
	rest := slog.NewRecord(record.Time, record.Level, record.Message, record.PC)
	record.Attrs(func(attribute slog.Attr) bool {
		if !slices.Contains(said, attribute.Key) {
			rest.AddAttrs(attribute)
		}
		return true
	})
	return text, rest
}

// oneLine returns text, quoted if it has something that is not to be printed.
func oneLine(text string) string {
	for _, r := range text {
		if !unicode.IsPrint(r) {
			return strconv.Quote(text)
		}
	}
	return text
}
