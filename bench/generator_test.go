package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/scribe-mail/keysvc/bench/population"
	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// generatorVariable makes TestProcessGenerator generate load. It is the folder of the certificates.
const generatorVariable = "KEYSVC_BENCH_GENERATOR"

// patience is how long to wait on a machine that has stalled. Nothing is judged by it.
const patience = time.Minute

// tokens is how many different tokens are asked about, at every size.
const tokens = 1_000

// The kinds of order.
const (
	orderCalls  = "calls"  // calls, closed loop or open loop
	orderHits   = "hits"   // requests through the interceptor of a service with a near-cache
	orderHash   = "hash"   // SHA-256 of 64 bytes, which shows how fast the machine is just now
	orderLeases = "leases" // a key is revoked while a near-cache validates it
	orderBeside = "beside" // other work, until orderStop
	orderStop   = "stop"
	orderMade   = "made" // makes workspaces, and keys to revoke
)

// The methods of orderCalls.
const (
	methodValidate = "validate"
	methodWire     = "wire" // ValidateKey by wires, an open loop
	methodBatch    = "batch"
	methodClient   = "client" // keyclient's Validate, each call for itself
	methodMerged   = "merged" // keyclient's Validate, merged
	methodCreate   = "create" // CreateKey
	methodList     = "list"   // ListKeys over all workspaces, page by page
)

// order is what the generator is to do next.
type order struct {
	Kind, Method string
	// Address is a target of grpc.NewClient; Secured reports whether it speaks TLS.
	Address string
	Secured bool
	// Server is the server's process id; 0 if its processor time is not asked for.
	Server int
	// Keys is the size of the population; 0 is that of an empty server.
	Keys int
	// Callers are that many callers of a closed loop, or the most calls at a time in an open loop.
	Callers int
	// Rate is the calls a second of methodWire, which has openConnections, as many services would.
	// Everything else is a closed loop over one connection.
	Rate float64
	// Time is how long to do it.
	Time time.Duration
	// Batch is the number of validations in a batch; Workspaces those to create keys in.
	Batch, Workspaces int
	// What to do beside: lists and policy dry runs one after the other, changes and revokes a second.
	Lists, Policies  bool
	Changes, Revokes float64
}

// outcome is what came of an order.
type outcome struct {
	Calls   int64
	Seconds float64
	// Server and Client are processor time.
	Server, Client time.Duration
	// How long the calls took; in an open loop since they were due.
	P50, P99, P999, Max time.Duration
	Allocations         uint64
	// Pages and DryRuns were done beside.
	Pages, DryRuns int64
	Error          string
}

// TestProcessGenerator is the load generator of TestBench, in its own process. It reads orders and
// writes outcomes, a line of JSON each.
func TestProcessGenerator(t *testing.T) {
	folder := os.Getenv(generatorVariable)
	if folder == "" {
		t.Skip("only for TestBench")
	}
	g := &generator{
		t: t, over: credentials.NewTLS(clientTLS(t, folder)), connections: make(map[string]*grpc.ClientConn),
		clients: make(map[string]*keyclient.Client), questions: make(map[int][]*keysvcv1.ValidateKeyRequest),
		wires: make(map[string]*wires), stop: func() {},
	}
	defer g.close()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var next order
		if err := json.Unmarshal(lines.Bytes(), &next); err != nil {
			t.Fatal(err)
		}
		result, err := g.do(next)
		if err != nil {
			result.Error = err.Error()
		}
		text, err := json.Marshal(result)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("outcome", string(text))
	}
}

// generator generates load.
type generator struct {
	t           *testing.T
	over        credentials.TransportCredentials
	connections map[string]*grpc.ClientConn
	clients     map[string]*keyclient.Client
	questions   map[int][]*keysvcv1.ValidateKeyRequest
	wires       map[string]*wires
	// stop ends what is done beside, since began. changed counts changes and revokes, pages and dryRuns
	// the rest, and besideFailed is the first error.
	stop         func()
	began        time.Time
	changed      atomic.Int64
	pages        atomic.Int64
	dryRuns      atomic.Int64
	besideFailed atomic.Pointer[error]
	// revocable are keys to revoke.
	revocable []*keysvcv1.RevokeKeyRequest
}

