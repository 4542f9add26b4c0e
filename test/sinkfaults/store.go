//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// store is a store with its sink, over many lives of the server.
type store struct {
	program, data, sink, logPath string
	disk                         *disk
	random                       *rand.Rand
	clients                      []*client
	tally                        tally
	quick                        bool

	answers []answer
	lives   int
	rotated int
	// torn are the sink's files that may end in the middle of a line: a kill came after the renaming
	// of the file and before the next one had a line.
	torn map[string]bool
	// windows are the times during which the sink could not be written for certain.
	windows []window
	// stalls has the lives in which the sink could not be written at some time.
	stalls map[int]bool
}

// window is a time during which the sink could not be written: from a refused change until before the
// fault was lifted.
type window struct {
	life     int
	from, to time.Time
	// read is when the sink was read last before the fault was lifted, and found has what it had then, by
	// actor. read is the zero time if the server was killed during the fault: a line that was being
	// written then can be whole, and not late.
	read  time.Time
	found map[string]line
}

// tally counts what was seen.
type tally struct{ answers, refused, unknown, narrowed, late, rotations, kills, cuts int }

func (t *tally) add(other *tally) {
	t.answers += other.answers
	t.refused += other.refused
	t.unknown += other.unknown
	t.narrowed += other.narrowed
	t.late += other.late
	t.rotations += other.rotations
	t.kills += other.kills
	t.cuts += other.cuts
}

// String returns the counts in words.
func (t *tally) String() string {
	return fmt.Sprintf("%d changes acknowledged, %d of them while the sink was down; %d refused, %d without an answer; %d late lines; %d rotations, %d kills, %d power cuts",
		t.answers, t.narrowed, t.refused, t.unknown, t.late, t.rotations, t.kills, t.cuts)
}

// newStore makes a store whose sink lies on a disk of a kind.
func newStore(ctx context.Context, program, folder, kind string, seed uint64) (*store, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	d, err := newDisk(kind, folder)
	if err != nil {
		return nil, err
	}
	s := &store{
		program: program, data: filepath.Join(folder, "data"), sink: filepath.Join(d.folder, "sink", "audit.jsonl"), logPath: filepath.Join(folder, "log"),
		disk: d, random: rand.New(rand.NewPCG(seed, 1)), torn: make(map[string]bool), stalls: make(map[int]bool),
	}
	for number := range clients + 1 {
		s.clients = append(s.clients, &client{number: number, random: rand.New(rand.NewPCG(seed, uint64(number)+2))})
	}
	return s, errors.Join(os.Mkdir(filepath.Dir(s.sink), 0o700), ctx.Err())
}

func (s *store) close() error { return errors.Join(s.disk.close(), os.RemoveAll(filepath.Dir(s.data))) }

// between returns a random duration.
func (s *store) between(least, most time.Duration) time.Duration {
	return least + time.Duration(s.random.Int64N(int64(most-least)))
}

func (s *store) chance(percent int) bool { return s.random.IntN(100) < percent }

// round runs the server under load once, with a fault or two, ends it, starts it again, stops it,
// and checks everything. It returns what it did.
func (s *store) round(ctx context.Context, number int) (what string, err error) {
	var did []string
	note := func(format string, values ...any) { did = append(did, fmt.Sprintf(format, values...)) }
	defer func() { what = strings.Join(did, ", ") }()

	// 1. Choose. Every choice is made here, so that the seed repeats them.
	all := s.faults()
	fault := all[s.random.IntN(len(all))]
	if number == 0 {
		fault = noFault{} // the clients make what they can narrow later
	}
	rotates, kills := s.chance(60), s.chance(65)
	killedInFault := kills && fault.name() != "" && s.chance(40)
	early, held, afterwards := s.between(300*time.Millisecond, time.Second), s.between(1500*time.Millisecond, 3*time.Second), s.between(200*time.Millisecond, time.Second)
	cutsPower := kills && s.disk.kind == diskHanging && s.chance(70)
	tearing, tear := kills && s.chance(50), s.random.Uint64()
	if s.quick {
		early, held, afterwards = early/3, held/5, afterwards/3
	}
	note("%s", map[bool]string{true: "no fault", false: fault.name()}[fault.name() == ""])

	// 2. Start, with load and rotations.
	if err := fault.prepare(s); err != nil {
		return "", err
	}
	s.lives++
	l := &life{number: s.lives}
	logBegan := size(s.logPath)
	run, err := launch(s.program, s.data, s.sink, s.logPath, s.lives == 1)
	if err != nil {
		return "", err
	}
	defer func() { _ = run.kill() }()
	if err := run.ready(ctx); err != nil {
		return "", err
	}
	if err := l.load(ctx, run, s.clients); err != nil {
		return "", err
	}
	defer l.group.Wait()
	defer l.cancel()
	r := &rotator{store: s, server: run}
	if rotates {
		r.start(ctx)
		note("rotations")
	}
	defer r.stop()
	err = s.live(ctx, l, run, fault, r, early, held, afterwards, killedInFault)
	if err != nil {
		return "", err
	}

	// 3. End it.
	if err := s.end(l, run, r, kills); err != nil {
		return "", err
	}
	s.stalls[l.number] = logged(s.logPath, logBegan, "the audit sink cannot be written")
	if s.stalls[l.number] {
		note("sink down")
	}
	// A kill can come before the log has said it.
	if kills && (fault.name() != "" || l.refusals > 0 || l.slow) {
		s.stalls[l.number] = true
	}
	s.answers = append(s.answers, l.answers...)
	if kills {
		s.tally.kills++
		note("killed%s", map[bool]string{true: " during the fault"}[killedInFault])
	}
	if cutsPower {
		if err := s.disk.losePower(); err != nil {
			return "", err
		}
		s.tally.cuts++
		note("power cut")
	}
	if err := s.afterEnd(l, kills); err != nil {
		return "", err
	}
	if tearing {
		how, err := s.tear(tear)
		if err != nil {
			return "", err
		}
		note("%s", how)
	}

	// 4. A start brings both together.
	again, err := launch(s.program, s.data, s.sink, s.logPath, false)
	if err != nil {
		return "", err
	}
	defer func() { _ = again.kill() }()
	if err := again.ready(ctx); err != nil {
		return "", err
	}
	if err := again.stop(); err != nil {
		return "", err
	}
	note("%d answers, %d refused", len(l.answers), l.refusals)
	return "", s.check(ctx)
}

