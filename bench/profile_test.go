package bench

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// profileParts are the parts of a server's processor time, by the names of the functions where it is
// spent. The first part that matches counts.
var profileParts = []struct {
	name  string
	match *regexp.Regexp
}{
	{"system calls", regexp.MustCompile(`^(syscall\.|internal/runtime/syscall|internal/poll|runtime\.(entersyscall|exitsyscall|reentersyscall|futex|epoll|netpoll|write1|read\b|usleep|vdso))`)},
	{"garbage collection and allocation", regexp.MustCompile(`^internal/runtime/gc|^runtime\.(madvise|\(\*m(heap|cache|central|span)|\(\*gc|\(\*sweep|\(\*page|\(\*limiter|gc|malloc|scan|grey|mark|sweep|bulkBarrier|wb|newobject|growslice|makeslice|memclr|heap|span|nextFree|typedmemmove|findObject|tryDefer|deduct|typePointers|\(\*typePointers|add[0-9]|publicationBarrier)`)},
	{"stacks of new goroutines", regexp.MustCompile(`^runtime\.(newstack|copystack|adjust|stack|pcvalue|funcMaxSPDelta|\(\*unwinder|\(\*stkframe|gentraceback|readvarint|step\b|findfunc|funcdata|pcdatavalue|morestack)`)},
	{"scheduler and locks", regexp.MustCompile(`^(runtime\.|sync\.|internal/sync|sync/atomic|internal/runtime/atomic)`)},
	{"SHA-256", regexp.MustCompile(`^crypto/`)},
	{"protobuf", regexp.MustCompile(`^google\.golang\.org/protobuf|/gen/keysvc/`)},
	{"gRPC and HTTP/2", regexp.MustCompile(`^(google\.golang\.org/grpc|golang\.org/x/net)`)},
	{"keysvc", regexp.MustCompile(`^github\.com/scribe-mail/keysvc`)},
}

// profileLine is a line of `pprof -top`: flat time, its share, and the function at the end.
var profileLine = regexp.MustCompile(`^\s*[\d.]+m?s\s+([\d.]+)%\s+[\d.]+%\s+\S+\s+[\d.]+%\s+(.+)$`)

// profile measures where the server's processor time goes, with a number of keys: the shares of parts.
func (b *bench) profile(keys int) {
	path := filepath.Join(b.lab.work, fmt.Sprintf("profile-%d", keys))
	server := b.lab.inTest(keys, "-test.cpuprofile", path)
	b.validations(server, overTCP, 64)(max(b.time, 50*time.Millisecond))
	b.lab.stop(fmt.Sprintf("in test %d", keys))
	text, err := exec.CommandContext(b.Context(), "go", "tool", "pprof", "-top", "-nodecount=100000", "-nodefraction=0", path).Output()
	if err != nil {
		b.Fatal(err)
	}
	shares := make(map[string]float64)
	for line := range strings.SplitSeq(string(text), "\n") {
		found := profileLine.FindStringSubmatch(line)
		if found == nil {
			continue
		}
		share, err := strconv.ParseFloat(found[1], 64)
		if err != nil {
			b.Fatal(err)
		}
		part := "the rest"
		for _, each := range profileParts {
			if each.match.MatchString(found[2]) {
				part = each.name
				break
			}
		}
		shares[part] += share
	}
	for _, each := range profileParts {
		b.add(each.name, "%", []float64{shares[each.name]}, "", nil)
	}
	b.add("the rest", "%", []float64{shares["the rest"]}, "", nil)
	b.profileText = string(text)
}
