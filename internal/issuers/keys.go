package issuers

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"github.com/scribe-mail/keysvc/internal/backoff"
	"github.com/scribe-mail/keysvc/internal/callers"
)

// timing has the times of keys.
type timing struct {
	// refresh is how often keys are fetched.
	refresh time.Duration
	// refreshFile is how often a file with keys is read.
	refreshFile time.Duration
	// again is how long after a fetch the next one may begin because of a key that is not known.
	again time.Duration
	// keep is how long keys are used that cannot be fetched again.
	keep time.Duration
	// fetch is how long a fetch may take.
	fetch time.Duration
	// wait is how long a token may wait.
	wait time.Duration
}

func (t *timing) setDefaults() {
	for field, usual := range map[*time.Duration]time.Duration{
		&t.refresh: 5 * time.Minute, &t.refreshFile: time.Second, &t.again: 10 * time.Second,
		&t.keep: 24 * time.Hour, &t.fetch: 10 * time.Second, &t.wait: time.Second,
	} {
		if *field == 0 {
			*field = usual
		}
	}
}

// keys are the keys of an issuer, which are fetched again from time to time. A key is found by its
// id, and fits one family of algorithms only.
type keys struct {
	issuer  Issuer
	options Options
	current atomic.Pointer[keySet]
	wanted  chan struct{} // asks for a fetch before its time; has room for one
	cancel  context.CancelFunc
	done    chan struct{}

	mu sync.Mutex
	// round is closed when the fetch that runs, or the next one, has ended.
	round chan struct{}
	// asked is set from a question for a fetch until that fetch ends.
	asked bool
	// began is when the last fetch began.
	began time.Time
}

// keySet is what an issuer said at one time. It is not changed once it is made.
type keySet struct {
	sum     [sha256.Size]byte
	byID    map[string][]jose.JSONWebKey
	fetched time.Time
}

var _ oidc.KeySet = (*keys)(nil)

// followKeys fetches the keys of an issuer until close.
func followKeys(issuer Issuer, options Options) *keys {
	ctx, cancel := context.WithCancel(context.Background())
	k := &keys{
		issuer: issuer, options: options, wanted: make(chan struct{}, 1), cancel: cancel,
		done: make(chan struct{}), round: make(chan struct{}), asked: true,
	}
	go k.follow(ctx)
	return k
}

func (k *keys) close() {
	k.cancel()
	<-k.done
}

