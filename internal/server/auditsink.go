package server

import (
	"context"
	"errors"
	"fmt"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
	"github.com/scribe-mail/keysvc/internal/storage/sinkwriter"
)

// prepareSink makes the writer of the audit sink, if the settings name one and the store does not write it
// itself. A store that does not have the last event of its sink was put back: it is not served before a person
// has restored or accepted it.
func (s *Server) prepareSink(ctx context.Context) error {
	path := s.config.Settings.AuditSink
	_, needs := storage.As[storage.AuditFollower](s.config.Store)
	if !needs || path == "" || path == boltstore.SinkOff {
		return nil
	}
	writer, err := sinkwriter.New(sinkwriter.Config{
		Store: s.config.Store, Path: path, MaxBytes: int64(s.config.Settings.AuditSinkMaxBytes), Log: s.log,
	})
	if err != nil {
		return fmt.Errorf("the audit sink %s: %w", path, err)
	}
	if err := writer.Compare(ctx); errors.Is(err, storage.ErrAnchor) {
		return fmt.Errorf("%w; %s", err, sinkHint)
	} else if err != nil { // the writer tries again, and says so
		s.log.WarnContext(ctx, "the audit sink could not be compared with the store", "path", path, "error", err)
	}
	s.sink.Store(writer)
	return nil
}

// sinkTrimmer returns what deletes old files of the audit sink; nil without a sink.
func (s *Server) sinkTrimmer() storage.SinkTrimmer {
	if writer := s.sink.Load(); writer != nil {
		return writer
	}
	trimmer, _ := storage.As[storage.SinkTrimmer](s.config.Store)
	return trimmer
}
