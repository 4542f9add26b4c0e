package issuers_test

import (
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/certificates/certificatestest"
	"github.com/scribe-mail/keysvc/internal/issuers"
)

func TestTokens(t *testing.T) {
	t.Parallel()
	rs, es, ed, es384 := rsaSigner("rs"), ecSigner(t, "es", elliptic.P256()), edSigner(t, "ed"), ecSigner(t, "es384", elliptic.P384())
	rsOnly := rs.public()
	rsOnly.KeyID, rsOnly.Algorithm = "rs512-only", "RS512"
	encryption := rs.public()
	encryption.KeyID, encryption.Use = "encryption", "enc"
	shared := jose.JSONWebKey{Key: []byte("a secret that everybody who reads the keys knows"), KeyID: "shared"}
	i := newIssuer(t, rs.public(), es.public(), ed.public(), es384.public(), rsOnly, encryption, shared)
	set := use(t, issuers.Options{}, i.configured())

	stranger := ecSigner(t, "es", elliptic.P256())
	now := time.Now()
	at := func(by time.Duration) int64 { return now.Add(by).Unix() }
	by := func(s signer, algorithm string, changes ...any) string {
		return sign(t, algorithm, s.private, map[string]any{"kid": s.id}, i.claims(changes...))
	}
	// What everybody knows of the RSA key, taken for the secret of an HMAC.
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(&rsaKey().PublicKey)})
	good := by(es, "ES256")
	parts := strings.Split(good, ".")
	encode := base64.RawURLEncoding.EncodeToString

	for name, test := range map[string]struct {
		token string
		want  string // part of the error; "" for none
	}{
		"RS256":                         {by(rs, "RS256"), ""},
		"ES256":                         {good, ""},
		"EdDSA":                         {by(ed, "EdDSA"), ""},
		"the audience as a text":        {by(es, "ES256", "aud", audience), ""},
		"without nbf, iat and jti":      {by(es, "ES256", "nbf", nil, "iat", nil, "jti", nil), ""},
		"ended within the skew":         {by(es, "ES256", "exp", at(-20*time.Second)), ""},
		"valid within the skew":         {by(es, "ES256", "nbf", at(40*time.Second), "iat", at(40*time.Second)), ""},
		"expired":                       {by(es, "ES256", "exp", at(-61*time.Second)), "has ended at"},
		"not yet valid":                 {by(es, "ES256", "nbf", at(10*time.Minute)), "is valid from"},
		"issued in the future":          {by(es, "ES256", "iat", at(10*time.Minute)), "will be issued at"},
		"without an end":                {by(es, "ES256", "exp", nil), "does not end"},
		"an end that is no time":        {by(es, "ES256", "exp", 1e300), "is no time"},
		"another audience":              {by(es, "ES256", "aud", "other"), "audience must be exactly"},
		"no audience":                   {by(es, "ES256", "aud", nil), "audience must be exactly"},
		"an audience beside another":    {by(es, "ES256", "aud", []string{audience, "other"}), "audience must be exactly"},
		"a longer audience":             {by(es, "ES256", "aud", audience+"/"), "audience must be exactly"},
		"another issuer":                {by(es, "ES256", "iss", "https://other.test"), "issuer is not configured"},
		"the issuer with a slash":       {by(es, "ES256", "iss", i.server.URL+"/"), "issuer is not configured"},
		"no subject":                    {by(es, "ES256", "sub", nil), "no subject"},
		"of a stranger":                 {by(stranger, "ES256"), "signature is not that of the issuer's key"},
		"another key's id":              {sign(t, "RS256", rsaKey(), map[string]any{"kid": "es"}, i.claims()), "signature is not that of the issuer's key"},
		"an unknown key's id":           {sign(t, "ES256", es.private, map[string]any{"kid": "other"}, i.claims()), "a key that the issuer does not have"},
		"no key id":                     {sign(t, "ES256", es.private, nil, i.claims()), "does not name its key"},
		"a very long key id":            {sign(t, "ES256", es.private, map[string]any{"kid": strings.Repeat("k", 257)}, i.claims()), "allowed are at most 256"},
		"an algorithm not allowed":      {by(rs, "RS512"), "algorithm is not allowed"},
		"a key for another algorithm":   {sign(t, "RS256", rsaKey(), map[string]any{"kid": "rs512-only"}, i.claims()), "signature is not that of the issuer's key"},
		"a key for encryption":          {sign(t, "RS256", rsaKey(), map[string]any{"kid": "encryption"}, i.claims()), "a key that the issuer does not have"},
		"a key of another curve":        {by(es384, "ES384"), "algorithm is not allowed"},
		"HMAC with the public key":      {sign(t, "HS256", publicPEM, map[string]any{"kid": "rs"}, i.claims()), "algorithm is not allowed"},
		"HMAC with a published secret":  {sign(t, "HS256", shared.Key, map[string]any{"kid": "shared"}, i.claims()), "algorithm is not allowed"},
		"none":                          {encode([]byte(`{"alg":"none","kid":"es"}`)) + "." + parts[1] + ".", "algorithm is not allowed"},
		"ES256 without a signature":     {parts[0] + "." + parts[1] + ".", "issuer"},
		"another header":                {encode([]byte(`{"alg":"ES256","kid":"es","x":1}`)) + "." + parts[1] + "." + parts[2], "signature is not that of the issuer's key"},
		"a key in the header":           {withEmbeddedKey(t, stranger, i.claims()), "signature is not that of the issuer's key"},
		"a critical header":             {sign(t, "ES256", es.private, map[string]any{"kid": "es", "crit": []string{"x"}, "x": 1}, i.claims()), "issuer"},
		"the claims of another token":   {parts[0] + "." + strings.Split(by(es, "ES256", "sub", "admin"), ".")[1] + "." + parts[2], "signature is not that of the issuer's key"},
		"JSON":                          {`{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`, "no signed JWT"},
		"encrypted":                     {"a.b.c.d.e", "no signed JWT"},
		"empty":                         {"..", "no signed JWT"},
		"padded":                        {good + "=", "issuer"},
		"very long":                     {good + strings.Repeat("A", 16<<10), "allowed are at most 16384"},
		"the wrong type of a claim":     {by(es, "ES256", "exp", "tomorrow"), "no signed JWT"},
		"the wrong type of an audience": {by(es, "ES256", "aud", map[string]any{"keysvc": true}), "no signed JWT"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := verify(t, set, test.token)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("the error is %v, want %q", err, test.want)
			}
			if errors.Is(err, callers.ErrBusy) {
				t.Error("it was not decided")
			}
		})
	}
}

