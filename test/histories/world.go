//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/test/trio"
)

const (
	replicas = 3
	// callTimeout is the deadline of each call.
	callTimeout = 3 * time.Second
	// patience is how long is waited for what must come, also on a busy machine.
	patience = 90 * time.Second
	// staleness is S.
	staleness = time.Second
)

// world is the cluster with those who use it. It outlives its batches.
type world struct {
	cluster *trio.Trio
	folder  string // for copies of etcd's data
	// plain asks one replica each; cached does so with a near-cache.
	plain, cached [replicas]*keyclient.Client
	audits        [replicas]keysvcv1.AuditServiceClient
	// policies are the variants of the policy, digests their digests.
	policies [policyVariants]*keysvcv1.Policy
	digests  [policyVariants]string

	mutex sync.Mutex
	// ours are replicas that are being killed or started by a fault.
	ours [replicas]bool
	// restored is set while replicas may end by themselves.
	restored bool
	// ended are replicas that ended by themselves since restored was set.
	ended [replicas]bool
	// surprises are ends of replicas that nothing explains.
	surprises []string
	stop      context.CancelFunc
	watching  sync.WaitGroup
}

func newWorld(ctx context.Context, cluster *trio.Trio, folder string) (*world, error) {
	w := &world{cluster: cluster, folder: folder}
	for index, replica := range cluster.Replicas {
		var err error
		if w.plain[index], err = newClient(replica.Address(), true); err != nil {
			return nil, err
		}
		if w.cached[index], err = newClient(replica.Address(), false); err != nil {
			return nil, err
		}
		w.audits[index] = keysvcv1.NewAuditServiceClient(w.plain[index].Conn())
	}
	if err := w.makePolicies(ctx); err != nil {
		return nil, fmt.Errorf("the policies: %w", err)
	}
	ctx, w.stop = context.WithCancel(ctx)
	for index := range cluster.Replicas {
		w.watching.Go(func() { w.supervise(ctx, index) })
	}
	return w, nil
}

func newClient(address string, plain bool) (*keyclient.Client, error) {
	return keyclient.New(address, keyclient.Config{
		WithoutNearCache: plain, Timeout: callTimeout, ValidationTimeout: callTimeout,
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 200 * time.Millisecond},
			MinConnectTimeout: time.Second,
		})},
	})
}

func (w *world) close() {
	w.stop()
	w.watching.Wait()
	for index := range replicas {
		_ = w.plain[index].Close()
		_ = w.cached[index].Close()
	}
}

// makePolicies makes the variants of the policy from the stored one.
func (w *world) makePolicies(ctx context.Context) error {
	client := w.plain[0].Policies
	stored, err := client.GetPolicy(ctx, &keysvcv1.GetPolicyRequest{})
	if err != nil {
		return err
	}
	current := stored.GetDigest()
	for variant := policyVariants - 1; variant >= 0; variant-- {
		policy := stored.GetPolicy()
		var list []*keysvcv1.PolicyRole
		for number, name := range roleNames {
			list = append(list, &keysvcv1.PolicyRole{Name: name, Scopes: role(number).has(variant).names()})
		}
		w.policies[variant] = &keysvcv1.Policy{
			TokenPrefix: policy.GetTokenPrefix(), Resources: policy.GetResources(), Roles: list,
			Limits: policy.GetLimits(), Retention: policy.GetRetention(), Actions: policy.GetActions(),
		}
		applied, err := client.ApplyPolicy(ctx, &keysvcv1.ApplyPolicyRequest{Policy: w.policies[variant], ReplacesDigest: current})
		if err != nil {
			return err
		}
		current = applied.GetDigest()
		w.digests[variant] = current
	}
	return nil
}

// names returns the names of scopes.
func (s scopes) names() []string {
	var names []string
	for number, name := range scopeNames {
		if s&(1<<number) != 0 {
			names = append(names, name)
		}
	}
	return names
}

// scopesOf returns the set of names. Unknown ones give a bit that no set has.
func scopesOf(names []string) scopes {
	var set scopes
	for _, name := range names {
		found := scopes(1 << 7)
		for number, each := range scopeNames {
			if each == name {
				found = 1 << number
			}
		}
		set |= found
	}
	return set
}

