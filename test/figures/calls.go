//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/bench/population"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// both measures calls with the barrier and without it in turn, and returns the slices of each.
func (w *world) both(measure func([]*server) error) error {
	for round := range w.plan.rounds {
		first, second := w.with, w.without
		if round%2 == 1 {
			first, second = second, first
		}
		for _, servers := range [][]*server{first, second} {
			if err := measure(servers); err != nil {
				return err
			}
		}
	}
	return nil
}

// isWith reports whether servers have the barrier.
func (w *world) isWith(servers []*server) bool { return servers[0] == w.with[0] }

// validations measures ValidateKey. Each caller asks the keysvcs in turn.
func (w *world) validations(ctx context.Context) error {
	questions, err := w.questions()
	if err != nil {
		return err
	}
	fmt.Printf(columns, "validations")
	for _, count := range []int{1, replicas} {
		for _, callers := range w.plan.callers {
			var with, without []slice
			err := w.both(func(servers []*server) error {
				servers = servers[:count]
				made, err := measure(ctx, servers, callers, w.plan.slice, func(ctx context.Context, caller, number int) (int, bool, error) {
					index := (caller + number) % count
					client := keysvcv1.NewValidationServiceClient(servers[index].connection(caller))
					answer, err := client.ValidateKey(ctx, questions[(caller*7919+number)%len(questions)])
					if err == nil && answer.GetDecision() != keysvcv1.Decision_DECISION_ALLOWED {
						err = fmt.Errorf("refused: %v %v", answer.GetReason(), answer.GetError())
					}
					return index, true, err
				})
				if w.isWith(servers) {
					with = append(with, made)
				} else {
					without = append(without, made)
				}
				return err
			})
			if err != nil {
				return err
			}
			row("ValidateKey", count, callers, with, without)
		}
	}
	return nil
}

// questions returns questions about keys of the population, all of which are answered with ALLOWED.
func (w *world) questions() ([]*keysvcv1.ValidateKeyRequest, error) {
	keys, err := population.Spread(1000, w.plan.keys/2) // sizes revokes the others
	if err != nil {
		return nil, err
	}
	asked := make([]*keysvcv1.ValidateKeyRequest, len(keys))
	for index, key := range keys {
		digest := key.Token.Digest()
		asked[index] = &keysvcv1.ValidateKeyRequest{TokenDigest: digest[:], KeyId: key.Token.ID(), RequiredScope: population.Scope}
		if len(key.Networks) > 0 {
			asked[index].ClientAddress = population.Address
		}
	}
	mathrand.New(mathrand.NewPCG(1, 2)).Shuffle(len(asked), func(i, j int) { asked[i], asked[j] = asked[j], asked[i] })
	return asked, nil
}

// changes measures CreateKey, and then RevokeKey of the keys that were created: fewer than were created in the same time, so
// hardly a caller runs out of them. Each caller has a workspace of its own, and stays at one keysvc.
func (w *world) changes(ctx context.Context) error {
	if err := w.makeWorkspaces(ctx); err != nil {
		return err
	}
	fmt.Printf(columns, "changes")
	for _, count := range []int{1, replicas} {
		for _, callers := range w.plan.callers {
			var creates, revokes [2][]slice // with the barrier and without
			err := w.both(func(servers []*server) error {
				servers, side := servers[:count], 1
				if w.isWith(servers) {
					side = 0
				}
				made := make([][]string, callers)
				created, err := measure(ctx, servers, callers, w.plan.slice, func(ctx context.Context, caller, _ int) (int, bool, error) {
					answer, err := w.keys(servers, caller).CreateKey(ctx, &keysvcv1.CreateKeyRequest{
						WorkspaceId: workspace(caller), MemberId: "ann", Name: "a key of a usual length", Scopes: []string{population.Scope},
					})
					if err == nil {
						made[caller] = append(made[caller], answer.GetKey().GetKeyId())
					}
					return caller % count, true, err
				})
				if err != nil {
					return err
				}
				revoked, err := measure(ctx, servers, callers, w.plan.slice, func(ctx context.Context, caller, number int) (int, bool, error) {
					if number >= len(made[caller]) {
						return 0, false, nil
					}
					_, err := w.keys(servers, caller).RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: workspace(caller), KeyId: made[caller][number]})
					return caller % count, true, err
				})
				creates[side], revokes[side] = append(creates[side], created), append(revokes[side], revoked)
				return err
			})
			if err != nil {
				return err
			}
			row("CreateKey", count, callers, creates[0], creates[1])
			row("RevokeKey", count, callers, revokes[0], revokes[1])
		}
	}
	return nil
}

// keys returns the client of a caller, which stays at one of the servers.
func (w *world) keys(servers []*server, caller int) keysvcv1.KeyServiceClient {
	return keysvcv1.NewKeyServiceClient(servers[caller%len(servers)].connection(caller))
}

func workspace(caller int) string { return fmt.Sprint("made-", caller) }

// makeWorkspaces makes a workspace with a member for each caller, and waits until all servers have all of them.
func (w *world) makeWorkspaces(ctx context.Context) error {
	if err := w.raiseLimit(ctx); err != nil {
		return err
	}
	count := w.plan.callers[len(w.plan.callers)-1]
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("the workspaces are not there after a minute"))
	defer cancel()
	const together = 16
	failed := make(chan error, together)
	var making sync.WaitGroup
	for first := range together {
		making.Go(func() {
			for caller := first; caller < count; caller += together {
				_, err := keysvcv1.NewMemberServiceClient(w.with[0].connection(caller)).PutMember(ctx, &keysvcv1.PutMemberRequest{
					WorkspaceId: workspace(caller), MemberId: "ann", Role: "owner", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
				})
				if err != nil {
					failed <- err
					return
				}
			}
		})
	}
	making.Wait()
	close(failed)
	if err := <-failed; err != nil {
		return err
	}
	for _, each := range append(w.with[1:len(w.with):len(w.with)], w.without...) {
		for caller := range count {
			for {
				_, err := keysvcv1.NewMemberServiceClient(each.connection(0)).GetMember(ctx, &keysvcv1.GetMemberRequest{WorkspaceId: workspace(caller), MemberId: "ann"})
				if err == nil {
					break
				}
				if status.Code(err) != codes.NotFound {
					return err
				}
			}
		}
	}
	return nil
}
