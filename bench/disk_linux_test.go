package bench

import (
	"os"

	"golang.org/x/sys/unix"
)

// syncData writes the data of a file to the disk.
func syncData(file *os.File) error { return unix.Fdatasync(int(file.Fd())) }
