//go:build !linux

package boltstore

import "os"

// allocate reserves disk space for the bytes of a file from one offset to another, and
// makes the file at least as long. It overwrites these bytes, which hold nothing that is
// needed.
func allocate(file *os.File, from, to int64) error { return writeZeros(file, from, to) }
