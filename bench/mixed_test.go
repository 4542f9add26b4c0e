package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// share of the capacity that an open loop asks for.
const mixedShare, halfShare = 0.3, 0.5

// openSlice is how long an open loop runs before it is another one's turn: long enough for a p99.9.
const openSlice = 1500 * time.Millisecond

// openCallers is the most calls at a time of an open loop. The rest wait, and their time counts.
const openCallers = 512

// capacity returns how many validations a second a server does at most, for 64 callers of a client of
// grpc-go on the same processors.
func (b *bench) capacity(server *target) float64 {
	b.validations(server, overTCP, 64)(min(slice, b.time))
	most := b.validations(server, overTCP, 64)(min(2*time.Second, b.time))
	return float64(most.Calls) / most.Seconds
}

// open returns a function that asks a server at a rate.
func (b *bench) open(server *target, rate float64) func(time.Duration) outcome {
	return b.calls(server, overTCP, openCallers, order{Method: methodWire, Rate: rate})
}

// addOpen adds the figures of an open loop.
func (b *bench) addOpen(baseline string, under, over []outcome) {
	for _, each := range []struct {
		name string
		of   func(outcome) float64
	}{
		{"p50", func(o outcome) float64 { return micro(o.P50) }},
		{"p99", func(o outcome) float64 { return micro(o.P99) }},
		{"p99.9", func(o outcome) float64 { return micro(o.P999) }},
		{"maximum", func(o outcome) float64 { return micro(o.Max) }},
	} {
		b.add(each.name, "µs", values(over, each.of, 1), baseline, values(under, each.of, 1))
	}
	b.add("rate", "a second", values(over, func(o outcome) float64 { return float64(o.Calls) / o.Seconds }, 1), "", nil)
	for _, each := range []struct {
		name string
		of   func(outcome) float64
	}{
		{"processors of the server", func(o outcome) float64 { return o.Server.Seconds() / o.Seconds }},
		{"processors of the client", func(o outcome) float64 { return o.Client.Seconds() / o.Seconds }},
	} {
		b.add(each.name, "", values(over, each.of, 1), baseline, values(under, each.of, 1))
	}
}

// half compares a number of keys with 1,000 keys, at half the capacity of these.
func (b *bench) half(keys int) {
	few, many := b.lab.keysvc(small, false), b.lab.keysvc(keys, false)
	rate := halfShare * b.capacity(few)
	under, over := b.pairs(openSlice, b.open(few, rate), b.open(many, rate))
	b.addOpen("1,000 keys", under, over)
}

// mixed compares validations beside other work with validations alone. Alone they are compared with
// empty calls at the same rate.
func (b *bench) mixed(work string) {
	server := b.lab.keysvc(large, false)
	rate := mixedShare * b.capacity(server)
	alone := b.open(server, rate)
	if work == "alone" {
		under, over := b.pairs(openSlice, b.open(b.lab.baseline(baselineServer), rate), alone)
		b.addOpen(emptyCall, under, over)
		return
	}
	beside := order{Kind: orderBeside, Address: server.addresses[overTCP]}
	beside.Lists, beside.Policies = work == "lists" || work == "all", work == "policies" || work == "all"
	if work == "changes" || work == "all" {
		beside.Changes = 100
	}
	b.lab.order(besideGenerator, order{Kind: orderMade, Address: beside.Address, Workspaces: 1})
	var pages, dryRuns, changes []float64
	under, over := b.pairs(openSlice, alone, func(duration time.Duration) outcome {
		b.lab.order(besideGenerator, beside)
		measured := alone(duration)
		done := b.lab.order(besideGenerator, order{Kind: orderStop})
		pages, dryRuns = append(pages, float64(done.Pages)/done.Seconds), append(dryRuns, float64(done.DryRuns)/done.Seconds)
		changes = append(changes, float64(done.Calls)/done.Seconds)
		return measured
	})
	b.addOpen("alone", under, over)
	b.add("pages beside", "a second", pages, "", nil)
	b.add("dry runs beside", "a second", dryRuns, "", nil)
	b.add("changes beside", "a second", changes, "", nil)
}

// hits measures requests that are answered from memory, with a number of goroutines and of tokens.
func (b *bench) hits(goroutines, count int) {
	server := b.lab.keysvc(small, false)
	under, over := b.pairs(slice, b.hash, b.hitting(server, goroutines, count))
	nanoseconds := func(o outcome) float64 { return o.Seconds / float64(o.Calls) * 1e9 }
	b.add("time", "ns", values(over, nanoseconds, 1), "SHA-256 of 64 bytes", values(under, nanoseconds, 1))
	b.add("allocations", "", values(over, func(o outcome) float64 { return float64(o.Allocations) / float64(o.Calls) }, 1), "", nil)
}

