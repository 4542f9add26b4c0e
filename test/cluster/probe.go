//go:build linux

package main

import (
	"context"
	"time"
)

const (
	// probeEvery is how often a member of etcd is asked, and probeDeadline how long it may take to answer.
	probeEvery    = 10 * time.Millisecond
	probeDeadline = 200 * time.Millisecond
)

// etcdAnswers asks each member of etcd for a linearizable read, without keysvc, until it answers. The channel gets how long after a
// moment the first member answered: so much of an outage is etcd's own. It gets nothing if the context ends before.
func (w *world) etcdAnswers(ctx context.Context, from time.Time) (<-chan time.Duration, error) {
	first := make(chan time.Duration, len(w.cluster.Members))
	for _, member := range w.cluster.Members {
		client, err := member.Client()
		if err != nil {
			return nil, err
		}
		go func() {
			for ctx.Err() == nil {
				limited, cancel := context.WithTimeout(ctx, probeDeadline)
				_, err := client.Get(limited, "probe")
				cancel()
				if err == nil {
					first <- time.Since(from)
					return
				}
				sleep(ctx, probeEvery)
			}
		}()
	}
	return first, nil
}
