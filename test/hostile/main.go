//go:build linux

// Command hostile attacks a real keysvc with clients that do not play by the rules, while a good
// caller goes on working, and checks promise 16: hostile traffic costs bounded memory, and
// well-behaved callers keep being served. README.md says what is attacked and measured.
//
//	go -C test run ./hostile -time 60s
//	go -C test run ./hostile -attacks 'pings|churn' -seed 7
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/scribe-mail/keysvc/test/hostile/attack"
)

func main() {
	// Children are to end with this process, which holds for the thread that starts them.
	runtime.LockOSThread()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	lasts := flag.Duration("time", 60*time.Second, "how long each attack lasts")
	quiet := flag.Duration("quiet", 3*time.Second, "how long the good caller is alone before each attack")
	wanted := flag.String("attacks", ".*", "a regular expression for the names of attacks")
	slice := flag.Bool("slice", false, "only the attacks of the slice that make test runs")
	seed := flag.Uint64("seed", rand.Uint64(), "the seed of the attackers' choices")
	list := flag.Bool("list", false, "list the attacks")
	mutants := flag.String("mutants", "", "mutants to attack, with commas between, or all: each must be broken")
	attacker := flag.String("attacker", "", "be the attacker, with this attack")
	address := flag.String("address", "", "the server that the attacker attacks")
	path := flag.String("way", string(plain), "how callers reach the server: plain, known (TLS, and the attacker is another caller) or stranger (TLS, and the attacker is nobody)")
	folder := flag.String("folder", "", "the attacker's certificates")
	flag.Parse()
	if *attacker != "" {
		return beAttacker(ctx, *attacker, *address, *folder, way(*path), *seed, *lasts)
	}
	attacks, err := choose(*wanted, *slice, way(*path))
	if err != nil {
		return err
	}
	if *list {
		for _, one := range attacks {
			fmt.Printf("%-22s %s\n", one.Name, one.What)
		}
		return nil
	}
	p := plan{lasts: *lasts, quiet: *quiet, seed: *seed, shared: *slice, way: way(*path)}
	if *mutants != "" {
		return hunt(ctx, p, *mutants)
	}
	return campaign(ctx, p, "", attacks)
}

// choose returns the attacks whose whole names fit a regular expression.
func choose(expression string, slice bool, w way) ([]attack.Attack, error) {
	wanted, err := regexp.Compile("^(?:" + expression + ")$")
	if err != nil {
		return nil, err
	}
	var attacks []attack.Attack
	for _, one := range attack.All(w != plain) {
		if wanted.MatchString(one.Name) && (one.Slice || !slice) {
			attacks = append(attacks, one)
		}
	}
	if len(attacks) == 0 {
		return nil, fmt.Errorf("no attack fits %q; -list lists them", expression)
	}
	return attacks, nil
}

// errBroken is returned if an attack broke the promise.
var errBroken = errors.New("promise 16 is broken")

// campaign builds keysvc, with a patch, plays a round of each attack, and prints what came of
// them.
func campaign(ctx context.Context, p plan, patch string, attacks []attack.Attack) error {
	folder, err := os.MkdirTemp("", "keysvc-hostile-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	if p.program, err = build(ctx, folder, patch); err != nil {
		return err
	}
	p.template = filepath.Join(folder, "store", "data")
	if err := os.MkdirAll(filepath.Dir(p.template), 0o700); err != nil {
		return err
	}
	if p.doors, err = openDoors(ctx, p.program, filepath.Join(folder, "certificates"), p.way); err != nil {
		return err
	}
	if p.tokens, err = prepare(ctx, p.program, p.template, p.doors); err != nil {
		return err
	}
	if p.spared, err = startCopy(ctx, p.program, p.template, filepath.Join(folder, "spared", "data"), p.doors); err != nil {
		return err
	}
	defer func() { _ = p.spared.stop() }()
	if p.control, err = startControl(ctx, p.spared, p.tokens); err != nil {
		return err
	}
	defer p.control.stop()

	fmt.Printf("%d attacks, %v each, seed %d, load %s\n", len(attacks), p.lasts, p.seed, load())
	results, err := p.rounds(ctx, attacks)
	table(os.Stdout, results)
	fmt.Printf("load %s\n", load())
	if err != nil {
		return err
	}
	return conclude(results, p.seed, p.shared)
}

// rounds plays a round of each attack.
func (p plan) rounds(ctx context.Context, attacks []attack.Attack) ([]outcome, error) {
	var results []outcome
	var st *stage
	defer func() {
		if st != nil {
			_ = st.close()
		}
	}()
	for _, one := range attacks {
		if st == nil {
			var err error
			if st, err = p.raise(ctx); err != nil {
				return results, err
			}
		}
		result, err := p.play(ctx, st, one)
		if err != nil {
			return results, fmt.Errorf("%s: %w", one.Name, err)
		}
		results = append(results, result)
		fmt.Printf("%-22s %s\n", one.Name, result.did)
		if len(result.problems) > 0 {
			fmt.Printf("%-22s BROKEN (seed %d): %s\n", one.Name, p.seed, strings.Join(result.problems, "; "))
		}
		if !p.shared || len(result.problems)+len(result.doubts) > 0 {
			if err := st.close(); err != nil {
				fmt.Printf("%-22s the server's end: %v\n", one.Name, err)
			}
			st = nil
		}
	}
	return results, nil
}

// conclude returns an error if the promise was broken, or if that could not be decided.
func conclude(results []outcome, seed uint64, slice bool) error {
	broken, undecided := 0, 0
	var problems []string
	for _, result := range results {
		switch {
		case len(result.problems) > 0:
			broken++
			problems = append(problems, result.problems...)
		case len(result.doubts) > 0:
			undecided++
		}
	}
	if broken > 0 {
		return fmt.Errorf("%w by %d of %d attacks; repeat with -seed %d: %s", errBroken, broken, len(results), seed, strings.Join(problems, "; "))
	}
	if undecided > 0 {
		// The slice runs where other things run, too.
		if slice {
			fmt.Printf("%d of %d attacks are %v\n", undecided, len(results), errUndecided)
			return nil
		}
		return fmt.Errorf("%d of %d attacks are %w", undecided, len(results), errUndecided)
	}
	return nil
}

// errUndecided is returned if the machine was too busy to decide.
var errUndecided = errors.New("undecided, because the machine is busy: a server that nobody attacks is late as well")

// beAttacker attacks, and reports what came of it.
func beAttacker(ctx context.Context, name, address, folder string, w way, seed uint64, lasts time.Duration) error {
	secured, err := attackerTLS(folder, w)
	if err != nil {
		return err
	}
	for _, one := range attack.All(w != plain) {
		if one.Name != name {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, lasts)
		defer cancel()
		r := attack.New(attack.Target{Network: "tcp", Address: address, TLS: secured, Workspace: workspace}, seed)
		r.Attack(ctx, one)
		c := &r.Counted
		return json.NewEncoder(os.Stdout).Encode(report{
			Connections: c.Connections.Load(), Refused: c.Refused.Load(), Ended: c.Ended.Load(), GoneAway: c.GoneAway.Load(),
			Streams: c.Streams.Load(), Answered: c.Answered.Load(), Reset: c.Reset.Load(), Written: c.Written.Load(),
		})
	}
	return fmt.Errorf("no attack %q", name)
}
