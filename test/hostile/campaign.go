//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/scribe-mail/keysvc/test/hostile/attack"
)

// What promise 16 means in numbers.
const (
	// maxGrowth is how much memory an attack may take, in bytes, besides its connections.
	maxGrowth = 64 << 20
	// maxConnections and maxPerSource are the settings max-connections and
	// max-connections-per-source, by default. perConnection is what each connection may cost
	// besides, in bytes. otherDescriptors is more than a server has otherwise, with the good
	// caller's connections.
	maxConnections, maxPerSource = 2048, 1024
	perConnection                = 32 << 10
	// youngShare is the part of the connections that may have no settings yet: a quarter.
	youngShare       = 4
	otherDescriptors = 100
	// maxLeft is how much more memory than before there may be when the attack is over, and
	// maxGoroutines how many more goroutines.
	maxLeft, maxGoroutines = 16 << 20, 50
	// recovery is how long the server may take to be as it was.
	recovery = 10 * time.Second
	// late is the longest time in which 99 of 100 validations must be answered.
	late = 50 * time.Millisecond
	// othersShare is the part of the machine that others may use while it is decided what is late.
	othersShare = 0.2
)

// plan is what all rounds of a campaign have in common.
type plan struct {
	seed uint64
	// lasts is how long each attack lasts, and quiet how long the good caller is alone at the
	// start of a server.
	lasts, quiet time.Duration
	// shared reports whether a server that has withstood an attack is attacked again.
	shared   bool
	way      way
	doors    doors
	program  string
	template string
	tokens   []string
	// spared is a server that nobody attacks, and control its caller.
	spared  *server
	control *good
}

// stage is a server with its good caller.
type stage struct {
	*server
	folder string
	caller *good
	watch  *observer
	// quiet is what the caller saw before any attack; memory, counts and kernel are the server's
	// memory then, what the probe counted, and the memory of the system's sockets.
	quiet          *experience
	memory, kernel int64
	counts         counts
}

// raise starts a server over a copy of the store, and a good caller, and looks at both in peace.
func (p plan) raise(ctx context.Context) (*stage, error) {
	folder, err := os.MkdirTemp("", "keysvc-hostile-round-")
	if err != nil {
		return nil, err
	}
	st := &stage{folder: folder}
	if st.server, err = startCopy(ctx, p.program, p.template, filepath.Join(folder, "data"), p.doors); err != nil {
		return nil, errors.Join(err, st.close())
	}
	if st.caller, err = startGood(ctx, st.server, p.tokens); err != nil {
		return nil, errors.Join(err, st.close())
	}
	// The first calls, which make connections, do not count.
	pause(ctx, time.Second)
	st.caller.since()
	st.watch = observe(ctx, st.server)
	pause(ctx, p.quiet)
	st.quiet = st.caller.since()
	if st.counts, err = st.count(true); err != nil {
		return nil, errors.Join(fmt.Errorf("the probe: %w", err), st.close())
	}
	pause(ctx, 300*time.Millisecond)
	st.memory, st.kernel = st.watch.peak()
	return st, nil
}

// close stops the server and its good caller.
func (st *stage) close() error {
	if st.watch != nil {
		st.watch.stop()
	}
	if st.caller != nil {
		st.caller.stop()
	}
	var err error
	if st.server != nil {
		err = st.stop()
	}
	return errors.Join(err, os.RemoveAll(st.folder))
}

// outcome is what came of a round.
type outcome struct {
	name          string
	before, peak  int64
	after         int64
	kernel        int64
	connections   int
	settled       time.Duration
	counts, ended counts
	// quiet and during are what the good caller saw before the attack and during it, and control
	// what another caller of another server saw during it.
	quiet, during, control *experience
	// processor is how many processors the server used during the attack, attacker how many the
	// attacker used, and others how many were used by what does not belong to the campaign.
	processor, attacker, others float64
	did                         string
	// problems are breaches of promise 16. doubts would be, if the machine had not been so busy
	// that a server without an attack was late as well.
	problems, doubts []string
}

