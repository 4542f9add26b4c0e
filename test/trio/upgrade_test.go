package trio_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/test/trio"
)

const (
	// pace is the time between two rounds of each part of the load.
	pace = 5 * time.Millisecond
	// refused and unreachable are exit statuses of keysvc.
	refused, unreachable = 7, 8
)

// load is what clients of all replicas do while these are replaced. It ends the test at the first failure.
type load struct {
	t       *testing.T
	ctx     context.Context
	target  string
	parts   []chan struct{}
	running sync.WaitGroup
	// resets counts how often the near-cache dropped everything. It does so when it begins.
	resets atomic.Int64
}

// client returns a client of all replicas.
func (l *load) client(config keyclient.Config) *keyclient.Client {
	l.t.Helper()
	// A validation may take long on a busy machine, but it may not fail.
	config.ValidationTimeout, config.Timeout = patience, patience
	client, err := keyclient.New(l.target, config)
	must(l.t, err)
	l.t.Cleanup(func() { _ = client.Close() })
	return client
}

// begin does something again and again until the test ends. The first error fails the test, and ends this part.
func (l *load) begin(what string, round func(context.Context) error) {
	done := make(chan struct{})
	l.parts = append(l.parts, done)
	l.running.Go(func() {
		ticker := time.NewTicker(pace)
		defer ticker.Stop()
		for l.ctx.Err() == nil {
			if err := round(l.ctx); err != nil {
				if l.ctx.Err() == nil {
					l.t.Errorf("%s: %v", what, err)
				}
				close(done)
				return
			}
			select {
			case done <- struct{}{}:
			case <-ticker.C:
			case <-l.ctx.Done():
			}
		}
	})
}

// rounds waits until each part has done a whole round that began after the call.
func (l *load) rounds() {
	l.t.Helper()
	for _, part := range l.parts {
		for range 2 {
			select {
			case <-part:
			case <-l.ctx.Done():
				l.t.Fatal("the load stands still")
			}
		}
	}
	if l.t.Failed() {
		l.t.FailNow()
	}
}

// decides returns an error unless a token gets a decision.
func decides(ctx context.Context, client *keyclient.Client, token string, want keysvcv1.Decision) error {
	answer, err := client.Validate(ctx, keyauth.Question{Token: token, Requirement: keyauth.Scope("signatures:read")})
	if err == nil && answer.Decision != want {
		return fmt.Errorf("the answer is %s (%s), want %s", answer.Decision, answer.Reason, want)
	}
	return err
}

// repeated makes a change again as long as the server that was asked is away. The change has a request id or is the same
// when it is made twice.
func repeated[Response any](ctx context.Context, change func(context.Context) (Response, error)) (Response, error) {
	for {
		response, err := change(ctx)
		if status.Code(err) != codes.Unavailable || ctx.Err() != nil {
			return response, err
		}
	}
}

// createKey makes a key.
func createKey(ctx context.Context, client *keyclient.Client, name string) (*keysvcv1.CreateKeyResponse, error) {
	return repeated(ctx, func(ctx context.Context) (*keysvcv1.CreateKeyResponse, error) {
		return client.Keys.CreateKey(ctx, &keysvcv1.CreateKeyRequest{
			WorkspaceId: "acme", MemberId: "ann", Name: name, Scopes: []string{"signatures:read"}, RequestId: new("request-" + name),
		})
	})
}

// revokeKey revokes a key.
func revokeKey(ctx context.Context, client *keyclient.Client, keyID string) error {
	_, err := repeated(ctx, func(ctx context.Context) (*keysvcv1.RevokeKeyResponse, error) {
		return client.Keys.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: keyID})
	})
	return err
}

// startLoad starts the load on all replicas of a cluster.
func startLoad(t *testing.T, ctx context.Context, cluster *trio.Trio) *load {
	t.Helper()
	l := &load{t: t, ctx: ctx, target: strings.Join(cluster.Addresses(), ",")}
	admin := l.client(keyclient.Config{WithoutNearCache: true})
	_, err := admin.Members.PutMember(ctx, &keysvcv1.PutMemberRequest{
		WorkspaceId: "acme", MemberId: "ann", Role: "owner", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
	})
	must(t, err)
	valid, err := createKey(ctx, admin, "valid")
	must(t, err)
	revoked, err := createKey(ctx, admin, "revoked")
	must(t, err)
	must(t, revokeKey(ctx, admin, revoked.GetKey().GetKeyId()))
	ask := func(what string, client *keyclient.Client) {
		l.begin(what, func(ctx context.Context) error {
			return errors.Join(
				decides(ctx, client, valid.GetToken(), keysvcv1.Decision_DECISION_ALLOWED),
				decides(ctx, client, revoked.GetToken(), keysvcv1.Decision_DECISION_UNAUTHENTICATED),
			)
		})
	}
	for range 3 {
		ask("a validation", l.client(keyclient.Config{WithoutNearCache: true}))
	}
	ask("a validation with a near-cache", l.client(keyclient.Config{
		NearCacheHooks: keyclient.NearCacheHooks{Reset: func() { l.resets.Add(1) }},
	}))
	manager, validator, number := l.client(keyclient.Config{WithoutNearCache: true}), l.client(keyclient.Config{WithoutNearCache: true}), 0
	l.begin("a key that is made and revoked", func(ctx context.Context) error {
		number++
		made, err := createKey(ctx, manager, fmt.Sprintf("short-%d", number))
		if err != nil {
			return err
		}
		if err := decides(ctx, validator, made.GetToken(), keysvcv1.Decision_DECISION_ALLOWED); err != nil {
			return err
		}
		if err := revokeKey(ctx, manager, made.GetKey().GetKeyId()); err != nil {
			return err
		}
		return decides(ctx, validator, made.GetToken(), keysvcv1.Decision_DECISION_UNAUTHENTICATED)
	})
	return l
}

