package anchor

import (
	"os"
	"syscall"
)

// SyncData makes the content of a file durable, and its length.
func SyncData(file *os.File) error {
	connection, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	if err := connection.Control(func(descriptor uintptr) {
		result = syscall.Fdatasync(int(descriptor))
	}); err != nil {
		return err
	}
	return os.NewSyscallError("fdatasync", result)
}
