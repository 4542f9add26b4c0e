package main_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

const (
	// crashRounds is how often the server is killed. KEYSVC_CRASH_ROUNDS replaces it.
	crashRounds = 20
	// storeRounds is how many rounds use one store. A round reads all keys, so it takes longer
	// with more of them.
	storeRounds = 100
	// crashWorkers is how many workers make changes at the same time.
	crashWorkers = 8
)

// TestKillLosesNothingAcknowledged kills the server with SIGKILL again and again while workers make
// changes, and compares the store with what was acknowledged. KEYSVC_CRASH_ROUNDS makes the test
// longer. KEYSVC_CRASH_SEED repeats the choices of the workers of an earlier run.
func TestKillLosesNothingAcknowledged(t *testing.T) {
	t.Parallel()
	rounds := int(number(t, "KEYSVC_CRASH_ROUNDS", crashRounds))
	seed := number(t, "KEYSVC_CRASH_SEED", rand.Uint64())
	t.Logf("KEYSVC_CRASH_ROUNDS=%d KEYSVC_CRASH_SEED=%d", rounds, seed)
	begin, all := time.Now(), &tally{acknowledged: make(map[string]int)}
	for first := 0; first < rounds && !t.Failed(); first += storeRounds {
		c := newCampaign(t, seed+uint64(first), all)
		for round := first; round < min(first+storeRounds, rounds) && !t.Failed(); round++ {
			c.round(t)
			if t.Failed() {
				t.Logf("round %d of %d, KEYSVC_CRASH_SEED=%d; the file is kept as %s", round+1, rounds, seed, keep(t, c.file()))
			}
		}
		c.end(t)
		t.Logf("%d rounds, %s", min(first+storeRounds, rounds), time.Since(begin).Round(time.Second))
	}
	t.Logf("%d kills in %s, %d of them during the start; %d calls lost, %d of those had changed something; %d keys; acknowledged: %v",
		rounds, time.Since(begin).Round(time.Second), all.early, all.lost, all.tookEffect, all.keys, all.acknowledged)
	if rounds >= crashRounds && !t.Failed() {
		for _, operation := range operations {
			if operation.weight > 2 && all.acknowledged[operation.name] == 0 {
				t.Errorf("nobody came to %s", operation.name)
			}
		}
	}
}

// tally counts what the test reports at the end.
type tally struct {
	early, lost, tookEffect, keys int
	acknowledged                  map[string]int
}

// number reads a number from the environment.
func number(t *testing.T, variable string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	value, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return value
}

// keep copies a file to a place where it outlives the test.
func keep(t *testing.T, file string) string {
	t.Helper()
	copied := filepath.Join(os.TempDir(), fmt.Sprintf("keysvc-crash-%d.db", os.Getpid()))
	if err := os.WriteFile(copied, []byte(read(t, file)), 0o600); err != nil {
		t.Log(err)
	}
	return copied
}

// campaign is a store that is served and killed.
type campaign struct {
	data    string
	random  *rand.Rand
	workers []*worker
	keys    int
	tally   *tally
}

func newCampaign(t *testing.T, seed uint64, all *tally) *campaign {
	t.Helper()
	c := &campaign{data: t.TempDir(), random: rand.New(rand.NewPCG(seed, 0)), tally: all}
	for worker := range crashWorkers {
		c.workers = append(c.workers, newWorker(worker+1, seed))
	}
	return c
}

func (c *campaign) file() string { return filepath.Join(c.data, "keysvc.db") }

// end stops the server with SIGTERM and compares for the last time.
func (c *campaign) end(t *testing.T) {
	t.Helper()
	for range 2 {
		if t.Failed() {
			return
		}
		s := serve(t, c.data)
		c.compare(t, s)
		s.stop(t)
	}
	c.tally.keys += c.keys
	for _, worker := range c.workers {
		for name, count := range worker.counts {
			c.tally.acknowledged[name] += count
		}
	}
}

// round starts the server, compares, lets the workers work, and kills it.
func (c *campaign) round(t *testing.T) {
	t.Helper()
	p := launch(t, append(serveOn(c.data), "--usage-interval", "1s", "--sweep-interval", "1s")...)
	if c.random.IntN(6) == 0 {
		// Killed at some moment of its start.
		c.tally.early++
		timer := time.NewTimer(time.Duration(c.random.IntN(30)) * time.Millisecond)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-p.ended:
			t.Errorf("it ended by itself\n%s", p.stderr)
		}
		p.kill()
		return
	}
	s, err := p.serving(c.data)
	if err != nil {
		t.Error(err)
		return
	}
	defer s.conn.Close()
	c.compare(t, s)
	if !t.Failed() {
		c.work(t, s)
	}
	p.kill()
	if checked := command(t, "", "check", c.file()); checked.status != 0 {
		t.Errorf("check: exit status %d\n%s%s", checked.status, checked.stdout, checked.stderr)
	}
}

