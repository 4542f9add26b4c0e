//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// result is what came of a change, as far as its client knows.
type result int

const (
	// acknowledged: the answer was OK.
	acknowledged result = iota
	// refused: the answer was UNAVAILABLE, AUDIT_SINK_UNAVAILABLE.
	refused
	// unknown: there was no answer, because the server was killed.
	unknown
	// failed: every other answer. None is expected.
	failed
)

// answer is what a client recorded of one change. The actor is its name: no other change has it.
type answer struct {
	actor, kind, workspace string
	narrows                bool
	life                   int
	sent, answered         time.Time
	result                 result
	revision               int64
	epoch                  string
	err                    error
}

// life is one run of the server under load.
type life struct {
	number int
	// ending is set before the server is killed.
	ending atomic.Bool
	// stopping ends the clients between two changes.
	stopping atomic.Bool
	cancel   context.CancelFunc // ends the clients
	group    sync.WaitGroup

	mutex   sync.Mutex
	answers []answer
	// refusals is how many changes were refused, newest when the last of these was answered, and
	// widened when the last change that does not narrow was acknowledged.
	refusals        int
	newest, widened time.Time
	// slow reports whether an answer took so long that it may not have waited for the sink to the end.
	slow bool
}

// record records an answer.
func (l *life) record(a answer) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.answers = append(l.answers, a)
	l.slow = l.slow || a.answered.Sub(a.sent) > 900*time.Millisecond
	switch {
	case a.result == refused:
		l.refusals++
		l.newest = a.answered
	case a.result == acknowledged && !a.narrows:
		l.widened = a.answered
	}
}

// key is a key that a client made, as the client knows it.
type key struct {
	id, token string
	scopes    []string
	bits      int // of its one prefix of allowed addresses
	secrets   int
}

// client is a writer with a workspace of its own. So it knows what each of its changes does.
type client struct {
	number    int
	random    *rand.Rand
	workspace string
	keys      []*key
	// active and suspended are members without keys, spare are workspaces with one member.
	active, suspended, spare []string
	made                     int
}

const owner = "owner"

// clients is how many clients change keys and members. One more changes the policy.
const clients = 6

// enough is how many keys a client keeps for the time in which it cannot make any.
const enough = 12

var scopes = []string{
	"teammates:read", "teammates:write", "emails:read", "emails:write", "signatures:read", "signatures:write",
	"smart_fields:read", "smart_fields:write", "folders:read", "folders:write", "assets:read", "assets:write",
}

// caller makes the calls of one client in one life.
type caller struct {
	*client
	life    *life
	keyAPI  keysvcv1.KeyServiceClient
	members keysvcv1.MemberServiceClient
	policy  keysvcv1.PolicyServiceClient
}

// positioned is what every answer to a change has.
type positioned interface {
	GetRevision() int64
	GetEpoch() string
}

// do makes one change and records what came of it.
func (c *caller) do(ctx context.Context, kind, workspace string, narrows bool, change func(ctx context.Context, actor *string) (positioned, error)) result {
	c.made++
	actor := fmt.Sprintf("c%d-%d", c.number, c.made)
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	a := answer{actor: actor, kind: kind, workspace: workspace, narrows: narrows, life: c.life.number, sent: time.Now()}
	got, err := change(ctx, &actor)
	a.answered = time.Now()
	switch {
	case err == nil:
		a.revision, a.epoch = got.GetRevision(), got.GetEpoch()
	case reasonOf(err) == keysvcv1.ErrorReason_ERROR_REASON_AUDIT_SINK_UNAVAILABLE.String()[len("ERROR_REASON_"):]:
		a.result, a.err = refused, err
	case reasonOf(err) == "" && c.life.ending.Load() && (status.Code(err) == codes.Unavailable || status.Code(err) == codes.Canceled):
		a.result, a.err = unknown, err
	default:
		a.result, a.err = failed, err
	}
	c.life.record(a)
	return a.result
}

