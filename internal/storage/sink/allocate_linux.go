package sink

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// keepSize is FALLOC_FL_KEEP_SIZE: the length of the file stays as it is.
const keepSize = 1

// allocate allocates the blocks of a file between two offsets.
func allocate(file *os.File, from, to int64) error {
	connection, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = connection.Control(func(descriptor uintptr) {
		for {
			result = syscall.Fallocate(int(descriptor), keepSize, from, to-from)
			if !errors.Is(result, syscall.EINTR) {
				return
			}
		}
	})
	switch {
	case err != nil:
		return err
	case errors.Is(result, syscall.EOPNOTSUPP), errors.Is(result, syscall.ENOSYS):
		return fmt.Errorf("fallocate: %w", errors.ErrUnsupported)
	}
	return os.NewSyscallError("fallocate", result)
}