func withEmbeddedKey(t *testing.T, by signer, claims map[string]any) string {
	t.Helper()
	key, err := by.public().MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return sign(t, "ES256", by.private, map[string]any{"kid": "es", "jwk": json.RawMessage(key), "jku": "https://127.0.0.1:1/keys"}, claims)
}

func TestVerifiedHasTheTokensEndAndID(t *testing.T) {
	t.Parallel()
	es := ecSigner(t, "es", elliptic.P256())
	i := newIssuer(t, es.public())
	set := use(t, issuers.Options{}, i.configured())
	end := time.Now().Add(time.Hour).Truncate(time.Second)
	for id, want := range map[string]string{"0a-1b": "0a-1b", "a b": "issued ", "": "issued ", strings.Repeat("i", 129): "issued "} {
		token := sign(t, "ES256", es.private, map[string]any{"kid": "es"}, i.claims("jti", id, "exp", end.Unix()))
		verified, err := set.VerifyBearer(t.Context(), "127.0.0.1", token)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(verified.ID, want) {
			t.Errorf("the id of %q is %q", id, verified.ID)
		}
		if !verified.NotAfter.Equal(end.Add(time.Minute)) {
			t.Errorf("it ends at %v, want a minute after %v", verified.NotAfter, end)
		}
	}
}