// play attacks a server, and returns what came of it.
func (p plan) play(ctx context.Context, st *stage, one attack.Attack) (outcome, error) {
	result := outcome{name: one.Name, before: st.memory, counts: st.counts, quiet: st.quiet}
	// 1. The attack.
	used, mine, all := busy(st.Process.Pid), busy(os.Getpid())+busy(p.spared.Process.Pid), processors()
	st.watch.peak()
	st.watch.peakConnections()
	st.caller.since()
	p.control.since()
	began := time.Now()
	report, share, err := p.attack(ctx, one, st.address)
	if err != nil {
		return result, err
	}
	took := time.Since(began)
	during, control := st.caller.since(), p.control.since()
	result.processor = float64(busy(st.Process.Pid)-used) / float64(took)
	mine = busy(os.Getpid()) + busy(p.spared.Process.Pid) - mine
	result.others = float64(processors()-all-mine)/float64(took) - result.processor - share
	result.attacker, result.did = share, report.String()
	result.peak, result.kernel = st.watch.peak()
	result.kernel -= st.kernel
	result.connections = st.watch.peakConnections()

	// 2. The server becomes what it was, and the calls that began during the attack end.
	over := time.Now()
	for ctx.Err() == nil {
		result.after, result.settled = resident(st.Process.Pid), time.Since(over)
		if result.ended, err = st.count(false); err != nil || result.settled > recovery {
			if final, err := st.count(true); err == nil {
				result.ended.Heap = final.Heap
			}
			break
		}
		if result.after <= result.before+maxLeft && result.ended.Goroutines <= result.counts.Goroutines+maxGoroutines && st.caller.settled(during) {
			final, err := st.count(true) // collects garbage, so it comes last
			if result.ended.Heap = final.Heap; err != nil || final.Heap <= result.counts.Heap+maxLeft {
				break
			}
		}
		pause(ctx, 100*time.Millisecond)
	}
	result.during, result.control = st.caller.copied(during), p.control.copied(control)
	result.judge(st.alive(), report, one, p.lasts)
	return result, ctx.Err()
}

// report is what an attacker says about its attack.
type report struct {
	Connections, Refused, Ended, GoneAway, Streams, Answered, Reset, Written int64
}

func (r report) String() string {
	return fmt.Sprintf("connections %d (refused %d, ended %d, GOAWAY %d) streams %d (answered %d, reset %d) sent %d KiB",
		r.Connections, r.Refused, r.Ended, r.GoneAway, r.Streams, r.Answered, r.Reset, r.Written>>10)
}

// attack runs the attacker in a process of its own, with its share of a processor. It returns
// what the attacker reports, and how much of a processor it used.
func (p plan) attack(ctx context.Context, one attack.Attack, address string) (report, float64, error) {
	var said report
	self, err := os.Executable()
	if err != nil {
		return said, 0, err
	}
	var output, complaints bytes.Buffer
	attacker := exec.Command(self, "-attacker", one.Name, "-seed", strconv.FormatUint(p.seed, 10), "-time", p.lasts.String(), "-address", address, "-way", string(p.way), "-folder", p.doors.folder)
	attacker.Env = append(os.Environ(), "GOMAXPROCS=1")
	attacker.Stdout, attacker.Stderr = &output, &complaints
	attacker.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := attacker.Start(); err != nil {
		return said, 0, err
	}
	done, used := make(chan struct{}), make(chan time.Duration)
	began := time.Now()
	go func() { used <- govern(attacker.Process, done) }()
	ended := make(chan error, 1)
	go func() { ended <- attacker.Wait() }()
	select {
	case err = <-ended:
	case <-ctx.Done():
		_ = attacker.Process.Kill()
		err = errors.Join(ctx.Err(), <-ended)
	case <-time.After(p.lasts + 30*time.Second):
		_ = attacker.Process.Kill()
		err = errors.Join(errors.New("it did not end"), <-ended)
	}
	close(done)
	share := float64(<-used) / float64(time.Since(began))
	if err == nil {
		err = json.Unmarshal(output.Bytes(), &said)
	}
	if err != nil {
		return said, share, fmt.Errorf("the attacker: %w\n%s", err, complaints.String())
	}
	return said, share, nil
}