// answer is what a command of keysvc wrote, and how it ended.
type answer struct {
	status int
	text   string
}

// upgrade runs keysvc upgrade with the addresses of replicas.
func upgrade(t *testing.T, program, verb string, replicas []*trio.Replica, arguments ...string) answer {
	t.Helper()
	var addresses []string
	for _, replica := range replicas {
		addresses = append(addresses, replica.Address())
	}
	command := exec.CommandContext(t.Context(), program, append([]string{"upgrade", verb, "--addr", strings.Join(addresses, ","), "--timeout", patience.String()}, arguments...)...)
	var output bytes.Buffer
	command.Stdout, command.Stderr = &output, &output
	err := command.Run()
	if _, is := errors.AsType[*exec.ExitError](err); err != nil && !is {
		t.Fatal(err)
	}
	return answer{command.ProcessState.ExitCode(), output.String()}
}

// want checks how a command ended, and that it wrote some words.
func (a answer) want(t *testing.T, status int, words ...string) {
	t.Helper()
	for _, each := range words {
		if !strings.Contains(a.text, each) {
			t.Errorf("%q is not in what the command says", each)
		}
	}
	if a.status != status || t.Failed() {
		t.Fatalf("exit status %d, want %d:\n%s", a.status, status, a.text)
	}
}

// TestRollingUpgradeUnderLoad replaces three replicas, one after the other, by a version that knows another schema, while
// clients ask and change keys all the time. No validation fails, and none is wrong. The schema is switched on only
// when every replica that is named knows it. A fourth replica, which was forgotten, then ends, and does not start again.
func TestRollingUpgradeUnderLoad(t *testing.T) {
	newer, err := trio.BuildNewer(t.Context())
	must(t, err)
	began := time.Now()
	defer func() { t.Logf("it took %s without the builds", time.Since(began).Round(time.Millisecond)) }()
	const schema, before = storage.Newest + 1, storage.Schema
	cluster := trio.New(t, trio.Config{Replicas: 4, Arguments: []string{"--drain-timeout", "2s"}})
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	older := cluster.Replicas[0].Program
	replicas, forgotten := cluster.Replicas[:3], cluster.Replicas[3]
	working, stop := context.WithCancel(ctx)
	load := startLoad(t, working, cluster)
	defer func() {
		stop()
		load.running.Wait()
	}()
	load.rounds()
	resets := load.resets.Load()

	unknown := fmt.Sprintf("not every server knows schema %d", schema)
	for index, replica := range replicas {
		must(t, replica.Terminate())
		load.rounds()
		if index == 1 {
			upgrade(t, newer, "finish", replicas, "--yes").want(t, unreachable, replica.Address(), "did not answer")
		}
		replica.Program = newer
		must(t, replica.Start())
		must(t, replica.Ready(ctx))
		load.rounds()
		if left := replicas[index+1:]; len(left) > 0 {
			refusal := upgrade(t, newer, "finish", replicas, "--yes")
			for _, other := range left {
				refusal.want(t, refused, unknown, other.Address()+" (")
			}
		}
	}
	// A replica that is not replaced must be named to be seen.
	upgrade(t, newer, "finish", cluster.Replicas, "--yes").want(t, refused, unknown, forgotten.Address()+" (")
	upgrade(t, newer, "status", replicas).want(t, 0, trio.NewerVersion, fmt.Sprintf("All of these servers know schema %d", schema))
	if !forgotten.Running() {
		t.Fatal("an older replica has ended before the schema was raised")
	}
	// An older command asks for what it is told, not for what it knows itself.
	upgrade(t, older, "finish", replicas, "--yes").want(t, 0, fmt.Sprintf("has schema %d now; it was %d", schema, before))

	select {
	case <-forgotten.Ended():
	case <-ctx.Done():
		t.Fatal("a replica that does not know the schema goes on")
	}
	newest := fmt.Sprintf("written by a newer version: schema %d, this version knows up to %d", schema, storage.Newest)
	ended := func() string {
		t.Helper()
		log, err := os.ReadFile(forgotten.Log())
		must(t, err)
		if forgotten.ExitStatus() != 1 {
			t.Errorf("the forgotten replica ended with status %d, want 1", forgotten.ExitStatus())
		}
		return string(log)
	}
	first := ended()
	if !strings.Contains(first, newest) {
		t.Errorf("the forgotten replica does not say why it ended:\n%s", first)
	}
	load.rounds()
	must(t, forgotten.Start())
	if err := forgotten.Ready(ctx); err == nil || ctx.Err() != nil {
		t.Fatalf("a replica that does not know the schema: %v, want it to end", err)
	}
	if again := strings.TrimPrefix(ended(), first); !strings.Contains(again, newest) {
		t.Errorf("the forgotten replica does not say why it does not start:\n%s", again)
	}
	load.rounds()
	if again := load.resets.Load() - resets; again != 0 {
		t.Errorf("the near-cache dropped everything %d times", again)
	}
	upgrade(t, newer, "finish", replicas, "--yes").want(t, 0, "already")
	status := upgrade(t, newer, "status", replicas, "-o", "json")
	status.want(t, 0, fmt.Sprintf(`"schema": %d`, schema))
	if strings.Contains(status.text, fmt.Sprintf(`"schema": %d`, before)) {
		t.Errorf("a replica does not have schema %d in force:\n%s", schema, status.text)
	}
	if filepath.Base(forgotten.Program) == filepath.Base(newer) {
		t.Error("the forgotten replica was replaced")
	}
}