func (b *bench) hash(duration time.Duration) outcome {
	return b.lab.order(callsGenerator, order{Kind: orderHash, Time: duration})
}

func (b *bench) hitting(server *target, goroutines, count int) func(time.Duration) outcome {
	return func(duration time.Duration) outcome {
		return b.lab.order(callsGenerator, order{Kind: orderHits, Address: server.addresses[overTCP], Callers: goroutines, Batch: count, Time: duration})
	}
}

// hitsBesideRevokes measures hits while 1,000 keys a second are revoked, and that the bound of
// staleness holds.
func (b *bench) hitsBesideRevokes() {
	server, rate := b.lab.keysvc(small, false), 1_000.0
	alone := b.hitting(server, processors(), tokens)
	address := server.addresses[overTCP]
	var lasts, revokes []float64
	under, over := b.pairs(time.Second, alone, func(duration time.Duration) outcome {
		b.lab.order(revokesGenerator, order{Kind: orderMade, Address: address, Workspaces: 64, Revokes: rate, Time: 2 * duration})
		b.lab.order(revokesGenerator, order{Kind: orderBeside, Address: address, Revokes: rate})
		measured := alone(duration)
		last := b.lab.order(callsGenerator, order{Kind: orderLeases, Address: address, Time: min(duration, 300*time.Millisecond)})
		revoked := b.lab.order(revokesGenerator, order{Kind: orderStop})
		lasts, revokes = append(lasts, float64(last.Max.Microseconds())/1e3), append(revokes, float64(revoked.Calls)/revoked.Seconds)
		return measured
	})
	rates := func(o outcome) float64 { return float64(o.Calls) / o.Seconds }
	b.add("decisions", "a second", values(over, rates, 1), "without changes", values(under, rates, 1))
	b.add("revokes", "a second", revokes, "", nil)
	b.add("last accepted after a revoke", "ms", lasts, "", nil)
}

// changes compares keys that are created durably, by callers in some workspaces, with raw syncs of
// the disk.
func (b *bench) changes(callers, workspaces int) {
	server := b.lab.keysvc(0, false)
	address := server.addresses[overTCP]
	b.lab.order(callsGenerator, order{Kind: orderMade, Address: address, Workspaces: workspaces})
	under, over := b.pairs(500*time.Millisecond, b.sync, b.calls(server, overTCP, callers, order{Method: methodCreate, Workspaces: workspaces}))
	b.compare("fdatasync of 4 KiB", under, over, 1)
}

// sink compares keys that are created durably with an audit sink, and without.
func (b *bench) sink() {
	plain := b.lab.keysvc(0, false)
	name := "keysvc with a sink"
	sunk := b.lab.serve(name, fmt.Sprint(b.lab.work, "/sunk"), false, "--init", "--audit-sink", fmt.Sprint(b.lab.work, "/audit.jsonl"))
	defer b.lab.stop(name)
	for _, server := range []*target{plain, sunk} {
		b.lab.order(callsGenerator, order{Kind: orderMade, Address: server.addresses[overTCP], Workspaces: 64})
	}
	create := order{Method: methodCreate, Workspaces: 64}
	under, over := b.pairs(500*time.Millisecond, b.calls(plain, overTCP, 64, create), b.calls(sunk, overTCP, 64, create))
	b.compare("without a sink", under, over, 1)
}

// sync writes 4 KiB into a file of a fixed size and syncs them, one after the other, on the disk of
// the stores.
func (b *bench) sync(duration time.Duration) outcome {
	b.Helper()
	const size = 4 << 20
	path := filepath.Join(b.lab.work, "raw")
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	block := make([]byte, 4096)
	if state, err := file.Stat(); err != nil || state.Size() < size {
		if _, err := file.Write(make([]byte, size)); err != nil {
			b.Fatal(err)
		}
		if err := file.Sync(); err != nil {
			b.Fatal(err)
		}
	}
	var took histogram
	began := time.Now()
	for start := began; start.Sub(began) < duration; {
		block[0]++
		if _, err := file.WriteAt(block, took.total*4096%size); err != nil {
			b.Fatal(err)
		}
		if err := syncData(file); err != nil {
			b.Fatal(err)
		}
		now := time.Now()
		took.add(now.Sub(start))
		start = now
	}
	return outcome{
		Calls: took.total, Seconds: time.Since(began).Seconds(), P50: took.at(0.5), P99: took.at(0.99), P999: took.at(0.999), Max: took.max,
	}
}
