//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/scribe-mail/keysvc/test/hostile/attack"
)

// What promise 16 means in numbers.
const (
	// maxGrowth is how much memory an attack may take, in bytes, besides its connections.
	maxGrowth = 64 << 20
	// maxLeft is how much more memory than before there may be when the attack is over, and
	// maxGoroutines how many more goroutines.
	maxLeft, maxGoroutines = 16 << 20, 50
	// recovery is how long the server may take to be as it was.
	recovery = 10 * time.Second
	// late is the longest time in which 99 of 100 validations must be answered.
	late = 50 * time.Millisecond
)

// round is one attack on one server.
type round struct {
	attack attack.Attack
	seed   uint64
	// lasts is how long the attack lasts, and quiet how long the good caller is alone before it.
	lasts, quiet time.Duration
	program      string
	control      *good
	template     string
	tokens       []string
	flags        []string
}

// outcome is what came of a round.
type outcome struct {
	name          string
	before, peak  int64
	after         int64
	kernel        int64
	settled       time.Duration
	counts, ended counts
	// quiet and during are what the good caller saw before the attack and during it, and control
	// what another caller of another server saw during it.
	quiet, during, control *experience
	// processor is what the server used of a processor during the attack, attacker what the
	// attacker used.
	processor, attacker float64
	did                 string
	load                string
	// problems are breaches of promise 16. doubts would be, if the machine had not been so busy
	// that a server without an attack was late as well.
	problems, doubts []string
}

// play attacks one server, and returns what came of it.
func (r round) play(ctx context.Context) (outcome, error) {
	result := outcome{name: r.attack.Name}
	folder, err := os.MkdirTemp("", "keysvc-hostile-round-")
	if err != nil {
		return result, err
	}
	defer os.RemoveAll(folder)
	data := filepath.Join(folder, "data")
	if err := os.CopyFS(data, os.DirFS(r.template)); err != nil {
		return result, err
	}
	_ = os.Chmod(data, 0o700)
	s, err := startServer(ctx, r.program, data, r.flags...)
	if err != nil {
		return result, err
	}
	defer func() { _ = s.stop() }()
	caller, err := startGood(ctx, s, r.tokens)
	if err != nil {
		return result, err
	}
	defer caller.stop()

	// 1. The good caller is alone. Its first calls, which make connections, do not count.
	pause(ctx, time.Second)
	caller.since()
	pause(ctx, r.quiet)
	result.quiet = caller.since()
	if result.counts, err = s.count(true); err != nil {
		return result, fmt.Errorf("the probe: %w", err)
	}
	watch := observe(ctx, s)
	pause(ctx, time.Second)
	result.before = watch.peak()
	kernel := socketMemory()

	// 2. The attack.
	used := busy(s.Process.Pid)
	caller.since()
	r.control.since()
	began := time.Now()
	report, share, err := r.attackServer(ctx, s.address)
	if err != nil {
		return result, err
	}
	took := time.Since(began)
	result.during, result.control = caller.since(), r.control.since()
	result.processor = float64(busy(s.Process.Pid)-used) / float64(took)
	result.attacker, result.did, result.load = share, report, load()
	result.peak = watch.peak()
	result.kernel = watch.peakKernel() - kernel

	// 3. The server becomes what it was.
	over := time.Now()
	for ctx.Err() == nil {
		result.after, result.settled = resident(s.Process.Pid), time.Since(over)
		if result.ended, err = s.count(false); err != nil {
			break
		}
		if result.after <= result.before+maxLeft && result.ended.Goroutines <= result.counts.Goroutines+maxGoroutines || result.settled > recovery {
			break
		}
		pause(ctx, 200*time.Millisecond)
	}
	watch.stop()
	pause(ctx, patience-time.Since(over)) // for the calls that began during the attack
	result.during, result.control = caller.settle(result.during), r.control.settle(result.control)
	if final, probeErr := s.count(true); probeErr == nil {
		result.ended.Heap = final.Heap
	}
	result.judge(s.alive())
	return result, ctx.Err()
}

// attackServer runs the attacker in a process of its own, with its share of a processor. It
// returns what the attacker reports, and how much of a processor it used.
func (r round) attackServer(ctx context.Context, address string) (string, float64, error) {
	self, err := os.Executable()
	if err != nil {
		return "", 0, err
	}
	var output, complaints bytes.Buffer
	attacker := exec.Command(self, "-attacker", r.attack.Name, "-seed", strconv.FormatUint(r.seed, 10), "-time", r.lasts.String(), "-address", address)
	attacker.Env = append(os.Environ(), "GOMAXPROCS=1")
	attacker.Stdout, attacker.Stderr = &output, &complaints
	attacker.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := attacker.Start(); err != nil {
		return "", 0, err
	}
	done, used := make(chan struct{}), make(chan time.Duration)
	began := time.Now()
	go func() { used <- govern(attacker.Process, done) }()
	ended := make(chan error, 1)
	go func() { ended <- attacker.Wait() }()
	select {
	case err = <-ended:
	case <-time.After(r.lasts + 20*time.Second):
		_ = attacker.Process.Kill()
		<-ended
	}
	close(done)
	share := float64(<-used) / float64(time.Since(began))
	if err != nil {
		return "", share, fmt.Errorf("the attacker: %w\n%s", err, complaints.String())
	}
	return strings.TrimSpace(output.String()), share, nil
}

