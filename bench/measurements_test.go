package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// The sizes of stores. largest is for BENCH_FULL only.
const small, large, largest = 1_000, 1_000_000, 10_000_000

// emptyCall is the baseline of most figures.
const emptyCall = "empty call"

// slice is how long one server is asked before it is another one's turn.
const slice = 250 * time.Millisecond

// measurements returns all measurements, in an order in which servers are seldom restarted.
func measurements() []measurement {
	var all []measurement
	store := small // the largest store that the next measurements need
	add := func(wants float64, full bool, run func(*bench), name ...any) {
		parts := make([]string, len(name))
		for index, part := range name {
			parts[index] = fmt.Sprint(part)
		}
		all = append(all, measurement{name: strings.Join(parts, "/"), wants: wants, full: full, keys: store, run: run})
	}
	for _, keys := range []int{small, large, largest} {
		full := keys == largest
		store = keys
		for _, over := range []string{overTCP, overUnix, overTLS} {
			for _, callers := range []int{1, 16, 64, 256} {
				add(7, full, func(b *bench) { b.validate(over, keys, callers) }, "validate", over, keys, callers)
			}
			if over == overUnix && keys > small { // while the server in plaintext runs
				add(12, full, func(b *bench) { b.size(keys) }, "sizes", keys)
				add(20, full, func(b *bench) { b.half(keys) }, "half", keys)
			}
			if over == overUnix && keys == large {
				for _, work := range []string{"alone", "changes", "lists", "policies", "all"} {
					add(14, false, func(b *bench) { b.mixed(work) }, "mixed", work)
				}
				add(5, false, (*bench).list, "lists", 100_000)
			}
		}
		if keys > small {
			add(0, full, func(b *bench) { b.start(keys) }, "start", keys)
			all[len(all)-1].wants, all[len(all)-1].whole = map[int]float64{large: 15, largest: 60}[keys], true
			add(0, full, func(b *bench) { b.heap(keys) }, "heap", keys)
			all[len(all)-1].wants, all[len(all)-1].whole = map[int]float64{large: 12, largest: 60}[keys], true
		}
	}
	store = small
	add(8, false, (*bench).tunedCall, "tuned", "empty")
	add(8, false, (*bench).tunedValidate, "tuned", "validate")
	add(6, false, (*bench).allocations, "allocations")
	add(5, false, func(b *bench) { b.profile(small) }, "profile", small)
	for _, size := range []int{64, 256} {
		add(8, false, func(b *bench) { b.batch(size) }, "batch", size)
	}
	for _, callers := range []int{1, 64} {
		add(8, false, func(b *bench) { b.client(methodClient, callers) }, "client", "single", callers)
		add(8, false, func(b *bench) { b.client(methodMerged, callers) }, "client", "merged", callers)
	}
	add(5, false, func(b *bench) { b.hits(1, 1) }, "nearcache", "hit", "one") // goroutine
	add(5, false, func(b *bench) { b.hits(processors(), 1) }, "nearcache", "hit", "all")
	add(5, false, func(b *bench) { b.hits(processors(), tokens) }, "nearcache", "tokens", tokens)
	add(12, false, (*bench).hitsBesideRevokes, "nearcache", "changes")
	for _, each := range [][2]int{{1, 1}, {64, 1}, {64, 64}} {
		add(8, false, func(b *bench) { b.changes(each[0], each[1]) }, "changes", each[0], each[1])
	}
	add(10, false, (*bench).sink, "sink", 64)
	add(20, false, (*bench).sessions, "sessions", 1000)
	return all
}

// calls returns a function that makes calls to a server for a time.
func (b *bench) calls(server *target, over string, callers int, next order) func(time.Duration) outcome {
	next.Kind, next.Address, next.Secured, next.Server, next.Keys, next.Callers = orderCalls, server.addresses[over], over == overTLS, server.Process.Pid, server.keys, callers
	return func(duration time.Duration) outcome {
		next.Time = duration
		return b.lab.order(callsGenerator, next)
	}
}

