package boltstore

import (
	"os"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// populatePart is how much of a file is mapped in one call.
const populatePart = 64 << 20

// mapFile maps a file for reading, with all of its pages. It returns nil if it cannot. The caller
// calls unmap.
func mapFile(file *os.File, size int64) (data []byte, unmap func()) {
	data, err := unix.Mmap(int(file.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, func() {}
	}
	unmap = func() { _ = unix.Munmap(data) }
	err = inParallel(int((size+populatePart-1)/populatePart), func(_, part int) error {
		return unix.Madvise(data[part*populatePart:min((part+1)*populatePart, len(data))], unix.MADV_POPULATE_READ)
	})
	if err != nil { // an old kernel, or a part that cannot be read: reading it says why
		unmap()
		return nil, func() {}
	}
	return data, unmap
}

// populate maps all pages of an open file at once: one fault for each page would take longer than
// everything else that is done with the page. Errors do no harm, because the faults come then.
func populate(database *bolt.DB, size int64) {
	start := database.Info().Data
	_ = inParallel(int((size+populatePart-1)/populatePart), func(_, part int) error {
		from := int64(part) * populatePart
		length := min(populatePart, size-from)
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, start+uintptr(from), uintptr(length), unix.MADV_POPULATE_READ)
		return nil
	})
}