func (g *generator) close() {
	g.stop()
	for _, each := range g.wires {
		each.close()
	}
	for _, client := range g.clients {
		_ = client.Close()
	}
	for _, connection := range g.connections {
		_ = connection.Close()
	}
}

func (g *generator) do(next order) (outcome, error) {
	switch next.Kind {
	case orderCalls:
		if next.Method == methodWire {
			return g.measured(next, nil)
		}
		call, err := g.call(next)
		if err != nil {
			return outcome{}, err
		}
		return g.measured(next, call)
	case orderHits:
		return g.hits(next)
	case orderHash:
		return hash(next.Time), nil
	case orderLeases:
		return g.lease(next)
	case orderMade:
		return outcome{}, g.make(next)
	case orderBeside:
		g.beside(next)
		return outcome{}, nil
	case orderStop:
		done := outcome{Calls: g.changed.Load(), Pages: g.pages.Load(), DryRuns: g.dryRuns.Load(), Seconds: time.Since(g.began).Seconds()}
		g.stop()
		g.stop = func() {}
		if failed := g.besideFailed.Load(); failed != nil {
			return outcome{}, *failed
		}
		return done, nil
	}
	return outcome{}, fmt.Errorf("unknown kind of order: %q", next.Kind)
}

// connection returns the connection to an address.
func (g *generator) connection(next order) *grpc.ClientConn {
	if connection := g.connections[next.Address]; connection != nil {
		return connection
	}
	over := insecure.NewCredentials()
	if next.Secured {
		over = g.over
	}
	connection, err := grpc.NewClient(next.Address, grpc.WithTransportCredentials(over))
	if err != nil {
		g.t.Fatal(err)
	}
	g.connections[next.Address] = connection
	return connection
}

// about returns the questions about a population, as clients ask them.
func (g *generator) about(keys int) ([]*keysvcv1.ValidateKeyRequest, error) {
	if keys == 0 {
		keys = tokens
	}
	if known := g.questions[keys]; known != nil {
		return known, nil
	}
	spread, err := population.Spread(tokens, keys)
	if err != nil {
		return nil, err
	}
	asked := make([]*keysvcv1.ValidateKeyRequest, len(spread))
	for index, key := range spread {
		digest := key.Token.Digest()
		asked[index] = &keysvcv1.ValidateKeyRequest{TokenDigest: digest[:], KeyId: key.Token.ID(), RequiredScope: population.Scope}
		if len(key.Networks) > 0 {
			asked[index].ClientAddress = population.Address
		}
	}
	// In another order than in the store, as in life; the same at every size.
	mathrand.New(mathrand.NewPCG(1, 2)).Shuffle(len(asked), func(i, j int) { asked[i], asked[j] = asked[j], asked[i] })
	g.questions[keys] = asked
	return asked, nil
}

