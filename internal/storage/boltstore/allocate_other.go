//go:build !linux

package boltstore

import "os"

// allocate makes the disk keep room for the bytes of a file between two offsets, and
// the file at least as long. Nothing that is needed is between them.
func allocate(file *os.File, from, to int64) error { return writeZeros(file, from, to) }
