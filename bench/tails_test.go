package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

const (
	// tailShare is the part of the capacity at which validations arrive beside other work, and halfLoad
	// that at which stores of different sizes are compared.
	tailShare, halfLoad = 0.3, 0.5
	// tailCallers is how many arrivals may be under way at a time; more than that wait, and their wait
	// counts.
	tailCallers = 512
	// tailConnections is over how many connections validations are asked.
	tailConnections = 4
	// nuisanceVariable has the address of the server that TestProcessNuisance works on.
	nuisanceVariable = "KEYSVC_BENCH_NUISANCE"
	// nuisancePriority is by how much the priority of the client that does other work is lower.
	nuisancePriority = 10
	// changeInterval is the time between two changes.
	changeInterval = 10 * time.Millisecond
)

// TestMeasureTailsBesideOtherWork prints how long validations take that arrive at 30 % of what the
// server can do, alone, and beside lists of pages of 1,000 keys, policies that are only checked, and
// 100 changes a second, each kind alone and all together. An arrival is timed from when it was due. It
// needs -measure, and the binary BENCH_AFTER; without them a few keys show that it works.
func TestMeasureTailsBesideOtherWork(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	count, rounds, round := 1_000, 1, 50*time.Millisecond
	kinds := []string{"", "lists", "checks", "changes", "lists,checks,changes"}
	if *measure {
		count, rounds, round = 100_000, 7, 4*time.Second
	}
	server, tokens := startFilled(t, count)
	load := newArrivals(t, server, tokens)
	rate := load.capacity(t, round) * tailShare
	took := make([][]quantiles, len(kinds))
	for range rounds {
		for index, kind := range kinds {
			stop := startNuisance(t, server, kind)
			took[index] = append(took[index], load.run(t, rate, round))
			stop()
		}
	}
	for index, kind := range kinds {
		t.Logf("%.0f a second beside %-22q %s", rate, kind, describeTails(took[index], took[0]))
	}
}

// TestMeasureTailsBySize prints how long validations take that arrive at half of what the server can
// do, with 1,000 and with 1,000,000 keys of which the same number is asked for.
func TestMeasureTailsBySize(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	sizes, rounds, round := []int{100, 1_000}, 1, 50*time.Millisecond
	if *measure {
		sizes, rounds, round = []int{1_000, 1_000_000}, 9, 5*time.Second
	}
	var loads []*arrivals
	for _, size := range sizes {
		server, tokens := startFilled(t, size)
		loads = append(loads, newArrivals(t, server, tokens[:sizes[0]]))
	}
	rate := loads[0].capacity(t, round) * halfLoad
	took := make([][]quantiles, len(sizes))
	for range rounds {
		for index, load := range loads {
			took[index] = append(took[index], load.run(t, rate, round))
		}
	}
	for index, size := range sizes {
		t.Logf("%.0f a second of %d keys: %s", rate, size, describeTails(took[index], took[0]))
	}
}

// startFilled starts a server on a new store with a number of keys: the binary that is measured, or
// this program.
func startFilled(t *testing.T, count int) (*worker, []string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keysvc.db")
	tokens := fill(t, path, count, 0)
	if binary := os.Getenv(afterVariable); binary != "" {
		server := runBinary(t, binary, "serve", "--dev", "--listen", "127.0.0.1:0", "--data", filepath.Dir(path), "--log-level", "error")
		t.Cleanup(func() { server.terminate(t) })
		server.address, _, _ = strings.Cut(server.line(t, "keysvc serves on"), ",")
		return server, tokens
	}
	server := startProcess(t, "TestProcessServer", serverVariable+"="+realServer, fileVariable+"="+path)
	t.Cleanup(func() { server.end(t) })
	server.address = server.line(t, "address")
	return server, tokens
}

// quantiles are how long 50, 99 and 99.9 of 100 arrivals took.
type quantiles [3]time.Duration

// describeTails returns the medians of rounds, and of their ratios to those of the rounds before them.
func describeTails(rounds, base []quantiles) string {
	var text strings.Builder
	for index, name := range []string{"p50", "p99", "p99.9"} {
		var times, ratios []float64
		for round := range rounds {
			times = append(times, float64(rounds[round][index])/1e6)
			ratios = append(ratios, float64(rounds[round][index])/float64(base[round][index]))
		}
		fmt.Fprintf(&text, " %s %s ms ×%s", name, spread(times), spread(ratios))
	}
	return text.String()
}

// arrivals are validations that do not wait for one another.
type arrivals struct {
	clients   []keysvcv1.ValidationServiceClient
	questions []*keysvcv1.ValidateKeyRequest
}

func newArrivals(t *testing.T, server *worker, tokens []string) *arrivals {
	t.Helper()
	a := &arrivals{}
	for range tailConnections {
		a.clients = append(a.clients, keysvcv1.NewValidationServiceClient(dial(t, server.address)))
	}
	for _, text := range tokens {
		question := &keysvcv1.ValidateKeyRequest{RequiredScope: quickScope}
		question.TokenDigest, question.KeyId = digestOf(t, text)
		a.questions = append(a.questions, question)
	}
	return a
}

