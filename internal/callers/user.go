package callers

import (
	"os"
	"strconv"
	"strings"
	"sync"
)

// unmappedUser returns the user id that the kernel shows for a user who has none in this user
// namespace. It stands for many users, so it proves nothing.
var unmappedUser = sync.OnceValue(func() uint32 {
	const usual = 65534
	text, err := os.ReadFile("/proc/sys/kernel/overflowuid")
	if err != nil {
		return usual
	}
	id, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return usual
	}
	return uint32(id)
})

// noUser is the user id that the kernel gives for no user, (uid_t)-1.
const noUser = 1<<32 - 1
