package token

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"strings"
	"testing"
)

func digestBytes(t testing.TB, text string) []byte {
	t.Helper()
	decoded, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return decoded
}

func TestDigestAndTokenHaveOneHash(t *testing.T) {
	parsed := mustParse(t, vector)
	digest := parsed.Digest()
	if got := hex.EncodeToString(digest[:]); got != vectorDigest {
		t.Fatalf("digest %s, want %s", got, vectorDigest)
	}
	byToken, byDigest := Present(vector), PresentDigest(vectorID, DigestFrom(digestBytes(t, vectorDigest)))
	stored, err := parsed.Hash(SchemeVerifier)
	if err != nil || !byToken.Hash().Equal(stored) || !byDigest.Hash().Equal(stored) {
		t.Errorf("the hashes differ, %v", err)
	}
	if byToken.KeyID() != vectorID || byDigest.KeyID() != vectorID || byToken.ByDigest() || !byDigest.ByDigest() {
		t.Errorf("got %v and %v", byToken, byDigest)
	}
}

func TestWhatIsNoDigestIsNothing(t *testing.T) {
	digest := digestBytes(t, vectorDigest)
	for name, presented := range map[string]Presented{
		"no token":       Present(""),
		"long text":      Present(strings.Repeat("a", MaxTextBytes+1)),
		"damaged":        Present("x_ksk1_y"),
		"wrong checksum": Present(vector[:len(vector)-1] + "K"),
		"no digest":      PresentDigest(vectorID, DigestFrom(nil)),
		"short":          PresentDigest(vectorID, DigestFrom(digest[1:])),
		"long":           PresentDigest(vectorID, DigestFrom(append(digest, 0))),
		"zeros":          PresentDigest(vectorID, DigestFrom(make([]byte, DigestLength))),
		"wrong id":       PresentDigest(vectorID[1:], DigestFrom(digest)),
		"long id":        PresentDigest(vectorID+"0", DigestFrom(digest)),
	} {
		if !presented.IsZero() || presented.ByDigest() || presented.KeyID() != "" || presented.Hash() != (Hash{}) {
			t.Errorf("%s: %v with id %q", name, presented, presented.KeyID())
		}
	}
	foreign := ForeignDigest("sk_live_1")
	if got := Present("sk_live_1"); !got.IsForeign() || got.Hash() != PresentDigest("", DigestFrom(foreign[:])).Hash() || got.Hash().Scheme != SchemeForeign {
		t.Errorf("a foreign text is %v", got)
	}
	if got := PresentDigest("", DigestFrom(foreign[:])); got.IsZero() || got.KeyID() != "" || !got.ByDigest() {
		t.Errorf("a foreign text is %v", got)
	}
	const want = "992621cb15795f3e17e7e637aad64ef2cacf8471091104c0153e98355c520261" // by sha256sum
	if got := hex.EncodeToString(foreign[:]); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestDigestIsPrintedMarshalledAndLoggedRedacted: neither a Digest nor a Presented shows what it
// holds, also as an unexported field of another type.
func TestDigestIsPrintedMarshalledAndLoggedRedacted(t *testing.T) {
	raw := digestBytes(t, vectorDigest)
	digest := DigestFrom(raw)
	presented := PresentDigest(vectorID, digest)
	type holder struct {
		inner Digest
		other Presented
	}
	values := []any{
		digest, presented, &digest, &presented, Present(vector),
		holder{digest, presented},
		&holder{digest, presented},
		[]Presented{presented},
		map[string]any{"d": digest, "p": presented, "t": holder{digest, Present(vector)}},
	}
	var shown strings.Builder
	for _, verb := range "vsqxXdobcteEfFgGpTUZ" {
		for _, flag := range []string{"", "+", "#", " ", "-90", ".99"} {
			for _, value := range values {
				fmt.Fprintf(&shown, "%"+flag+string(verb)+"\n", value)
			}
		}
	}
	for _, handler := range []func(io.Writer) slog.Handler{
		func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, nil) },
		func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, nil) },
	} {
		for _, value := range values {
			shown.WriteString(logged(value, handler))
		}
	}
	for _, value := range values {
		encoded, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		shown.Write(encoded)
	}
	output := shown.String()
	assertNoLeak(t, "presented", mustParse(t, vector), output)
	for at := range len(raw) - 4 {
		part := raw[at : at+4]
		decimal := strings.Trim(fmt.Sprint(part), "[]")
		for _, form := range []string{string(part), hex.EncodeToString(part), strings.ToUpper(hex.EncodeToString(part)), fmt.Sprintf("% x", part), decimal, strings.ReplaceAll(decimal, " ", ",")} {
			if strings.Contains(output, form) {
				t.Fatalf("%q of the digest is shown", form)
			}
		}
	}
	for _, want := range []string{redactedDigest, "ksk1_" + vectorID + "_" + redactedDigest} {
		if !strings.Contains(output, want) {
			t.Errorf("%s is not shown", want)
		}
	}
	if got := fmt.Sprint(Digest{}, Presented{}); got != noDigest+" "+noToken {
		t.Errorf("zero values are shown as %s", got)
	}
	// The search above finds what a careless type shows.
	if !bytes.Contains(fmt.Append(nil, struct{ sum []byte }{raw}), []byte("218 118 66 36")) {
		t.Error("a leak is not noticed")
	}
}

func TestPresentedIsIncomparable(t *testing.T) {
	if reflect.TypeFor[Digest]().Comparable() || reflect.TypeFor[Presented]().Comparable() {
		t.Error("can be compared with ==")
	}
}

func TestPresentingDoesNotAllocate(t *testing.T) {
	raw := digestBytes(t, vectorDigest)
	stored := Present(vector).Hash()
	for name, presented := range map[string]func() Presented{
		"token":  func() Presented { return Present(vector) },
		"digest": func() Presented { return PresentDigest(vectorID, DigestFrom(raw)) },
	} {
		if allocations := testing.AllocsPerRun(100, func() {
			if one := presented(); !one.Hash().Equal(stored) || one.KeyID() == "" {
				panic("no match")
			}
		}); allocations != 0 {
			t.Errorf("%s: %.0f allocations, want none", name, allocations)
		}
	}
}

func BenchmarkPresented(b *testing.B) {
	raw := digestBytes(b, vectorDigest)
	b.Run("token", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if Present(vector).Hash().Scheme != SchemeVerifier {
				b.Fatal("no hash")
			}
		}
	})
	b.Run("digest", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if PresentDigest(vectorID, DigestFrom(raw)).Hash().Scheme != SchemeVerifier {
				b.Fatal("no hash")
			}
		}
	})
}