// judge compares with promise 16.
func (o *outcome) judge(alive bool, said report, one attack.Attack, lasts time.Duration) {
	complain := func(format string, arguments ...any) {
		o.problems = append(o.problems, fmt.Sprintf(format, arguments...))
	}
	if said.Connections == 0 {
		complain("the attacker never had a connection: nothing was tested")
	}
	// A server that ends connections in time has ended at least those with which the attack began.
	if ended := max(said.Ended, said.GoneAway) + said.Refused; one.Ends > 0 && lasts >= one.Ends && 2*ended < said.Connections {
		complain("the server ended %d of %d connections", ended, said.Connections)
	}
	if !alive {
		complain("the server is gone")
	}
	most := maxConnections
	switch {
	case one.Alone:
		most = maxPerSource
	case one.Young:
		most = maxConnections / youngShare
	}
	if o.connections > most+otherDescriptors {
		complain("%d connections, of %d", o.connections, most)
	}
	allowed := int64(maxGrowth + perConnection*min(o.connections, maxConnections))
	if growth := o.peak - o.before; growth > allowed {
		complain("memory +%d MiB, of %d", growth>>20, allowed>>20)
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
	if o.others > othersShare*float64(runtime.NumCPU()) || percentile(o.control.validations, 0.99) > late/2 || o.control.failed > 0 {
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

// enough is how much memory a server may have before it is killed, for the machine's sake.
const enough = 3 << 30

// observer looks at the memory of a server.
type observer struct {
	mu           sync.Mutex
	most, kernel int64
	connections  int
	end          chan struct{}
}

// observe begins to look at the memory of a server.
func observe(ctx context.Context, s *server) *observer {
	w := &observer{end: make(chan struct{})}
	go func() {
		ticker := time.NewTicker(50 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
			case <-w.end:
				return
			case <-ctx.Done():
				return
			}
			memory, kernel, connections := resident(s.Process.Pid), socketMemory(), descriptors(s.Process.Pid)
			if memory > enough {
				_ = s.Process.Kill()
			}
			w.mu.Lock()
			w.most, w.kernel, w.connections = max(w.most, memory), max(w.kernel, kernel), max(w.connections, connections)
			w.mu.Unlock()
		}
	}()
	return w
}

// peak returns the most memory of the server, and of the system's sockets, since the last time.
func (w *observer) peak() (memory, kernel int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	memory, kernel = w.most, w.kernel
	w.most, w.kernel = 0, 0
	return memory, kernel
}

// peakConnections returns the most connections of the server since the last time.
func (w *observer) peakConnections() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	connections := w.connections
	w.connections = 0
	return connections
}

func (w *observer) stop() { close(w.end) }

func pause(ctx context.Context, long time.Duration) {
	select {
	case <-time.After(long):
	case <-ctx.Done():
	}
}

// table writes what came of the rounds.
func table(out io.Writer, results []outcome) {
	fmt.Fprintf(out, "\n%-22s %6s %6s %6s %5s %6s | %5s %6s | %5s %5s %5s %5s %5s %6s %5s %5s %5s | %4s %4s %5s | %s\n",
		"attack", "before", "peak", "after", "in s", "kernel", "conns", "gorout", "quiet", "contr", "p50", "p99", "max", "new", "manag", "refus", "fail", "cpu", "att", "other", "verdict")
	for _, o := range results {
		verdict := "ok"
		switch {
		case len(o.problems) > 0:
			verdict = "BROKEN: " + strings.Join(append(o.problems, o.doubts...), "; ")
		case len(o.doubts) > 0:
			verdict = "undecided, the machine is busy: " + strings.Join(o.doubts, "; ")
		}
		milli := func(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }
		fmt.Fprintf(out, "%-22s %6d %6d %6d %5.1f %6d | %5d %6d | %5s %5s %5s %5s %5s %6s %5s %5d %5d | %4.2f %4.2f %5.2f | %s\n",
			o.name, o.before>>20, o.peak>>20, o.after>>20, o.settled.Seconds(), o.kernel>>20, o.connections, o.ended.Goroutines-o.counts.Goroutines,
			milli(percentile(o.quiet.validations, 0.99)), milli(percentile(o.control.validations, 0.99)), milli(percentile(o.during.validations, 0.5)), milli(percentile(o.during.validations, 0.99)), milli(percentile(o.during.validations, 1)),
			milli(percentile(o.during.newcomers, 1)), milli(percentile(o.during.management, 0.99)), o.during.refused, o.during.failed, o.processor, o.attacker, o.others, verdict)
	}
}
