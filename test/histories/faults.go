//go:build linux

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/scribe-mail/keysvc/test/trio"
)

// fault is something that is done to the cluster, and undone.
type fault struct {
	name string
	do   func(ctx context.Context, f *faults, lasts time.Duration) error
}

// faults breaks a cluster while calls go on.
type faults struct {
	w      *world
	random *rand.Rand
	// said is what was done when.
	said  []string
	began time.Time
	// copies is how many copies of etcd's data were made.
	copies int
}

// faultNames returns the names of all faults.
func faultNames() []string {
	var names []string
	for _, each := range allFaults {
		names = append(names, each.name)
	}
	return names
}

// run plays faults, one after the other, until the context ends. Then everything is undone but the wires.
func (f *faults) run(ctx context.Context, wanted []string, pause time.Duration) error {
	var chosen []fault
	for _, each := range allFaults {
		if slices.Contains(wanted, each.name) {
			chosen = append(chosen, each)
		}
	}
	for len(chosen) > 0 {
		rest(ctx, time.Duration(f.random.Int64N(int64(2*pause))))
		if ctx.Err() != nil {
			return nil //nolint:nilerr // that is how it ends
		}
		one := chosen[f.random.IntN(len(chosen))]
		lasts := time.Duration(50+f.random.IntN(600)) * time.Millisecond
		// Some last longer than one attempt of a commit, and than an election.
		if f.random.IntN(4) == 0 {
			lasts += time.Second + time.Duration(f.random.IntN(1000))*time.Millisecond
		}
		f.say("%s for %v", one.name, lasts)
		err := one.do(ctx, f, lasts)
		f.w.cluster.Mend()
		if err != nil && ctx.Err() == nil {
			f.say("%s: %v", one.name, err)
			if strings.Contains(err.Error(), "does not serve") {
				return fmt.Errorf("%w: %s: %w", errBroken, one.name, err)
			}
		}
	}
	<-ctx.Done()
	return nil
}

func (f *faults) say(format string, arguments ...any) {
	f.said = append(f.said, fmt.Sprintf("%.3f s: ", time.Since(f.began).Seconds())+fmt.Sprintf(format, arguments...))
}

func (f *faults) replica() *trio.Replica { return f.w.cluster.Replicas[f.random.IntN(replicas)] }

// member returns the leader, half of the time.
func (f *faults) member(ctx context.Context) *trio.Member {
	if f.random.IntN(2) == 0 {
		asked, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if leader, err := f.w.cluster.Leader(asked); err == nil {
			return leader
		}
	}
	return f.w.cluster.Members[f.random.IntN(len(f.w.cluster.Members))]
}

// ready waits for a process, also after the end of the campaign's load.
func ready(process interface{ Ready(context.Context) error }) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return process.Ready(ctx)
}

// breakWires cuts wires, or holds what they carry.
func (f *faults) breakWires(ctx context.Context, wires trio.Wires, lasts time.Duration) {
	if f.random.IntN(2) == 0 {
		wires.Cut()
	} else {
		wires.Hold()
	}
	rest(ctx, lasts)
	wires.Mend()
}

