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
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"time"

	"github.com/scribe-mail/keysvc/test/hostile/attack"
)

func main() {
	// Children are to end with this process, which holds for the thread that starts them.
	runtime.LockOSThread()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	lasts := flag.Duration("time", 60*time.Second, "how long each attack lasts")
	quiet := flag.Duration("quiet", 3*time.Second, "how long the good caller is alone before each attack")
	wanted := flag.String("attacks", ".", "a regular expression for the names of attacks")
	slice := flag.Bool("slice", false, "only the attacks of the slice that make test runs")
	seed := flag.Uint64("seed", rand.Uint64(), "the seed of the attackers' choices")
	list := flag.Bool("list", false, "list the attacks")
	attacker := flag.String("attacker", "", "be the attacker, with this attack")
	address := flag.String("address", "", "the server that the attacker attacks")
	flag.Parse()
	if *attacker != "" {
		return beAttacker(ctx, *attacker, *address, *seed, *lasts)
	}
	only, err := regexp.Compile("^(" + *wanted + ")$")
	if *wanted == "." {
		only, err = regexp.Compile("")
	}
	if err != nil {
		return err
	}
	var attacks []attack.Attack
	for _, one := range attack.All() {
		if only.MatchString(one.Name) && (one.Slice || !*slice) {
			attacks = append(attacks, one)
		}
	}
	if *list {
		for _, one := range attacks {
			fmt.Printf("%-22s %s\n", one.Name, one.What)
		}
		return nil
	}
	folder, err := os.MkdirTemp("", "keysvc-hostile-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	program, err := build(ctx, folder, "")
	if err != nil {
		return err
	}
	return campaign(ctx, folder, round{program: program, lasts: *lasts, quiet: *quiet, seed: *seed}, attacks)
}

// campaign plays a round of each attack, and prints what came of them.
func campaign(ctx context.Context, folder string, plan round, attacks []attack.Attack) error {
	plan.template = filepath.Join(folder, "store", "data")
	if err := os.MkdirAll(filepath.Dir(plan.template), 0o700); err != nil {
		return err
	}
	var err error
	if plan.tokens, err = prepare(ctx, plan.program, plan.template); err != nil {
		return err
	}
	quietData := filepath.Join(folder, "quiet", "data")
	if err := os.CopyFS(quietData, os.DirFS(plan.template)); err != nil {
		return err
	}
	_ = os.Chmod(quietData, 0o700)
	quiet, err := startServer(ctx, plan.program, quietData)
	if err != nil {
		return err
	}
	defer func() { _ = quiet.stop() }()
	if plan.control, err = startControl(ctx, quiet, plan.tokens); err != nil {
		return err
	}
	defer plan.control.stop()
	fmt.Printf("%d attacks, %v each, seed %d, load %s\n", len(attacks), plan.lasts, plan.seed, load())
	var results []outcome
	broken, undecided := 0, 0
	for _, one := range attacks {
		plan.attack = one
		result, err := plan.play(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", one.Name, err)
		}
		results = append(results, result)
		fmt.Printf("%-22s %s\n", one.Name, result.did)
		if len(result.problems) > 0 {
			broken++
			fmt.Printf("%-22s BROKEN (seed %d): %v\n", one.Name, plan.seed, result.problems)
		}
		if len(result.doubts) > 0 {
			undecided++
		}
	}
	table(os.Stdout, results)
	if broken > 0 {
		return fmt.Errorf("%w by %d of %d attacks; repeat with -seed %d", errBroken, broken, len(results), plan.seed)
	}
	if undecided > 0 {
		return fmt.Errorf("%d of %d attacks are undecided, because the machine is busy: a server without an attack is late as well", undecided, len(results))
	}
	return nil
}

// beAttacker attacks, and reports what came of it.
func beAttacker(ctx context.Context, name, address string, seed uint64, lasts time.Duration) error {
	for _, one := range attack.All() {
		if one.Name != name {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, lasts)
		defer cancel()
		r := attack.New(attack.Target{Network: "tcp", Address: address, Workspace: workspace}, seed)
		r.Attack(ctx, one)
		c := &r.Counted
		fmt.Printf("connections %d (refused %d, ended %d, GOAWAY %d) streams %d (answered %d, reset %d) sent %d MiB\n",
			c.Connections.Load(), c.Refused.Load(), c.Ended.Load(), c.GoneAway.Load(), c.Streams.Load(), c.Answered.Load(), c.Reset.Load(), c.Written.Load()>>20)
		return nil
	}
	return fmt.Errorf("no attack %q", name)
}
