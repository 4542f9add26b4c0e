//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// slice is one measurement of some seconds.
type slice struct {
	// rate is how many calls there were a second.
	rate float64
	// took are the latencies of each server's calls, sorted.
	took [][]time.Duration
	// failed is how many calls failed, because the store did not answer in time. They have no latency.
	failed int
	// processor is what the servers took for a call.
	processor time.Duration
}

// at returns the latency of the calls to a server that a share of them does not exceed.
func (s slice) at(server int, share float64) time.Duration {
	took := s.took[server]
	if len(took) == 0 {
		return 0
	}
	return took[min(len(took)-1, int(share*float64(len(took))))]
}

// measure has a number of callers, each of which makes one call after the other until the time is over or it has no more to do.
// call makes the call of a caller with a number, to a server.
func measure(ctx context.Context, servers []*server, callers int, lasts time.Duration, call func(ctx context.Context, caller, number int) (server int, more bool, err error)) (slice, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	before, err := processorOf(servers)
	if err != nil {
		return slice{}, err
	}
	var mutex sync.Mutex
	var calling sync.WaitGroup
	result := slice{took: make([][]time.Duration, len(servers))}
	began := time.Now()
	ends := began.Add(lasts)
	for caller := range callers {
		calling.Go(func() {
			own, failed := make([][]time.Duration, len(servers)), 0
			defer func() {
				mutex.Lock()
				defer mutex.Unlock()
				result.failed += failed
				for index := range own {
					result.took[index] = append(result.took[index], own[index]...)
				}
			}()
			start := time.Now()
			for number := 0; ctx.Err() == nil && start.Before(ends); number++ {
				index, more, err := call(ctx, caller, number)
				switch {
				case ctx.Err() != nil: // a call of another caller has failed
					return
				case isOverload(err):
					failed++
					start = time.Now()
					continue
				case err != nil:
					cancel(err)
					return
				case !more:
					return
				}
				end := time.Now()
				own[index] = append(own[index], end.Sub(start))
				start = end
			}
		})
	}
	calling.Wait()
	lasted := time.Since(began)
	if err := context.Cause(ctx); err != nil {
		return slice{}, err
	}
	after, err := processorOf(servers)
	if err != nil {
		return slice{}, err
	}
	count := 0
	for _, took := range result.took {
		slices.Sort(took)
		count += len(took)
	}
	if count == 0 {
		return slice{}, fmt.Errorf("no call of %d callers has ended in %s", callers, lasts)
	}
	result.rate = float64(count) / lasted.Seconds()
	result.processor = (after - before) / time.Duration(count)
	return result, nil
}

// isOverload reports whether an error is one that a store has which is asked for more than it can do.
func isOverload(err error) bool {
	code := status.Code(err)
	return code == codes.Unknown || code == codes.Unavailable
}

// processorOf returns the processor time of servers.
func processorOf(servers []*server) (sum time.Duration, err error) {
	for _, each := range servers {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", each.replica.PID()))
		if err != nil {
			return 0, err
		}
		_, after, _ := strings.Cut(string(text), ") ")
		for _, field := range strings.Fields(after)[11:13] { // utime and stime, in hundredths of a second
			ticks, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return 0, err
			}
			sum += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return sum, nil
}
