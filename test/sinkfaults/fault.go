//go:build linux

package main

import (
	"os"
	"path/filepath"
)

// fault breaks a sink.
type fault interface {
	// name returns its name, empty for none.
	name() string
	// prepare is called before the start of the server.
	prepare(s *store) error
	// apply breaks the sink under load, and lift mends it. The server may be dead by then.
	apply(s *store, run *server) error
	lift(s *store, run *server) error
	// refuses reports whether changes are refused that do not only take away.
	refuses() bool
	// down reports whether no line can be written from the first refused change on.
	down() bool
}

// faults returns the faults that fit the disk.
func (s *store) faults() []fault {
	switch s.disk.kind {
	case diskFull:
		return []fault{noFault{}, full{}, full{signal: true}, full{before: true}}
	case diskHanging:
		return []fault{noFault{}, hang{}, hang{}}
	}
	return []fault{noFault{}, inTheWay{}, inTheWay{signal: true}, away{}}
}

// noFault leaves the sink alone.
type noFault struct{}

func (noFault) name() string                { return "" }
func (noFault) prepare(*store) error        { return nil }
func (noFault) apply(*store, *server) error { return nil }
func (noFault) lift(*store, *server) error  { return nil }
func (noFault) refuses() bool               { return false }
func (noFault) down() bool                  { return false }

// inTheWay renames the file of the sink, and puts a folder in its place. signal asks the server then to
// open the sink again.
type inTheWay struct {
	noFault
	signal bool
}

func (f inTheWay) name() string {
	return map[bool]string{true: "a folder in the sink's place after SIGHUP", false: "a folder in the sink's place"}[f.signal]
}
func (inTheWay) refuses() bool { return true }
func (inTheWay) down() bool    { return true }

func (f inTheWay) apply(s *store, run *server) error {
	if err := s.rename(); err != nil {
		return err
	}
	if err := os.Mkdir(s.sink, 0o700); err != nil {
		return err
	}
	if f.signal {
		run.reopen()
	}
	return nil
}

func (f inTheWay) lift(s *store, run *server) error {
	err := os.Remove(s.sink)
	if f.signal {
		run.reopen()
	}
	return err
}

// away renames the folder of the sink, asks the server to open the sink again, and puts it back.
type away struct{ noFault }

func (away) name() string { return "the sink's folder is away" }

func (away) apply(s *store, run *server) error {
	folder := filepath.Dir(s.sink)
	err := os.Rename(folder, folder+"-away")
	run.reopen()
	return err
}

func (away) lift(s *store, run *server) error {
	folder := filepath.Dir(s.sink)
	err := os.Rename(folder+"-away", folder)
	run.reopen()
	return err
}

// full fills the disk: under load, or before the start. signal asks for a rotation then.
type full struct {
	noFault
	before, signal bool
}

func (f full) name() string {
	switch {
	case f.before:
		return "disk full from the start"
	case f.signal:
		return "disk full, rotated"
	}
	return "disk full"
}
func (full) refuses() bool { return true }

func (f full) prepare(s *store) error {
	if !f.before {
		return nil
	}
	// What was allocated for the last line's file is free again, so that only little is left.
	if err := os.Truncate(s.sink, size(s.sink)); err != nil && !os.IsNotExist(err) {
		return err
	}
	return s.disk.fill(200 << 10)
}

func (f full) apply(s *store, run *server) error {
	if f.before {
		return nil
	}
	if err := s.disk.fill(0); err != nil {
		return err
	}
	if !f.signal {
		return nil
	}
	// The server keeps a reserve that was allocated before. The next file has none.
	if err := s.rename(); err != nil {
		return err
	}
	run.reopen()
	return nil
}

func (full) lift(s *store, _ *server) error { return s.disk.empty() }

// hang makes everything hang that writes to the disk.
type hang struct{ noFault }

func (hang) name() string                    { return "disk hangs" }
func (hang) refuses() bool                   { return true }
func (hang) down() bool                      { return true }
func (hang) apply(s *store, _ *server) error { return s.disk.freeze() }
func (hang) lift(s *store, _ *server) error  { return s.disk.thaw() }
