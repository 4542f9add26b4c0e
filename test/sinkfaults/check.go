//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/scribe-mail/keysvc/internal/storage/sink"
)

// number is a number in JSON, as digits or as a string of digits.
type number int64

// UnmarshalJSON implements json.Unmarshaler.
func (n *number) UnmarshalJSON(text []byte) error {
	value, err := strconv.ParseInt(strings.Trim(string(text), `"`), 10, 64)
	*n = number(value)
	return err
}

// event is an audit event, as the store or a line of the sink tells it.
type event struct {
	Revision  number `json:"revision"`
	Sequence  number `json:"sequence"`
	Workspace string `json:"workspace_id"`
	Action    string `json:"action"`
	Caller    string `json:"caller"`
	Actor     string `json:"actor_member_id"`
	Request   string `json:"request_id"`
	Key       string `json:"key_id"`
	Member    string `json:"member_id"`
	Time      moment `json:"time"`
	hash      string
}

// moment is a time, in Unix nanoseconds.
type moment int64

// UnmarshalJSON implements json.Unmarshaler.
func (m *moment) UnmarshalJSON(text []byte) error {
	var at time.Time
	err := json.Unmarshal(text, &at)
	*m = moment(at.UnixNano())
	return err
}

// stored are all events of a store, oldest first.
type stored struct {
	Events []struct {
		event
		Hash []byte `json:"hash"`
	} `json:"events"`
	Epoch string `json:"epoch"`
}

// events reads the store.
func (s *store) events(ctx context.Context) (epoch string, events []event, err error) {
	output, err := s.command(ctx, "audit", "list", "--file", filepath.Join(s.data, "keysvc.db"), "--all", "--all-workspaces", "--output", "json")
	if err != nil {
		return "", nil, err
	}
	var all stored
	if err := json.Unmarshal(output, &all); err != nil {
		return "", nil, err
	}
	for _, one := range all.Events {
		one.event.hash = hex.EncodeToString(one.Hash)
		one.Action = strings.TrimPrefix(one.Action, "AUDIT_ACTION_")
		events = append(events, one.event)
	}
	slices.Reverse(events)
	return all.Epoch, events, nil
}

func (s *store) command(ctx context.Context, arguments ...string) ([]byte, error) {
	command := exec.CommandContext(ctx, s.program, arguments...)
	var problems bytes.Buffer
	command.Stderr = &problems
	output, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: keysvc %s: %w\n%s%s", errBroken, arguments[0], err, output, problems.Bytes())
	}
	return output, nil
}

// line is a line of a sink, read without the product.
type line struct {
	event
	Type  string `json:"type"`
	Epoch string `json:"epoch"`
	Late  bool   `json:"late"`
	Hash  string `json:"hash"`
}

// lines calls visit with each whole line of a file. It reports whether the file ends with a line that
// is not whole.
func lines(name string, visit func(text []byte) error) (torn bool, err error) {
	content, err := os.ReadFile(name)
	if err != nil {
		return false, err
	}
	for text := range bytes.Lines(content) {
		if !bytes.HasSuffix(text, []byte("\n")) {
			return true, nil
		}
		if err := visit(text); err != nil {
			return false, err
		}
	}
	return false, nil
}

// present returns what is in the sink now, by actor, and which files have a line.
func (s *store) present() (found map[string]line, hasLine map[string]bool, err error) {
	files, err := s.files()
	if err != nil {
		return nil, nil, err
	}
	found, hasLine = make(map[string]line), make(map[string]bool)
	for _, name := range files {
		_, err := lines(name, func(text []byte) error {
			var one line
			if err := json.Unmarshal(text, &one); err != nil {
				return nil //nolint:nilerr // check finds it
			}
			hasLine[name] = true
			if one.Type == "event" {
				found[one.Actor] = one
			}
			return nil
		})
		if err != nil {
			return nil, nil, err
		}
	}
	return found, hasLine, nil
}