// live lets time pass, with the fault in the middle.
func (s *store) live(ctx context.Context, l *life, run *server, fault fault, r *rotator, early, held, afterwards time.Duration, killedInFault bool) error {
	if s.lives == 1 && !s.quick {
		early += time.Second
	}
	if err := l.pause(ctx, run, early); err != nil || fault.name() == "" {
		return err
	}
	// No rotation meanwhile: faults rename files themselves, and a renaming would hang with the disk.
	r.lock.Lock()
	defer r.lock.Unlock()
	applied := time.Now()
	if err := fault.apply(s, run); err != nil {
		return err
	}
	lifted := false
	lift := func() error {
		if lifted {
			return nil
		}
		lifted = true
		return fault.lift(s, run)
	}
	defer lift()
	if fault.refuses() {
		// From the first refusal on the server knows that the sink is down.
		err := l.await(ctx, run, "no change is refused during the fault "+fault.name(), patience, func() bool { return l.newest.After(applied) })
		if err != nil {
			return err
		}
	}
	from := time.Now()
	if err := l.pause(ctx, run, held); err != nil {
		return err
	}
	if fault.down() {
		w := window{life: l.number, from: from, read: time.Now()}
		var err error
		if w.found, _, err = s.present(); err != nil {
			return err
		}
		if killedInFault {
			w.read = time.Time{}
		}
		w.to = time.Now()
		s.windows = append(s.windows, w)
	}
	if killedInFault {
		l.ending.Store(true)
		_ = run.Process.Kill()
		return lift()
	}
	if err := lift(); err != nil {
		return err
	}
	if fault.refuses() {
		since := time.Now()
		err := l.await(ctx, run, "after the fault "+fault.name()+" no change is made that does not only take away", patience, func() bool { return l.widened.After(since) })
		if err != nil {
			return err
		}
	}
	return l.pause(ctx, run, afterwards)
}

// end ends the server and its clients.
func (s *store) end(l *life, run *server, r *rotator, kills bool) error {
	if kills {
		l.ending.Store(true)
		_ = run.Process.Kill()
		r.stop()
		if err := run.kill(); err != nil {
			return err
		}
		l.group.Wait()
		l.cancel()
		return nil
	}
	r.stop()
	l.stopping.Store(true)
	l.group.Wait()
	l.cancel()
	return run.stop()
}

// files returns the sink's files in order.
func (s *store) files() ([]string, error) {
	files, err := filepath.Glob(s.sink + ".*")
	if err != nil {
		return nil, err
	}
	slices.Sort(files) // their numbers have as many digits
	if info, err := os.Stat(s.sink); err == nil && info.Mode().IsRegular() {
		files = append(files, s.sink)
	}
	return files, nil
}

// rename renames the sink's file, if there is one.
func (s *store) rename() error {
	s.rotated++
	err := os.Rename(s.sink, fmt.Sprintf("%s.%06d", s.sink, s.rotated))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// rotator rotates the sink again and again.
type rotator struct {
	store  *store
	server *server
	lock   sync.Mutex
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

func (r *rotator) start(ctx context.Context) {
	ctx, r.cancel = context.WithCancel(ctx)
	r.done = make(chan struct{})
	random := rand.New(rand.NewPCG(r.store.random.Uint64(), 3))
	go func() {
		defer close(r.done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Duration(random.IntN(150)) * time.Millisecond):
			}
			r.lock.Lock()
			if _, err := os.Stat(r.store.sink); err == nil && ctx.Err() == nil {
				r.err = errors.Join(r.err, r.store.rename())
				r.store.tally.rotations++
				if random.IntN(10) > 0 { // else two renamings come before one signal
					r.server.reopen()
				}
			} else if err != nil {
				r.server.reopen()
			}
			r.lock.Unlock()
		}
	}()
}

func (r *rotator) stop() {
	if r.cancel != nil {
		r.cancel()
		<-r.done
	}
}

// tear appends to the sink what a crash can leave, or cuts its last line. It returns what it did.
func (s *store) tear(choice uint64) (string, error) {
	content, err := os.ReadFile(s.sink)
	if err != nil || !strings.HasSuffix(string(content), "\n") {
		return "nothing to tear", nil //nolint:nilerr // it was renamed
	}
	lines := strings.SplitAfter(string(content), "\n")
	last := lines[len(lines)-2]
	piece := int(choice>>8) % len(last)
	switch how := choice % 3; {
	case how == 0 && len(lines) > 2:
		return "last line cut", os.Truncate(s.sink, int64(len(content)-piece-1))
	case how == 1:
		return "NUL bytes", appendTo(s.sink, make([]byte, piece+1))
	default:
		return "torn line", appendTo(s.sink, []byte(last[:max(piece, 1)]))
	}
}

func appendTo(path string, text []byte) error {
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	return errors.Join(err, file.Close())
}
