package token

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"math/big"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"unicode"
)

// The test vector of the ADR. The sums were computed with other code than this.
const (
	vectorPrefix   = "scribe"
	vectorID       = "9fQ2mXc7Lr0TzB4w"
	vectorSecret   = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg"
	vectorCRC      = "19xh1J" // 0x3f616195
	vectorBody     = vectorPrefix + "_ksk1_" + vectorID + "_" + vectorSecret
	vector         = vectorBody + vectorCRC
	vectorVerifier = "93e6088f85a80797a0fa384c43f5bae63626636cd4f237c2811e18c11087cca6"
	vectorDigest   = "da764224824550e5d2d791a060cabb138be6942bf526f791d73995e456547a7e"
	vectorShown    = "scribe_ksk1_9fQ2mXc7Lr0TzB4w_[redacted]"
)

// referenceChecksum computes the same as checksum in another way.
func referenceChecksum(text string) string {
	digits := new(big.Int).SetUint64(uint64(crc32.ChecksumIEEE([]byte(text)))).Text(62)
	digits = strings.Map(func(r rune) rune { // big.Int has a-z before A-Z
		if unicode.IsUpper(r) {
			return unicode.ToLower(r)
		}
		return unicode.ToUpper(r)
	}, digits)
	return strings.Repeat("0", 6-len(digits)) + digits
}

func mustParse(t testing.TB, text string) Token {
	t.Helper()
	parsed, err := Parse(text)
	if err != nil {
		t.Fatalf("Parse(%q): %v", text, err)
	}
	return parsed
}

