package server

import "context"

// NewLog is newLog: the log as `keysvc serve` writes it.
var NewLog = newLog

// RepairClockAt is RepairClock with a clock.
var RepairClockAt = repairClock

// SetReadOnly is setReadOnly, as a reload calls it.
func (s *Server) SetReadOnly(on bool) { s.setReadOnly(on) }

// FlushUses writes last-used times now.
func (s *Server) FlushUses(ctx context.Context) error { return s.recorder.Flush(ctx) }