func reasonOf(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

// run makes changes until ctx ends.
func (c *caller) run(ctx context.Context) {
	for ctx.Err() == nil && !c.life.ending.Load() && !c.life.stopping.Load() {
		var came result
		switch {
		case c.number == clients:
			came = c.changePolicy(ctx)
		case len(c.keys) < enough || c.random.IntN(2) == 0:
			came = c.widen(ctx)
			if came == refused {
				came = c.narrow(ctx)
			}
		default:
			came = c.narrow(ctx)
		}
		pause := time.Duration(0)
		if came == refused || c.number == clients {
			pause = 20 * time.Millisecond
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// take removes a random element from a list. The client puts it back once it knows what it is now.
func take[T any](c *caller, list *[]T) (one T, found bool) {
	if len(*list) == 0 {
		return one, false
	}
	index := c.random.IntN(len(*list))
	one = (*list)[index]
	*list = append((*list)[:index], (*list)[index+1:]...)
	return one, true
}

func (c *caller) put(ctx context.Context, kind, workspace, member, role string, state keysvcv1.MemberState, narrows bool) result {
	return c.do(ctx, kind, workspace, narrows, func(ctx context.Context, actor *string) (positioned, error) {
		return c.members.PutMember(ctx, &keysvcv1.PutMemberRequest{WorkspaceId: workspace, MemberId: member, Role: role, State: state, ActorMemberId: actor})
	})
}

const (
	active    = keysvcv1.MemberState_MEMBER_STATE_ACTIVE
	suspended = keysvcv1.MemberState_MEMBER_STATE_SUSPENDED
)

// widen makes a change that does not only take away.
func (c *caller) widen(ctx context.Context) result {
	if c.workspace == "" {
		name := fmt.Sprintf("w%d-%d", c.number, c.made)
		came := c.put(ctx, "first member", name, owner, owner, active, false)
		if came == acknowledged {
			c.workspace = name
		}
		return came
	}
	choice := c.random.IntN(10)
	if len(c.keys) < enough {
		choice = 0
	}
	switch choice {
	case 0, 1, 2:
		return c.create(ctx)
	case 3:
		name := fmt.Sprintf("m%d", c.made)
		came := c.put(ctx, "add member", c.workspace, name, "admin", active, false)
		if came == acknowledged {
			c.active = append(c.active, name)
		}
		return came
	case 4:
		if name, found := take(c, &c.suspended); found {
			came := c.put(ctx, "activate", c.workspace, name, "admin", active, false)
			switch came {
			case acknowledged:
				c.active = append(c.active, name)
			case refused:
				c.suspended = append(c.suspended, name)
			}
			return came
		}
		return c.create(ctx)
	case 5:
		name := fmt.Sprintf("s%d-%d", c.number, c.made)
		came := c.put(ctx, "spare workspace", name, owner, owner, active, false)
		if came == acknowledged {
			c.spare = append(c.spare, name)
		}
		return came
	default:
		return c.widenKey(ctx, choice)
	}
}

// create creates a key.
func (c *caller) create(ctx context.Context) result {
	return c.do(ctx, "create", c.workspace, false, func(ctx context.Context, actor *string) (positioned, error) {
		made, err := c.keyAPI.CreateKey(ctx, &keysvcv1.CreateKeyRequest{
			WorkspaceId: c.workspace, MemberId: owner, Name: "key " + *actor, Scopes: scopes, AllowedCidrs: []string{"10.0.0.0/8"}, ActorMemberId: actor,
		})
		if err == nil {
			c.keys = append(c.keys, &key{id: made.GetKey().GetKeyId(), token: made.GetToken(), scopes: scopes, bits: 8, secrets: 1})
		}
		return made, err
	})
}

// widenKey changes a key so that it can do more, or something else.
func (c *caller) widenKey(ctx context.Context, choice int) result {
	k, found := take(c, &c.keys)
	if !found {
		return c.create(ctx)
	}
	var came result
	switch {
	case choice < 8 && k.secrets == 1:
		came = c.rotate(ctx, k, time.Hour)
	case len(k.scopes) < len(scopes):
		came = c.update(ctx, "add scopes", false, &keysvcv1.Key{KeyId: k.id, Scopes: scopes}, "scopes")
		if came == acknowledged {
			k.scopes = scopes
		}
	default:
		came = c.update(ctx, "rename", false, &keysvcv1.Key{KeyId: k.id, Name: fmt.Sprint("renamed ", c.made)}, "name")
	}
	if came == acknowledged || came == refused {
		c.keys = append(c.keys, k)
	}
	return came
}

// rotate replaces the secret of a key.
func (c *caller) rotate(ctx context.Context, k *key, overlap time.Duration) result {
	kind := map[bool]string{true: "rotate with overlap 0", false: "rotate"}[overlap == 0]
	return c.do(ctx, kind, c.workspace, overlap == 0, func(ctx context.Context, actor *string) (positioned, error) {
		made, err := c.keyAPI.RotateKey(ctx, &keysvcv1.RotateKeyRequest{WorkspaceId: c.workspace, KeyId: k.id, Overlap: durationpb.New(overlap), ActorMemberId: actor})
		if err == nil {
			k.token = made.GetToken()
			k.secrets = map[bool]int{true: 1, false: 2}[overlap == 0]
		}
		return made, err
	})
}

func (c *caller) update(ctx context.Context, kind string, narrows bool, wanted *keysvcv1.Key, mask string) result {
	return c.do(ctx, kind, c.workspace, narrows, func(ctx context.Context, actor *string) (positioned, error) {
		wanted.WorkspaceId = c.workspace
		return c.keyAPI.UpdateKey(ctx, &keysvcv1.UpdateKeyRequest{Key: wanted, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{mask}}, ActorMemberId: actor})
	})
}

// narrow makes a change that only takes something away.
func (c *caller) narrow(ctx context.Context) result {
	choice := c.random.IntN(20)
	switch {
	case choice == 0 && len(c.spare) > 0:
		name, _ := take(c, &c.spare)
		return c.do(ctx, "remove workspace", name, true, func(ctx context.Context, actor *string) (positioned, error) {
			return c.members.RemoveWorkspace(ctx, &keysvcv1.RemoveWorkspaceRequest{WorkspaceId: name, ActorMemberId: actor})
		})
	case choice <= 2 && len(c.active) > 0:
		name, _ := take(c, &c.active)
		switch c.random.IntN(3) {
		case 0:
			return c.put(ctx, "lower role", c.workspace, name, "member", active, true)
		case 1:
			return c.do(ctx, "remove member", c.workspace, true, func(ctx context.Context, actor *string) (positioned, error) {
				return c.members.RemoveMember(ctx, &keysvcv1.RemoveMemberRequest{WorkspaceId: c.workspace, MemberId: name, ActorMemberId: actor})
			})
		}
		came := c.put(ctx, "suspend", c.workspace, name, "admin", suspended, true)
		if came == acknowledged {
			c.suspended = append(c.suspended, name)
		}
		return came
	case choice == 3 && len(c.suspended) > 1:
		name, _ := take(c, &c.suspended)
		return c.do(ctx, "remove member", c.workspace, true, func(ctx context.Context, actor *string) (positioned, error) {
			return c.members.RemoveMember(ctx, &keysvcv1.RemoveMemberRequest{WorkspaceId: c.workspace, MemberId: name, ActorMemberId: actor})
		})
	}
	return c.narrowKey(ctx)
}

func (c *caller) narrowKey(ctx context.Context) result {
	k, found := take(c, &c.keys)
	if !found {
		return refused // nothing to do; the client waits a moment
	}
	var came result
	gone := false
	switch choice := c.random.IntN(12); {
	case choice == 0 && len(c.keys) > enough/2:
		gone = true
		came = c.do(ctx, "revoke", c.workspace, true, func(ctx context.Context, actor *string) (positioned, error) {
			return c.keyAPI.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: c.workspace, KeyId: k.id, ActorMemberId: actor})
		})
	case choice == 1 && len(c.keys) > enough/2:
		gone = true
		came = c.do(ctx, "revoke token", c.workspace, true, func(ctx context.Context, actor *string) (positioned, error) {
			return c.keyAPI.RevokeToken(ctx, &keysvcv1.RevokeTokenRequest{Token: k.token, ActorMemberId: actor})
		})
	case choice < 5 && k.secrets > 1:
		came = c.do(ctx, "finish rotation", c.workspace, true, func(ctx context.Context, actor *string) (positioned, error) {
			return c.keyAPI.FinishRotation(ctx, &keysvcv1.FinishRotationRequest{WorkspaceId: c.workspace, KeyId: k.id, ActorMemberId: actor})
		})
		if came == acknowledged {
			k.secrets = 1
		}
	case choice < 8 && len(k.scopes) > 1:
		rest := k.scopes[:len(k.scopes)-1]
		came = c.update(ctx, "remove a scope", true, &keysvcv1.Key{KeyId: k.id, Scopes: rest}, "scopes")
		if came == acknowledged {
			k.scopes = rest
		}
	case choice < 10 && k.bits < 32:
		came = c.update(ctx, "allow fewer addresses", true, &keysvcv1.Key{KeyId: k.id, AllowedCidrs: []string{fmt.Sprintf("10.0.0.0/%d", k.bits+1)}}, "allowed_cidrs")
		if came == acknowledged {
			k.bits++
		}
	default:
		came = c.rotate(ctx, k, 0)
	}
	if !gone && came == acknowledged {
		c.keys = append(c.keys, k)
	}
	return came
}

// changePolicy gives the role member a scope, or takes it back.
func (c *caller) changePolicy(ctx context.Context) result {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	now, err := c.policy.GetPolicy(ctx, &keysvcv1.GetPolicyRequest{})
	if err != nil {
		return unknown // the server is gone
	}
	wanted, narrows := now.GetPolicy(), false
	for _, role := range wanted.GetRoles() {
		if role.GetName() != "member" {
			continue
		}
		rest := without(role.GetScopes(), "signatures:read")
		if narrows = len(rest) < len(role.GetScopes()); narrows {
			role.Scopes = rest
		} else {
			role.Scopes = append(role.Scopes, "signatures:read")
		}
	}
	kind := map[bool]string{true: "narrow policy", false: "widen policy"}[narrows]
	return c.do(ctx, kind, "", narrows, func(ctx context.Context, actor *string) (positioned, error) {
		return c.policy.ApplyPolicy(ctx, &keysvcv1.ApplyPolicyRequest{Policy: wanted, ReplacesDigest: now.GetDigest(), ActorMemberId: actor})
	})
}

// load starts the clients on a server.
func (l *life) load(ctx context.Context, s *server, all []*client) error {
	ctx, l.cancel = context.WithCancel(ctx)
	for _, one := range all {
		connection, err := s.dial()
		if err != nil {
			return err
		}
		c := &caller{one, l, keysvcv1.NewKeyServiceClient(connection), keysvcv1.NewMemberServiceClient(connection), keysvcv1.NewPolicyServiceClient(connection)}
		l.group.Go(func() {
			defer connection.Close()
			c.run(ctx)
		})
	}
	return nil
}

// pause waits for a time. The server must not end by itself meanwhile.
func (l *life) pause(ctx context.Context, s *server, lasts time.Duration) error {
	select {
	case <-time.After(lasts):
		return nil
	case <-s.ended:
		return fmt.Errorf("%w: the server ended by itself: %w", errBroken, errors.Join(s.err))
	case <-ctx.Done():
		return ctx.Err()
	}
}

// await waits until a condition on the life holds.
func (l *life) await(ctx context.Context, s *server, what string, lasts time.Duration, condition func() bool) error {
	until := time.Now().Add(lasts)
	for {
		l.mutex.Lock()
		holds := condition()
		l.mutex.Unlock()
		if holds {
			return nil
		}
		if time.Now().After(until) {
			return fmt.Errorf("%w: %s: not within %v", errBroken, what, lasts)
		}
		if err := l.pause(ctx, s, 5*time.Millisecond); err != nil {
			return err
		}
	}
}