func mustNew(t testing.TB) Token {
	t.Helper()
	id, err := NewID(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	made, err := New("scribe", id, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func TestParseAcceptsWellFormedTokens(t *testing.T) {
	for _, test := range []struct{ name, text, prefix, id string }{
		{"vector", vector, vectorPrefix, vectorID},
		{"shortest prefix", "ab_ksk1_0000000000000000_00000000000000000000000000000000000000000003zFKvH", "ab", strings.Repeat("0", 16)},
		{"longest prefix", "z99999999999_ksk1_zzzzzzzzzzzzzzzz_zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz0GNKUq", "z99999999999", strings.Repeat("z", 16)},
		{"checksum with leading zeros", "scribe_ksk1_9fQ2mXc7Lr0TzB4w_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZa0000A000JNwU", vectorPrefix, vectorID},
	} {
		t.Run(test.name, func(t *testing.T) {
			parsed := mustParse(t, test.text)
			if parsed.Prefix() != test.prefix || parsed.ID() != test.id || parsed.Reveal() != test.text || parsed.IsZero() {
				t.Errorf("got prefix %q, id %q, text %q", parsed.Prefix(), parsed.ID(), parsed.Reveal())
			}
		})
	}
}

func TestParseRefusesMalformedTexts(t *testing.T) {
	// repaired adds a matching checksum, so that the text is refused for its mistake only.
	repaired := func(body string) string { return body + referenceChecksum(body) }
	if _, err := Parse(repaired(vectorBody)); err != nil {
		t.Fatalf("the helper itself is wrong: %v", err)
	}
	for name, text := range map[string]string{
		"empty":                    "",
		"space in front":           " " + vector,
		"space behind":             vector + " ",
		"line feed behind":         vector + "\n",
		"Bearer":                   "Bearer " + vector,
		"quoted":                   `"` + vector + `"`,
		"twice":                    vector + vector,
		"16 KiB":                   strings.Repeat("a", 16<<10),
		"16 KiB before a token":    strings.Repeat("a", 16<<10) + vector,
		"not ASCII":                repaired(strings.Replace(vectorBody, "mX", "é", 1)),
		"not ASCII prefix":         repaired(strings.Replace(vectorBody, "scribe", "scrié", 1)),
		"not UTF-8":                repaired(strings.Replace(vectorBody, "m", "\xff", 1)),
		"NUL in the secret":        repaired(strings.Replace(vectorBody, "A", "\x00", 1)),
		"NUL behind":               vector + "\x00",
		"no prefix":                repaired("_ksk1_" + vectorID + "_" + vectorSecret),
		"prefix of 1":              repaired("a_ksk1_" + vectorID + "_" + vectorSecret),
		"prefix of 13":             repaired("abcdefghijklm_ksk1_" + vectorID + "_" + vectorSecret),
		"prefix with digit first":  repaired("1scribe_ksk1_" + vectorID + "_" + vectorSecret),
		"prefix in capitals":       repaired("Scribe_ksk1_" + vectorID + "_" + vectorSecret),
		"prefix with underscore":   repaired("scr_be_ksk1_" + vectorID + "_" + vectorSecret),
		"prefix with hyphen":       repaired("scr-be_ksk1_" + vectorID + "_" + vectorSecret),
		"other version":            repaired("scribe_ksk2_" + vectorID + "_" + vectorSecret),
		"version in capitals":      repaired("scribe_KSK1_" + vectorID + "_" + vectorSecret),
		"id of 15":                 repaired("scribe_ksk1_" + vectorID[1:] + "_" + vectorSecret),
		"id of 17":                 repaired("scribe_ksk1_" + vectorID + "0_" + vectorSecret),
		"id of 15, secret of 44":   repaired("scribe_ksk1_" + vectorID[1:] + "_" + vectorSecret + "0"),
		"id of 17, secret of 42":   repaired("scribe_ksk1_" + vectorID + "0_" + vectorSecret[1:]),
		"id with hyphen":           repaired("scribe_ksk1_" + vectorID[1:] + "-_" + vectorSecret),
		"id with underscore":       repaired("scribe_ksk1_" + vectorID[1:] + "__" + vectorSecret),
		"secret of 42":             repaired("scribe_ksk1_" + vectorID + "_" + vectorSecret[1:]),
		"secret of 44":             repaired("scribe_ksk1_" + vectorID + "_" + vectorSecret + "0"),
		"secret with plus":         repaired("scribe_ksk1_" + vectorID + "_" + vectorSecret[1:] + "+"),
		"no separator":             repaired("scribe_ksk1_" + vectorID + "-" + vectorSecret),
		"no checksum":              vectorBody,
		"checksum plus 2^32":       vectorBody + "5qcwDN",
		"greatest checksum":        vectorBody + "zzzzzz",
		"checksum with underscore": vectorBody + "_" + vectorCRC[1:],
		"redacted":                 vectorShown,
	} {
		t.Run(name, func(t *testing.T) {
			parsed, err := Parse(text)
			if err != ErrMalformed { // the sentinel itself: nothing of the text is wrapped into the error
				t.Errorf("got %v, want exactly ErrMalformed", err)
			}
			if !parsed.IsZero() {
				t.Error("got a token beside the error")
			}
		})
	}
}

func TestParseRefusesEveryChangeOfOneCharacter(t *testing.T) {
	for position := range len(vector) {
		for c := range 256 {
			if vector[position] == byte(c) {
				continue
			}
			changed := []byte(vector)
			changed[position] = byte(c)
			if _, err := Parse(string(changed)); err == nil {
				t.Fatalf("accepted %q", changed)
			}
		}
	}
}

func TestParseRefusesEveryTruncationGapAndSwap(t *testing.T) {
	for i := range len(vector) {
		texts := []string{vector[:i], vector[:i] + vector[i+1:], vector[:i] + "0" + vector[i:]}
		if i > 0 {
			texts = append(texts, vector[i:], vector[:i-1]+vector[i:i+1]+vector[i-1:i]+vector[i+1:])
		}
		for _, text := range texts {
			if _, err := Parse(text); err == nil {
				t.Errorf("accepted %q", text)
			}
		}
	}
}

func TestTokenHasItsVector(t *testing.T) {
	made, err := New(vectorPrefix, vectorID, strings.NewReader(digitBytes(vectorSecret)))
	if err != nil {
		t.Fatal(err)
	}
	if made.Reveal() != vector {
		t.Errorf("New: got %q, want %q", made.Reveal(), vector)
	}
	hash, err := mustParse(t, vector).Hash(SchemeVerifier)
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(hash.Sum[:]); got != vectorVerifier || hash.Scheme != 3 {
		t.Errorf("Hash: got %d %s, want 3 %s", hash.Scheme, got, vectorVerifier)
	}
	digest := mustParse(t, vector).Digest()
	if got := hex.EncodeToString(digest[:]); got != vectorDigest {
		t.Errorf("Digest: got %s, want %s", got, vectorDigest)
	}
	if want := sha256.Sum256([]byte("keysvc token v1\x00" + vectorBody)); digest != want {
		t.Error("the digest is not SHA-256 over the domain tag and the text before the checksum")
	}
	if want := sha256.Sum256(append([]byte("keysvc verifier v1\x00"), digest[:]...)); hash.Sum != want {
		t.Error("the hash is not SHA-256 over the domain tag and the digest")
	}
	if (Token{}).Digest() != [32]byte{} {
		t.Error("the zero Token has a digest")
	}
}

// digitBytes returns random bytes from which the given digits are drawn.
func digitBytes(digits string) string {
	var drawn strings.Builder
	for i := range len(digits) {
		drawn.WriteByte(byte(strings.IndexByte(base62, digits[i])))
	}
	return drawn.String()
}

func TestNewMakesTokensThatParse(t *testing.T) {
	pattern := regexp.MustCompile(Pattern)
	seen := map[string]bool{}
	for range 1000 {
		made := mustNew(t)
		text := made.Reveal()
		if parsed := mustParse(t, text); parsed.ID() != made.ID() || parsed.Prefix() != "scribe" {
			t.Fatalf("parsed as %v", parsed)
		}
		if got := pattern.FindString("KEY='" + text + "';"); got != text {
			t.Fatalf("Pattern found %q in %q", got, text)
		}
		if seen[made.ID()] || seen[text[len(text)-49:]] {
			t.Fatal("an id or a secret came up twice")
		}
		seen[made.ID()], seen[text[len(text)-49:]] = true, true
	}
}

func TestNewRefusesBadPartsAndSources(t *testing.T) {
	broken := errors.New("no entropy")
	for _, test := range []struct {
		name, prefix, id string
		random           io.Reader
		want             error
	}{
		{"prefix", "scr_be", vectorID, rand.Reader, nil},
		{"no prefix", "", vectorID, rand.Reader, nil},
		{"id", vectorPrefix, vectorID + "0", rand.Reader, nil},
		{"no id", vectorPrefix, "", rand.Reader, nil},
		{"empty source", vectorPrefix, vectorID, strings.NewReader(""), io.ErrUnexpectedEOF},
		{"short source", vectorPrefix, vectorID, strings.NewReader(strings.Repeat("a", 42)), io.ErrUnexpectedEOF},
		{"short source after rejections", vectorPrefix, vectorID, strings.NewReader(strings.Repeat("\xff", 2) + strings.Repeat("a", 42)), io.ErrUnexpectedEOF},
		{"failing source", vectorPrefix, vectorID, iotest.ErrReader(broken), broken},
		{"stuck source", vectorPrefix, vectorID, stuck{}, errBrokenSource},
	} {
		t.Run(test.name, func(t *testing.T) {
			made, err := New(test.prefix, test.id, test.random)
			if err == nil || !made.IsZero() {
				t.Fatalf("got %v, %v", made, err)
			}
			if test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
	for _, random := range []io.Reader{strings.NewReader("short"), iotest.ErrReader(broken), stuck{}} {
		if id, err := NewID(random); err == nil || id != "" {
			t.Errorf("NewID: got %q, %v", id, err)
		}
	}
	// A source that gives one byte at a time is slow, but not short.
	if _, err := New(vectorPrefix, vectorID, iotest.OneByteReader(rand.Reader)); err != nil {
		t.Error(err)
	}
}

// stuck is a source whose bytes are all discarded.
type stuck struct{}

func (stuck) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 0xff
	}
	return len(p), nil
}

func TestValidIDAcceptsOnly16Base62Digits(t *testing.T) {
	for text, want := range map[string]bool{
		vectorID: true, strings.Repeat("0", 16): true, strings.Repeat("z", 16): true,
		"": false, vectorID[1:]: false, vectorID + "0": false,
		vectorID[1:] + "_": false, vectorID[1:] + "/": false, vectorID[1:] + ":": false,
		vectorID[1:] + "@": false, vectorID[1:] + "[": false, vectorID[1:] + "`": false,
		vectorID[1:] + "{": false, vectorID[2:] + "é": false,
	} {
		if ValidID(text) != want {
			t.Errorf("ValidID(%q) = %v", text, !want)
		}
	}
}

func TestValidPrefixAcceptsOnlyItsForm(t *testing.T) {
	for text, want := range map[string]bool{
		"ab": true, "a1": true, "scribe": true, "abcdefghijkl": true,
		"": false, "a": false, "abcdefghijklm": false, "1a": false, "aB": false,
		"a_b": false, "a-b": false, "a b": false, "ab\n": false, "aé": false,
	} {
		if ValidPrefix(text) != want {
			t.Errorf("ValidPrefix(%q) = %v", text, !want)
		}
	}
}

// TestEachByteGivesItsDigit shows, without randomness, that sampling is fair: each digit
// comes from 4 of the 256 bytes, and the last 8 bytes are discarded.
func TestEachByteGivesItsDigit(t *testing.T) {
	count := map[byte]int{}
	for b := range 256 {
		digits, err := appendRandomBase62(nil, 1, bytes.NewReader([]byte{byte(b)}))
		if b >= 248 {
			if err == nil {
				t.Errorf("byte %d was not discarded", b)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		count[digits[0]]++
	}
	for _, digit := range []byte(base62) {
		if count[digit] != 4 {
			t.Errorf("digit %c comes from %d bytes, want 4", digit, count[digit])
		}
	}
}

// TestSamplingIsFair gives a false alarm less than once in 10^9 runs: with 61 degrees of
// freedom, chi-square exceeds 153 that rarely.
func TestSamplingIsFair(t *testing.T) {
	const draws, threshold = 20_000, 170
	fair, biased := map[byte]int{}, map[byte]int{}
	for range draws {
		text := mustNew(t).Reveal()
		for _, digit := range []byte(text[len(text)-49 : len(text)-6]) {
			fair[digit]++
		}
		drawn := make([]byte, secretLength)
		_, _ = rand.Read(drawn) // never fails
		for _, b := range drawn {
			biased[base62[b%62]]++
		}
	}
	if got := chiSquare(fair); got > threshold {
		t.Errorf("chi-square of the secrets' digits is %.0f, want at most %d", got, threshold)
	}
	if got := chiSquare(biased); got < threshold {
		t.Errorf("chi-square of plain mod 62 is %.0f: this test would not notice it", got)
	}
}

func chiSquare(count map[byte]int) float64 {
	total := 0
	for _, n := range count {
		total += n
	}
	expected, sum := float64(total)/62, 0.0
	for _, digit := range []byte(base62) {
		difference := float64(count[digit]) - expected
		sum += difference * difference / expected
	}
	return sum
}

func TestHashHashesWithKnownSchemesOnly(t *testing.T) {
	one := mustParse(t, vector)
	hash, _ := one.Hash(SchemeVerifier)
	for _, scheme := range []Scheme{0, 2, 255} {
		if got, err := one.Hash(scheme); !errors.Is(err, ErrUnknownScheme) || got != (Hash{}) {
			t.Errorf("scheme %d: got %v, %v", scheme, got, err)
		}
	}
	if got, err := (Token{}).Hash(SchemeVerifier); !errors.Is(err, ErrMalformed) || got != (Hash{}) {
		t.Errorf("zero token: got %v, %v", got, err)
	}
	for name, body := range map[string]string{
		"prefix": "other_ksk1_" + vectorID + "_" + vectorSecret,
		"id":     "scribe_ksk1_0fQ2mXc7Lr0TzB4w_" + vectorSecret,
		"secret": "scribe_ksk1_" + vectorID + "_" + vectorSecret[1:] + "0",
	} {
		other, err := mustParse(t, body+referenceChecksum(body)).Hash(SchemeVerifier)
		if err != nil || other.Equal(hash) {
			t.Errorf("another %s: same hash, or %v", name, err)
		}
	}
}

func TestEqualComparesSchemeAndSum(t *testing.T) {
	sum := sha256.Sum256([]byte("a"))
	lastBit := sum
	lastBit[31] ^= 1
	firstBit := sum
	firstBit[0] ^= 0x80
	for _, test := range []struct {
		name string
		a, b Hash
		want bool
	}{
		{"same", Hash{1, sum}, Hash{1, sum}, true},
		{"same, other scheme", Hash{2, sum}, Hash{2, sum}, true},
		{"last bit", Hash{1, sum}, Hash{1, lastBit}, false},
		{"first bit", Hash{1, sum}, Hash{1, firstBit}, false},
		{"scheme", Hash{1, sum}, Hash{2, sum}, false},
		{"one scheme zero", Hash{0, sum}, Hash{1, sum}, false},
		{"both schemes zero", Hash{0, sum}, Hash{0, sum}, false},
		{"zero values", Hash{}, Hash{}, false},
	} {
		if test.a.Equal(test.b) != test.want || test.b.Equal(test.a) != test.want {
			t.Errorf("%s: want %v", test.name, test.want)
		}
		if test.a.Matches(test.b.Short()) != (test.want || test.name == "last bit") {
			t.Errorf("%s: Matches differs", test.name)
		}
	}
	// Each bit of a ShortHash counts.
	hash := Hash{1, sum}
	for bit := range 8 * ShortLength {
		short := hash.Short()
		short.Sum[bit/8] ^= 1 << (bit % 8)
		if hash.Matches(short) {
			t.Errorf("matches although bit %d differs", bit)
		}
	}
}

func TestTokenIsPrintedMarshalledAndLoggedRedacted(t *testing.T) {
	type nested struct {
		Name  string
		inner Token
	}
	type deeper struct{ nested *nested }
	made := mustNew(t)
	shown := "scribe_ksk1_" + made.ID() + "_[redacted]"

	verbs := "vsqxXdobcteEfFgGpTUZ"
	var flags []string
	for _, verb := range verbs {
		for _, flag := range []string{"", "+", "#", " ", "0", "-90", ".99", "+#"} {
			flags = append(flags, "%"+flag+string(verb))
		}
	}
	for _, flag := range flags {
		direct := fmt.Sprintf(flag, made)
		// fmt formats %T and %p itself, without calling the type.
		if last := flag[len(flag)-1]; last != 'T' && last != 'p' && direct != shown {
			t.Errorf("%s: got %q, want %q", flag, direct, shown)
		}
		for _, value := range []any{
			made, &made,
			nested{"n", made},
			&nested{"n", made},
			deeper{&nested{"n", made}},
			[]Token{made},
			map[string]Token{"k": made},
			[]any{made},
			struct{ T *Token }{&made},
			struct{ t any }{made},
		} {
			assertNoLeak(t, flag, made, fmt.Sprintf(flag, value))
		}
	}
	if got := fmt.Sprint(made) + made.String() + made.GoString(); got != strings.Repeat(shown, 3) {
		t.Errorf("got %q", got)
	}
	assertNoLeak(t, "error", made, fmt.Errorf("refused %v %w", made, ErrMalformed).Error())

	for name, got := range map[string]string{
		"json":       mustJSON(t, made),
		"json field": mustJSON(t, struct{ T Token }{made}),
		"json key":   mustJSON(t, map[string]any{"t": []Token{made}}),
		"slog json":  logged(made, func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, nil) }),
		"slog text":  logged(made, func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, nil) }),
		"xml":        mustXML(t, made),
	} {
		if !strings.Contains(got, shown) {
			t.Errorf("%s: got %s, want %s in it", name, got, shown)
		}
		assertNoLeak(t, name, made, got)
	}
	if text, err := made.MarshalText(); err != nil || string(text) != shown {
		t.Errorf("MarshalText: %q, %v", text, err)
	}
	assertNoLeak(t, "slog nested", made, logged(nested{"n", made}, func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, nil) }))
	assertNoLeak(t, "json nested", made, mustJSON(t, nested{"n", made}))
}