// afterEnd checks the sink before the next start. It has a line of every change that was acknowledged,
// unless the server has said that it could not be written.
func (s *store) afterEnd(l *life, killed bool) error {
	found, hasLine, err := s.present()
	if err != nil {
		return err
	}
	files, err := s.files()
	if err != nil {
		return err
	}
	if killed {
		// The next start does not write to a file that was renamed, and goes on in the next one.
		for index := len(files) - 1; index >= 0; index-- {
			if files[index] != s.sink {
				s.torn[files[index]] = true
			}
			if hasLine[files[index]] {
				break
			}
		}
	}
	if s.stalls[l.number] {
		return nil
	}
	var problems list
	for _, a := range l.answers {
		if a.result != acknowledged {
			continue
		}
		one, isThere := found[a.actor]
		switch {
		case !isThere:
			problems.add("%s: acknowledged, and not in the sink when the server had ended", a)
		case one.Late:
			problems.add("%s: its line says that it is late, and the sink was never down", a)
		}
	}
	return problems.err()
}

// String names the change.
func (a answer) String() string {
	return fmt.Sprintf("change %s (%s in %q, life %d, revision %d)", a.actor, a.kind, a.workspace, a.life, a.revision)
}

// list is a list of problems.
type list struct {
	count int
	first []string
}

func (l *list) add(format string, values ...any) {
	if l.count++; l.count <= 5 {
		l.first = append(l.first, fmt.Sprintf(format, values...))
	}
}

func (l *list) err() error {
	if l.count == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d problems: %s", errBroken, l.count, strings.Join(l.first, "\n"))
}

// check compares the answers, the store and the sink after a stop.
func (s *store) check(ctx context.Context) error {
	epoch, events, err := s.events(ctx)
	if err != nil {
		return err
	}
	var problems list
	late, err := s.checkSink(epoch, events, &problems)
	if err != nil {
		return err
	}
	s.checkAnswers(epoch, events, late, &problems)
	if err := problems.err(); err != nil {
		return err
	}
	if err := s.readAgain(events); err != nil {
		return err
	}
	_, err = s.command(ctx, "check", filepath.Join(s.data, "keysvc.db"), "--audit-sink", s.sink)
	return err
}

// checkSink checks that the sink has each event of the store once, in order. It returns which actors'
// lines are late.
func (s *store) checkSink(epoch string, events []event, problems *list) (map[string]bool, error) {
	files, err := s.files()
	if err != nil {
		return nil, err
	}
	late := make(map[string]bool)
	next := 0 // the index of the next event
	position := func() (number, string) {
		if next == 0 {
			return 0, strings.Repeat("0", 64)
		}
		return events[next-1].Revision, events[next-1].hash
	}
	s.tally.late = 0
	for _, name := range files {
		count, base := 0, filepath.Base(name)
		torn, err := lines(name, func(text []byte) error {
			count++
			var one line
			if err := json.Unmarshal(text, &one); err != nil {
				problems.add("%s:%d: not JSON: %v: %.80q", base, count, err, text)
				return nil
			}
			one.event.hash = one.Hash
			revision, hash := position()
			switch {
			case one.Epoch != epoch:
				problems.add("%s:%d: epoch %s, the store has %s", base, count, one.Epoch, epoch)
			case (one.Type == "anchor") != (count == 1):
				problems.add("%s:%d: a line of type %q; the first line is an anchor, and no other", base, count, one.Type)
			case one.Type == "anchor" && (one.Revision != revision || one.Hash != hash):
				problems.add("%s:%d: an anchor at revision %d %s, the line before it is at %d %s", base, count, one.Revision, one.Hash, revision, hash)
			}
			if one.Type != "event" {
				return nil
			}
			if next == len(events) {
				problems.add("%s:%d: revision %d, and the store has no more events", base, count, one.Revision)
				return nil
			}
			if one.event != events[next] {
				problems.add("%s:%d: the next event of the store is %+v, the line has %+v", base, count, events[next], one.event)
			}
			// Go on behind the line's revision, so that one fault is one problem.
			if index, found := slices.BinarySearchFunc(events, one.Revision, func(e event, r number) int { return int(e.Revision - r) }); found {
				next = index + 1
			}
			if one.Late {
				late[one.Actor] = true
				s.tally.late++
			}
			return nil
		})
		switch {
		case err != nil:
			return nil, err
		case torn && !s.torn[name]:
			problems.add("%s ends in the middle of a line", base)
		case count == 0 && name == s.sink:
			problems.add("%s is empty", base)
		}
	}
	if next != len(events) {
		problems.add("the sink ends at %d of %d events", next, len(events))
	}
	return late, nil
}