func (k *keys) follow(ctx context.Context) {
	defer close(k.done)
	log := k.options.Log.With("issuer", k.issuer.Name)
	retry := backoff.New(k.options.timing.again/10, k.options.timing.refresh/5)
	lastError := ""
	for ctx.Err() == nil {
		err := k.fetch(ctx, log)
		next := retry.Next()
		switch {
		case err == nil:
			retry.Reset()
			lastError = ""
			next = k.options.timing.refresh - rand.N(k.options.timing.refresh/10) //nolint:gosec // G404: jitter is no secret
			if k.issuer.JWKS != "" {
				next = k.options.timing.refreshFile
			}
		case ctx.Err() == nil && err.Error() != lastError:
			lastError = err.Error()
			log.WarnContext(ctx, "the issuer's keys cannot be read; those read last stay in use, for a day at most", "error", lastError)
		}
		timer := time.NewTimer(next)
		select {
		case <-timer.C:
		case <-k.wanted:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// fetch fetches the keys once, and ends the waits for that.
func (k *keys) fetch(ctx context.Context, log *slog.Logger) error {
	began := k.options.Now()
	k.mu.Lock()
	k.began, k.asked = began, true
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		close(k.round)
		k.round, k.asked = make(chan struct{}), false
	}()

	ctx, cancel := context.WithTimeout(ctx, k.options.timing.fetch)
	defer cancel()
	text, err := k.issuer.fetch(ctx)
	if err != nil {
		return cut(err)
	}
	byID, err := parseKeys(text)
	if err != nil {
		return cut(err)
	}
	before := k.current.Load()
	next := &keySet{sum: sha256.Sum256(text), byID: byID, fetched: began}
	k.current.Store(next)
	if before == nil || before.sum != next.sum {
		log.InfoContext(ctx, "the issuer's keys have been read", "keys", len(byID))
	}
	if before != nil && before.sum != next.sum && k.options.Changed != nil {
		k.options.Changed()
	}
	return nil
}

const (
	maxKeys = 100
	// The bounds of an RSA modulus, in bits. Below, a key can be factored; above, it costs too much.
	minRSA, maxRSA = 2048, 8192
)

// parseKeys reads a set of keys (RFC 7517, 5). It leaves out those that sign nothing here: without
// an id, for encryption, private, symmetric, weak or of another type.
func parseKeys(text []byte) (map[string][]jose.JSONWebKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(text, &set); err != nil {
		return nil, fmt.Errorf("the keys are no JSON Web Key Set: %w", err)
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("there are %d keys, allowed are at most %d", len(set.Keys), maxKeys)
	}
	byID := map[string][]jose.JSONWebKey{}
	for _, text := range set.Keys {
		var key jose.JSONWebKey
		// RFC 7517, 5: keys that are not understood are ignored.
		if json.Unmarshal(text, &key) != nil || key.KeyID == "" || len(key.KeyID) > maxKeyID || key.Use != "" && key.Use != "sig" || !key.IsPublic() || !key.Valid() {
			continue
		}
		if strong(key) {
			byID[key.KeyID] = append(byID[key.KeyID], key)
		}
	}
	if len(byID) == 0 {
		return nil, errors.New("there is no public key with an id for signatures among the issuer's keys")
	}
	return byID, nil
}

func strong(key jose.JSONWebKey) bool {
	public, isRSA := key.Key.(*rsa.PublicKey)
	return !isRSA || public.N.BitLen() >= minRSA && public.N.BitLen() <= maxRSA
}

// fits reports whether a key may verify signatures of an algorithm.
func fits(key jose.JSONWebKey, algorithm string) bool {
	if key.Algorithm != "" && key.Algorithm != algorithm {
		return false
	}
	switch public := key.Key.(type) {
	case *rsa.PublicKey:
		return strings.HasPrefix(algorithm, "RS") || strings.HasPrefix(algorithm, "PS")
	case *ecdsa.PublicKey:
		curves := map[string]elliptic.Curve{oidc.ES256: elliptic.P256(), oidc.ES384: elliptic.P384(), oidc.ES512: elliptic.P521()}
		return curves[algorithm] == public.Curve
	case ed25519.PublicKey:
		return algorithm == oidc.EdDSA
	}
	return false
}

var errUnknownKey = errors.New("the token names a key that the issuer does not have")

// known reports whether there is a key with an id. The error says why nothing can be known.
func (k *keys) known(id string) (bool, error) {
	set := k.current.Load()
	switch {
	case set == nil:
		return false, fmt.Errorf("its keys are not known yet: %w", callers.ErrBusy)
	case k.options.Now().Sub(set.fetched) > k.options.timing.keep:
		return false, fmt.Errorf("its keys are too old to be used: %w", callers.ErrBusy)
	}
	return len(set.byID[id]) > 0, nil
}

// await returns nil if there is a key with an id, and waits for the issuer if that can help.
func (k *keys) await(ctx context.Context, id string) error {
	known, err := k.known(id)
	if known {
		return nil
	}
	if round := k.ask(); round != nil {
		select {
		case <-round:
		case <-ctx.Done():
			return fmt.Errorf("its keys have not come in time: %w", callers.ErrBusy)
		}
		known, err = k.known(id)
	}
	switch {
	case err != nil:
		return err
	case !known:
		return errUnknownKey
	}
	return nil
}

// ask asks for a fetch. It returns a channel that is closed after that fetch, or nil if the last
// one is too young for another one.
func (k *keys) ask() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.asked {
		return k.round
	}
	if k.options.Now().Sub(k.began) < k.options.timing.again {
		return nil
	}
	k.asked = true
	select {
	case k.wanted <- struct{}{}:
	default:
	}
	return k.round
}

// VerifySignature implements oidc.KeySet: it returns what a token has signed, if the issuer has a
// key of the token's key id that fits its algorithm.
func (k *keys) VerifySignature(_ context.Context, jwt string) ([]byte, error) {
	var algorithms []jose.SignatureAlgorithm
	for _, algorithm := range k.issuer.Algorithms {
		algorithms = append(algorithms, jose.SignatureAlgorithm(algorithm))
	}
	signed, err := jose.ParseSignedCompact(jwt, algorithms)
	if err != nil {
		return nil, err
	}
	header := signed.Signatures[0].Header
	if known, err := k.known(header.KeyID); !known {
		return nil, errors.Join(err, errUnknownKey)
	}
	for _, key := range k.current.Load().byID[header.KeyID] {
		if !fits(key, header.Algorithm) {
			continue
		}
		// The key alone is handed over, so that nothing else about it is taken into account.
		if payload, err := signed.Verify(key.Key); err == nil {
			return payload, nil
		}
	}
	return nil, errors.New("the signature is not that of the issuer's key")
}
