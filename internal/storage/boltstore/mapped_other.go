//go:build !linux

package boltstore

import (
	"os"

	bolt "go.etcd.io/bbolt"
)

// mapFile returns nil: the file is read.
func mapFile(*os.File, int64) (data []byte, unmap func()) { return nil, func() {} }

// populate does nothing: pages are mapped when they are read.
func populate(*bolt.DB, int64) {}