// call returns a function that makes the call with a number.
func (g *generator) call(next order) (func(ctx context.Context, number int) error, error) {
	asked, err := g.about(next.Keys)
	if err != nil {
		return nil, err
	}
	switch next.Method {
	case methodValidate:
		client := keysvcv1.NewValidationServiceClient(g.connection(next))
		return func(ctx context.Context, number int) error {
			answer, err := client.ValidateKey(ctx, asked[number%len(asked)])
			return allowed(answer, err)
		}, nil
	case methodBatch:
		client := keysvcv1.NewValidationServiceClient(g.connection(next))
		batches := make([]*keysvcv1.BatchValidateKeysRequest, len(asked))
		for first := range batches {
			batches[first] = &keysvcv1.BatchValidateKeysRequest{}
			for index := range next.Batch {
				batches[first].Requests = append(batches[first].Requests, asked[(first+index)%len(asked)])
			}
		}
		return func(ctx context.Context, number int) error {
			answer, err := client.BatchValidateKeys(ctx, batches[number%len(batches)])
			if err != nil {
				return err
			}
			return allowed(answer.GetResponses()[len(answer.GetResponses())-1], nil)
		}, nil
	case methodClient, methodMerged:
		return g.clientCall(next)
	case methodCreate:
		client := keysvcv1.NewKeyServiceClient(g.connection(next))
		return func(ctx context.Context, number int) error {
			_, err := client.CreateKey(ctx, newKey(number%next.Workspaces))
			return err
		}, nil
	case methodList:
		connection, page := g.connection(next), ""
		return func(ctx context.Context, _ int) error {
			var answer kept
			err := connection.Invoke(ctx, keysvcv1.KeyService_ListKeys_FullMethodName,
				&keysvcv1.ListKeysRequest{PageSize: 1000, PageToken: page}, &answer, grpc.ForceCodecV2(keeping{}))
			if err == nil {
				page, err = pageToken(answer.data)
			}
			return err
		}, nil
	}
	return nil, fmt.Errorf("unknown method: %q", next.Method)
}

// wire asks ValidateKey in an open loop.
func (g *generator) wire(next order) (*histogram, error) {
	asked, err := g.about(next.Keys)
	if err != nil {
		return nil, err
	}
	known := g.wires[next.Address]
	if known == nil {
		if known, err = dialWires(next.Address, asked); err != nil {
			return nil, err
		}
		g.wires[next.Address] = known
	}
	return known.run(next.Rate, next.Time)
}

// clientCall is call through keyclient.
func (g *generator) clientCall(next order) (func(ctx context.Context, number int) error, error) {
	client, err := g.client(next, next.Method, clientConfig(next.Method == methodMerged))
	if err != nil {
		return nil, err
	}
	if client.Watches() {
		return nil, errors.New("this client has a near-cache, so no call would be measured")
	}
	spread, err := population.Spread(tokens, max(next.Keys, tokens))
	if err != nil {
		return nil, err
	}
	asked := make([]keyauth.Question, len(spread))
	for index, key := range spread {
		asked[index] = keyauth.Question{Token: key.Token.Reveal(), Requirement: keyauth.Scope(population.Scope)}
		if len(key.Networks) > 0 {
			asked[index].ClientAddress = netip.MustParseAddr(population.Address)
		}
	}
	return func(ctx context.Context, number int) error {
		answer, err := client.Validate(ctx, asked[number%len(asked)])
		if err == nil && answer.Decision != keysvcv1.Decision_DECISION_ALLOWED {
			err = fmt.Errorf("refused: %v", answer.Reason)
		}
		return err
	}, nil
}

// client returns the keyclient of a kind for an address.
func (g *generator) client(next order, kind string, config keyclient.Config) (*keyclient.Client, error) {
	name := kind + " " + next.Address
	if known := g.clients[name]; known != nil {
		return known, nil
	}
	config.AllowPlaintext, config.ValidationTimeout = true, patience
	client, err := keyclient.New(next.Address, config)
	if err != nil {
		return nil, err
	}
	g.clients[name] = client
	return client, nil
}

func allowed(answer *keysvcv1.ValidateKeyResponse, err error) error {
	if err == nil && answer.GetDecision() != keysvcv1.Decision_DECISION_ALLOWED {
		err = fmt.Errorf("refused: %v %v", answer.GetReason(), answer.GetError())
	}
	return err
}

