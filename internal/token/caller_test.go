package token_test

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/internal/token"
)

func newCaller(t testing.TB) token.Caller {
	t.Helper()
	made, err := token.NewCaller("scribe", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func TestCallerTokensCanBeParsed(t *testing.T) {
	made := newCaller(t)
	text := made.Reveal()
	if !regexp.MustCompile("^"+token.CallerPattern+"$").MatchString(text) || !token.CallerIn(text) || token.In(text) {
		t.Errorf("%s has another form", text)
	}
	parsed, err := token.ParseCaller(text)
	if err != nil || parsed.ID() != text[12:28] || parsed.Hash() != made.Hash() || parsed.Reveal() != text || parsed.IsZero() {
		t.Errorf("got %s, %v", parsed, err)
	}
	if _, err := token.NewCaller("no_prefix", rand.Reader); err == nil {
		t.Error("a wrong prefix is taken")
	}
	if _, err := token.NewCaller("scribe", strings.NewReader("")); err == nil {
		t.Error("a token without random")
	}
}

// TestKeysAndCallersDoNotParseEachOther: a key's token never proves who calls, and a caller's token
// is never validated.
func TestKeysAndCallersDoNotParseEachOther(t *testing.T) {
	id, err := token.NewID(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := token.New("scribe", id, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := token.ParseCaller(key.Reveal()); !errors.Is(err, token.ErrCallerMalformed) {
		t.Errorf("a key's token: %v", err)
	}
	caller := newCaller(t)
	if _, err := token.Parse(caller.Reveal()); !errors.Is(err, token.ErrMalformed) {
		t.Errorf("a caller's token: %v", err)
	}
	if strings.Contains(token.Redact("with "+caller.Reveal()+" in it"), caller.Reveal()[20:]) {
		t.Error("Redact lets it through")
	}
}

func TestEveryCharacterOfACallerTokenCounts(t *testing.T) {
	made := newCaller(t)
	text := made.Reveal()
	for i := range len(text) {
		for _, other := range []string{"", "0", "z", "_", "-"} {
			if changed := text[:i] + other + text[i+1:]; changed != text {
				if _, err := token.ParseCaller(changed); !errors.Is(err, token.ErrCallerMalformed) {
					t.Errorf("%q at %d: %v", other, i, err)
				}
			}
		}
	}
}

func TestCallerTokensAreNeverShown(t *testing.T) {
	made := newCaller(t)
	secret := made.Reveal()[29:]
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "token", made, "in", struct{ C token.Caller }{made})
	shown, err := json.Marshal(map[string]any{"token": made})
	if err != nil {
		t.Fatal(err)
	}
	hash := made.Hash()
	for _, text := range []string{
		made.String(), fmt.Sprintf("%v %+v %#v %s %x %q", made, made, made, made, made, made),
		fmt.Sprintf("%v %#v", struct{ c token.Caller }{made}, struct{ c token.Caller }{made}), log.String(), string(shown),
	} {
		if strings.Contains(text, secret) || strings.Contains(text, hex.EncodeToString([]byte(secret))) || strings.Contains(text, hex.EncodeToString(hash[:])) {
			t.Errorf("shown: %s", text)
		}
	}
	if !strings.HasSuffix(made.String(), "_ksc1_"+made.ID()+"_[redacted]") || (token.Caller{}).String() != "[no token]" {
		t.Errorf("shown as %s", made)
	}
	if (token.Caller{}).Hash() != [32]byte{} || !(token.Caller{}).IsZero() || (token.Caller{}).ID() != "" {
		t.Error("the zero Caller has a hash or an id")
	}
}

func FuzzParseCaller(f *testing.F) {
	f.Add("scribe_ksc1_9fQ2mXc7Lr0TzB4w_")
	f.Fuzz(func(t *testing.T, text string) {
		parsed, err := token.ParseCaller(text)
		if err != nil {
			return
		}
		if parsed.Reveal() != text || !token.ValidID(parsed.ID()) || !regexp.MustCompile("^"+token.CallerPattern+"$").MatchString(text) {
			t.Errorf("%q is parsed", text)
		}
		if _, err := token.Parse(text); err == nil {
			t.Errorf("%q is a key's token too", text)
		}
	})
}
