package server

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/grpc/grpclog"

	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/logging"
	"github.com/scribe-mail/keysvc/internal/token"
)

// newLog returns a logger with the level and format of the settings.
func newLog(settings config.Settings, out io.Writer) *slog.Logger {
	return slog.New(contextHandler{newLogHandler(settings, settings.LogLevel, out)})
}

// newProcessLog returns the logger of a whole process. It counts repeated lines, and gets
// gRPC's own errors. level is the minimum level, which may be set at any time. repeats must
// be flushed at the end.
func newProcessLog(settings config.Settings, out io.Writer) (log *slog.Logger, level *slog.LevelVar, repeats *logging.Repeats) {
	level = new(slog.LevelVar)
	level.Set(settings.LogLevel)
	repeats = logging.NewRepeats(newLogHandler(settings, level, out), refusedCall)
	log = slog.New(contextHandler{repeats})
	// gRPC would write them to standard error, and wait for its reader.
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, grpcErrors{log}))
	return log, level, repeats
}

func newLogHandler(settings config.Settings, level slog.Leveler, out io.Writer) slog.Handler {
	if settings.LogFormat == config.LogJSON {
		return slog.NewJSONHandler(out, &slog.HandlerOptions{Level: level, ReplaceAttr: redact})
	}
	return logging.NewText(out, logging.TextConfig{Level: level, Replace: redact, Sentences: sentences()})
}

// droppedNotice returns a function that formats the line about dropped lines.
func droppedNotice(settings config.Settings) func(dropped int64) []byte {
	return func(dropped int64) []byte {
		var line bytes.Buffer
		now := time.Now() // as slog stamps its own lines
		record := slog.NewRecord(now, slog.LevelWarn, "log lines were dropped: nobody read them in time, or they could not be written", 0)
		record.AddAttrs(slog.Int64("dropped", dropped))
		_ = newLogHandler(settings, settings.LogLevel, &line).Handle(context.Background(), record) // a buffer takes everything
		return line.Bytes()
	}
}

// grpcErrors writes gRPC's own error lines to the log.
type grpcErrors struct{ log *slog.Logger }

// Write implements io.Writer.
func (g grpcErrors) Write(line []byte) (int, error) {
	text := string(line)
	if _, after, found := strings.Cut(text, "ERROR: "); found {
		text = after // without another time
	}
	g.log.Warn("gRPC reports an error", "text", strings.TrimSpace(text))
	return len(line), nil
}

// redact removes tokens from attributes. No token should get there; redact is the second
// line of defence.
func redact(_ []string, attribute slog.Attr) slog.Attr {
	switch value := attribute.Value.Any().(type) {
	case string:
		if token.In(value) || token.CallerIn(value) {
			attribute.Value = slog.StringValue(token.Redact(value))
		}
	case error:
		attribute.Value = slog.StringValue(token.Redact(value.Error()))
	}
	return attribute
}

// contextHandler adds the request id of the context to each record.
type contextHandler struct{ slog.Handler }

// Handle implements slog.Handler.
func (h contextHandler) Handle(ctx context.Context, record slog.Record) error {
	if id := requestIDOf(ctx); id != "" {
		record.AddAttrs(slog.String("request_id", id))
	}
	return h.Handler.Handle(ctx, record)
}

// WithAttrs implements slog.Handler.
func (h contextHandler) WithAttrs(attributes []slog.Attr) slog.Handler {
	return contextHandler{h.Handler.WithAttrs(attributes)}
}

// WithGroup implements slog.Handler.
func (h contextHandler) WithGroup(name string) slog.Handler {
	return contextHandler{h.Handler.WithGroup(name)}
}

func typeName(value any) string { return fmt.Sprintf("%T", value) }