// assertNoLeak searches for any 8 characters of the secret, in the forms in which fmt prints
// strings and bytes.
func assertNoLeak(t *testing.T, where string, secret Token, output string) {
	t.Helper()
	if found := leak(secret, output); found != "" {
		t.Errorf("%s shows %q of the secret in %q", where, found, output)
	}
}

func leak(secret Token, output string) string {
	text := secret.Reveal()
	text = text[len(text)-49:]
	for i := range len(text) - 8 {
		part := text[i : i+8]
		decimal := strings.Trim(fmt.Sprint([]byte(part)), "[]")
		goSyntax := strings.Trim(strings.TrimPrefix(fmt.Sprintf("%#v", []byte(part)), "[]byte"), "{}")
		for _, shape := range []string{part, fmt.Sprintf("%x", part), fmt.Sprintf("%X", part), fmt.Sprintf("% x", part), decimal, goSyntax} {
			if strings.Contains(output, shape) {
				return part
			}
		}
	}
	return ""
}

func TestAssertNoLeakNoticesALeak(t *testing.T) {
	made := mustNew(t)
	type careless struct{ text string }
	for _, output := range []string{
		fmt.Sprint(careless{made.Reveal()}), fmt.Sprintf("%x", careless{made.Reveal()}), fmt.Sprintf("%X", made.Reveal()),
		fmt.Sprintf("% x", made.Reveal()), fmt.Sprint([]byte(made.Reveal())), fmt.Sprintf("%#v", []byte(made.Reveal())),
	} {
		if leak(made, output) == "" {
			t.Errorf("not noticed in %q", output)
		}
	}
}

