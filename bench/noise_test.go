package bench

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/bench/figures"
)

// What counts as noise: the share of the machine that other programs took, or that the host kept for
// others, and how far the rounds of the baseline are apart.
const (
	otherShare    = 0.05
	stealShare    = 0.01
	baselineWidth = 0.15
)

// quiet is the state of the machine when a measurement began.
type quiet struct {
	began       time.Time
	busy, steal time.Duration
	own         time.Duration
}

func listen(t *testing.T, l *lab) quiet {
	t.Helper()
	busy, steal := machineTime()
	return quiet{began: time.Now(), busy: busy, steal: steal, own: ownTime(t, l)}
}

// noise returns what disturbed the machine since then; empty for nothing.
func (q quiet) noise(t *testing.T, l *lab) string {
	t.Helper()
	busy, steal := machineTime()
	whole := float64(time.Since(q.began)) * float64(runtime.NumCPU())
	var found []string
	// The clock of /proc/stat ticks 100 times a second, so a short measurement cannot tell.
	if whole > float64(2*time.Second) {
		if share := float64(busy-q.busy-(ownTime(t, l)-q.own)) / whole; share > otherShare {
			found = append(found, fmt.Sprintf("other programs took %.0f %% of the machine", 100*share))
		}
		if share := float64(steal-q.steal) / whole; share > stealShare {
			found = append(found, fmt.Sprintf("the host kept %.0f %% of the machine", 100*share))
		}
	}
	return strings.Join(found, "; ")
}

// noiseOf returns what disturbed a figure.
func noiseOf(figure figures.Figure, machine string) string {
	if figure.BaselineSpread != nil && len(figure.BaselineRounds) > 5 && figure.BaselineSpread.Width() > baselineWidth {
		apart := fmt.Sprintf("the rounds of the baseline differ by %.0f %%", 100*figure.BaselineSpread.Width())
		if machine == "" {
			return apart
		}
		return machine + "; " + apart
	}
	return machine
}

// machineTime returns the time that all processors were busy since the boot, and the time that the
// host kept for others; 0 where there is no /proc/stat.
func machineTime() (busy, steal time.Duration) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	var user, nice, system, idle, wait, interrupt, soft, stolen int64
	if _, err := fmt.Sscanf(string(text), "cpu %d %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &wait, &interrupt, &soft, &stolen); err != nil {
		return 0, 0
	}
	const tick = 10 * time.Millisecond
	return time.Duration(user+nice+system+interrupt+soft) * tick, time.Duration(stolen) * tick
}

// ownTime returns the processor time of this process, of its children, and of those that have ended.
func ownTime(t *testing.T, l *lab) time.Duration {
	t.Helper()
	var ended syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &ended); err != nil {
		t.Fatal(err)
	}
	own := processorTime(t, os.Getpid()) + time.Duration(ended.Utime.Nano()+ended.Stime.Nano())
	for _, each := range l.targets {
		own += processorTime(t, each.Process.Pid)
	}
	for _, each := range l.generators {
		own += processorTime(t, each.Process.Pid)
	}
	return own
}