var allFaults = []fault{
	{"kill keysvc", func(ctx context.Context, f *faults, lasts time.Duration) error {
		replica := f.replica()
		if !f.w.own(replica.Index) {
			return nil
		}
		defer f.w.disown(replica.Index)
		if err := replica.Kill(); err != nil {
			return err
		}
		rest(ctx, lasts)
		if err := replica.Start(); err != nil {
			return err
		}
		return ready(replica)
	}},
	{"kill etcd", func(ctx context.Context, f *faults, lasts time.Duration) error {
		member := f.member(ctx)
		if err := member.Kill(); err != nil {
			return err
		}
		rest(ctx, lasts)
		if err := member.Start(); err != nil {
			return err
		}
		return ready(member)
	}},
	{"stop keysvc", func(ctx context.Context, f *faults, lasts time.Duration) error {
		replica := f.replica()
		if err := replica.Stop(); err != nil {
			return err
		}
		rest(ctx, lasts)
		return replica.Continue()
	}},
	{"stop etcd", func(ctx context.Context, f *faults, lasts time.Duration) error {
		member := f.member(ctx)
		if err := member.Stop(); err != nil {
			return err
		}
		rest(ctx, lasts)
		return member.Continue()
	}},
	{"cut clients", func(ctx context.Context, f *faults, lasts time.Duration) error {
		f.breakWires(ctx, trio.Wires{f.replica().Clients}, lasts)
		return nil
	}},
	{"slow clients", func(ctx context.Context, f *faults, lasts time.Duration) error {
		wires := trio.Wires{f.replica().Clients}
		late := time.Duration(f.random.Int64N(int64(staleness)))
		there, back := late, late
		switch f.random.IntN(4) {
		case 0:
			there = 0
		case 1:
			back = 0
		}
		wires.Slow(there, back)
		rest(ctx, late+lasts)
		// Perhaps what is on its way is lost, for longer than near-caches may answer from memory.
		if f.random.IntN(2) == 0 {
			wires.Cut()
			rest(ctx, staleness+lasts)
		}
		wires.Mend()
		return nil
	}},
	{"cut keysvc from etcd", func(ctx context.Context, f *faults, lasts time.Duration) error {
		f.breakWires(ctx, f.replica().Etcd.Wires, lasts)
		return nil
	}},
	{"cut keysvc from a member", func(ctx context.Context, f *faults, lasts time.Duration) error {
		f.breakWires(ctx, trio.Wires{f.replica().Etcd.To(f.member(ctx))}, lasts)
		return nil
	}},
	{"cut a member off", func(ctx context.Context, f *faults, lasts time.Duration) error {
		f.breakWires(ctx, f.member(ctx).Apart(), lasts)
		return nil
	}},
	{"move the leader", func(ctx context.Context, f *faults, _ time.Duration) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return f.w.cluster.Members[f.random.IntN(len(f.w.cluster.Members))].Lead(ctx)
	}},
	{"compact", func(ctx context.Context, f *faults, lasts time.Duration) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		// A replica that is cut off meanwhile has no past to go on from.
		if f.random.IntN(2) == 0 {
			replica := f.replica()
			replica.Etcd.Wires.Cut()
			defer replica.Etcd.Wires.Mend()
			rest(ctx, lasts)
		}
		if err := f.w.cluster.Compact(ctx, 0); err != nil {
			return err
		}
		return f.member(ctx).Defragment(ctx)
	}},
}

// copyData copies the data of all members, which stand still meanwhile. It returns the folder.
func (f *faults) copyData() (string, error) {
	f.copies++
	folder := filepath.Join(f.w.folder, fmt.Sprintf("copy-%d", f.copies))
	if err := os.RemoveAll(folder); err != nil {
		return "", err
	}
	f.say("copy of etcd's data")
	return folder, f.w.cluster.CopyData(folder)
}

// restore puts a copy of etcd's data back. Some replica may be cut off from etcd meanwhile, and hears of it later. It
// returns when etcd serves; begin is called when the members have ended.
func (f *faults) restore(ctx context.Context, folder string, begin func()) error {
	f.w.mutex.Lock()
	f.w.restored, f.w.ended = true, [replicas]bool{}
	f.w.mutex.Unlock()
	var away *trio.Replica
	if f.random.IntN(3) > 0 {
		away = f.replica()
		away.Etcd.Wires.Cut()
		f.say("restore while %s is cut off", away.Name())
	} else {
		f.say("restore")
	}
	for _, member := range f.w.cluster.Members {
		if err := member.Kill(); err != nil {
			return err
		}
	}
	begin()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := f.w.cluster.PutData(ctx, folder); err != nil {
		return fmt.Errorf("putting an older data folder back: %w", err)
	}
	if away != nil {
		// Others make changes meanwhile, perhaps beyond what this one has applied.
		rest(ctx, time.Duration(500+f.random.IntN(3500))*time.Millisecond)
		away.Etcd.Wires.Mend()
		f.say("%s is connected again", away.Name())
	}
	return nil
}

// together runs faults beside what is done.
func (f *faults) together(ctx context.Context, wanted []string, pause time.Duration, do func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var running sync.WaitGroup
	var err error
	running.Go(func() { err = f.run(ctx, wanted, pause) })
	do()
	cancel()
	running.Wait()
	return err
}
