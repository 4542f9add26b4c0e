package boltstore

import (
	"errors"
	"os"
	"syscall"
)

// allocate makes the disk keep room for the bytes of a file between two offsets, and
// the file at least as long. What the bytes hold stays as it is.
func allocate(file *os.File, from, to int64) error {
	connection, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = connection.Control(func(descriptor uintptr) {
		for {
			result = syscall.Fallocate(int(descriptor), 0, from, to-from) //nolint:gosec // a descriptor is an int
			if !errors.Is(result, syscall.EINTR) {
				return
			}
		}
	})
	switch {
	case err != nil:
		return err
	case errors.Is(result, syscall.EOPNOTSUPP), errors.Is(result, syscall.ENOSYS):
		return writeZeros(file, from, to)
	}
	return os.NewSyscallError("fallocate", result)
}
