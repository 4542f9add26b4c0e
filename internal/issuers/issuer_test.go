package issuers_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"

	"github.com/scribe-mail/keysvc/internal/issuers"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	audience = "keysvc"
	subject  = "system:serviceaccount:mail:worker"
)

// issuer is an issuer on this machine, with TLS and an authority of its own.
type issuer struct {
	server *httptest.Server
	caFile string
	// fetches counts how often the keys were fetched.
	fetches atomic.Int64

	mu sync.Mutex
	// keys are what it publishes; answer replaces the answer if it is set.
	keys   []jose.JSONWebKey
	answer http.HandlerFunc
	// token is what a request must bring; "" for nothing.
	token string
	// jwks is where it says that its keys are; "" for its own server.
	jwks string
}

func newIssuer(t *testing.T, keys ...jose.JSONWebKey) *issuer {
	t.Helper()
	i := &issuer{keys: keys}
	i.server = httptest.NewTLSServer(i)
	t.Cleanup(i.server.Close)
	i.caFile = filepath.Join(t.TempDir(), "ca.crt")
	block := &pem.Block{Type: "CERTIFICATE", Bytes: i.server.Certificate().Raw}
	if err := os.WriteFile(i.caFile, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return i
}

func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	keys, answer, token, jwks := i.keys, i.answer, i.token, i.jwks
	i.mu.Unlock()
	if token != "" && r.Header.Get("Authorization") != "Bearer "+token {
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return
	}
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		if jwks == "" {
			jwks = i.server.URL + "/keys"
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"issuer": i.server.URL, "jwks_uri": jwks, "id_token_signing_alg_values_supported": []string{"none", "HS256", "RS256"}})
	case "/keys":
		i.fetches.Add(1)
		if answer != nil {
			answer(w, r)
			return
		}
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: keys})
	default:
		http.NotFound(w, r)
	}
}

func (i *issuer) change(change func(*issuer)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change(i)
}

func (i *issuer) configured() issuers.Issuer {
	return issuers.Issuer{Name: "cluster", URL: i.server.URL, Audience: audience, Algorithms: []string{"RS256", "ES256", "EdDSA"}, CA: i.caFile}
}

// use returns a set with issuers that is closed at the end of the test.
func use(t *testing.T, options issuers.Options, list ...issuers.Issuer) *issuers.Set {
	t.Helper()
	set := issuers.New(options)
	t.Cleanup(set.Close)
	if err := set.Use(list); err != nil {
		t.Fatal(err)
	}
	return set
}

// signer is a key of an issuer.
type signer struct {
	id      string
	private crypto.Signer
}

func (s signer) public() jose.JSONWebKey {
	return jose.JSONWebKey{Key: s.private.Public(), KeyID: s.id, Use: "sig"}
}

var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

func rsaSigner(id string) signer { return signer{id, rsaKey()} }

func ecSigner(t *testing.T, id string, curve elliptic.Curve) signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{id, key}
}

func edSigner(t *testing.T, id string) signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{id, key}
}

// sign returns a token.
func sign(t *testing.T, algorithm string, key any, header, claims map[string]any) string {
	t.Helper()
	options := &jose.SignerOptions{}
	for name, value := range header {
		options.WithHeader(jose.HeaderKey(name), value)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(algorithm), Key: key}, options)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// claims returns good claims, changed by pairs of name and value; a nil value removes a claim.
func (i *issuer) claims(changes ...any) map[string]any {
	now := time.Now()
	all := map[string]any{
		"iss": i.server.URL, "sub": subject, "aud": []string{audience}, "jti": "0a1b",
		"iat": now.Add(-time.Minute).Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(time.Hour).Unix(),
	}
	for n := 0; n < len(changes); n += 2 {
		name, _ := changes[n].(string)
		if all[name] = changes[n+1]; changes[n+1] == nil {
			delete(all, name)
		}
	}
	return all
}

func (i *issuer) good(t *testing.T, by signer, algorithm string) string {
	t.Helper()
	return sign(t, algorithm, by.private, map[string]any{"kid": by.id}, i.claims())
}

// verify asks about a token as a peer at 127.0.0.1 would. It asks again while nothing is decided.
func verify(t *testing.T, set *issuers.Set, token string) error {
	t.Helper()
	verified, err := set.VerifyBearer(t.Context(), "127.0.0.1", token)
	if err != nil {
		if signature := token[strings.LastIndexByte(token, '.')+1:]; len(signature) > 20 && strings.Contains(err.Error(), signature) {
			t.Errorf("the error has the token: %v", err)
		}
		return err
	}
	if verified.Issuer != "cluster" || verified.Subject != subject || verified.ID == "" || verified.NotAfter.IsZero() {
		t.Errorf("verified is %+v", verified)
	}
	return nil
}

func fileWith(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// clock is a clock that a test sets.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

func (c *clock) advance(by time.Duration) { c.ahead.Add(int64(by)) }

func await(ctx context.Context, t *testing.T, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s has not happened", what)
		}
	}
}

// lines is a log that remembers the sizes of its warnings.
type lines struct {
	mu    sync.Mutex
	sizes []int
}

func (l *lines) logger() *slog.Logger {
	return slog.New(slog.NewJSONHandler(l, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func (l *lines) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sizes = append(l.sizes, len(line))
	return len(line), nil
}

func (l *lines) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.sizes)
}

func (l *lines) longest() (most int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, size := range l.sizes {
		most = max(most, size)
	}
	return most
}