// validations is calls of ValidateKey.
func (b *bench) validations(server *target, over string, callers int) func(time.Duration) outcome {
	return b.calls(server, over, callers, order{Method: methodValidate})
}

// validate compares ValidateKey with an empty call over the same transport.
func (b *bench) validate(over string, keys, callers int) {
	server := b.lab.keysvc(keys, over == overTLS)
	under, measured := b.pairs(slice, b.validations(b.lab.baseline(baselineServer), over, callers), b.validations(server, over, callers))
	b.compare(emptyCall, under, measured, 1)
	if over == overTCP && callers == 64 {
		resident, anonymous := residentMemory(server.Process.Pid)
		b.add("resident memory", "MiB", []float64{resident}, "", nil)
		b.add("anonymous memory", "MiB", []float64{anonymous}, "", nil)
	}
}

// tunedCall compares the empty server with every tuning with the stock one.
func (b *bench) tunedCall() {
	under, measured := b.pairs(slice, b.validations(b.lab.baseline(baselineServer), overTCP, 64), b.validations(b.lab.baseline(tunedServer), overTCP, 64))
	b.compare(emptyCall, under, measured, 1)
}

// tunedValidate compares ValidateKey with an empty call with every tuning.
func (b *bench) tunedValidate() {
	under, measured := b.pairs(slice, b.validations(b.lab.baseline(tunedServer), overTCP, 64), b.validations(b.lab.keysvc(small, false), overTCP, 64))
	b.compare("empty call, tuned", under, measured, 1)
}

// size compares ValidateKey at a number of keys with 1,000 keys, and as many tokens.
func (b *bench) size(keys int) {
	under, measured := b.pairs(slice, b.validations(b.lab.keysvc(small, false), overTCP, 64), b.validations(b.lab.keysvc(keys, false), overTCP, 64))
	b.compare("1,000 keys", under, measured, 1)
}

// batch compares validations in batches with empty calls.
func (b *bench) batch(size int) {
	under, measured := b.pairs(slice, b.validations(b.lab.baseline(baselineServer), overTCP, 16),
		b.calls(b.lab.keysvc(small, false), overTCP, 16, order{Method: methodBatch, Batch: size}))
	b.compare(emptyCall, under, measured, float64(size))
}

// client compares validations through keyclient. A lone caller that merges is compared with one that
// does not, all others with empty calls.
func (b *bench) client(method string, callers int) {
	server, name := b.lab.keysvc(small, false), emptyCall
	baseline := b.validations(b.lab.baseline(baselineServer), overTCP, callers)
	if method == methodMerged && callers == 1 {
		baseline, name = b.calls(server, overTCP, callers, order{Method: methodClient}), "keyclient without merging"
	}
	under, measured := b.pairs(slice, baseline, b.calls(server, overTCP, callers, order{Method: method}))
	b.compare(name, under, measured, 1)
}

// allocations counts what a validation allocates in the server.
func (b *bench) allocations() {
	baseline, server := b.lab.baseline(baselineServer), b.lab.inTest(small)
	counted := func(server *target) func(time.Duration) [2]float64 {
		ask := b.validations(server, overTCP, 64)
		return func(duration time.Duration) [2]float64 {
			before := readMemory(b.T, server.worker)
			calls := float64(ask(duration).Calls)
			after := readMemory(b.T, server.worker)
			return [2]float64{float64(after.mallocs-before.mallocs) / calls, float64(after.allocated-before.allocated) / calls}
		}
	}
	under, over := counted(baseline), counted(server)
	var values [4][]float64
	duration := min(slice, max(b.time/6, time.Millisecond))
	for range b.rounds(2 * duration) {
		first, second := under(duration), over(duration)
		for index := range 2 {
			values[index] = append(values[index], second[index])
			values[2+index] = append(values[2+index], first[index])
		}
	}
	b.add("allocations", "", values[0], emptyCall, values[2])
	b.add("allocated", "B", values[1], emptyCall, values[3])
	b.lab.stop(fmt.Sprintf("in test %d", small))
}

