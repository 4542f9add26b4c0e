//go:build linux

// Command histories makes histories of calls to three keysvcs over three etcds while processes are killed and stopped, wires cut, and etcd
// compacted and restored, and checks each answer against what is promised. README.md says how.
//
//	go -C test run ./histories -histories 1000
//	go -C test run ./histories -seed 7
//	go -C test run ./histories -mutants all
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
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/test/trio"
)

// plan is what is played.
type plan struct {
	// histories is how many, each of so many operations; together is how many are made at a time.
	histories, operations, together int
	seed                            uint64
	// faults are their names; pause is how long nothing happens between two of them, on average.
	faults []string
	pause  time.Duration
	// restores is how many of 100 batches end with an older data folder that is put back, and go on.
	restores int
	// keep is a folder for histories that break a promise.
	keep string
	// keysvc and etcd are built programs; empty for those that are built now.
	keysvc, etcd string
}

// statusBroken is the exit status if a promise was broken.
const statusBroken = 3

func main() {
	var p plan
	flag.IntVar(&p.histories, "histories", 200, "how many histories to make")
	flag.IntVar(&p.operations, "operations", 1000, "operations of each history")
	flag.IntVar(&p.together, "together", 12, "how many histories to make at a time")
	flag.Uint64Var(&p.seed, "seed", rand.Uint64N(1_000_000), "the seed of the choices")
	wanted := flag.String("faults", strings.Join(faultNames(), ","), "the faults, with commas between")
	flag.DurationVar(&p.pause, "pause", 300*time.Millisecond, "how long nothing happens between two faults, on average")
	flag.IntVar(&p.restores, "restores", 15, "how many of 100 batches go on after etcd was restored")
	flag.StringVar(&p.keep, "keep", os.TempDir(), "the folder for histories that break a promise")
	flag.StringVar(&p.keysvc, "keysvc", "", "a built keysvc; with etcd (default: both are built)")
	flag.StringVar(&p.etcd, "etcd", "", "the built program ./trio/etcd")
	mutants := flag.String("mutants", "", "mutants to catch, with commas between, or all")
	flag.Parse()
	p.faults = strings.Split(*wanted, ",")
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	err := run(ctx, p, *mutants)
	trio.RemoveBuilt()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		if errors.Is(err, errBroken) {
			os.Exit(statusBroken) //nolint:gocritic // what is deferred ends with the process
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, p plan, mutants string) error {
	if mutants != "" {
		return hunt(ctx, p, mutants)
	}
	return campaign(ctx, p, func(format string, arguments ...any) { fmt.Printf(format+"\n", arguments...) })
}

// total is the sum of all batches.
type total struct {
	mutex     sync.Mutex
	histories int
	undecided int
	batches   int
	restores  int
	counts    counts
}

// campaign makes the histories, batch by batch, over one cluster, and judges each batch while the next one is made.
func campaign(ctx context.Context, p plan, say func(string, ...any)) (err error) {
	began := time.Now()
	programs := &trio.Programs{Keysvc: p.keysvc, Etcd: p.etcd}
	if p.keysvc == "" || p.etcd == "" {
		if programs, err = trio.Build(ctx); err != nil {
			return err
		}
	}
	started, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cluster, err := trio.Start(started, trio.Config{Replicas: replicas, Programs: programs})
	if err != nil {
		return err
	}
	defer func() {
		if errors.Is(err, errBroken) {
			err = errors.Join(err, keepLogs(cluster, p.keep))
		}
		err = errors.Join(err, cluster.Close())
	}()
	folder, err := os.MkdirTemp("", "histories-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	w, err := newWorld(ctx, cluster, folder)
	if err != nil {
		return err
	}
	defer w.close()
	say("seed %d: %d histories of %d operations, %d at a time", p.seed, p.histories, p.operations, p.together)
	var sum total
	var judging sync.WaitGroup
	judged := make(chan error, 1)
	defer judging.Wait()
	for number := uint64(0); sum.made() < p.histories && ctx.Err() == nil; number++ {
		seed := p.seed + number
		records, made, err := play(ctx, w, p, seed)
		if err != nil {
			say("%s", w.logs())
			return fmt.Errorf("seed %d, %d histories before it, after %.0f s: %w", seed, sum.made(), time.Since(began).Seconds(), err)
		}
		judging.Wait()
		if err := firstError(judged); err != nil {
			return err
		}
		sum.mutex.Lock()
		sum.histories += len(records[0].histories) * len(records)
		sum.batches++
		sum.restores += len(records) - 1
		sum.mutex.Unlock()
		judging.Go(func() {
			if err := judge(p, seed, records, made, &sum, say, began); err != nil {
				judged <- err
			}
		})
	}
	judging.Wait()
	if err := firstError(judged); err != nil {
		return err
	}
	say("%d histories with %d operations in %.0f s, %d of them undecided, none violated; %d batches, %d restores", sum.histories, sum.counts.operations,
		time.Since(began).Seconds(), sum.undecided, sum.batches, sum.restores)
	if sum.undecided*100 > sum.histories {
		return fmt.Errorf("%d of %d histories are undecided, more than one in a hundred", sum.undecided, sum.histories)
	}
	return ctx.Err()
}

func firstError(from chan error) error {
	select {
	case err := <-from:
		return err
	default:
		return nil
	}
}

func (t *total) made() int {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	return t.histories
}

// play makes the histories of one batch, and returns a record of each phase, with what was observed besides.
func play(ctx context.Context, w *world, p plan, seed uint64) ([]*record, *observed, error) {
	random := rand.New(rand.NewPCG(seed, 17))
	w.mutex.Lock()
	w.restored = false
	w.mutex.Unlock()
	if err := w.well(ctx); err != nil {
		return nil, nil, err
	}
	b := &batch{w: w, name: fmt.Sprintf("h%d-%x", seed, time.Now().UnixNano()), began: time.Now(), random: random, operations: p.operations}
	if err := b.setUp(ctx, p.together); err != nil {
		return nil, nil, err
	}
	f := &faults{w: w, random: rand.New(rand.NewPCG(seed, 18)), began: b.began}
	seen := &observed{faults: f}
	restored := random.IntN(100) < p.restores
	first, err := b.phase(ctx, p, f, seen, restored, "")
	if err != nil {
		return nil, seen, err
	}
	if !restored || first.copied == "" {
		return []*record{first.record}, seen, nil
	}
	second, err := b.phase(ctx, p, f, seen, false, first.copied)
	if err != nil {
		return nil, seen, err
	}
	if err := second.follows(first, seen); err != nil {
		return nil, seen, err
	}
	return []*record{first.record, second.record}, seen, nil
}

// observed is what was found besides the answers.
type observed struct {
	faults *faults
	broken []string
	counts counts
}

// phase is a part of a batch with one history of the store.
type phase struct {
	*record
	// copied is the folder with a copy of etcd's data, made between two times.
	copied             string
	copyBegan, copyEnd int64
	// all are the events since the batch began.
	all []*keysvcv1.AuditEvent
}

// phase makes operations while faults happen, then mends everything, and reads what there is in the end. With copying, etcd's data is
// copied meanwhile; put is a copy that is put back first.
func (b *batch) phase(ctx context.Context, p plan, f *faults, seen *observed, copying bool, put string) (*phase, error) {
	made := &phase{record: &record{base: b.base}}
	followers, err := b.phaseLoad(ctx, p, f, made, copying, put)
	if err != nil {
		return nil, err
	}
	if err := b.w.well(ctx); err != nil {
		return nil, err
	}
	// One more change of each head: nothing that was lost can come after it.
	if err := b.settle(ctx); err != nil {
		return nil, err
	}
	if made.all, err = b.events(ctx); err != nil {
		return nil, err
	}
	made.made = made.all
	acknowledged := newFloors(b.base, b.acks(made))
	for _, each := range followers.list {
		if len(made.all) > 0 {
			if err := each.caughtUp(ctx, made.all[len(made.all)-1].GetRevision()); err != nil {
				return nil, err
			}
		}
	}
	followers.end()
	base := b.base
	if put != "" {
		base = 0 // every event is one of the restored history, or later
	}
	for _, each := range followers.list {
		seen.broken = append(seen.broken, each.judgeFeed(made.all, base, acknowledged)...)
		seen.counts.resumes += each.resumes
		seen.counts.resets += each.resets
	}
	seen.broken = append(seen.broken, b.w.takeSurprises()...)
	for _, space := range b.workspaces {
		made.histories = append(made.histories, &history{workspace: space.name, initial: space.initial, operations: space.operations})
		space.operations = nil
	}
	made.policy, b.policy = b.policy, nil
	made.awaited, b.awaited = b.awaited, nil
	made.restart = b.restart
	return made, nil
}

// keepLogs copies the logs of all keysvcs to a folder.
func keepLogs(cluster *trio.Trio, folder string) error {
	var errs []error
	for _, replica := range cluster.Replicas {
		text, err := os.ReadFile(replica.Log())
		if err == nil {
			err = os.WriteFile(filepath.Join(folder, "history-"+replica.Name()+".log"), text, 0o600)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// followersOf is the followers of a phase.
type followersOf struct {
	list []*follower
	end  func()
}

// phaseLoad makes the operations of a phase.
func (b *batch) phaseLoad(ctx context.Context, p plan, f *faults, made *phase, copying bool, put string) (*followersOf, error) {
	var following sync.WaitGroup
	followed, stop := context.WithCancel(ctx)
	followers := &followersOf{end: func() {
		stop()
		following.Wait()
	}}
	begin := func() {
		for index := range replicas {
			each := &follower{b: b, replica: index}
			followers.list = append(followers.list, each)
			following.Go(func() { each.follow(followed) })
		}
	}
	var failed error
	var breaking sync.WaitGroup
	if put == "" {
		begin()
		// Half of the time the copy is made shortly before the end: then so few changes are lost that those after the restore go beyond them.
		all := int64(b.operations * len(b.workspaces))
		copyAfter := b.random.Int64N(all)
		if b.random.IntN(2) == 0 {
			copyAfter = all - b.random.Int64N(min(all, 200))
		}
		err := f.together(ctx, p.faults, p.pause, func() {
			if copying {
				breaking.Go(func() {
					for b.begun.Load() < copyAfter && ctx.Err() == nil {
						rest(ctx, 10*time.Millisecond)
					}
					began := b.now()
					// A fault of that moment may be in the way; then nothing is restored.
					if folder, err := f.copyData(); err == nil {
						made.copied, made.copyBegan, made.copyEnd = folder, began, b.now()
					}
				})
			}
			b.work(ctx)
			breaking.Wait()
		})
		if err != nil {
			followers.end()
		}
		return followers, err
	}
	working := make(chan struct{})
	failed = f.restore(ctx, put, func() {
		b.restart = b.now()
		b.acknowledged.Store(nil)
		begin()
		go func() {
			defer close(working)
			b.work(ctx)
		}()
	})
	<-working
	if failed != nil {
		followers.end()
	}
	return followers, failed
}

// acks are the changes that were acknowledged in this phase.
func (b *batch) acks(made *phase) (acks []ack) {
	operations := slices.Clone(b.policy)
	for _, space := range b.workspaces {
		operations = append(operations, space.operations...)
	}
	for _, o := range operations {
		if o.Outcome == done && o.Kind.changes() {
			acks = append(acks, ack{o.Return, o.Revision})
		}
	}
	return acks
}

// settle makes a change of each workspace and of the policy, and reads everything. It tries again until it succeeds.
func (b *batch) settle(outer context.Context) error {
	ctx, cancel := context.WithTimeout(outer, patience)
	defer cancel()
	random := rand.New(rand.NewPCG(b.random.Uint64(), 1))
	until := func(w *worker, plan func() *operation, enough func(*operation) bool) {
		for ctx.Err() == nil {
			o := plan()
			o.ID, o.Replica = int(b.nextID.Add(1)), random.IntN(replicas)
			w.perform(ctx, o)
			if w.space == nil {
				b.policy = append(b.policy, o)
			} else {
				w.space.operations = append(w.space.operations, o)
			}
			if o.Outcome == done && enough(o) {
				return
			}
		}
	}
	always := func(*operation) bool { return true }
	policy := &worker{b: b, random: random}
	current := 0
	for settled := false; !settled && ctx.Err() == nil; {
		until(policy, func() *operation { return &operation{Kind: getPolicy} }, func(o *operation) bool { current = o.PolicySeen; return true })
		until(policy, func() *operation {
			return &operation{Kind: applyPolicy, Old: current, New: (current + 1) % policyVariants}
		}, always)
		settled = true
	}
	for _, space := range b.workspaces {
		w := &worker{b: b, space: space, random: random}
		var stored memberSet
		of := func(kind kind, member int) func() *operation {
			return func() *operation { return &operation{Kind: kind, Workspace: space.name, Member: member} }
		}
		until(w, of(getMember, 0), func(o *operation) bool { stored = o.MemberSeen; return true })
		until(w, func() *operation {
			stored.Suspended = !stored.Suspended
			return &operation{Kind: putMember, Workspace: space.name, To: stored}
		}, always)
		until(w, of(listKeys, 0), always)
		for member := range members {
			until(w, of(getMember, member), always)
		}
	}
	if ctx.Err() != nil && outer.Err() == nil {
		return fmt.Errorf("%w: nothing breaks the processes any more, and changes are not answered for %v", errBroken, patience)
	}
	return outer.Err()
}

// events returns all events since the batch began.
func (b *batch) events(ctx context.Context) ([]*keysvcv1.AuditEvent, error) {
	for {
		asked, cancel := context.WithTimeout(ctx, patience)
		events, err := b.w.audit(asked, b.random.IntN(replicas), b.base)
		cancel()
		if err == nil || errors.Is(err, errBroken) || ctx.Err() != nil {
			return events, err
		}
		rest(ctx, 50*time.Millisecond)
	}
}

// follows checks that a phase began with a state of the one before, and makes its record begin there.
func (second *phase) follows(first *phase, seen *observed) error {
	shared := 0
	for shared < min(len(first.all), len(second.all)) && string(first.all[shared].GetHash()) == string(second.all[shared].GetHash()) &&
		first.all[shared].GetRevision() == second.all[shared].GetRevision() {
		shared++
	}
	byActor := make(map[string]*operation)
	for _, each := range first.histories {
		for _, o := range each.operations {
			byActor[o.actor()] = o
		}
	}
	for _, o := range first.policy {
		byActor[o.actor()] = o
	}
	for index, event := range first.all {
		o := byActor[event.GetActorMemberId()]
		if o == nil {
			continue // judge says so
		}
		if index >= shared && o.Outcome == done && o.Return < first.copyBegan {
			seen.broken = append(seen.broken, fmt.Sprintf("%v: not in the copy that was begun at %.3f s", o, float64(first.copyBegan)/1e9))
		}
	}
	// A transaction that was under way when the copy was made may be in the log of a member there, and is executed first.
	copied := shared
	for copied < len(second.all) {
		o := byActor[second.all[copied].GetActorMemberId()]
		if o == nil || o.Call > first.copyEnd || o.Outcome == done && o.Return < first.copyBegan {
			break
		}
		copied++
	}
	second.made = second.all[copied:]
	if copied > 0 {
		second.base = second.all[copied-1].GetRevision()
	}
	for number, each := range second.histories {
		now := first.histories[number].initial
		for _, event := range second.all[:copied] {
			if o := byActor[event.GetActorMemberId()]; o != nil && (o.Workspace == each.workspace || o.Workspace == "") {
				next, _ := now.step(o)
				now = next
			}
		}
		each.initial = now
	}
	// A replica that has applied what was lost must have ended.
	if shared < len(first.all) {
		w := seen.faults.w
		w.mutex.Lock()
		defer w.mutex.Unlock()
		for index, ended := range w.ended {
			if !ended {
				seen.broken = append(seen.broken, fmt.Sprintf("r%d went on after %d changes that it had applied were lost", index, len(first.all)-shared))
			}
		}
	}
	return nil
}

// judge judges the records of one batch, prints a line, and returns an error if a promise was broken.
func judge(p plan, seed uint64, records []*record, seen *observed, sum *total, say func(string, ...any), began time.Time) error {
	broken := slices.Clone(seen.broken)
	checked := time.Now()
	all := seen.counts
	undecided := 0
	for _, each := range records {
		v := each.judge()
		each.linearize(v)
		broken = append(broken, v.broken...)
		all.add(v.counts)
		undecided += v.undecided
	}
	sum.mutex.Lock()
	sum.counts.add(all)
	sum.undecided += undecided
	sum.mutex.Unlock()
	say("seed %d: %d histories after %.0f s; %d operations: %d answered, %d refused, %d lost (%d of them made), %d ABORTED without cause; feed resumed %d times, reset %d; %d faults; %d undecided, checked in %.1f s",
		seed, sum.made(), time.Since(began).Seconds(), all.operations, all.answered, all.refused, all.lost, all.lateMade, all.contended, all.resumes, all.resets,
		len(seen.faults.said), undecided, time.Since(checked).Seconds())
	if len(broken) == 0 {
		return nil
	}
	path := filepath.Join(p.keep, fmt.Sprintf("history-seed-%d.json", seed))
	kept := struct {
		Broken, Faults []string
		Phases         []any
	}{Broken: broken, Faults: seen.faults.said}
	for _, each := range records {
		operations := slices.Clone(each.policy)
		for _, one := range each.histories {
			operations = append(operations, one.operations...)
		}
		kept.Phases = append(kept.Phases, operations)
	}
	content, err := json.MarshalIndent(kept, "", " ")
	if err == nil {
		err = os.WriteFile(path, content, 0o600)
	}
	return errors.Join(fmt.Errorf("%w, %d times, in a batch with -seed %d -restores %d (after %d histories; %s):\n  %s", errBroken, len(broken), seed, p.restores,
		sum.made(), path, strings.Join(broken[:min(len(broken), 12)], "\n  ")), err)
}
