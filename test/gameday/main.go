//go:build linux

// Command gameday plays the day on which everything goes wrong: it runs a built keysvc, breaks it in one
// way after another, and does what docs/operations.md and docs/alerts.md tell the person on call. At each
// step it checks what that person sees (alerts, keysvc status, the log), and what callers are answered.
// README.md says what each step does.
//
//	go -C test run ./gameday
//	go -C test run ./gameday -steps restore,kill
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// insideVariable is set in the process that has a mount namespace of its own.
const insideVariable = "KEYSVC_GAMEDAY_INSIDE"

func main() {
	if os.Geteuid() == 0 && os.Getenv(insideVariable) == "" {
		if status, started := inside(); started {
			os.Exit(status)
		}
	}
	// Children are to end with this process, which holds for the thread that starts them.
	runtime.LockOSThread()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// inside runs this program again in a mount namespace of its own, so that no mount outlives it. It
// returns the exit status, and reports whether the program could be started.
func inside() (status int, started bool) {
	command := exec.Command("/proc/self/exe", os.Args[1:]...)
	command.Env = append(os.Environ(), insideVariable+"=1")
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	command.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	signal.Ignore(os.Interrupt) // it goes to the whole process group
	err := command.Run()
	if ended := (*exec.ExitError)(nil); errors.As(err, &ended) {
		return max(ended.ExitCode(), 1), true
	}
	signal.Reset(os.Interrupt)
	return 0, err == nil
}

// step is a part of the day. Each has a store of its own.
type step struct {
	name, title string
	play        func(*day) error
}

var steps = []step{
	{"restore", "The machine is lost: restore yesterday's copy", restore},
	{"kill", "The process is killed", kill},
	{"upgrade", "Upgrade under load", upgrade},
	{"fill", "The disk is full", fill},
	{"certificates", "Replace certificates and their authority under load", certificates},
	{"hang", "The disk hangs", hang},
	{"swallow", "The disk swallowed a write", swallow},
}

// errFault is returned if something was not as promised.
var errFault = errors.New("something was not as promised")

// errCannot is returned by a step that this machine or user cannot play.
var errCannot = errors.New("it cannot be played here")

func run() error {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	var names []string
	for _, each := range steps {
		names = append(names, each.name)
	}
	chosen := flag.String("steps", strings.Join(names, ","), "the steps to play, with commas between")
	before := flag.String("before", "", "the program of an older keysvc, for the step upgrade (default: built from -commit)")
	commit := flag.String("commit", "db62d74", "the commit that the older keysvc is built from")
	flag.Parse()
	for name := range strings.SplitSeq(*chosen, ",") {
		if !slices.Contains(names, name) {
			return fmt.Errorf("no step %q; there are %s", name, strings.Join(names, ", "))
		}
	}
	folder, err := os.MkdirTemp("", "keysvc-gameday-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	programs, err := build(ctx, folder, *before, *commit, strings.Contains(*chosen, "upgrade"))
	if err != nil {
		return err
	}
	faults, began := 0, time.Now()
	for _, each := range steps {
		if !slices.Contains(strings.Split(*chosen, ","), each.name) || ctx.Err() != nil {
			continue
		}
		fmt.Printf("\n== %s (%s)\n\n", each.title, each.name)
		d := &day{ctx: ctx, folder: filepath.Join(folder, each.name), programs: programs}
		if err := os.Mkdir(d.folder, 0o700); err != nil {
			return err
		}
		started := time.Now()
		err := errors.Join(each.play(d), d.end())
		switch {
		case errors.Is(err, errCannot):
			fmt.Printf("SKIPPED: %v\n", err)
		case err != nil:
			return fmt.Errorf("%s: %w", each.name, err)
		}
		faults += d.faults
		fmt.Printf("-- %s: %d checks, %d faults, %.1f s\n", each.name, d.checks, d.faults, time.Since(started).Seconds())
	}
	fmt.Printf("\nThe day took %.0f s.\n", time.Since(began).Seconds())
	if faults > 0 {
		return fmt.Errorf("%w, %d times", errFault, faults)
	}
	return ctx.Err()
}

// programs are the built programs.
type programs struct {
	now, before string
	// rules is the file with the alert rules.
	rules string
}

// build builds keysvc, and an older one unless it is given or not wanted.
func build(ctx context.Context, folder, before, commit string, both bool) (programs, error) {
	module, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return programs{}, fmt.Errorf("go env GOMOD: %w", err)
	}
	root := filepath.Dir(filepath.Dir(strings.TrimSpace(string(module))))
	p := programs{
		now: filepath.Join(folder, "keysvc"), before: before,
		rules: filepath.Join(root, "deploy", "prometheus", "alerts.yaml"),
	}
	if err := command("go", "-C", root, "build", "-buildvcs=false", "-o", p.now, "./cmd/keysvc"); err != nil {
		return programs{}, err
	}
	if before != "" || !both {
		return p, nil
	}
	p.before = filepath.Join(folder, "keysvc-before")
	source, archive := filepath.Join(folder, "source"), filepath.Join(folder, "source.tar")
	if err := errors.Join(
		os.Mkdir(source, 0o700),
		command("git", "-C", root, "archive", "-o", archive, commit),
		command("tar", "-xf", archive, "-C", source),
	); err != nil {
		return programs{}, fmt.Errorf("the commit %s cannot be had; name another with -commit: %w", commit, err)
	}
	return p, command("go", "-C", source, "build", "-buildvcs=false", "-o", p.before, "./cmd/keysvc")
}

func command(name string, arguments ...string) error {
	output, err := exec.Command(name, arguments...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, output)
	}
	return nil
}
