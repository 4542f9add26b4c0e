//go:build linux

// Command cluster runs three etcds and three keysvcs on loopback with TLS, kills and stops one of each under load, and prints
// what callers saw. It checks what docs/replication.md promises. README.md says what each part does.
//
//	go -C test run ./cluster
//	go -C test run ./cluster -parts revoke -revokes 3000
package main

import (
	"context"
	"errors"
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

// plan is what is played.
type plan struct {
	// parts are names of parts.
	parts []string
	// rate is how many calls a second the load makes, and lasts how long a phase takes.
	rate  int
	lasts time.Duration
	// outage is for how long etcd has no majority.
	outage time.Duration
	// outages is how often.
	outages int
	// revokes is how many keys are revoked through one replica and validated through the others.
	revokes int
	// election is how long members of etcd wait for a leader that is silent. Default: etcd's.
	election time.Duration
	// plain leaves TLS out.
	plain bool
	// lenient leaves the bounds of times out, for a machine that is busy with other things.
	lenient bool
}

// The names of the parts.
const (
	partFaults = "faults"
	partOutage = "outage"
	partRevoke = "revoke"
)

var allParts = []string{partFaults, partOutage, partRevoke}

// errBroken is returned if a promise was broken.
var errBroken = errors.New("a promise was broken")

func main() {
	var p plan
	parts := flag.String("parts", strings.Join(allParts, ","), "the parts to play, with commas between")
	full := flag.Bool("full", false, "the long campaign: an outage of a minute, and 3,000 revocations")
	flag.IntVar(&p.rate, "rate", 200, "calls a second of the load")
	flag.DurationVar(&p.lasts, "lasts", 5*time.Second, "how long a phase of the faults takes")
	flag.DurationVar(&p.outage, "outage", 8*time.Second, "for how long etcd has no majority")
	flag.IntVar(&p.outages, "outages", 1, "how often etcd has no majority")
	flag.IntVar(&p.revokes, "revokes", 300, "how many keys are revoked")
	flag.DurationVar(&p.election, "election", 500*time.Millisecond, "how long members of etcd wait for a leader that is silent; etcd's own default is 1s")
	flag.BoolVar(&p.lenient, "lenient", false, "state the times, and break no promise because of them, on a machine that is busy with other things")
	flag.Parse()
	if *full {
		p.outage, p.revokes = time.Minute, 3000
	}
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
		if !slices.Contains(allParts, part) {
			return fmt.Errorf("no part %q; there are %s", part, strings.Join(allParts, ", "))
		}
	}
	defer trio.RemoveBuilt()
	began := time.Now()
	broken, err := play(ctx, p, func(format string, arguments ...any) { fmt.Printf(format+"\n", arguments...) })
	if err != nil {
		return err
	}
	fmt.Printf("\nIt took %.0f s.\n", time.Since(began).Seconds())
	if len(broken) > 0 {
		return fmt.Errorf("%w, %d times:\n  %s", errBroken, len(broken), strings.Join(broken, "\n  "))
	}
	fmt.Println("All promises were kept.")
	return nil
}

// play starts the processes, plays the parts, ends the processes, and returns the promises that were broken.
func play(ctx context.Context, p plan, say func(string, ...any)) (broken []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	cluster, err := trio.Start(ctx, trio.Config{Replicas: replicas, TLS: !p.plain, Fsync: true, Election: p.election})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			say("%s", cluster.Logs())
		}
		err = errors.Join(err, cluster.Close())
	}()
	w, err := newWorld(ctx, cluster, p, say)
	if err != nil {
		return nil, err
	}
	defer w.close()
	if slices.Contains(p.parts, partFaults) || slices.Contains(p.parts, partOutage) {
		err = w.faults(ctx)
	}
	if err == nil && slices.Contains(p.parts, partRevoke) {
		err = w.revoke(ctx)
	}
	return w.broken, err
}
