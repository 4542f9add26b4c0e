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

// newLog returns a logger that writes as the settings say.
func newLog(settings config.Settings, out io.Writer) *slog.Logger {
	return slog.New(contextHandler{newLogHandler(settings, settings.LogLevel, out)})
}

// newProcessLog returns the logger of a whole process: it counts lines that come again
// and again, and gRPC's own errors come to it. level is the least level, which may be set
// at any time. Flush repeats at the end.
func newProcessLog(settings config.Settings, out io.Writer) (log *slog.Logger, level *slog.LevelVar, repeats *logging.Repeats) {
	level = new(slog.LevelVar)
	level.Set(settings.LogLevel)
	repeats = logging.NewRepeats(newLogHandler(settings, level, out))
	log = slog.New(contextHandler{repeats})
	// They would go to standard error by a way that waits for its reader.
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, grpcErrors{log}))
	return log, level, repeats
}

func newLogHandler(settings config.Settings, level slog.Leveler, out io.Writer) slog.Handler {
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: redact}
	if settings.LogFormat == config.LogJSON {
		return slog.NewJSONHandler(out, options)
	}
	return slog.NewTextHandler(out, options)
}

// droppedNotice returns what writes the line about lines that were dropped.
func droppedNotice(settings config.Settings) func(dropped int64) []byte {
	return func(dropped int64) []byte {
		var line bytes.Buffer
		now := time.Now() //nolint:forbidigo // as slog stamps its lines
		record := slog.NewRecord(now, slog.LevelWarn, "log lines were dropped: nobody read them in time, or they could not be written", 0)
		record.AddAttrs(slog.Int64("dropped", dropped))
		_ = newLogHandler(settings, settings.LogLevel, &line).Handle(context.Background(), record) // a buffer takes everything
		return line.Bytes()
	}
}

// grpcErrors takes gRPC's own error lines.
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

// redact takes tokens out of what is logged. None should get there; this is for the
// text that nobody thought of.
func redact(_ []string, attribute slog.Attr) slog.Attr {
	switch value := attribute.Value.Any().(type) {
	case string:
		if token.In(value) {
			attribute.Value = slog.StringValue(token.Redact(value))
		}
	case error:
		attribute.Value = slog.StringValue(token.Redact(value.Error()))
	}
	return attribute
}

// contextHandler adds to each entry the request id of its context.
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