// measured makes calls for a time, and measures them. call is nil for methodWire.
func (g *generator) measured(next order, call func(ctx context.Context, number int) error) (outcome, error) {
	g.connect(next)
	server, client, began := time.Duration(0), processorTime(g.t, os.Getpid()), time.Now()
	if next.Server != 0 {
		server = processorTime(g.t, next.Server)
	}
	var took *histogram
	var err error
	if next.Method == methodWire {
		took, err = g.wire(next)
	} else {
		took, err = closedLoop(next, call)
	}
	if err != nil {
		return outcome{}, err
	}
	result := outcome{Calls: took.total, Seconds: time.Since(began).Seconds(), Client: processorTime(g.t, os.Getpid()) - client}
	if next.Server != 0 {
		result.Server = processorTime(g.t, next.Server) - server
	}
	result.P50, result.P99, result.P999, result.Max = took.at(0.5), took.at(0.99), took.at(0.999), took.max
	return result, err
}

// connect waits until there is a connection, so that the first call does not count it.
func (g *generator) connect(next order) {
	if next.Method == methodClient || next.Method == methodMerged || next.Method == methodWire {
		return
	}
	ctx, cancel := context.WithTimeout(g.t.Context(), patience)
	defer cancel()
	connection := g.connection(next)
	connection.Connect()
	for state := connection.GetState(); state != connectivity.Ready && connection.WaitForStateChange(ctx, state); state = connection.GetState() {
		connection.Connect()
	}
}

// closedLoop has a number of callers, each of which makes one call after the other.
func closedLoop(next order, call func(ctx context.Context, number int) error) (*histogram, error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	each := make([]histogram, next.Callers)
	began := time.Now()
	var calling sync.WaitGroup
	for caller := range next.Callers {
		calling.Go(func() {
			start := time.Now()
			for number := caller; ctx.Err() == nil; number += next.Callers { // at least one call, however slow the machine
				if err := call(ctx, number); err != nil {
					cancel(err)
					return
				}
				end := time.Now()
				each[caller].add(end.Sub(start))
				if start = end; end.Sub(began) >= next.Time {
					return
				}
			}
		})
	}
	calling.Wait()
	for index := range each[1:] {
		each[0].merge(&each[index+1])
	}
	return &each[0], context.Cause(ctx)
}

