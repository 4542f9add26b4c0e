//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// round is one history, its backup, its loss, and the restores.
type round struct {
	history
	program, folder, socket, backup string
	backupRevision                  int64
	epochs                          map[string]bool
	cache                           *keyclient.Client
	ahead                           atomic.Int64 // how far the clock of the near-cache is ahead
	stores                          int
	tally                           *tally
}

// tally counts what a campaign did.
type tally struct {
	restores, whole, held, again, tokens, narrowed, kept, heldWhole int
	took                                                            time.Duration
}

func (t *tally) String() string {
	return fmt.Sprintf("%d restores (%d with the whole sink, %d without, %d repeated), each %.0f ms; %d tokens, of which %d were narrowed, %d must go on and did, %d are held beside a whole sink",
		t.restores, t.whole, t.held, t.again, float64(t.took.Milliseconds())/float64(max(1, t.restores)), t.tokens, t.narrowed, t.kept, t.heldWhole)
}

// answers are what a server answers for each token.
type answers struct {
	powers []powers
	// held reports whether all refusals of a token are KEY_HELD; ended whether the overlap of the token
	// was over before the server was asked.
	held, ended []bool
}

// ask asks the server what each token may do.
func (r *round) ask(ctx context.Context, s *server) (answers, error) {
	came := answers{make([]powers, len(r.tokens)), make([]bool, len(r.tokens)), make([]bool, len(r.tokens))}
	for index, t := range r.tokens {
		came.ended[index] = !t.end.IsZero() && time.Now().After(t.end)
	}
	const each = len(scopeNames) * len(addresses)
	const together = 256 / each
	for from := 0; from < len(r.tokens); from += together {
		some := r.tokens[from:min(from+together, len(r.tokens))]
		request := &keysvcv1.BatchValidateKeysRequest{}
		for _, t := range some {
			for bit := range each {
				request.Requests = append(request.Requests, &keysvcv1.ValidateKeyRequest{
					Token: t.text, RequiredScope: scopeNames[bit/len(addresses)], ClientAddress: addresses[bit%len(addresses)].String(),
				})
			}
		}
		answer, err := s.validation.BatchValidateKeys(ctx, request)
		if err != nil {
			return came, err
		}
		for index := range some {
			came.held[from+index] = true
			for bit := range each {
				one := answer.GetResponses()[index*each+bit]
				if one.GetError().GetReason() == keysvcv1.ErrorReason_ERROR_REASON_SCOPE_UNKNOWN {
					continue // the policy does not have the scope, so nobody may
				}
				if one.GetError() != nil {
					return came, fmt.Errorf("%w: a validation: %v", errBroken, one.GetError())
				}
				if one.GetDecision() == keysvcv1.Decision_DECISION_ALLOWED {
					came.powers[from+index] |= 1 << bit
				}
				if one.GetDecision() != keysvcv1.Decision_DECISION_UNAUTHENTICATED || one.GetReason() != keysvcv1.Reason_REASON_KEY_HELD {
					came.held[from+index] = false
				}
			}
		}
	}
	return came, nil
}

// broken returns an error about a token.
func (r *round) broken(t *token, format string, values ...any) error {
	var story []string
	for _, each := range r.story {
		if strings.Contains(each, t.key.id) || strings.Contains(each, t.key.workspace+"/"+t.key.member) || strings.Contains(each, "workspace "+t.key.workspace) || strings.Contains(each, "policy:") {
			story = append(story, each)
		}
	}
	return fmt.Errorf("%w: token %d of key %s: %s\nin the backup: %v\nat the loss: %v\nat all times between: %v\nwhat concerns it:\n  %s",
		errBroken, t.number, t.key.id, fmt.Sprintf(format, values...), t.atBackup, t.atLoss, t.least, strings.Join(story, "\n  "))
}