// supervise starts a replica again that has ended by itself, as a machine's supervisor does.
func (w *world) supervise(ctx context.Context, index int) {
	replica := w.cluster.Replicas[index]
	for {
		select {
		case <-ctx.Done():
			return
		case <-replica.Ended():
		}
		w.mutex.Lock()
		if !w.ours[index] && ctx.Err() == nil && !replica.Running() {
			if w.restored {
				w.ended[index] = true
			} else {
				w.surprises = append(w.surprises, fmt.Sprintf("%s ended by itself: %s", replica.Name(), lastLines(replica.Log())))
			}
			// While etcd does not answer, a start may fail: then it is tried again.
			_ = replica.Start()
		}
		w.mutex.Unlock()
		rest(ctx, 100*time.Millisecond)
	}
}

// lastLines returns the end of a file.
func lastLines(path string) string {
	content, _ := os.ReadFile(path)
	return string(content[max(0, len(content)-800):])
}

// own marks a replica as one that a fault kills and starts. It reports false if another fault does so already.
func (w *world) own(index int) bool {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if w.ours[index] {
		return false
	}
	w.ours[index] = true
	return true
}

func (w *world) disown(index int) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.ours[index] = false
}

// takeSurprises returns the ends of replicas that nothing explains, and forgets them.
func (w *world) takeSurprises() []string {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	taken := w.surprises
	w.surprises = nil
	return taken
}

// well mends everything, and waits until each replica answers.
func (w *world) well(outer context.Context) error {
	w.cluster.Mend()
	ctx, cancel := context.WithTimeout(outer, patience)
	defer cancel()
	for _, member := range w.cluster.Members {
		_ = member.Continue()
		if !member.Running() {
			if err := member.Start(); err != nil {
				return err
			}
		}
	}
	for _, replica := range w.cluster.Replicas {
		_ = replica.Continue()
	}
	for index := range w.cluster.Replicas {
		for {
			asked, end := context.WithTimeout(ctx, callTimeout)
			_, err := w.plain[index].Policies.GetPolicy(asked, &keysvcv1.GetPolicyRequest{})
			if err == nil {
				_, err = w.cached[index].Validate(asked, keyauth.Question{Token: "none", Requirement: keyauth.Scope(scopeNames[0])})
			}
			end()
			if err == nil {
				break
			}
			if outer.Err() != nil {
				return outer.Err()
			}
			if ctx.Err() != nil {
				return fmt.Errorf("%w: replica %d does not answer: %w", errBroken, index, err)
			}
			rest(ctx, 20*time.Millisecond)
		}
	}
	return nil
}

// audit returns the events of all workspaces after a revision, oldest first.
func (w *world) audit(ctx context.Context, replica int, after int64) ([]*keysvcv1.AuditEvent, error) {
	var events []*keysvcv1.AuditEvent
	for page := ""; ; {
		answer, err := w.audits[replica].ListAuditEvents(ctx, &keysvcv1.ListAuditEventsRequest{AfterRevision: after, PageSize: 1000, PageToken: page})
		if err != nil {
			return nil, err
		}
		events = append(events, answer.GetEvents()...)
		if page = answer.GetNextPageToken(); page == "" {
			break
		}
	}
	for low, high := 0, len(events)-1; low < high; low, high = low+1, high-1 {
		events[low], events[high] = events[high], events[low]
	}
	for index := 1; index < len(events); index++ {
		if events[index].GetRevision() <= events[index-1].GetRevision() {
			return nil, fmt.Errorf("%w: audit events out of order: %d after %d", errBroken, events[index].GetRevision(), events[index-1].GetRevision())
		}
	}
	return events, nil
}

// rest waits, or until the context ends.
func rest(ctx context.Context, length time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(length):
	}
}

// logs returns the ends of the processes' logs.
func (w *world) logs() string { return strings.TrimSpace(w.cluster.Logs()) }

// errBroken is returned if a promise was broken.
var errBroken = errors.New("a promise was broken")
