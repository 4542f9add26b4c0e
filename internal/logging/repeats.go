package logging

import (
	"context"
	"hash/maphash"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// The limits of Repeats. A line that repeats is written once in repeatsInterval. Of one message,
// up to repeatsVariants different lines are told apart in that time.
const (
	repeatsInterval = 10 * time.Second
	repeatsVariants = 100
)

// repeatedKey is the key of the attribute with the number of repetitions.
const repeatedKey = "repeated"

// varying are the keys of attributes in which two lines that are alike may differ.
var varying = map[string]bool{
	"request_id":  true,
	"peer":        true,
	"duration_ms": true,
	"after":       true,
}

// Repeats is a slog.Handler that keeps floods out of the log. Records are alike if level, message
// and attributes are equal, except request id, peer and durations. Of warnings and errors that are
// alike, Repeats hands on the first, and counts the repetitions of the next ten seconds. Then it
// hands on the last repetition, with their number in the attribute "repeated". Of one message it
// tells at most a hundred variants apart in ten seconds, and counts all others as one. Records of
// lower levels pass, except those that it was told to count.
type Repeats struct {
	next slog.Handler
	// also reports whether a record below warnings is counted; nil counts none.
	also func(slog.Record) bool
	// prefix holds the attributes and groups that next was given.
	prefix string
	table  *repeatsTable
}

// repeatsTable is shared by all handlers that are derived from one.
type repeatsTable struct {
	seed  maphash.Seed
	mutex sync.Mutex
	lines map[uint64]*repeated
	// variants is the number of entries of lines for each message. Messages are constants, so
	// their number is bounded.
	variants map[string]int
}

// repeated is a record that was handed on less than an interval ago.
type repeated struct {
	message string
	timer   *time.Timer
	// count is the number of repetitions since then, last the newest repetition, and next the
	// handler for it.
	count int
	last  slog.Record
	next  slog.Handler
}

// NewRepeats returns a handler that hands on to next. also reports whether a record below
// warnings is counted as well; nil counts none.
func NewRepeats(next slog.Handler, also func(slog.Record) bool) *Repeats {
	return &Repeats{next: next, also: also, table: &repeatsTable{
		seed:     maphash.MakeSeed(),
		lines:    make(map[uint64]*repeated),
		variants: make(map[string]int),
	}}
}

// Enabled implements slog.Handler.
func (r *Repeats) Enabled(ctx context.Context, level slog.Level) bool {
	return r.next.Enabled(ctx, level)
}

// WithAttrs implements slog.Handler.
func (r *Repeats) WithAttrs(attributes []slog.Attr) slog.Handler {
	var prefix strings.Builder
	prefix.WriteString(r.prefix)
	for _, attribute := range attributes {
		prefix.WriteString("\x00" + attribute.String())
	}
	return &Repeats{next: r.next.WithAttrs(attributes), also: r.also, prefix: prefix.String(), table: r.table}
}

// WithGroup implements slog.Handler.
func (r *Repeats) WithGroup(name string) slog.Handler {
	return &Repeats{next: r.next.WithGroup(name), also: r.also, prefix: r.prefix + "\x00" + name + ".", table: r.table}
}

// Handle implements slog.Handler.
func (r *Repeats) Handle(ctx context.Context, record slog.Record) error {
	if !r.counts(record) || !r.table.note(r, record) {
		return r.next.Handle(ctx, record)
	}
	return nil
}

// counts reports whether a record is counted when it comes again.
func (r *Repeats) counts(record slog.Record) bool {
	return record.Level >= slog.LevelWarn || r.also != nil && r.also(record)
}

// note reports whether a record repeats one that was handed on. If so, note counts it.
func (t *repeatsTable) note(from *Repeats, record slog.Record) bool {
	key := t.key(from.prefix, record, true)
	t.mutex.Lock()
	defer t.mutex.Unlock()
	line, found := t.lines[key]
	if !found && t.variants[record.Message] >= repeatsVariants {
		key = t.key("", record, false)
		line, found = t.lines[key]
	}
	if found {
		line.count++
		line.last, line.next = record.Clone(), from.next
		return true
	}
	t.variants[record.Message]++
	t.lines[key] = &repeated{
		message: record.Message,
		timer:   time.AfterFunc(repeatsInterval, func() { t.endInterval(key) }),
	}
	return false
}

// key returns a hash that is equal for records that are alike. Without attributes it is
// equal for all records of one level, message and prefix.
func (t *repeatsTable) key(prefix string, record slog.Record, attributes bool) uint64 {
	var hash maphash.Hash
	hash.SetSeed(t.seed)
	// A byte that is not in UTF-8 ends each string, so that "ab","c" and "a","bc" differ.
	add := func(text string) {
		hash.WriteString(text)
		hash.WriteByte(0xff)
	}
	add(record.Level.String())
	add(record.Message)
	add(prefix)
	if attributes {
		record.Attrs(func(attribute slog.Attr) bool {
			if !varying[attribute.Key] {
				add(attribute.Key)
				add(attribute.Value.String())
			}
			return true
		})
	}
	return hash.Sum64()
}

// endInterval ends the interval of a record. If the record was repeated, it is handed on once,
// with the number of repetitions, and another interval begins. Otherwise the record is forgotten.
func (t *repeatsTable) endInterval(key uint64) {
	t.mutex.Lock()
	line, found := t.lines[key]
	if !found {
		t.mutex.Unlock()
		return
	}
	if line.count == 0 {
		delete(t.lines, key)
		if t.variants[line.message]--; t.variants[line.message] == 0 {
			delete(t.variants, line.message)
		}
		t.mutex.Unlock()
		return
	}
	told, next := line.take()
	line.timer.Reset(repeatsInterval)
	t.mutex.Unlock()
	handOn(next, told)
}

// take returns the last repetition, with the number of all repetitions, and sets the count to 0.
func (l *repeated) take() (slog.Record, slog.Handler) {
	told, next := l.last, l.next
	told.AddAttrs(slog.Int(repeatedKey, l.count))
	l.count, l.last, l.next = 0, slog.Record{}, nil
	return told, next
}

func handOn(next slog.Handler, record slog.Record) {
	// As in slog itself, an error of the handler is ignored.
	_ = next.Handle(context.Background(), record)
}

// Flush hands on the repetitions that were counted so far, and forgets all records. Call it at the
// end of the process.
func (r *Repeats) Flush() {
	t := r.table
	t.mutex.Lock()
	lines := t.lines
	t.lines, t.variants = make(map[uint64]*repeated), make(map[string]int)
	t.mutex.Unlock()
	for _, line := range lines {
		line.timer.Stop()
		if line.count > 0 {
			told, next := line.take()
			handOn(next, told)
		}
	}
}
