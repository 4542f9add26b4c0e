package boltstore

import (
	"errors"
	"os"
	"syscall"
)

// allocate reserves disk space for the bytes of a file from one offset to another, and
// makes the file at least as long. The content of these bytes stays as it is.
func allocate(file *os.File, from, to int64) error {
	connection, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = connection.Control(func(descriptor uintptr) {
		for {
			result = syscall.Fallocate(int(descriptor), 0, from, to-from)
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