// work lets the workers work, and kills the server in the middle of it.
func (c *campaign) work(t *testing.T, s *serving) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	enough := int64(1 + c.random.IntN(400))
	var done atomic.Int64
	reached := make(chan struct{})
	var reach sync.Once
	var all sync.WaitGroup
	for _, w := range c.workers {
		all.Go(func() {
			for {
				err := w.step(ctx, s)
				if done.Add(1) >= enough || err != nil {
					reach.Do(func() { close(reached) })
				}
				if errors.Is(err, errLost) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	<-reached
	select {
	case <-s.ended:
		t.Errorf("it ended by itself\n%s", s.stderr)
	default:
	}
	if c.random.IntN(2) == 0 {
		// So that the server is not only killed right after an answer.
		<-time.After(time.Duration(c.random.IntN(3000)) * time.Microsecond)
	}
	s.kill()
	all.Wait()
	for _, w := range c.workers {
		if len(w.models) > 1 {
			c.tally.lost++
		}
	}
}

// compare reads everything and compares it with what was acknowledged.
func (c *campaign) compare(t *testing.T, s *serving) {
	t.Helper()
	found := c.read(t, s)
	if t.Failed() {
		return
	}
	ask := func(token, scope string) string { return inWords(s.decide(t, token, scope)) }
	c.keys = 0
	for _, w := range c.workers {
		before, unsure := w.models[0], len(w.models) > 1
		if err := w.resolve(found, ask); err != nil {
			t.Errorf("%v", err)
			continue
		}
		if unsure && before.differs(found) != "" {
			c.tally.tookEffect++
		}
		c.keys += len(w.models[0].keys)
		c.validate(t, s, w.models[0])
	}
	if !t.Failed() && len(found.keys) != c.keys {
		t.Errorf("%d keys are stored, and %d were created", len(found.keys), c.keys)
	}
}

// read reads all members and keys.
func (c *campaign) read(t *testing.T, s *serving) *stored {
	t.Helper()
	found := &stored{members: make(map[string]*keysvcv1.Member), keys: make(map[string]*keysvcv1.Key), owned: make(map[string]int)}
	workspaces := make(map[string]bool)
	for _, w := range c.workers {
		for _, workspace := range w.models[0].workspaces {
			workspaces[workspace.id] = true
		}
	}
	ctx := testContext(t)
	for _, workspaceID := range slices.Sorted(maps.Keys(workspaces)) {
		members, err := s.members.ListMembers(ctx, &keysvcv1.ListMembersRequest{WorkspaceId: workspaceID, PageSize: 1000})
		if err != nil {
			t.Error(err)
		}
		for _, member := range members.GetMembers() {
			found.members[workspaceID+"/"+member.GetMemberId()] = member
		}
	}
	for request := (&keysvcv1.ListKeysRequest{PageSize: 1000}); ; {
		page, err := s.keys.ListKeys(ctx, request)
		if err != nil {
			t.Error(err)
			return found
		}
		for _, key := range page.GetKeys() {
			if other := found.keys[key.GetName()]; other != nil {
				t.Errorf("%s and %s have the same name", other, key)
			}
			found.keys[key.GetName()] = key
			prefix, _, _ := strings.Cut(key.GetName(), "-")
			found.owned[prefix+"-"]++
		}
		if request.PageToken = page.GetNextPageToken(); request.GetPageToken() == "" {
			return found
		}
	}
}

// validate asks about every token of a model.
func (c *campaign) validate(t *testing.T, s *serving, m *model) {
	t.Helper()
	batch := &keysvcv1.BatchValidateKeysRequest{}
	var wants []string
	send := func() {
		response, err := s.validation.BatchValidateKeys(testContext(t), batch)
		if err != nil {
			t.Error(err)
		}
		for index, item := range response.GetResponses() {
			if got := inWords(item); got != wants[index] {
				t.Errorf("a token of key %s got %s, want %s", batch.GetRequests()[index].GetToken()[12:28], got, wants[index])
			}
		}
		batch.Requests, wants = nil, nil
	}
	for index := range m.keys {
		key := &m.keys[index]
		for _, token := range key.tokens() {
			scope := crashScopes[c.random.IntN(len(crashScopes))]
			batch.Requests = append(batch.Requests, &keysvcv1.ValidateKeyRequest{Token: token, RequiredScope: scope})
			wants = append(wants, m.decision(key, token, scope))
			if len(wants) == 256 {
				send()
			}
		}
	}
	if len(wants) > 0 {
		send()
	}
}
