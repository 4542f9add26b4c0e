//go:build !linux

package anchor

import "os"

// SyncData makes the content of a file durable, and its length.
func SyncData(file *os.File) error { return file.Sync() }
