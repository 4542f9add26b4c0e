package server

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/token"
)

// newLog returns a logger that writes as the settings say.
func newLog(settings config.Settings, out io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: settings.LogLevel, ReplaceAttr: redact}
	var handler slog.Handler = slog.NewTextHandler(out, options)
	if settings.LogFormat == config.LogJSON {
		handler = slog.NewJSONHandler(out, options)
	}
	return slog.New(contextHandler{handler})
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