// make makes workspaces with a member each, and keys to revoke.
func (g *generator) make(next order) error {
	connection := g.connection(next)
	if err := raiseLimit(g.t.Context(), keysvcv1.NewPolicyServiceClient(connection)); err != nil {
		return err
	}
	members, keys := keysvcv1.NewMemberServiceClient(connection), keysvcv1.NewKeyServiceClient(connection)
	for number := range next.Workspaces {
		if _, err := members.PutMember(g.t.Context(), newMember(number, "owner")); err != nil {
			return err
		}
	}
	count := int(next.Revokes * next.Time.Seconds())
	g.revocable = make([]*keysvcv1.RevokeKeyRequest, count)
	var failed atomic.Pointer[error]
	var creating sync.WaitGroup
	for caller := range min(count, next.Workspaces) {
		creating.Go(func() {
			for index := caller; index < count; index += next.Workspaces {
				made, err := keys.CreateKey(g.t.Context(), newKey(caller))
				if err != nil {
					failed.Store(&err)
					return
				}
				g.revocable[index] = &keysvcv1.RevokeKeyRequest{WorkspaceId: made.GetKey().GetWorkspaceId(), KeyId: made.GetKey().GetKeyId()}
			}
		})
	}
	creating.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

func newMember(number int, role string) *keysvcv1.PutMemberRequest {
	return &keysvcv1.PutMemberRequest{
		WorkspaceId: fmt.Sprint("made-", number), MemberId: "ann", Role: role, State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
	}
}

func newKey(workspace int) *keysvcv1.CreateKeyRequest {
	return &keysvcv1.CreateKeyRequest{
		WorkspaceId: fmt.Sprint("made-", workspace), MemberId: "ann", Name: "a key of a usual length", Scopes: []string{population.Scope},
	}
}

// raiseLimit lets a workspace have as many keys as any policy may allow.
func raiseLimit(ctx context.Context, policies keysvcv1.PolicyServiceClient) error {
	active, err := policies.GetPolicy(ctx, &keysvcv1.GetPolicyRequest{})
	if err != nil {
		return err
	}
	wanted := active.GetPolicy()
	if wanted.GetLimits().GetLiveKeysPerWorkspace() == 1_000_000 {
		return nil
	}
	wanted.Limits.LiveKeysPerWorkspace = 1_000_000
	_, err = policies.ApplyPolicy(ctx, &keysvcv1.ApplyPolicyRequest{Policy: wanted, ReplacesDigest: active.GetDigest()})
	return err
}

// beside begins other work, which goes on until stop.
func (g *generator) beside(next order) {
	ctx, cancel := context.WithCancel(g.t.Context())
	g.began = time.Now()
	g.changed.Store(0)
	g.pages.Store(0)
	g.dryRuns.Store(0)
	connection := g.connection(next)
	members, policies := keysvcv1.NewMemberServiceClient(connection), keysvcv1.NewPolicyServiceClient(connection)
	keys := keysvcv1.NewKeyServiceClient(connection)
	var working sync.WaitGroup
	work := func(what func() error) {
		working.Go(func() {
			if err := what(); err != nil && ctx.Err() == nil && !errors.Is(err, context.Canceled) {
				g.besideFailed.Store(&err)
			}
		})
	}
	if next.Lists {
		list, _ := g.call(order{Kind: orderCalls, Method: methodList, Address: next.Address, Secured: next.Secured, Keys: tokens})
		work(func() error {
			for ctx.Err() == nil {
				if err := list(ctx, 0); err != nil {
					return err
				}
				g.pages.Add(1)
			}
			return nil
		})
	}
	if next.Policies {
		work(func() error { return g.dryRun(ctx, policies) })
	}
	if next.Changes > 0 {
		work(func() error {
			return paced(ctx, next.Changes, 1, func(number int) error {
				_, err := members.PutMember(ctx, newMember(0, []string{"manager", "admin"}[number%2]))
				g.changed.Add(1)
				return err
			})
		})
	}
	if next.Revokes > 0 {
		revocable := g.revocable
		work(func() error {
			return paced(ctx, next.Revokes, 64, func(number int) error {
				if number >= len(revocable) {
					return nil
				}
				_, err := keys.RevokeKey(ctx, revocable[number])
				g.changed.Add(1)
				return err
			})
		})
	}
	g.stop = func() { cancel(); working.Wait() }
}

// dryRun asks what a policy would change in which managers have one scope less, one call after the
// other.
func (g *generator) dryRun(ctx context.Context, policies keysvcv1.PolicyServiceClient) error {
	active, err := policies.GetPolicy(ctx, &keysvcv1.GetPolicyRequest{})
	if err != nil {
		return err
	}
	wanted := active.GetPolicy()
	for _, role := range wanted.GetRoles() {
		if role.GetName() == population.Role {
			role.Scopes = role.GetScopes()[1:]
		}
	}
	for ctx.Err() == nil {
		if _, err := policies.ApplyPolicy(ctx, &keysvcv1.ApplyPolicyRequest{
			Policy: wanted, ReplacesDigest: active.GetDigest(), ValidateOnly: true,
		}); err != nil {
			return err
		}
		g.dryRuns.Add(1)
	}
	return nil
}

// paced calls a function at a rate, with so many calls at a time, until the context ends.
func paced(ctx context.Context, rate float64, parallel int, call func(number int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	began, numbers := time.Now(), make(chan int)
	var calling sync.WaitGroup
	for range parallel {
		calling.Go(func() {
			for number := range numbers {
				if err := call(number); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	defer calling.Wait()
	defer close(numbers)
	for number := 0; ; number++ {
		timer := time.NewTimer(time.Until(began.Add(time.Duration(float64(number) / rate * float64(time.Second)))))
		select {
		case <-timer.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		select {
		case numbers <- number:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// processors is how many goroutines use all processors.
func processors() int { return runtime.GOMAXPROCS(0) }
