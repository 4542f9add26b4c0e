package logging_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/logging"
)

// newText returns a log for people without times, which differ.
func newText(text *bytes.Buffer, config logging.TextConfig) *slog.Logger {
	return slog.New(timeless{logging.NewText(text, config)})
}

func TestTextWritesALineForPeople(t *testing.T) {
	var text bytes.Buffer
	log := newText(&text, logging.TextConfig{})
	log.Info("store loaded", "revision", 7, "path", "a b")
	log.Error("commit failed", "error", errors.New(`no "space"`))
	log.With("kept", 1).WithGroup("call").Warn("two\nlines", "peer", "x")
	log.Info("nothing more")
	log.Debug("below the level")
	const want = `INFO  store loaded revision=7 path="a b"
ERROR commit failed error="no \"space\""
WARN  "two\nlines" kept=1 call.peer=x
INFO  nothing more
`
	if text.String() != want {
		t.Errorf("got\n%s\nwant\n%s", text.String(), want)
	}
}

func TestTextWritesTimeWithMilliseconds(t *testing.T) {
	var text bytes.Buffer
	slog.New(logging.NewText(&text, logging.TextConfig{})).Info("a message")
	stamp, rest, _ := strings.Cut(text.String(), " ")
	if len(stamp) < len("2006-01-02T15:04:05.000Z") || stamp[10] != 'T' || stamp[19] != '.' || rest != "INFO  a message\n" {
		t.Errorf("got %q", text.String())
	}
}

func TestTextSaysTheAttributesOfASentenceOnce(t *testing.T) {
	var text bytes.Buffer
	log := newText(&text, logging.TextConfig{
		Replace: func(_ []string, attribute slog.Attr) slog.Attr {
			if attribute.Value.String() == "secret" {
				attribute.Value = slog.StringValue("[redacted]")
			}
			return attribute
		},
		Sentences: map[string]logging.Sentence{"done": func(attributes map[string]slog.Value) (string, []string) {
			return attributes["who"].String() + " did " + attributes["what"].String(), []string{"who", "what"}
		}},
	})
	log.Info("done", "who", "ann", "when", "now", "what", "it")
	log.Info("done", "who", "secret", "what", "it", "why", "secret")
	log.WithGroup("a").Info("done", "who", "ann")
	const want = `INFO  ann did it when=now
INFO  [redacted] did it why=[redacted]
INFO  done a.who=ann
`
	if text.String() != want {
		t.Errorf("got\n%s\nwant\n%s", text.String(), want)
	}
}

// timeless is a handler whose records have no time.
type timeless struct{ slog.Handler }

func (h timeless) Handle(ctx context.Context, record slog.Record) error {
	record.Time = time.Time{}
	return h.Handler.Handle(ctx, record)
}

func (h timeless) WithAttrs(attributes []slog.Attr) slog.Handler {
	return timeless{h.Handler.WithAttrs(attributes)}
}

func (h timeless) WithGroup(name string) slog.Handler { return timeless{h.Handler.WithGroup(name)} }