// heap measures what a key holds of the heap: the difference between two stores.
func (b *bench) heap(keys int) {
	few := b.lab.inTest(small)
	fewHeap := readMemory(b.T, few.worker).heap
	many := b.lab.inTest(keys)
	manyHeap := readMemory(b.T, many.worker).heap
	b.add("heap a key", "B", []float64{float64(manyHeap-fewHeap) / float64(max(1, many.keys-few.keys))}, "", nil)
	b.add("heap", "MiB", []float64{float64(manyHeap) / (1 << 20)}, "", nil)
	b.lab.stop(fmt.Sprintf("in test %d", small))
	b.lab.stop(fmt.Sprintf("in test %d", keys))
}

// start measures how long a start takes, until the server answers.
func (b *bench) start(keys int) {
	name := fmt.Sprintf("keysvc %d false", keys)
	b.lab.stop(fmt.Sprintf("keysvc %d true", keys))
	b.lab.stop(name)
	var took, hashes, resident, anonymous []float64
	starts := min(4, 2+int(b.time/time.Second))
	for len(took) < starts {
		hashed := b.lab.order(callsGenerator, order{Kind: orderHash, Time: 100 * time.Millisecond})
		started := b.lab.serve(name, b.lab.store(keys), false)
		started.keys = b.lab.scale(keys)
		took, hashes = append(took, started.ready.Seconds()), append(hashes, hashed.Seconds/float64(hashed.Calls)*1e7)
		rss, anon := residentMemory(started.Process.Pid)
		resident, anonymous = append(resident, rss), append(anonymous, anon)
		if len(took) < starts {
			b.lab.stop(name)
		}
	}
	// The first start brings the file into the page cache.
	b.add("ready", "s", took[1:], "ten million SHA-256 of 64 bytes", hashes[1:])
	b.add("resident memory", "MiB", resident[1:], "", nil)
	b.add("anonymous memory", "MiB", anonymous[1:], "", nil)
}

// list measures pages of 1,000 keys, 100 of which are 100,000 keys.
func (b *bench) list() {
	under, measured := b.pairs(time.Second, b.validations(b.lab.baseline(baselineServer), overTCP, 1),
		b.calls(b.lab.keysvc(large, false), overTCP, 1, order{Method: methodList}))
	hundred := func(o outcome) float64 { return 100 * o.Seconds / float64(o.Calls) }
	b.add("100,000 keys", "s", values(measured, hundred, 1), "100 empty calls", values(under, hundred, 1))
	b.add("p99 of a page", "ms", values(measured, func(o outcome) float64 { return micro(o.P99) }, 1e-3), "", nil)
}

// sessions measures how soon the last of many near-caches has the event of a revoke.
func (b *bench) sessions() {
	each := min(100, 1+int(b.time/(10*time.Millisecond)))
	floor := startServer(b.T, floorServer)
	server := b.lab.keysvc(0, false)
	loads := []*sessionLoad{startSessions(b.T, floor.address, 10, each, true), startSessions(b.T, server.addresses[overTCP], 10, each, true)}
	var took [2][]float64
	for deadline := time.Now().Add(b.time); len(took[0]) < 3 || time.Now().Before(deadline) && len(took[0]) < 500; {
		for index, load := range loads {
			took[index] = append(took[index], float64(load.revoke(b.T, false).asked.Microseconds())/1e3)
		}
	}
	for _, load := range loads {
		load.end()
	}
	b.add("last session", "ms", took[1], "a server that only tells the sessions", took[0])
}

// residentMemory returns the resident and the anonymous memory of a process in MiB; 0 if it
// cannot be read.
func residentMemory(pid int) (resident, anonymous float64) {
	text, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup")) // not there on other systems
	for line := range strings.SplitSeq(string(text), "\n") {
		var kilobytes float64
		switch name, value, _ := strings.Cut(line, ":"); name {
		case "Rss":
			fmt.Sscan(value, &kilobytes)
			resident = kilobytes / 1024
		case "Anonymous":
			fmt.Sscan(value, &kilobytes)
			anonymous = kilobytes / 1024
		}
	}
	return resident, anonymous
}
