package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/clock"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/service"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/anchor"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
	"github.com/scribe-mail/keysvc/internal/usage"
	"github.com/scribe-mail/keysvc/internal/validation"
)

// Only this file knows how keysvc is put together. It does the same as internal/server.

// storeFile is the name of the store in its folder.
const storeFile = "keysvc.db"

// actor makes every change of the laboratory.
var actor = audit.Actor{Caller: "crash laboratory", RequestID: "request-1", Workspaces: access.All()}

// began is when every history begins. From there, life.elapsed moves the clock.
var began = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// product is a keysvc without its RPCs, on a real file.
type product struct {
	service.Verbs
	folder     string
	store      storage.Store
	projection *projection.Projection
	validator  *validation.Validator
	recorder   *usage.Recorder

	stop      func()
	following sync.WaitGroup
	ended     error // why following ended; read after stop
}

// config is what differs between the starts of a product.
type config struct {
	now    func() time.Time
	random io.Reader
}

// start opens the store in a folder, makes it if it does not exist, and loads it.
func start(folder string, config config) (*product, error) {
	store, err := boltstore.Open(filepath.Join(folder, storeFile), boltstore.Config{
		// Without a reserve: files stay small, and grow a little at a time.
		Create: boltstore.CreateIfAbsent, Reserve: -1, Now: config.now, Random: config.random,
	})
	if err != nil {
		return nil, err
	}
	p := &product{folder: folder, store: store, projection: projection.New(store, nil)}
	position, err := p.projection.Load(context.Background())
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	steady := clock.Steady(config.now, position.Time)
	p.Verbs.Manager = keys.New(keys.Config{Store: store, Projection: p.projection, Now: steady, Random: config.random})
	p.validator = validation.New(p.projection, store, steady)
	p.recorder = usage.NewRecorder(store, nil)
	p.validator.RecordTo(p.recorder)
	p.stop = func() {}
	return p, nil
}

// follow lets the projection follow the store. Changes need that: they wait for the projection.
func (p *product) follow() {
	ctx, cancel := context.WithCancel(context.Background())
	p.following.Go(func() { p.ended = p.projection.Follow(ctx) })
	p.stop = func() {
		cancel()
		p.following.Wait()
	}
}

// install makes the built-in policy the store's, if it has none.
func (p *product) install() error {
	_, err := p.InstallPolicy(context.Background(), actor, policy.Default())
	return err
}

// close stops the product in order.
func (p *product) close() error {
	p.stop()
	err := p.store.Close()
	if p.ended != nil && !errors.Is(p.ended, context.Canceled) {
		err = errors.Join(err, fmt.Errorf("following ended: %w", p.ended))
	}
	return err
}

// full reports whether an error refuses a change for lack of disk space. Then nothing has
// changed.
func full(err error) bool { return errors.Is(err, storage.ErrFull) }

// up returns nil once the store serves again after it went down. Until then only the projection
// may call Load, because a Load by anybody else would end the restriction to Load too early.
func (p *product) up() error {
	if _, _, err := p.store.GetMember(context.Background(), "nobody's", "nobody"); !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	return nil
}

// digest returns the stored revision, and a hash of all that is stored except last-used
// times.
func (p *product) digest() (int64, [32]byte, error) {
	hash := sha256.New()
	hash.Write([]byte(p.store.Epoch()))
	encode := proto.MarshalOptions{Deterministic: true}
	position, err := p.store.Load(context.Background(), func(item storage.Item) error {
		var encoded []byte
		var err error
		switch {
		case item.Policy != nil:
			encoded, err = encode.Marshal(item.Policy)
		case item.Workspace != nil:
			encoded, err = encode.Marshal(item.Workspace)
		case item.Member != nil:
			encoded, err = encode.Marshal(item.Member)
		case item.Key != nil:
			encoded, err = encode.Marshal(item.Key)
		case item.Head != nil:
			encoded = fmt.Appendf(nil, "%+v", *item.Head)
		case item.Usage != nil:
			return nil
		case item.Damaged != nil:
			return item.Damaged.Err
		}
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(encoded)))
		hash.Write(length[:])
		hash.Write(encoded)
		return err
	})
	if err != nil {
		return 0, [32]byte{}, err
	}
	return position.Revision, [32]byte(hash.Sum(nil)), nil
}

// address is where every presenter of a token is.
var address = netip.MustParseAddr("10.0.0.1")

// decide returns the decision on a token as text.
func (p *product) decide(token, scope string) string {
	answer, err := p.validator.Validate(context.Background(), validation.Question{
		Workspaces: access.All(),
		Token:      token, Requirement: decide.Requirement{Scope: scope}, Address: address,
	})
	if err != nil {
		return "error: " + err.Error()
	}
	return answerOf(answer.Decision, answer.Reason)
}

const allowed = "ALLOWED"

// answerOf names a decision as the API does.
func answerOf(decision decide.Decision, reason decide.Reason) string {
	if decision == decide.Allowed && reason == decide.NoReason {
		return allowed
	}
	return reasons[reason]
}

var reasons = map[decide.Reason]string{
	decide.KeyInvalid:        keyInvalid,
	decide.KeyRevoked:        keyRevoked,
	decide.KeyExpired:        "KEY_EXPIRED",
	decide.MemberInactive:    memberInactive,
	decide.AddressNotAllowed: addressNotAllowed,
	decide.ScopeNotGranted:   scopeNotGranted,
	decide.ScopeBeyondRole:   scopeBeyondRole,
}

// examine does what `keysvc check` does and returns what it finds.
func examine(folder string) ([]string, error) {
	report, err := boltstore.Check(context.Background(), filepath.Join(folder, storeFile))
	return report.Problems, err
}

// anchoredAt returns the revision that the anchor in a folder knows, -1 if it has none.
func anchoredAt(folder string) int64 {
	mark, err := anchor.Read(boltstore.AnchorOf(filepath.Join(folder, storeFile)))
	if err != nil {
		return -1
	}
	return mark.Revision
}

// dice is a repeatable source of randomness.
type dice struct{ *rand.ChaCha8 }

func newDice(seed uint64) dice {
	var bytes [32]byte
	binary.LittleEndian.PutUint64(bytes[:], seed)
	return dice{rand.NewChaCha8(bytes)}
}