func TestZeroTokenIsNoToken(t *testing.T) {
	var zero Token
	if !zero.IsZero() || zero.Reveal() != "" || zero.ID() != "" || zero.Prefix() != "" {
		t.Error("the zero value is not empty")
	}
	for _, got := range []string{zero.String(), fmt.Sprintf("%v|%#v", zero, zero), mustJSON(t, zero), zero.LogValue().String()} {
		if strings.ReplaceAll(strings.ReplaceAll(got, "[no token]", ""), `"`, "") != strings.Repeat("|", strings.Count(got, "|")) {
			t.Errorf("got %q", got)
		}
	}
}

func TestTokenIsIncomparable(t *testing.T) {
	if reflect.TypeFor[Token]().Comparable() {
		t.Error("Token can be compared with ==")
	}
}

func TestParseAndHashDoNotAllocate(t *testing.T) {
	text := strings.Clone(vector)
	parsed := mustParse(t, text)
	stored, _ := parsed.Hash(SchemeVerifier)
	refused := vectorBody + "zzzzzz"
	for name, f := range map[string]func(){
		"Parse":        func() { _, _ = Parse(text) },
		"Parse, wrong": func() { _, _ = Parse(refused) },
		"Hash":         func() { _, _ = parsed.Hash(SchemeVerifier) },
		"all": func() {
			fresh, _ := Parse(text)
			hash, _ := fresh.Hash(SchemeVerifier)
			if !hash.Equal(stored) || fresh.ID() == "" || fresh.Prefix() == "" {
				panic("no match")
			}
		},
	} {
		if allocations := testing.AllocsPerRun(100, f); allocations != 0 {
			t.Errorf("%s: %.0f allocations, want none", name, allocations)
		}
	}
}