// modelHolds compares a server that lost nothing with the model.
func (r *round) modelHolds(ctx context.Context, s *server) error {
	came, err := r.ask(ctx, s)
	if err != nil {
		return err
	}
	for index, t := range r.tokens {
		want := r.can(t)
		if t.soon() {
			continue
		}
		if !t.end.IsZero() && came.ended[index] {
			want = 0
		}
		if came.powers[index] != want {
			return r.broken(t, "the server that lost nothing allows %v, the model %v", came.powers[index], want)
		}
	}
	return nil
}

// play plays a round.
func (r *round) play(ctx context.Context) (err error) {
	data, logs := filepath.Join(r.folder, "lost"), filepath.Join(r.folder, "log")
	if err := os.Mkdir(logs, 0o700); err != nil {
		return err
	}
	// 1. A history, with a backup at a random time.
	arguments := []string{"--init", "--audit-sink", filepath.Join(logs, "audit.jsonl")}
	if r.random.IntN(3) == 0 {
		arguments = append(arguments, "--audit-sink-max-bytes", "20000")
	}
	if r.server, err = launch(ctx, r.program, r.socket, data, arguments...); err != nil {
		return err
	}
	defer func() {
		if r.server != nil {
			err = errors.Join(err, r.server.kill())
		}
	}()
	roles := map[string]uint8{"all": allScopes, "some": r.part(allScopes), "few": r.part(r.part(allScopes)), "other": r.part(allScopes)}
	if err := r.policy(ctx, allScopes, roles); err != nil {
		return fmt.Errorf("the first policy: %w", err)
	}
	if err := r.changes(ctx, 20+r.random.IntN(60)); err != nil {
		return err
	}
	if _, err := run(ctx, r.program, "backup", r.backup, "--addr", "unix://"+r.socket); err != nil {
		return err
	}
	now, err := r.server.policies.GetPolicy(ctx, &keysvcv1.GetPolicyRequest{})
	if err != nil {
		return err
	}
	r.backupRevision = now.GetRevision()
	r.backedUp()
	if err := r.warm(ctx); err != nil {
		return err
	}
	if err := r.changes(ctx, 1+r.random.IntN(60)); err != nil {
		return err
	}
	// 2. The loss. A near-cache has what the tokens could do until then.
	if err := r.modelHolds(ctx, r.server); err != nil {
		return err
	}
	if err := r.warm(ctx); err != nil {
		return err
	}
	r.epochs[r.server.epoch] = true
	if err := r.lose(); err != nil {
		return err
	}
	r.tally.tokens += len(r.tokens)
	for _, t := range r.tokens {
		if t.inBackup && !r.untouched(t) {
			r.tally.narrowed++
		}
	}
	// 3. The restores, in a random order.
	ways := []func(context.Context, string) error{r.whole, r.damaged, r.alone}
	r.random.Shuffle(len(ways), func(a, b int) { ways[a], ways[b] = ways[b], ways[a] })
	for _, way := range ways {
		if err := way(ctx, logs); err != nil {
			return err
		}
	}
	return nil
}

// lose ends the server in one of two ways. The leases of the near-cache run out.
func (r *round) lose() error {
	s := r.server
	r.server = nil
	r.ahead.Add(int64(time.Minute))
	if r.random.IntN(2) == 0 {
		return s.kill()
	}
	return s.stop()
}

// restore restores the backup into a new folder, and serves that.
func (r *round) restore(ctx context.Context, sink string, arguments ...string) (restored, error) {
	r.stores++
	data := filepath.Join(r.folder, fmt.Sprint("restored", r.stores))
	began := time.Now()
	came, err := restore(ctx, r.program, r.backup, data, arguments...)
	if err != nil {
		return came, err
	}
	r.tally.restores++
	r.tally.took += time.Since(began)
	var serve []string
	if sink != "" {
		serve = []string{"--audit-sink", sink}
	}
	if r.server, err = launch(ctx, r.program, r.socket, data, serve...); err != nil {
		return came, err
	}
	if r.server.epoch != came.Epoch {
		return came, fmt.Errorf("%w: the restored store has epoch %s, and the command said %s", errBroken, r.server.epoch, came.Epoch)
	}
	if r.epochs[came.Epoch] {
		return came, fmt.Errorf("%w: the restored store has the epoch %s of another one", errBroken, came.Epoch)
	}
	r.epochs[came.Epoch] = true
	return came, nil
}

