//go:build linux

// Command sinkfaults runs a built keysvc with an audit sink, under load, and breaks the sink: the
// server is killed, the sink's disk is full, hangs or loses what was not synced, and its file is
// rotated, moved or torn. README.md says what must hold.
//
//	go -C test run ./sinkfaults -time 5m
//	go -C test run ./sinkfaults -disks hanging -seed 7
//	go -C test run ./sinkfaults -mutants all
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// insideVariable is set in the process that has a mount namespace of its own.
const insideVariable = "KEYSVC_SINKFAULTS_INSIDE"

func main() {
	if os.Geteuid() == 0 && os.Getenv(insideVariable) == "" {
		os.Exit(inside())
	}
	// Children are to end with this process, which holds for the thread that starts them.
	runtime.LockOSThread()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// inside runs this program again in a mount namespace of its own, so that no mount outlives it. It
// returns the exit status.
func inside() int {
	command := exec.Command("/proc/self/exe", os.Args[1:]...)
	command.Env = append(os.Environ(), insideVariable+"=1")
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	command.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	signal.Ignore(os.Interrupt) // it goes to the whole process group
	err := command.Run()
	if ended := (*exec.ExitError)(nil); errors.As(err, &ended) {
		return max(ended.ExitCode(), 1)
	}
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "SKIPPED: full, hanging and losing disks: no mount namespace:", err)
	command = exec.Command("/proc/self/exe", os.Args[1:]...)
	command.Env = append(os.Environ(), insideVariable+"=none")
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	if command.Run() != nil {
		return 1
	}
	return 0
}

func run() error {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	lasts := flag.Duration("time", 2*time.Minute, "begin no round after this time")
	rounds := flag.Int("rounds", 1_000_000, "the max number of rounds")
	seed := flag.Uint64("seed", rand.Uint64N(1_000_000), "the seed of all choices")
	kinds := flag.String("disks", strings.Join(diskKinds, ","), "the sink's disks, with commas between")
	mutants := flag.String("mutants", "", "mutants to break, with commas between, or all: each must be caught")
	quick := flag.Bool("quick", false, "play short rounds, as the slice does that make test runs")
	flag.Parse()
	p := plan{lasts: *lasts, rounds: *rounds, seed: *seed, disks: strings.Split(*kinds, ","), quick: *quick}
	if *mutants != "" {
		return hunt(ctx, p, *mutants)
	}
	return campaign(ctx, p, "")
}

// plan is what a campaign does.
type plan struct {
	lasts  time.Duration
	rounds int
	seed   uint64
	disks  []string
	// quick makes rounds short.
	quick bool
}

// roundsOfStore is how many rounds one store lives.
const roundsOfStore = 5

// errBroken is returned if a rule was broken.
var errBroken = errors.New("broken")

// campaign builds keysvc, with a patch, and plays rounds on one store after another.
func campaign(ctx context.Context, p plan, patch string) error {
	folder, err := os.MkdirTemp("", "keysvc-sinkfaults-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	program, err := build(ctx, folder, patch)
	if err != nil {
		return err
	}
	began, played := time.Now(), 0
	var total tally
	for number := uint64(0); played < p.rounds && time.Since(began) < p.lasts && ctx.Err() == nil; number++ {
		kind := p.disks[number%uint64(len(p.disks))]
		s, err := newStore(ctx, program, fmt.Sprintf("%s/%d", folder, number), kind, p.seed+number)
		if errors.Is(err, errNoDisk) {
			fmt.Printf("SKIPPED: disk %s: %v\n", kind, err)
			if p.disks = without(p.disks, kind); len(p.disks) == 0 {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		s.quick = p.quick
		for round := 0; round < roundsOfStore && played < p.rounds && time.Since(began) < p.lasts && ctx.Err() == nil; round++ {
			played++
			what, err := s.round(ctx, round)
			fmt.Printf("%-8s seed %d round %d: %s\n", kind, p.seed+number, round, what)
			if err != nil {
				log, _ := os.ReadFile(s.logPath)
				fmt.Printf("the server's log:\n%s\n", tail(ownLines(string(log)), 3000))
				return errors.Join(fmt.Errorf("round %d after %.0f s, -disks %s -seed %d: %w", played, time.Since(began).Seconds(), kind, p.seed+number, err), s.close())
			}
		}
		total.add(&s.tally)
		if err := s.close(); err != nil {
			return err
		}
	}
	fmt.Printf("%d rounds in %.0f s, nothing broken: %s\n", played, time.Since(began).Seconds(), total.String())
	return ctx.Err()
}

func without(list []string, one string) []string {
	var rest []string
	for _, each := range list {
		if each != one {
			rest = append(rest, each)
		}
	}
	return rest
}

// ownLines returns a log without the lines of calls.
func ownLines(log string) string {
	var rest strings.Builder
	for line := range strings.Lines(log) {
		if !strings.Contains(line, `"msg":"call finished"`) {
			rest.WriteString(line)
		}
	}
	return rest.String()
}

func tail(text string, bytes int) string { return text[max(0, len(text)-bytes):] }