func FuzzParse(f *testing.F) {
	whole := regexp.MustCompile(`\A(?:` + Pattern + `)\z`)
	f.Fuzz(func(t *testing.T, text string) {
		check := func(text string) {
			matches := whole.MatchString(text) && strings.HasSuffix(text, referenceChecksum(text[:len(text)-6]))
			parsed, err := Parse(text)
			if (err == nil) != matches {
				t.Fatalf("Parse(%q): %v, but by pattern and checksum it is %v", text, err, matches)
			}
			if err != nil {
				if err != ErrMalformed || !parsed.IsZero() { // the sentinel itself, not wrapped
					t.Fatalf("Parse(%q) = %v, %v", text, parsed, err)
				}
				return
			}
			secret := text[len(text)-49 : len(text)-6]
			again, err := New(parsed.Prefix(), parsed.ID(), strings.NewReader(digitBytes(secret)))
			if err != nil || again.Reveal() != text || parsed.Reveal() != text {
				t.Fatalf("%q became %q, %v", text, again.Reveal(), err)
			}
			if shown := fmt.Sprintf("%+v", parsed); shown != text[:len(text)-49]+"[redacted]" {
				t.Fatalf("shown as %q", shown)
			}
		}
		check(text)
		// The fuzzer does not find matching checksums, so the text gets one.
		if len(text) >= 6 {
			check(text[:len(text)-6] + referenceChecksum(text[:len(text)-6]))
		}
	})
}

