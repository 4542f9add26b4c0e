package blind_test

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/channelz/grpc_channelz_v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/token"
)

const (
	// workers is how many callers there are at a time.
	workers = 8
	// batch is the number of items of a batch.
	batch = 16
	scope = "signatures:read"
)

// key is a key that was issued locally, and the tokens that it has had.
type key struct {
	workspaceID, keyID string
	// live is the newest token. ended are tokens that were replaced without an overlap.
	live  string
	ended []string
}

// campaign is a keysvc that serves, a proxy in front of it, and its clients.
type campaign struct {
	*process
	proxy *proxy
	// near has a near-cache, and plain has none. guard is in front of plain.
	plain, near *keyclient.Client
	guard       *keyauth.Guard
	keys        []*key
	// secrets has every text that was presented or issued.
	secrets *index
	// log is that of the clients and the guard.
	log *recording
}

// begin starts a keysvc and its clients.
func begin(t *testing.T, arguments ...string) *campaign {
	t.Helper()
	c := &campaign{process: start(t, arguments...), secrets: newIndex(), log: new(recording)}
	c.proxy = between(t, c.process)
	c.plain = c.client(t, keyclient.Config{WithoutNearCache: true})
	c.near = c.client(t, keyclient.Config{})
	var err error
	if c.guard, err = keyauth.NewGuard(c.plain, keyauth.Config{Log: c.logger()}); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *campaign) logger() *slog.Logger {
	return slog.New(slog.NewJSONHandler(c.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (c *campaign) client(t *testing.T, config keyclient.Config) *keyclient.Client {
	t.Helper()
	config.Log = c.logger()
	config.Timeout, config.ValidationTimeout = patience, patience
	client, err := keyclient.New(c.proxy.target(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// each calls a function with the numbers below n, from several goroutines.
func each(t *testing.T, n int, do func(ctx context.Context, number int) error) {
	t.Helper()
	group, ctx := errgroup.WithContext(t.Context())
	group.SetLimit(workers)
	for number := range n {
		group.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return do(ctx, number)
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

// issue makes members and keys, and rotates some of the keys with and without an overlap. Every secret
// is drawn by the client.
func (c *campaign) issue(t *testing.T, keys int) {
	t.Helper()
	workspaces := max(4, keys/250)
	for number := range workspaces {
		if _, err := c.plain.Members.PutMember(t.Context(), &keysvcv1.PutMemberRequest{
			WorkspaceId: workspace(number), MemberId: "ann", Role: "owner", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
		}); err != nil {
			t.Fatal(err)
		}
	}
	c.keys = make([]*key, keys)
	each(t, keys, func(ctx context.Context, number int) error {
		made, err := c.plain.IssueLocally(ctx, &keysvcv1.CreateKeyRequest{
			WorkspaceId: workspace(number % workspaces), MemberId: "ann", Name: fmt.Sprintf("key %d", number), Scopes: []string{scope},
		})
		if err != nil {
			return err
		}
		one := &key{workspaceID: made.Key.GetWorkspaceId(), keyID: made.Key.GetKeyId(), live: made.Reveal()}
		c.secrets.addToken("first of "+one.keyID, one.live)
		c.secrets.addDigest("first of "+one.keyID, one.live)
		c.secrets.addID(one.keyID)
		c.keys[number] = one
		if number%3 == 0 {
			return nil
		}
		overlap := time.Hour
		if number%3 == 1 {
			overlap = 0
		}
		rotated, err := c.plain.RotateLocally(ctx, &keysvcv1.RotateKeyRequest{WorkspaceId: one.workspaceID, KeyId: one.keyID, Overlap: durationpb.New(overlap)})
		if err != nil {
			return err
		}
		if overlap == 0 {
			one.ended = append(one.ended, one.live)
		}
		one.live = rotated.Reveal()
		c.secrets.addToken("second of "+one.keyID, one.live)
		c.secrets.addDigest("second of "+one.keyID, one.live)
		return nil
	})
}

func workspace(number int) string { return fmt.Sprintf("workspace-%d", number) }

// validate validates: valid tokens, wrong secrets, ended tokens, malformed and foreign text, and batches
// of them. It returns how many texts were presented.
func (c *campaign) validate(t *testing.T, validations int, random *mathrand.Rand) int {
	t.Helper()
	type question struct {
		kind, key, variant int
	}
	var questions []question
	presented := 0
	for presented < validations {
		next := question{random.IntN(kinds), random.IntN(len(c.keys)), random.IntN(1000)}
		questions = append(questions, next)
		if presented++; next.kind == batched {
			presented += batch - 1
		}
	}
	each(t, len(questions), func(ctx context.Context, number int) error {
		next := questions[number]
		if next.kind == batched {
			return c.validateBatch(ctx, next.key, next.variant)
		}
		text, want, err := c.text(next.kind, c.keys[next.key], next.variant)
		if err != nil {
			return err
		}
		return c.present(ctx, next.variant, text, want)
	})
	return presented
}

// The kinds of what is presented.
const (
	valid = iota
	validAgain
	wrongSecret
	endedToken
	malformed
	foreign
	batched
	kinds
)

// text returns a text of a kind, and the reason that it must be refused with.
func (c *campaign) text(kind int, of *key, variant int) (text string, want keysvcv1.Reason, err error) {
	want = keysvcv1.Reason_REASON_KEY_INVALID
	switch {
	case kind == wrongSecret:
		wrong, err := token.New("scribe", of.keyID, rand.Reader)
		if err != nil {
			return "", want, err
		}
		c.secrets.addToken("wrong secret "+rand.Text(), wrong.Reveal())
		return wrong.Reveal(), want, nil
	case kind == endedToken && len(of.ended) > 0:
		return of.ended[0], want, nil
	case kind == malformed:
		return damaged(of.live, variant), want, nil
	case kind == foreign:
		return c.foreign(of.live, variant), want, nil
	}
	return of.live, keysvcv1.Reason_REASON_UNSPECIFIED, nil
}

// damaged returns text that has a token in it, or most of one.
func damaged(live string, variant int) string {
	return []string{
		"Bearer " + live, live[:len(live)-1], live + "\n", live + live, "x" + live, strings.ToUpper(live[:1]) + live[1:],
		live[:20] + live[21:], `"` + live + `"`,
	}[variant%8]
}

// foreign returns a text of another form, which may have a secret of ours in it all the same.
func (c *campaign) foreign(live string, variant int) string {
	switch variant % 5 {
	case 0:
		return live[len(live)-49:]
	case 1:
		return strings.ReplaceAll(live, "_", "%5F")
	case 2:
		return base64.StdEncoding.EncodeToString([]byte("user:" + live))
	}
	other, _ := token.New("other", "0123456789abcdef", rand.Reader) // the system's source does not fail
	text := "ghp_" + other.Reveal()[len(other.Reveal())-49:]
	c.secrets.addToken("foreign "+rand.Text(), other.Reveal())
	return text
}

// present validates a text with one of the clients.
func (c *campaign) present(ctx context.Context, variant int, text string, want keysvcv1.Reason) error {
	var got keysvcv1.Reason
	switch variant % 3 {
	case 0:
		_, err := c.guard.Admit(ctx, keyauth.Request{Name: "test", Requirement: keyauth.Scope(scope), Authorization: []string{"Bearer " + text}})
		refused, is := errors.AsType[*keyauth.RefusalError](err)
		switch {
		case is && refused.Code == codes.Unauthenticated && want != keysvcv1.Reason_REASON_UNSPECIFIED: // the guard does not tell presenters why
			got = want
		case err != nil:
			return err
		}
	case 1:
		answer, err := c.near.Validate(ctx, keyauth.Question{Token: text, Requirement: keyauth.Scope(scope)})
		if err != nil {
			return err
		}
		got = answer.Reason
	default:
		answer, err := c.plain.Validate(ctx, keyauth.Question{Token: text, Requirement: keyauth.Scope(scope)})
		if err != nil {
			return err
		}
		got = answer.Reason
	}
	if got != want {
		return fmt.Errorf("answered with %s, want %s", got, want)
	}
	return nil
}

// digested returns the request with the digest of a text, as a caller without keyclient makes it.
func digested(text string) *keysvcv1.ValidateKeyRequest {
	request := &keysvcv1.ValidateKeyRequest{RequiredScope: scope, IncludeGrant: true, WithDetails: true}
	if parsed, err := token.Parse(text); err == nil {
		digest := parsed.Digest()
		request.TokenDigest, request.KeyId = digest[:], parsed.ID()
	} else {
		digest := token.ForeignDigest(text)
		request.TokenDigest = digest[:]
	}
	return request
}

func (c *campaign) validateBatch(ctx context.Context, first, variant int) error {
	request, wants := &keysvcv1.BatchValidateKeysRequest{}, make([]keysvcv1.Reason, batch)
	for number := range batch {
		text, want, err := c.text(number%batched, c.keys[(first+number)%len(c.keys)], variant+number)
		if err != nil {
			return err
		}
		wants[number] = want
		request.Requests = append(request.Requests, digested(text))
	}
	answered, err := c.plain.Validations.BatchValidateKeys(ctx, request)
	if err != nil {
		return err
	}
	for number, response := range answered.GetResponses() {
		if response.GetReason() != wants[number] || response.GetError() != nil {
			return fmt.Errorf("item %d of a batch is answered %v, want %s", number, response, wants[number])
		}
	}
	return nil
}

// revoke revokes every third key by the digest of its token, found in a text, and waits until every
// near-cache knows.
func (c *campaign) revoke(t *testing.T) {
	t.Helper()
	around := []string{"%s", "Bearer %s", `{"token": "%s"}`, "TOKEN_%s\n", "https://example.org/?token%%3D%s&x=1"}
	var revoked []*key
	for number, one := range c.keys {
		if number%3 == 2 {
			revoked = append(revoked, one)
		}
	}
	each(t, len(revoked), func(ctx context.Context, number int) error {
		response, err := c.plain.RevokeToken(ctx, fmt.Sprintf(around[number%len(around)], revoked[number].live), nil)
		if err != nil {
			return err
		}
		if response.GetKeyId() != revoked[number].keyID {
			return fmt.Errorf("revoked %v, want %s", response, revoked[number].keyID)
		}
		_, err = c.plain.Sync.AwaitRevision(ctx, &keysvcv1.AwaitRevisionRequest{Revision: response.GetRevision(), Epoch: response.GetEpoch()})
		return err
	})
	each(t, len(revoked), func(ctx context.Context, number int) error {
		if _, err := c.near.RevokeToken(ctx, revoked[number].live, nil); err != nil {
			return fmt.Errorf("revoked again: %w", err)
		}
		return c.present(ctx, number, revoked[number].live, keysvcv1.Reason_REASON_KEY_REVOKED)
	})
}

// look reads everything that can be read, so that the server makes answers from all that it has.
func (c *campaign) look(t *testing.T) {
	t.Helper()
	ctx, audit := t.Context(), keysvcv1.NewAuditServiceClient(c.plain.Conn())
	for next := ""; ; {
		page, err := c.plain.Keys.ListKeys(ctx, &keysvcv1.ListKeysRequest{PageToken: next, PageSize: 1000})
		if err != nil {
			t.Fatal(err)
		}
		if next = page.GetNextPageToken(); next == "" {
			break
		}
	}
	for _, refused := range []bool{false, true} {
		for next := ""; ; {
			page, err := audit.ListAuditEvents(ctx, &keysvcv1.ListAuditEventsRequest{PageToken: next, PageSize: 1000, Refused: refused})
			if err != nil {
				t.Fatal(err)
			}
			if next = page.GetNextPageToken(); next == "" {
				break
			}
		}
	}
	each(t, len(c.keys), func(ctx context.Context, number int) error {
		one := c.keys[number]
		if _, err := c.plain.Keys.GetKey(ctx, &keysvcv1.GetKeyRequest{WorkspaceId: one.workspaceID, KeyId: one.keyID}); err != nil {
			return err
		}
		_, err := audit.ExplainKey(ctx, &keysvcv1.ExplainKeyRequest{WorkspaceId: one.workspaceID, KeyId: one.keyID, RequiredScope: scope})
		return err
	})
	// What gRPC itself tells of calls and connections.
	channelz := grpc_channelz_v1.NewChannelzClient(c.plain.Conn())
	servers, err := channelz.GetServers(ctx, &grpc_channelz_v1.GetServersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range servers.GetServer() {
		sockets, err := channelz.GetServerSockets(ctx, &grpc_channelz_v1.GetServerSocketsRequest{ServerId: server.GetRef().GetServerId()})
		if err != nil {
			t.Fatal(err)
		}
		for _, socket := range sockets.GetSocketRef() {
			_, _ = channelz.GetSocket(ctx, &grpc_channelz_v1.GetSocketRequest{SocketId: socket.GetSocketId(), Summary: false}) // it may be closed by now
		}
	}
}

// refuse makes changes that are refused, which the server keeps events of.
func (c *campaign) refuse(t *testing.T) {
	t.Helper()
	one := c.keys[0]
	for name, refused := range map[string]func() error{
		"no such member": func() error {
			_, err := c.plain.IssueLocally(t.Context(), &keysvcv1.CreateKeyRequest{WorkspaceId: one.workspaceID, MemberId: "nobody", Name: "n", Scopes: []string{scope}})
			return err
		},
		"no such scope": func() error {
			_, err := c.plain.IssueLocally(t.Context(), &keysvcv1.CreateKeyRequest{WorkspaceId: one.workspaceID, MemberId: "ann", Name: "n", Scopes: []string{"no:scope"}})
			return err
		},
		"another workspace": func() error {
			_, err := c.plain.RotateLocally(t.Context(), &keysvcv1.RotateKeyRequest{WorkspaceId: "elsewhere", KeyId: one.keyID, Overlap: durationpb.New(0)})
			return err
		},
		"a wrong secret": func() error {
			text, _, err := c.text(wrongSecret, one, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.plain.RevokeToken(t.Context(), text, nil)
			return err
		},
		"a text without a token": func() error {
			_, err := c.plain.RevokeToken(t.Context(), damaged(one.live, 6), nil)
			return err
		},
	} {
		if code := status.Code(refused()); code == codes.OK || code == codes.Unknown {
			t.Errorf("%s: %s", name, code)
		}
	}
}

// run runs the command and returns what it writes to its standard output. What it writes to its standard
// error is kept with the logs of the clients.
func (c *campaign) run(t *testing.T, input string, arguments ...string) (output string, err error) {
	t.Helper()
	command := exec.CommandContext(t.Context(), c.program, arguments...)
	command.Env, command.Stdin, command.Stderr = append(clean(), "KEYSVC_ADDR="+c.proxy.target()), strings.NewReader(input), c.log
	stdout, err := command.Output()
	return string(stdout), err
}

// people does with the command what people do, a token on standard input included.
func (c *campaign) people(t *testing.T) {
	t.Helper()
	run := func(input string, arguments ...string) string {
		t.Helper()
		output, err := c.run(t, input, arguments...)
		if err != nil {
			t.Fatalf("keysvc %s: %v\n%.2000s", arguments, err, c.log.copy())
		}
		return strings.TrimSpace(output)
	}
	made := run("", "key", "create", "--local", "--workspace", workspace(0), "--member", "ann", "--name", "by hand", "--scope", scope)
	parsed, err := token.Parse(made)
	if err != nil {
		t.Fatalf("key create --local: %v", err)
	}
	c.secrets.addToken("the command's first", made)
	rotated := run("", "key", "rotate", "--local", "--overlap", "1h", "--workspace", workspace(0), parsed.ID())
	if _, err := token.Parse(rotated); err != nil {
		t.Fatalf("key rotate --local: %v", err)
	}
	c.secrets.addToken("the command's second", rotated)
	run(rotated, "validate", "--scope", scope, "--details")
	var sent struct {
		KeyID       string `json:"key_id"`
		TokenDigest []byte `json:"token_digest"`
	}
	if err := json.Unmarshal([]byte(run(made, "token", "digest")), &sent); err != nil {
		t.Fatal(err)
	}
	answer, err := c.plain.Validations.ValidateKey(t.Context(), &keysvcv1.ValidateKeyRequest{TokenDigest: sent.TokenDigest, KeyId: sent.KeyID, IdentityOnly: true})
	if err != nil || answer.GetDecision() != keysvcv1.Decision_DECISION_ALLOWED {
		t.Errorf("by the digest of keysvc token digest: %v, %v", answer, err)
	}
	// Mistakes: text around a token, cut tokens, and tokens where something else belongs.
	for _, variant := range []int{0, 1, 7} {
		if _, err := c.run(t, damaged(made, variant), "validate", "--scope", scope); err == nil {
			t.Errorf("damaged text %d is valid", variant)
		}
	}
	for _, arguments := range [][]string{
		{"validate", made},
		{"key", "get", made},
		{"key", "revoke", "--yes", made},
		{"validate", "--scope", made},
		{"key", "list", "--member", made},
		{"member", "put", made, "--workspace", workspace(0), "--role", "owner"},
		{"key", "create", "--local", "--workspace", workspace(0), "--member", "ann", "--scope", scope, "--name", "for " + made},
	} {
		if _, err := c.run(t, "", arguments...); err == nil {
			t.Errorf("keysvc %s takes a token", strings.Join(arguments[:2], " "))
		}
	}
	// Questions after an incident.
	run("", "audit", "list", "--workspace", workspace(0))
	run("", "key", "explain", parsed.ID(), "--scope", scope)
	run("see TOKEN="+rotated+" in the log\n", "key", "revoke", "--yes", "--wait", "--token-stdin")
}

// work is the whole campaign with clients that send digests.
func (c *campaign) work(t *testing.T, keys, validations int) {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	c.issue(t, keys)
	for variant := range 8 { // at least these come without luck
		for _, kind := range []int{valid, wrongSecret, malformed, foreign} {
			text, want, err := c.text(kind, c.keys[variant], variant)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.present(t.Context(), variant+kind, text, want); err != nil {
				t.Error(err)
			}
		}
	}
	if presented := c.validate(t, validations, mathrand.New(mathrand.NewPCG(seed, 0))); presented < validations {
		t.Errorf("%d texts were presented, want %d", presented, validations)
	}
	c.refuse(t)
	c.revoke(t)
	c.people(t)
	c.look(t)
	if state := c.near.NearCache(); c.plain.MalformedTokens() == 0 || state.Misses == 0 || state.Sessions == 0 {
		t.Errorf("malformed: %d, near-cache: %+v", c.plain.MalformedTokens(), state)
	}
}
