package server

import (
	"context"
	"fmt"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
	"github.com/scribe-mail/keysvc/internal/storage/sinkwriter"
)

// prepareSink makes the writer of the audit sink, if the settings name one and the store does not write it
// itself.
func (s *Server) prepareSink(context.Context) error {
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
