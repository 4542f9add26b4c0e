//go:build linux

// Command figures prints what keysvc over three etcds costs: validations, creates and revokes a second with their
// latencies, beside the same program without the barrier, and the bytes that keys and changes take in etcd. It judges
// nothing. README.md says how.
//
//	go -C test run ./figures
//	go -C test run ./figures -parts validations -rounds 9
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/scribe-mail/keysvc/test/trio"
)

// plan is what is measured.
type plan struct {
	// parts are names of parts.
	parts []string
	// keys is how many keys there are.
	keys int
	// rounds is how often each figure is measured, in turn with the program without the barrier, and slice for how long.
	rounds int
	slice  time.Duration
	// callers are how many callers there are at a time.
	callers []int
}

// The names of the parts, in their order.
const (
	partSizes       = "sizes"
	partValidations = "validations"
	partChanges     = "changes"
)

func main() {
	p := plan{callers: []int{1, 64, 512}}
	parts := flag.String("parts", partSizes+","+partValidations+","+partChanges, "the parts to measure, with commas between")
	flag.IntVar(&p.keys, "keys", 10_000, "how many keys there are")
	flag.IntVar(&p.rounds, "rounds", 5, "how often each figure is measured")
	flag.DurationVar(&p.slice, "slice", 1500*time.Millisecond, "for how long each is measured at a time")
	flag.Parse()
	p.parts = strings.Split(*parts, ",")
	if err := run(p); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(p plan) error {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	for _, part := range p.parts {
		if part != partSizes && part != partValidations && part != partChanges {
			return fmt.Errorf("no part %q; there are %s, %s and %s", part, partSizes, partValidations, partChanges)
		}
	}
	defer trio.RemoveBuilt()
	began := time.Now()
	w, err := newWorld(ctx, p)
	if err != nil {
		return err
	}
	defer w.close()
	fmt.Printf("%d keys; three etcds with fsync; unix sockets; the load average is %s at the beginning\n", p.keys, loadAverage())
	for _, part := range []struct {
		name string
		play func(context.Context) error
	}{{partSizes, w.sizes}, {partValidations, w.validations}, {partChanges, w.changes}} {
		if !slices.Contains(p.parts, part.name) {
			continue
		}
		if err := part.play(ctx); err != nil {
			fmt.Fprintln(os.Stderr, w.cluster.Logs())
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	fmt.Printf("\nmeasured in %.0f s; the load average is %s at the end\n", time.Since(began).Seconds(), loadAverage())
	return nil
}

// loadAverage returns that of the last minute.
func loadAverage() string {
	content, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(content), " ")
	return first
}