func TestTwoIssuersAreNotConfused(t *testing.T) {
	t.Parallel()
	one, two := ecSigner(t, "key", elliptic.P256()), ecSigner(t, "key", elliptic.P256())
	first, second := newIssuer(t, one.public()), newIssuer(t, two.public())
	other := second.configured()
	other.Name = "other"
	set := use(t, issuers.Options{}, first.configured(), other)
	if err := verify(t, set, first.good(t, one, "ES256")); err != nil {
		t.Error(err)
	}
	// The second issuer's key, for a token that says it is of the first.
	if err := verify(t, set, first.good(t, two, "ES256")); err == nil {
		t.Error("one issuer has signed for the other")
	}
}

func TestAnIssuerThatIsAwayKeepsNobodyFromStarting(t *testing.T) {
	t.Parallel()
	es := ecSigner(t, "es", elliptic.P256())
	i := newIssuer(t, es.public())
	i.change(func(i *issuer) {
		i.answer = func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusServiceUnavailable) }
	})
	set := use(t, issuers.Options{}, i.configured())
	if err := verify(t, set, i.good(t, es, "ES256")); !errors.Is(err, callers.ErrBusy) {
		t.Errorf("without keys: %v, want ErrBusy", err)
	}
	i.change(func(i *issuer) { i.answer = nil })
	await(t.Context(), t, "a fetch", func() bool { return verify(t, set, i.good(t, es, "ES256")) == nil })
}