// nothingRevived checks that no token may do what was taken away.
func (r *round) nothingRevived(got answers) error {
	for index, t := range r.tokens {
		switch {
		case got.ended[index] && got.powers[index] != 0:
			return r.broken(t, "the overlap of its rotation is over; the restored store allows %v", got.powers[index])
		case got.powers[index]&^t.atLoss != 0:
			return r.broken(t, "the restored store allows %v more than was allowed at the loss", got.powers[index]&^t.atLoss)
		case got.powers[index]&^t.atBackup != 0:
			return r.broken(t, "the restored store allows %v more than the backup", got.powers[index]&^t.atBackup)
		case got.powers[index]&^t.least != 0:
			return r.broken(t, "the restored store allows %v, which was taken away after the backup and given back", got.powers[index]&^t.least)
		}
	}
	return nil
}

// allHeld checks that no token is allowed, and that those that nobody took away are held.
func (r *round) allHeld(got answers) error {
	for index, t := range r.tokens {
		if got.powers[index] != 0 {
			return r.broken(t, "the restored store, whose keys must all be held, allows %v", got.powers[index])
		}
		if r.untouched(t) && t.end.IsZero() && !got.held[index] {
			return r.broken(t, "the restored store does not refuse it with KEY_HELD")
		}
	}
	return nil
}

// whole restores with the whole sink.
func (r *round) whole(ctx context.Context, logs string) error {
	copied := filepath.Join(r.folder, "whole")
	if err := copyFolder(logs, copied); err != nil {
		return err
	}
	sink := filepath.Join(copied, "audit.jsonl")
	came, err := r.restore(ctx, sink, "--audit-sink", sink, "--sink-is-complete")
	if err != nil {
		return err
	}
	if err := r.checkWhole(ctx, came, nil); err != nil {
		return fmt.Errorf("with the whole sink: %w", err)
	}
	r.tally.whole++
	if r.random.IntN(2) == 0 {
		if err := r.released(ctx, func(t *token, got powers) error {
			if more := got &^ t.atLoss; more != 0 {
				return r.broken(t, "after the release the store allows %v more than at the loss", more)
			}
			if lost := t.least &^ got; r.untouched(t) && !t.soon() && lost != 0 {
				return r.broken(t, "after the release the store does not allow %v", lost)
			}
			return nil
		}); err != nil {
			return fmt.Errorf("with the whole sink: %w", err)
		}
		return r.lose()
	}
	// The restored store goes on with the sink and is lost as well. Revoked in between, nothing comes back.
	before, err := r.ask(ctx, r.server)
	if err != nil {
		return err
	}
	revoked := make(map[*key]bool)
	for index, t := range r.tokens {
		if before.powers[index] != 0 && r.random.IntN(3) == 0 && !revoked[t.key] {
			if _, err := r.server.keys.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: t.key.workspace, KeyId: t.key.id}); err != nil {
				return err
			}
			revoked[t.key] = true
		}
	}
	if err := r.lose(); err != nil {
		return err
	}
	if came, err = r.restore(ctx, sink, "--audit-sink", sink, "--sink-is-complete"); err != nil {
		return err
	}
	r.tally.again++
	if err := r.checkWhole(ctx, came, revoked); err != nil {
		return fmt.Errorf("restored a second time from the same backup, with the whole sink: %w", err)
	}
	return r.lose()
}

