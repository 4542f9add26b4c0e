// Command lab is the crash laboratory itself. It is built by command crash, with an
// overlay, and does nothing without it.
package main

import (
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/scribe-mail/keysvc/test/crash/disk"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// settings are what the command line says.
type settings struct {
	seed       uint64
	enough     int
	time       time.Duration
	kinds      string
	round      int
	most       int
	workers    int
	keepFolder string
}

func run() error {
	var s settings
	flag.Uint64Var(&s.seed, "seed", rand.Uint64(), "seed of everything; a fresh one by default")
	flag.IntVar(&s.enough, "images", 100_000, "how many images to open, over all kinds")
	flag.DurationVar(&s.time, "time", 0, "stop after this time, however many images there were")
	flag.StringVar(&s.kinds, "kinds", "", "kinds of crashes or groups of them (plain, damage), with commas between; all by default")
	flag.IntVar(&s.round, "round", -1, "this round only, of one kind: repeats a finding")
	flag.IntVar(&s.most, "findings", 5, "stop after so many findings")
	flag.IntVar(&s.workers, "workers", runtime.GOMAXPROCS(0), "how many rounds at the same time")
	flag.StringVar(&s.keepFolder, "keep", filepath.Join(os.TempDir(), "keysvc-crash"), "folder for the images that show a finding")
	flag.Parse()
	if seam == nil {
		return errors.New("built without its overlay; run it with `make crash`")
	}
	seam(intercept)
	debug.SetGCPercent(400) // images are short-lived
	lab, err := newLab(s)
	if err != nil {
		return err
	}
	defer os.RemoveAll(lab.folder)
	return lab.run()
}

// lab runs rounds until enough images were opened.
type lab struct {
	settings
	chosen []kind
	folder string
	begun  time.Time

	mutex    sync.Mutex
	next     map[string]int // the number of a kind's next round
	images   map[string]int
	running  map[string]int // an estimate of the images that are being made
	findings map[string]int
	total    int
	failed   int
	broken   error
}

// typical is about how many images a round makes.
const typical = 40

// turn is a round of a kind.
type turn struct {
	kind   kind
	number int
}

func newLab(s settings) (*lab, error) {
	l := &lab{settings: s, images: make(map[string]int), running: make(map[string]int), next: make(map[string]int), findings: make(map[string]int), begun: time.Now()}
	var err error
	if l.chosen, err = choose(s.kinds); err != nil {
		return nil, err
	}
	if s.round >= 0 && len(l.chosen) > 1 {
		return nil, errors.New("-round is a round of one kind: name it with -kinds")
	}
	for _, place := range []string{"/dev/shm", os.TempDir()} {
		if l.folder, err = os.MkdirTemp(place, "keysvc-crash-"); err == nil {
			return l, nil
		}
	}
	return nil, err
}

// run runs rounds, and prints a summary at the end.
func (l *lab) run() error {
	fmt.Printf("seed %d\n", l.seed)
	var workers sync.WaitGroup
	for range l.workers {
		workers.Go(l.work)
	}
	workers.Wait()
	elapsed := time.Since(l.begun)
	for _, kind := range l.chosen {
		fmt.Printf("%-9s %7d images %5d findings\n", kind.name, l.images[kind.name], l.findings[kind.name])
	}
	fmt.Printf("%d images in %s, %.0f a second; seed %d\n", l.total, elapsed.Round(time.Second), float64(l.total)/elapsed.Seconds(), l.seed)
	switch {
	case l.broken != nil:
		return l.broken
	case l.failed > 0:
		return fmt.Errorf("%d findings", l.failed)
	}
	return nil
}

// take returns the next round, or false if no other round is wanted.
func (l *lab) take() (turn, bool) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.broken != nil || l.failed >= l.most || l.time > 0 && time.Since(l.begun) > l.time || l.total >= l.enough {
		return turn{}, false
	}
	if l.round >= 0 {
		l.next[""]++
		return turn{l.chosen[0], l.round}, l.next[""] == 1
	}
	// The kind that lacks most images of its share.
	behind := slices.MinFunc(l.chosen, func(a, b kind) int {
		return (l.images[a.name]+l.running[a.name])*b.weight - (l.images[b.name]+l.running[b.name])*a.weight
	})
	l.next[behind.name]++
	l.running[behind.name] += typical
	return turn{behind, l.next[behind.name] - 1}, true
}

func (l *lab) work() {
	for {
		turn, more := l.take()
		if !more {
			return
		}
		hash := fnv.New64a()
		fmt.Fprintf(hash, "%d %s %d", l.seed, turn.kind.name, turn.number)
		r := &round{kind: turn.kind.name, seed: hash.Sum64(), number: turn.number, folder: l.folder, keep: l.keepImage}
		r.random = rand.New(rand.NewPCG(r.seed, 0))
		err := turn.kind.round(r)
		l.mutex.Lock()
		l.images[r.kind] += r.images
		l.running[r.kind] = max(0, l.running[r.kind]-typical)
		l.total += r.images
		l.findings[r.kind] += len(r.findings)
		l.failed += len(r.findings)
		for _, finding := range r.findings {
			fmt.Printf("FOUND by %s: %s\n    repeat: go -C test run ./crash -seed %d -kinds %s -round %d\n", r.kind, finding, l.seed, r.kind, r.number)
		}
		if err != nil && l.broken == nil {
			l.broken = fmt.Errorf("%s, round %d, seed %d: %w", r.kind, r.number, l.seed, err)
		}
		l.mutex.Unlock()
	}
}

// keepImage saves an image for a closer look.
func (l *lab) keepImage(image *disk.Disk, _ string) string {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.keepFolder == "" {
		return "not kept"
	}
	if err := os.MkdirAll(l.keepFolder, 0o700); err != nil {
		return err.Error()
	}
	folder, err := os.MkdirTemp(l.keepFolder, "image-")
	if err == nil {
		err = image.Restore(folder)
	}
	if err != nil {
		return err.Error()
	}
	return folder
}