// checkAnswers compares what was answered with the events.
func (s *store) checkAnswers(epoch string, events []event, late map[string]bool, problems *list) {
	byActor := make(map[string]event)
	for _, one := range events {
		if _, twice := byActor[one.Actor]; twice && one.Actor != "" {
			problems.add("two events of change %s", one.Actor)
		}
		if one.Actor == "" && one.Caller != "system" {
			problems.add("an event that nobody asked for: %+v", one)
		}
		byActor[one.Actor] = one
	}
	s.tally.answers, s.tally.refused, s.tally.unknown, s.tally.narrowed = 0, 0, 0, 0
	for _, a := range s.answers {
		event, isThere := byActor[a.actor]
		switch a.result {
		case acknowledged:
			s.tally.answers++
			if !isThere || int64(event.Revision) != a.revision || event.Workspace != a.workspace || a.epoch != epoch {
				problems.add("%s: acknowledged at epoch %s, and the store has %t, %+v", a, a.epoch, isThere, event)
			}
		case refused:
			s.tally.refused++
			if isThere {
				problems.add("%s: refused, and the store has %+v", a, event)
			}
			if a.narrows {
				problems.add("%s: a narrowing was refused: %v", a, a.err)
			}
		case failed:
			problems.add("%s: failed after %v: %v", a, a.answered.Sub(a.sent), a.err)
		case unknown:
			s.tally.unknown++
		}
		for _, w := range s.windows {
			if a.result != acknowledged || a.life != w.life || a.answered.After(w.to) {
				continue
			}
			inside := !a.sent.Before(w.from)
			if inside {
				s.tally.narrowed++
			}
			if inside && !a.narrows {
				problems.add("%s: acknowledged while the sink could not be written", a)
			}
			// The changes that met the failure were answered before the sink had their lines, too.
			_, before := w.found[a.actor]
			met := a.answered.Before(w.read) && !before
			if isThere && (inside || met) && !late[a.actor] {
				problems.add("%s: answered while the sink could not be written, and its line does not say that it is late", a)
			}
		}
	}
}

// readAgain reads the sink with the product's own reader, which must find the same.
func (s *store) readAgain(events []event) error {
	files, err := s.files()
	if err != nil {
		return err
	}
	ordered, err := sink.Order(files)
	if err != nil {
		return err
	}
	reader := sink.NewReader(ordered...)
	defer reader.Close()
	index := 0
	for {
		one, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if torn := (*sink.LineError)(nil); errors.As(err, &torn) && errors.Is(err, sink.ErrTorn) && s.torn[torn.File] {
			continue
		}
		if err != nil {
			return fmt.Errorf("%w: the product's reader: %w", errBroken, err)
		}
		if one.Event == nil {
			continue
		}
		if index == len(events) || int64(events[index].Revision) != one.Mark.Revision || events[index].hash != hex.EncodeToString(one.Mark.Hash[:]) {
			return fmt.Errorf("%w: the product's reader finds revision %d, as event %d of %d", errBroken, one.Mark.Revision, index+1, len(events))
		}
		index++
	}
	if index != len(events) {
		return fmt.Errorf("%w: the product's reader finds %d of %d events", errBroken, index, len(events))
	}
	return nil
}