func TestKeysStayWhileTheIssuerIsAwayAndNotForever(t *testing.T) {
	t.Parallel()
	es := ecSigner(t, "es", elliptic.P256())
	i := newIssuer(t, es.public())
	var c clock
	set := use(t, issuers.Options{Now: c.now}.Refresh(10*time.Millisecond), i.configured())
	token := sign(t, "ES256", es.private, map[string]any{"kid": "es"}, i.claims("exp", time.Now().Add(100*time.Hour).Unix()))
	if err := verify(t, set, token); err != nil {
		t.Fatal(err)
	}
	i.change(func(i *issuer) {
		i.answer = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"keys":[]}`)) }
	})
	before := i.fetches.Load()
	await(t.Context(), t, "a fetch without keys", func() bool { return i.fetches.Load() > before+1 })
	c.advance(issuers.Keep - time.Minute)
	if err := verify(t, set, token); err != nil {
		t.Errorf("within the time that keys are kept: %v", err)
	}
	c.advance(2 * time.Minute)
	if err := verify(t, set, token); !errors.Is(err, callers.ErrBusy) {
		t.Errorf("after the time that keys are kept: %v, want ErrBusy", err)
	}
}

func TestARemovedKeyVerifiesNothing(t *testing.T) {
	t.Parallel()
	old, next := ecSigner(t, "old", elliptic.P256()), ecSigner(t, "next", elliptic.P256())
	i := newIssuer(t, old.public())
	var changes atomic.Int64
	set := use(t, issuers.Options{Changed: func() { changes.Add(1) }}.Refresh(10*time.Millisecond), i.configured())
	token := i.good(t, old, "ES256")
	if err := verify(t, set, token); err != nil {
		t.Fatal(err)
	}
	i.change(func(i *issuer) { i.keys = []jose.JSONWebKey{next.public()} })
	await(t.Context(), t, "a change of keys", func() bool { return changes.Load() > 0 })
	if err := verify(t, set, token); err == nil {
		t.Error("a token of a key that was removed is good")
	}
	if err := verify(t, set, i.good(t, next, "ES256")); err != nil {
		t.Error(err)
	}
	before := i.fetches.Load()
	await(t.Context(), t, "a further fetch", func() bool { return i.fetches.Load() > before+1 })
	if changes.Load() != 1 {
		t.Errorf("%d changes were reported, want 1", changes.Load())
	}
}

func TestANewKeyIsFetchedWhenATokenNamesIt(t *testing.T) {
	t.Parallel()
	old, next := ecSigner(t, "old", elliptic.P256()), ecSigner(t, "next", elliptic.P256())
	i := newIssuer(t, old.public())
	var c clock
	set := use(t, issuers.Options{Now: c.now}, i.configured())
	if err := verify(t, set, i.good(t, old, "ES256")); err != nil {
		t.Fatal(err)
	}
	i.change(func(i *issuer) { i.keys = []jose.JSONWebKey{old.public(), next.public()} })
	token := i.good(t, next, "ES256")
	if err := verify(t, set, token); err == nil || i.fetches.Load() != 1 {
		t.Errorf("a second fetch followed the first at once (%v, %d fetches)", err, i.fetches.Load())
	}
	c.advance(issuers.Again)
	if err := verify(t, set, token); err != nil {
		t.Error(err)
	}
	if i.fetches.Load() != 2 {
		t.Errorf("there were %d fetches, want 2", i.fetches.Load())
	}
}

// Not parallel: it takes the processors.
func TestAFloodOfForgedTokensStopsNobodyAndDoesNotReachTheIssuer(t *testing.T) {
	es, stranger := ecSigner(t, "es", elliptic.P256()), ecSigner(t, "es", elliptic.P256())
	i := newIssuer(t, es.public())
	set := use(t, issuers.Options{}, i.configured())
	began := time.Now()
	if err := verify(t, set, i.good(t, es, "ES256")); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var flood sync.WaitGroup
	var busy atomic.Int64
	for n := range issuers.MaxPlacesOfOne + 16 {
		token := i.good(t, stranger, "ES256")
		if n%2 == 0 {
			token = sign(t, "ES256", stranger.private, map[string]any{"kid": fmt.Sprint("unknown", n)}, i.claims())
		}
		flood.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				_, err := set.VerifyBearer(t.Context(), "127.0.0.66", token)
				if err == nil {
					t.Error("a forged token is good")
				}
				if errors.Is(err, callers.ErrBusy) {
					busy.Add(1)
				}
				runtime.Gosched() // a request of a flood comes over a connection, which takes turns too
			}
		})
	}
	for range 20 {
		if err := verify(t, set, i.good(t, es, "ES256")); err != nil {
			t.Errorf("during the flood: %v", err)
		}
	}
	close(stop)
	flood.Wait()
	if got, most := i.fetches.Load(), 1+int64(time.Since(began)/issuers.Again); got > most {
		t.Errorf("the issuer was asked %d times, want at most %d", got, most)
	}
	t.Logf("%d tokens of the flood had no place or no turn", busy.Load())
}

func TestPlacesAreBoundedInAllAndForEachPeer(t *testing.T) {
	t.Parallel()
	set := use(t, issuers.Options{})
	var leave []func()
	enter := func(from string) error {
		left, err := set.Enter(from)
		if err == nil {
			leave = append(leave, left)
		}
		return err
	}
	for range issuers.MaxPlacesOfOne {
		if err := enter("a"); err != nil {
			t.Fatal(err)
		}
	}
	if err := enter("a"); !errors.Is(err, callers.ErrBusy) {
		t.Errorf("one peer took more than its share: %v", err)
	}
	for n := range issuers.MaxPlaces - issuers.MaxPlacesOfOne {
		if err := enter(fmt.Sprint(n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := enter("another"); !errors.Is(err, callers.ErrBusy) {
		t.Errorf("more places were taken than there are: %v", err)
	}
	for _, left := range leave {
		left()
	}
	if err := enter("a"); err != nil {
		t.Errorf("after all have left: %v", err)
	}
}

func TestTheKeysOfKubernetesNeedAToken(t *testing.T) {
	t.Parallel()
	es := ecSigner(t, "es", elliptic.P256())
	i := newIssuer(t, es.public())
	i.change(func(i *issuer) { i.token = "the pod's own" })
	configured := i.configured()
	configured.TokenFile = fileWith(t, "the pod's own\n")
	set := use(t, issuers.Options{}, configured)
	if err := verify(t, set, i.good(t, es, "ES256")); err != nil {
		t.Error(err)
	}
}

// An issuer behind the system's authorities could name any host for its keys.
func TestTheTokenForTheKeysDoesNotGoToAnotherHost(t *testing.T) {
	t.Parallel()
	es := ecSigner(t, "es", elliptic.P256())
	i := newIssuer(t, es.public())
	seen := make(chan string, 100)
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen <- r.Header.Get("Authorization") }))
	t.Cleanup(elsewhere.Close)
	i.change(func(i *issuer) { i.jwks = elsewhere.URL })
	configured := i.configured()
	configured.TokenFile = fileWith(t, "the pod's own")
	for _, test := range []struct{ ca, want string }{{i.caFile, "Bearer the pod's own"}, {"", ""}} {
		configured.CA = test.ca
		client, err := configured.Client()
		if err != nil {
			t.Fatal(err)
		}
		client.Trust(t, i.caFile)
		_, _ = client.Get(elsewhere.URL) //nolint:bodyclose // the answer is empty
		if got := <-seen; got != test.want {
			t.Errorf("with the authorities %q the other host got %q", test.ca, got)
		}
	}
}

func TestKeysFromAFile(t *testing.T) {
	t.Parallel()
	old, next := ecSigner(t, "old", elliptic.P256()), ecSigner(t, "next", elliptic.P256())
	i := newIssuer(t)
	text := func(by signer) string {
		text, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{by.public()}})
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	configured := i.configured()
	configured.JWKS = fileWith(t, text(old))
	set := use(t, issuers.Options{}.Refresh(10*time.Millisecond), configured)
	if err := verify(t, set, i.good(t, old, "ES256")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(configured.JWKS, []byte(text(next)), 0o600); err != nil {
		t.Fatal(err)
	}
	await(t.Context(), t, "the new file", func() bool { return verify(t, set, i.good(t, next, "ES256")) == nil })
	if err := verify(t, set, i.good(t, old, "ES256")); err == nil {
		t.Error("a key that was taken out of the file is good")
	}
	if i.fetches.Load() != 0 {
		t.Error("the issuer was asked although there is a file")
	}
}

func TestBadAnswersOfAnIssuer(t *testing.T) {
	t.Parallel()
	es := ecSigner(t, "es", elliptic.P256())
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	weakKey, err := jose.JSONWebKey{Key: &weak.PublicKey, KeyID: "es"}.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	inTheClear := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{es.public()}})
	}))
	t.Cleanup(inTheClear.Close)
	for name, change := range map[string]func(*issuer){
		"a redirect": func(i *issuer) {
			i.answer = func(w http.ResponseWriter, r *http.Request) {
				if r.URL.RawQuery == "" {
					http.Redirect(w, r, "/keys?again", http.StatusFound)
					return
				}
				_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{es.public()}})
			}
		},
		"too much": func(i *issuer) {
			i.answer = func(w http.ResponseWriter, _ *http.Request) {
				key, _ := es.public().MarshalJSON()
				_, _ = fmt.Fprintf(w, `{"x":%q,"keys":[%s]}`, strings.Repeat("x", 256<<10), key)
			}
		},
		"no JSON": func(i *issuer) {
			i.answer = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }
		},
		"a weak key": func(i *issuer) {
			i.answer = func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintf(w, `{"keys":[%s]}`, weakKey) }
		},
		"keys in the clear":  func(i *issuer) { i.jwks = inTheClear.URL },
		"another authority":  func(i *issuer) { i.caFile = fileWith(t, string(certificatestest.NewAuthority(t, "other").PEM())) },
		"a missing CA":       func(i *issuer) { i.caFile = "/nonexistent" },
		"the wrong token":    func(i *issuer) { i.token = "x" },
		"another's document": func(i *issuer) { i.server.URL += "/." },
	} {
		t.Run(name, func(t *testing.T) {
			i := newIssuer(t, es.public())
			i.change(change)
			var log lines
			set := use(t, issuers.Options{Log: log.logger()}, i.configured())
			await(t.Context(), t, "a line in the log", func() bool { return log.count() > 0 })
			if err := verify(t, set, i.good(t, es, "ES256")); !errors.Is(err, callers.ErrBusy) {
				t.Errorf("the error is %v, want ErrBusy", err)
			}
			if longest := log.longest(); longest > 1000 {
				t.Errorf("a line has %d bytes", longest)
			}
		})
	}
}

func TestIssuersThatAreNotAllowed(t *testing.T) {
	t.Parallel()
	good := issuers.Issuer{Name: "a", URL: "https://a.test", Audience: "keysvc", Algorithms: []string{"ES256"}}
	for name, change := range map[string]func(*issuers.Issuer){
		"no name":      func(i *issuers.Issuer) { i.Name = "" },
		"plaintext":    func(i *issuers.Issuer) { i.URL = "http://a.test" },
		"no URL":       func(i *issuers.Issuer) { i.URL = "https://" },
		"no audience":  func(i *issuers.Issuer) { i.Audience = "" },
		"no algorithm": func(i *issuers.Issuer) { i.Algorithms = nil },
		"none":         func(i *issuers.Issuer) { i.Algorithms = []string{"ES256", "none"} },
		"HS256":        func(i *issuers.Issuer) { i.Algorithms = []string{"HS256"} },
	} {
		bad := good
		change(&bad)
		set := issuers.New(issuers.Options{})
		if err := set.Use([]issuers.Issuer{bad}); err == nil {
			t.Errorf("%s is allowed", name)
		}
		set.Close()
	}
}

func TestIssuersThatAreNoLongerUsed(t *testing.T) {
	t.Parallel()
	es := ecSigner(t, "es", elliptic.P256())
	i := newIssuer(t, es.public())
	set := use(t, issuers.Options{}, i.configured())
	token := i.good(t, es, "ES256")
	if err := verify(t, set, token); err != nil {
		t.Fatal(err)
	}
	if err := set.Use([]issuers.Issuer{i.configured()}); err != nil || verify(t, set, token) != nil || i.fetches.Load() != 1 {
		t.Errorf("an issuer that stays is fetched again (%v, %d fetches)", err, i.fetches.Load())
	}
	if err := set.Use(nil); err != nil {
		t.Fatal(err)
	}
	if err := verify(t, set, token); err == nil {
		t.Error("an issuer that was removed is taken")
	}
}

func FuzzToken(f *testing.F) {
	for _, seed := range []string{"", "..", "a.b.c", "eyJhbGciOiJub25lIn0.e30.", "eyJhbGciOiJFUzI1NiIsImtpZCI6ImVzIn0.eyJpc3MiOiJodHRwczovL2EudGVzdCIsImF1ZCI6ImtleXN2YyJ9.AAAA"} {
		f.Add(seed)
	}
	set := issuers.New(issuers.Options{})
	f.Cleanup(set.Close)
	_ = set.Use([]issuers.Issuer{{Name: "a", URL: "https://a.test", Audience: "keysvc", Algorithms: []string{"ES256"}, JWKS: "/nonexistent"}})
	f.Fuzz(func(t *testing.T, token string) {
		if verified, err := set.VerifyBearer(t.Context(), "127.0.0.1", token); err == nil {
			t.Errorf("without any key %q is %+v", token, verified)
		}
	})
}

func FuzzKeys(f *testing.F) {
	f.Add(`{"keys":[{"kty":"EC","crv":"P-256","kid":"a","x":"AA","y":"AA"}]}`)
	f.Add(`{"keys":[{"kty":"oct","kid":"a","k":"AA"}]}`)
	f.Add(`{"keys":[null,1,{}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		if count, err := issuers.ParseKeys([]byte(text)); err == nil && count == 0 {
			t.Errorf("%q has no keys and no error", text)
		}
	})
}
