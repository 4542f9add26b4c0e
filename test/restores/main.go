//go:build linux

// Command restores makes random histories with a built keysvc, restores their old backups, and looks
// for what comes back. README.md says what must hold.
//
//	go -C test run ./restores -rounds 1000
//	go -C test run ./restores -rounds 1 -seed 7
//	go -C test run ./restores -mutants all
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// errBroken is returned if a rule was broken.
var errBroken = errors.New("broken")

func main() {
	// Children are to end with this process, which holds for the thread that starts them.
	runtime.LockOSThread()
	if err := begin(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func begin() error {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	rounds := flag.Int("rounds", 100, "the number of rounds")
	lasts := flag.Duration("time", 24*time.Hour, "begin no round after this time")
	seed := flag.Uint64("seed", rand.Uint64N(1_000_000_000), "the seed of the first round; each further round has the next one")
	mutants := flag.String("mutants", "", "mutants to catch, with commas between, or all")
	flag.Parse()
	p := plan{rounds: *rounds, lasts: *lasts, seed: *seed}
	if *mutants != "" {
		return hunt(ctx, p, *mutants)
	}
	return campaign(ctx, p, "")
}

// plan is what a campaign does.
type plan struct {
	rounds int
	lasts  time.Duration
	seed   uint64
}

// campaign builds keysvc, with a patch, and plays rounds.
func campaign(ctx context.Context, p plan, patch string) error {
	folder, err := os.MkdirTemp("", "keysvc-restores-")
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
	for ; played < p.rounds && time.Since(began) < p.lasts && ctx.Err() == nil; played++ {
		seed := p.seed + uint64(played)
		if err := one(ctx, program, folder, seed, &total); err != nil {
			return fmt.Errorf("round %d after %.0f s, -rounds 1 -seed %d: %w", played+1, time.Since(began).Seconds(), seed, err)
		}
		if (played+1)%50 == 0 {
			fmt.Printf("%d rounds in %.0f s: %s\n", played+1, time.Since(began).Seconds(), total.String())
		}
	}
	fmt.Printf("%d rounds from seed %d in %.0f s, nothing broken: %s\n", played, p.seed, time.Since(began).Seconds(), total.String())
	return ctx.Err()
}

// one plays a round in a folder of its own.
func one(ctx context.Context, program, folder string, seed uint64, total *tally) error {
	path := filepath.Join(folder, "round")
	defer os.RemoveAll(path)
	r, err := newRound(program, path, filepath.Join(folder, "socket"), seed, total)
	if err != nil {
		return err
	}
	return errors.Join(r.play(ctx), r.cache.Close())
}