func BenchmarkParse(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(vector); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseRefused(b *testing.B) {
	text := strings.Repeat("a", 16<<10)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(text); err == nil {
			b.Fatal("accepted")
		}
	}
}

func BenchmarkHash(b *testing.B) {
	parsed := mustParse(b, vector)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := parsed.Hash(SchemeVerifier); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHashEqual(b *testing.B) {
	hash, _ := mustParse(b, vector).Hash(SchemeVerifier)
	other := hash
	b.ReportAllocs()
	for b.Loop() {
		if !hash.Equal(other) {
			b.Fatal("not equal")
		}
	}
}

func BenchmarkNew(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := New(vectorPrefix, vectorID, rand.Reader); err != nil {
			b.Fatal(err)
		}
	}
}

func mustJSON(t *testing.T, value any) string {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func mustXML(t *testing.T, value any) string {
	t.Helper()
	text, err := xml.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func logged(value any, handler func(io.Writer) slog.Handler) string {
	var output bytes.Buffer
	slog.New(handler(&output)).Info("message", "value", value)
	return output.String()
}

func TestBase62IsInOrder(t *testing.T) {
	if !slices.IsSorted([]byte(base62)) || len(base62) != 62 {
		t.Error("want 0-9A-Za-z in this order")
	}
}

// Outline cuts what is outlined like a token, whatever its checksum, and nothing else.
func TestOutlineCutsHeadAndSecret(t *testing.T) {
	text := "scribe_ksk1_9fQ2mXc7Lr0TzB4w_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg19xh1J"
	for _, outlined := range []string{text, text[:len(text)-1] + "x", "ab" + text[len("scribe"):]} {
		head, secret, ok := Outline(outlined)
		if !ok || head+secret != outlined || len(secret) != SecretText || !strings.HasSuffix(head, "_ksk1_9fQ2mXc7Lr0TzB4w_") {
			t.Errorf("Outline(%q) = %q, %q, %t", outlined, head, secret, ok)
		}
	}
	for _, other := range []string{"", "_ksk1_", text[1 : len(text)-1], text + "x", "a" + text[len("scribe"):], "longlonglonglong" + text, strings.Replace(text, "_ksk1_", "_ksk2_", 1)} {
		if head, secret, ok := Outline(other); ok && len(head)+len(secret) != len(other) || ok && !strings.Contains(other, "_ksk1_") {
			t.Errorf("Outline(%q) = %q, %q, %t", other, head, secret, ok)
		}
	}
	if _, _, ok := Outline(text[:len(text)-1]); ok {
		t.Error("a cut token is outlined like a token")
	}
}