// checkWhole checks a store that was restored with the whole sink. The keys revoked were revoked in a
// store that was restored before.
func (r *round) checkWhole(ctx context.Context, came restored, revoked map[*key]bool) error {
	if !came.Complete {
		return fmt.Errorf("%w: keysvc restore says that the sink is not complete", errBroken)
	}
	got, err := r.ask(ctx, r.server)
	if err != nil {
		return err
	}
	if err := r.nothingRevived(got); err != nil {
		return err
	}
	for index, t := range r.tokens {
		if revoked[t.key] {
			if got.powers[index] != 0 {
				return r.broken(t, "it was revoked in the store that was restored before, and now the restored store allows %v", got.powers[index])
			}
			continue
		}
		if lost := t.least &^ got.powers[index]; r.untouched(t) && !t.soon() && t.end.IsZero() && lost != 0 {
			return r.broken(t, "nobody took it away, and the restored store does not allow %v (held: %v)", lost, got.held[index])
		}
		if lost := t.least &^ got.powers[index]; r.untouched(t) && !t.soon() && lost != 0 {
			return r.broken(t, "its overlap goes on, and the restored store does not allow %v (held: %v)", lost, got.held[index])
		}
		if r.untouched(t) {
			r.tally.kept++
		}
		if got.held[index] {
			r.tally.heldWhole++
		}
	}
	return r.cacheAgrees(ctx, got)
}

// alone restores without a sink.
func (r *round) alone(ctx context.Context, _ string) error {
	came, err := r.restore(ctx, "")
	if err != nil {
		return err
	}
	return r.checkHeld(ctx, "without a sink", came, func(t *token, got powers) error {
		if want := t.atBackup; t.end.IsZero() && got != want {
			return r.broken(t, "after the release the store allows %v", got)
		}
		return nil
	})
}

// damaged restores with a sink that was damaged.
func (r *round) damaged(ctx context.Context, logs string) error {
	copied := filepath.Join(r.folder, "damaged")
	if err := copyFolder(logs, copied); err != nil {
		return err
	}
	for {
		lines, err := readSink(copied)
		if err != nil {
			return err
		}
		how := damages[r.random.IntN(len(damages))]
		lines, done := how.do(r.random, lines, r.backupRevision)
		if !done {
			continue
		}
		if err := writeSink(copied, lines); err != nil {
			return err
		}
		arguments := []string{"--audit-sink", filepath.Join(copied, "audit.jsonl")}
		if !how.unsaid {
			arguments = append(arguments, "--sink-is-complete")
		}
		if _, err := os.Stat(arguments[1]); err != nil { // all of its lines are cut off
			arguments = nil
		}
		came, err := r.restore(ctx, "", arguments...)
		if err != nil {
			return fmt.Errorf("with a damaged sink (%s): %w", how.name, err)
		}
		return r.checkHeld(ctx, "with a damaged sink ("+how.name+")", came, func(t *token, got powers) error {
			most := t.atBackup
			if r.moved[t.key.workspace+"/"+t.key.member] && t.inBackup {
				// Of roles that cannot be compared the member has the newest (ADR 0021).
				most = t.granted
			}
			if t.key.readdressed {
				// So it is with address rules that have no address in common.
				most = everywhere(most)
			}
			if more := got &^ most; more != 0 {
				return r.broken(t, "after the release the store allows %v more than the backup", more)
			}
			if lost := t.least &^ got; r.untouched(t) && t.end.IsZero() && lost != 0 {
				return r.broken(t, "after the release the store does not allow %v", lost)
			}
			return nil
		})
	}
}

// checkHeld checks a store whose keys must all be held, releases them, and checks it again.
func (r *round) checkHeld(ctx context.Context, way string, came restored, after func(*token, powers) error) error {
	if came.Complete {
		return fmt.Errorf("%w: %s: keysvc restore says that the sink is complete", errBroken, way)
	}
	got, err := r.ask(ctx, r.server)
	if err != nil {
		return err
	}
	if err := errors.Join(r.nothingRevived(got), r.allHeld(got), r.cacheAgrees(ctx, got)); err != nil {
		return fmt.Errorf("%s: %w", way, err)
	}
	if err := r.released(ctx, after); err != nil {
		return fmt.Errorf("%s: %w", way, err)
	}
	r.tally.held++
	return r.lose()
}