func (a *arrivals) ask(t *testing.T, number int) bool {
	t.Helper()
	answer, err := a.clients[number%len(a.clients)].ValidateKey(context.Background(), a.questions[number%len(a.questions)])
	if err != nil || answer.GetDecision() != keysvcv1.Decision_DECISION_ALLOWED {
		t.Error(answer.GetReason(), err)
		return false
	}
	return true
}

// capacity returns how many validations a second 64 callers get that ask one after the other.
func (a *arrivals) capacity(t *testing.T, round time.Duration) float64 {
	t.Helper()
	var calls atomic.Int64
	for pass := range 2 { // the first one does not count
		calls.Store(0)
		began := time.Now()
		var callers sync.WaitGroup
		for range 64 {
			callers.Go(func() {
				for time.Since(began) < round && a.ask(t, int(calls.Add(1))) {
				}
			})
		}
		callers.Wait()
		if pass == 1 {
			return float64(calls.Load()) / time.Since(began).Seconds()
		}
	}
	return 0
}

// run lets validations arrive at random moments, at a rate in calls a second. The time of each counts
// from the moment at which it was due, so a server that stops answering is not asked less.
func (a *arrivals) run(t *testing.T, rate float64, round time.Duration) quantiles {
	t.Helper()
	// The generator must not have a tail of its own.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2 * runtime.NumCPU()))
	defer debug.SetGCPercent(debug.SetGCPercent(1000))
	due := make(chan time.Duration, 1<<20)
	began := time.Now()
	var callers sync.WaitGroup
	var number atomic.Int64
	took := make([][]time.Duration, tailCallers)
	for index := range took {
		callers.Go(func() {
			for at := range due {
				if !a.ask(t, int(number.Add(1))) {
					return
				}
				took[index] = append(took[index], time.Since(began)-at)
			}
		})
	}
	random := rand.New(rand.NewPCG(1, 2))
	for at := time.Duration(0); at < round; at += time.Duration(random.ExpFloat64() * 1e9 / rate) {
		// The runtime's own sleep is only exact to a millisecond.
		if left := at - time.Since(began); left > 0 {
			pause := syscall.NsecToTimespec(int64(left))
			_ = syscall.Nanosleep(&pause, nil)
		}
		due <- at
	}
	close(due)
	callers.Wait()
	all := slices.Concat(took...)
	slices.Sort(all)
	at := func(share float64) time.Duration { return all[int(share*float64(len(all)-1))] }
	return quantiles{at(0.5), at(0.99), at(0.999)}
}

// startNuisance starts a process that works on a server besides, of low priority, because it is the
// server that is measured. It returns the function that ends it.
func startNuisance(t *testing.T, server *worker, kinds string) (stop func()) {
	t.Helper()
	if kinds == "" {
		return func() {}
	}
	environment := []string{nuisanceVariable + "=" + server.address + "=" + kinds}
	nuisance := startProcess(t, "TestProcessNuisance", environment...)
	lowerPriority(t, nuisance.Cmd)
	nuisance.line(t, "working")
	return func() { nuisance.end(t) }
}

func lowerPriority(t *testing.T, command *exec.Cmd) {
	t.Helper()
	own, err := syscall.Getpriority(syscall.PRIO_PROCESS, 0)
	if err != nil {
		t.Fatal(err)
	}
	// Threads inherit it from the first one. The system call returns 20 less the priority.
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", command.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if id, err := strconv.Atoi(task.Name()); err == nil {
			_ = syscall.Setpriority(syscall.PRIO_PROCESS, id, min(19, 20-own+nuisancePriority))
		}
	}
}

// TestProcessNuisance is the client of TestMeasureTailsBesideOtherWork that does other work.
func TestProcessNuisance(t *testing.T) {
	address, kinds, is := strings.Cut(os.Getenv(nuisanceVariable), "=")
	if !is {
		t.Skip("only for other tests")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	load := &walkLoad{
		members:  keysvcv1.NewMemberServiceClient(dial(t, address)),
		policies: keysvcv1.NewPolicyServiceClient(dial(t, address)),
	}
	lists := keysvcv1.NewKeyServiceClient(dial(t, address))
	var workers sync.WaitGroup
	defer workers.Wait()
	for kind := range strings.SplitSeq(kinds, ",") {
		switch kind {
		case "lists":
			workers.Go(func() { listForever(ctx, t, lists) })
		case "checks":
			workers.Go(func() { load.checkPolicies(ctx, t) })
		case "changes":
			workers.Go(func() { load.putMembers(ctx, t, changeInterval) })
		}
	}
	fmt.Println("working on", kinds)
	var line string
	_, _ = fmt.Scanln(&line) // until the input ends
	cancel()
}

// listForever reads page after page of all keys.
func listForever(ctx context.Context, t *testing.T, client keysvcv1.KeyServiceClient) {
	page := ""
	for ctx.Err() == nil {
		answer, err := client.ListKeys(ctx, &keysvcv1.ListKeysRequest{PageSize: 1000, PageToken: page})
		if err != nil {
			if ctx.Err() == nil {
				t.Error(err)
			}
			return
		}
		page = answer.GetNextPageToken()
	}
}
