package logging_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/scribe-mail/keysvc/internal/logging"
)

// entry is a line of the log, as far as these tests look at it.
type entry struct {
	Level    string
	Msg      string
	Error    string
	Repeated int
}

func entries(t *testing.T, text io.Reader) []entry {
	t.Helper()
	var all []entry
	for lines := json.NewDecoder(text); ; {
		var next entry
		switch err := lines.Decode(&next); {
		case errors.Is(err, io.EOF):
			return all
		case err != nil:
			t.Fatal(err)
		}
		all = append(all, next)
	}
}

// TestRepeatedLinesAreCounted: of thousands a second, the log has the first and then one
// every ten seconds, and the numbers add up.
func TestRepeatedLinesAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		repeats := logging.NewRepeats(slog.NewJSONHandler(&text, nil), nil)
		log := slog.New(repeats)
		const refusals = 25 * 4000
		for number := range refusals {
			log.Warn("refused", "error", "too many", "request_id", number, "peer", fmt.Sprint(number))
			if number%2 == 0 {
				log.With("code", "UNAVAILABLE").Error("refused", "error", "too many")
			}
			time.Sleep(250 * time.Microsecond)
		}
		synctest.Wait()
		if lines := strings.Count(text.String(), "\n"); lines != 2*3 {
			t.Errorf("%d lines after 25 s, want the first, and two more of each kind", lines)
		}
		repeats.Flush()
		got := make(map[string]int)
		for _, line := range entries(t, &text) {
			got[line.Level] += max(1, line.Repeated)
			if line.Msg != "refused" || line.Error != "too many" {
				t.Errorf("got %+v", line)
			}
		}
		if got["WARN"] != refusals || got["ERROR"] != refusals/2 {
			t.Errorf("the lines stand for %v, want %d and %d", got, refusals, refusals/2)
		}
	})
}

func TestLinesThatDifferAreNotCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		repeats := logging.NewRepeats(slog.NewJSONHandler(&text, nil), nil)
		log := slog.New(repeats)
		for number := range 50 {
			log.Info("finished call")                               // below a warning
			log.Error("damaged", "error", fmt.Errorf("%d", number)) // another one each time
		}
		log.With("place", "here").Warn("same")
		log.With("place", "there").Warn("same")
		log.WithGroup("group").Warn("same")
		log.Warn("once")
		time.Sleep(time.Minute)
		log.Warn("once") // it is no repetition a minute later
		repeats.Flush()
		got := make(map[string]int)
		for _, line := range entries(t, &text) {
			got[line.Msg]++
			if line.Repeated > 0 {
				t.Errorf("got %+v", line)
			}
		}
		if got["finished call"] != 50 || got["damaged"] != 50 || got["same"] != 3 || got["once"] != 2 {
			t.Errorf("lines of each message: %v", got)
		}
	})
}

// TestVariantsOfAMessageAreBounded: lines that are never alike do not flood the log
// either, nor the memory.
func TestVariantsOfAMessageAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		repeats := logging.NewRepeats(slog.NewJSONHandler(&text, nil), nil)
		log := slog.New(repeats)
		const lines = 5000
		for number := range lines {
			log.Error("damaged", "error", fmt.Sprint(number))
		}
		log.Error("other")
		repeats.Flush()
		got, sum := entries(t, &text), 0
		for _, line := range got {
			sum += max(1, line.Repeated)
		}
		if len(got) > 110 || sum != lines+1 {
			t.Errorf("%d lines that stand for %d, want about a hundred for %d", len(got), sum, lines+1)
		}
	})
}

func TestRepeatsCountsTheLowerLevelsItIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		repeats := logging.NewRepeats(slog.NewJSONHandler(&text, nil), func(record slog.Record) bool { return record.Message == "refused" })
		log := slog.New(repeats).With("by", "tests")
		for range 5 {
			log.Info("refused", "duration_ms", 1.5)
			log.Info("passed")
		}
		repeats.Flush()
		lines, repeated := make(map[string]int), 0
		for _, each := range entries(t, &text) {
			lines[each.Msg]++
			repeated += each.Repeated
		}
		if lines["refused"] != 2 || repeated != 4 || lines["passed"] != 5 {
			t.Errorf("got %v with %d repeated, want the first refusal and 4 counted, and what passes", lines, repeated)
		}
	})
}