// released releases all keys, and checks what each token may then do.
func (r *round) released(ctx context.Context, check func(*token, powers) error) error {
	if _, err := run(ctx, r.program, "key", "release", "--all", "--yes", "--addr", "unix://"+r.socket); err != nil {
		return err
	}
	got, err := r.ask(ctx, r.server)
	if err != nil {
		return err
	}
	for index, t := range r.tokens {
		if got.held[index] {
			return r.broken(t, "it is held after the release of all keys")
		}
		if got.ended[index] && !t.inBackup && got.powers[index] != 0 {
			return r.broken(t, "it is not in the backup, and allowed %v after the release", got.powers[index])
		}
		if err := check(t, got.powers[index]); err != nil {
			return err
		}
	}
	return nil
}

// dial makes the near-cache.
func (r *round) dial() (err error) {
	r.cache, err = keyclient.New("unix://"+r.socket, keyclient.Config{
		Now:               func() time.Time { return time.Now().Add(time.Duration(r.ahead.Load())) },
		ValidationTimeout: 5 * time.Second,
		DialOptions:       []grpc.DialOption{quickly},
	})
	return err
}

// validate asks the near-cache, until it answers.
func (r *round) validate(ctx context.Context, t *token, bit int) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		answer, err := r.cache.Validate(ctx, keyauth.Question{
			Token: t.text, Requirement: keyauth.Scope(scopeNames[bit/len(addresses)]), ClientAddress: addresses[bit%len(addresses)],
		})
		if err == nil {
			return answer.Decision == keysvcv1.Decision_DECISION_ALLOWED, nil
		}
		if status.Code(err) == codes.InvalidArgument && strings.Contains(err.Error(), "is not in the policy") {
			return false, nil
		}
		if status.Code(err) != codes.Unavailable {
			return false, fmt.Errorf("the near-cache: %w", err)
		}
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("%w: the near-cache does not answer: %w", errBroken, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// warm asks the near-cache for what each token may do now.
func (r *round) warm(ctx context.Context) error {
	for _, t := range r.tokens {
		can := r.can(t)
		if can == 0 || t.soon() {
			continue
		}
		for range 2 {
			if allowed, err := r.validate(ctx, t, firstBit(can)); err != nil || !allowed {
				return errors.Join(err, r.broken(t, "the near-cache of the lost server allows it: %v", allowed))
			}
		}
	}
	return nil
}

func firstBit(of powers) int {
	for bit := range 32 {
		if of>>bit&1 == 1 {
			return bit
		}
	}
	return 0
}

// cacheAgrees checks that the near-cache, which was filled by the lost server, answers as the restored one.
func (r *round) cacheAgrees(ctx context.Context, got answers) error {
	for index, t := range r.tokens {
		if t.soon() || !t.end.IsZero() && !got.ended[index] {
			continue
		}
		for _, bit := range []int{firstBit(t.atLoss), firstBit(t.atBackup), firstBit(got.powers[index]), r.random.IntN(32)} {
			allowed, err := r.validate(ctx, t, bit)
			if err != nil {
				return err
			}
			if want := got.powers[index]>>bit&1 == 1; allowed != want {
				return r.broken(t, "the near-cache of the lost server allows %v: %v; the restored server: %v", powers(1)<<bit, allowed, want)
			}
		}
	}
	return nil
}

// newRound returns a round in a folder, which it makes.
func newRound(program, folder, socket string, seed uint64, t *tally) (*round, error) {
	r := &round{
		history: history{
			model:  &model{roles: make(map[string]uint8), members: make(map[string]*member), moved: make(map[string]bool)},
			random: rand.New(rand.NewPCG(seed, 0)),
		},
		program: program, folder: folder, socket: socket, backup: filepath.Join(folder, "backup.db"), epochs: make(map[string]bool), tally: t,
	}
	if err := os.Mkdir(folder, 0o700); err != nil {
		return nil, err
	}
	return r, r.dial()
}