// judge compares with promise 16.
func (o *outcome) judge(alive bool) {
	complain := func(format string, arguments ...any) {
		o.problems = append(o.problems, fmt.Sprintf(format, arguments...))
	}
	if !alive {
		complain("the server is gone")
	}
	if growth := o.peak - o.before; growth > maxGrowth {
		complain("memory +%d MiB", growth>>20)
	}
	if o.after > o.before+maxLeft {
		complain("memory +%d MiB %.0f s after", (o.after-o.before)>>20, o.settled.Seconds())
	}
	if o.ended.Goroutines > o.counts.Goroutines+maxGoroutines {
		complain("%d goroutines left", o.ended.Goroutines-o.counts.Goroutines)
	}
	if o.ended.Heap > o.counts.Heap+maxLeft {
		complain("heap +%d MiB after", (o.ended.Heap-o.counts.Heap)>>20)
	}
	if o.during.refused > 0 {
		complain("%d refused: %v", o.during.refused, o.during.first)
	}
	if len(o.during.validations) == 0 {
		complain("no validation was answered")
	}
	// What is late may be late because the machine is busy with something else.
	if percentile(o.control.validations, 0.99) > late/2 || o.control.failed > 0 {
		complain = func(format string, arguments ...any) {
			o.doubts = append(o.doubts, fmt.Sprintf(format, arguments...))
		}
	}
	if p99 := percentile(o.during.validations, 0.99); p99 > late {
		complain("p99 %d ms", p99.Milliseconds())
	}
	if o.during.failed > 0 {
		complain("%d failed: %v", o.during.failed, o.during.first)
	}
	if o.during.sessions > 0 {
		complain("%d sessions lost", o.during.sessions)
	}
}

// observer looks at the memory of a server.
type observer struct {
	end          chan struct{}
	most, kernel chan int64
}

// observe begins to look at the memory of a server.
func observe(ctx context.Context, s *server) *observer {
	w := &observer{end: make(chan struct{}), most: make(chan int64), kernel: make(chan int64)}
	go func() {
		var peak, kernel int64
		ticker := time.NewTicker(50 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				peak, kernel = max(peak, resident(s.Process.Pid)), max(kernel, socketMemory())
			case w.most <- peak:
				peak = 0
			case w.kernel <- kernel:
				kernel = 0
			case <-w.end:
				return
			case <-ctx.Done():
				close(w.most)
				close(w.kernel)
				return
			}
		}
	}()
	return w
}

// peak returns the most memory since the last time.
func (w *observer) peak() int64       { return <-w.most }
func (w *observer) peakKernel() int64 { return <-w.kernel }
func (w *observer) stop()             { close(w.end) }

func pause(ctx context.Context, long time.Duration) {
	select {
	case <-time.After(long):
	case <-ctx.Done():
	}
}

// table writes what came of the rounds.
func table(out io.Writer, results []outcome) {
	fmt.Fprintf(out, "\n%-22s %6s %6s %6s %5s %6s | %6s | %5s %5s %5s %5s %5s %6s %5s %5s %5s | %4s %4s %5s | %s\n",
		"attack", "before", "peak", "after", "in s", "kernel", "gorout", "quiet", "contr", "p50", "p99", "max", "new", "manag", "refus", "fail", "cpu", "att", "load", "verdict")
	for _, o := range results {
		verdict := "ok"
		switch {
		case len(o.problems) > 0:
			verdict = "BROKEN: " + strings.Join(append(o.problems, o.doubts...), "; ")
		case len(o.doubts) > 0:
			verdict = "undecided, the machine is busy: " + strings.Join(o.doubts, "; ")
		}
		milli := func(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }
		fmt.Fprintf(out, "%-22s %6d %6d %6d %5.1f %6d | %6d | %5s %5s %5s %5s %5s %6s %5s %5d %5d | %4.2f %4.2f %5s | %s\n",
			o.name, o.before>>20, o.peak>>20, o.after>>20, o.settled.Seconds(), o.kernel>>20, o.ended.Goroutines-o.counts.Goroutines,
			milli(percentile(o.quiet.validations, 0.99)), milli(percentile(o.control.validations, 0.99)), milli(percentile(o.during.validations, 0.5)), milli(percentile(o.during.validations, 0.99)), milli(percentile(o.during.validations, 1)),
			milli(percentile(o.during.newcomers, 1)), milli(percentile(o.during.management, 0.99)), o.during.refused, o.during.failed, o.processor, o.attacker, o.load, verdict)
	}
}

var errBroken = errors.New("promise 16 is broken")
