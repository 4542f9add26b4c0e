package server

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/scribe-mail/keysvc/internal/config"
)

// newLog returns a logger that writes as the settings say.
func newLog(settings config.Settings, out io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: settings.LogLevel}
	var handler slog.Handler = slog.NewTextHandler(out, options)
	if settings.LogFormat == config.LogJSON {
		handler = slog.NewJSONHandler(out, options)
	}
	return slog.New(contextHandler{handler})
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
