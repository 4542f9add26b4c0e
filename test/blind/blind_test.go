// Package blind_test checks that keysvc knows no secret of the keys that it serves: see README.md.
package blind_test

import (
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/race"
	"github.com/scribe-mail/keysvc/internal/token"
)

var (
	validations = flag.Int("validations", 1000, "how many texts are presented")
	keys        = flag.Int("keys", 100, "how many keys are created")
)

func onLinux(t *testing.T) {
	t.Helper()
	if race.Enabled() {
		t.Skip("the program is built without the race detector; `make test` runs this")
	}
	if runtime.GOOS != "linux" {
		t.Skipf("NOT CHECKED on %s: this test reads the memory of another process, in the way of Linux", runtime.GOOS)
	}
}

// places are what was found, by the name of the place.
type places map[string]*findings

// gather searches every place of a running process.
func (c *campaign) gather(t *testing.T) places {
	t.Helper()
	all := places{"memory": c.memory(t, c.secrets), "log of the clients": withDigests()}
	all["log of the clients"].piece(c.secrets, c.log.copy())
	all["received"], all["answered"] = c.proxy.search(t, c.secrets)
	for name, found := range c.files(t, c.secrets) {
		all[name+" while it runs"] = found
	}
	return all
}

// gatherRest searches what an ended process has left.
func (c *campaign) gatherRest(t *testing.T, all places) {
	t.Helper()
	for name, found := range c.files(t, c.secrets) {
		if isCore(name) {
			name = "core"
		}
		all[name] = found
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		found := all[name]
		t.Logf("%-32s %9d bytes: %d ids, %d secrets, %d tokens, %d digests", name, found.bytes, len(found.ids), len(found.secrets), len(found.tokens), len(found.digests))
	}
}

// expectIDs: where the ids of keys are found, secrets would be found.
func (all places) expectIDs(t *testing.T, keys []*key) {
	t.Helper()
	for name, least := range map[string]int{
		"memory": len(keys) / 2, "core": len(keys) / 2, "received": len(keys), "answered": len(keys), "log": len(keys),
		"data/keysvc.db": len(keys), "data/keysvc.db while it runs": len(keys), "sink/audit.jsonl": len(keys),
	} {
		found := all[name]
		if name == "core" && found == nil {
			continue // only a crash writes one, and not everywhere
		}
		if found == nil || len(found.ids) < least {
			t.Errorf("%s: not even the ids of %d keys are found: %+v", name, least, found)
		}
	}
}

// expectNothing reports what has a secret, and what has a digest although digests are only received.
func (all places) expectNothing(t *testing.T, but ...string) {
	t.Helper()
	for name, found := range all {
		if (len(found.digests) > 0) != (name == "received") {
			t.Errorf("%s has %d digests", name, len(found.digests))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if found := all[name]; !found.nothing() && !slices.Contains(but, name) {
			t.Errorf("%s has %d secrets and %d tokens, such as %.400s", name, len(found.secrets), len(found.tokens), fmt.Sprint(found.secrets, found.tokens))
		}
	}
}

// TestKeysvcHoldsNoSecret: keysvc serves clients that send digests. Whatever it received, holds, wrote,
// and left behind when it crashed has none of the secrets in any form.
func TestKeysvcHoldsNoSecret(t *testing.T) {
	onLinux(t)
	t.Parallel()
	c := begin(t)
	c.work(t, *keys, *validations)
	all := c.gather(t)
	c.crash(t) // Go takes some seconds for it, because it waits for the stacks of all threads
	c.gatherRest(t, all)
	if all["core"] == nil {
		t.Log("NO CORE: this system writes none for a process that ends with SIGABRT; its memory was read all the same")
	}
	all.expectIDs(t, c.keys)
	all.expectNothing(t)
}

// TestTokensThatAreSentAreFound: the same test notices one client that sends tokens. They are in memory,
// and nowhere else.
func TestTokensThatAreSentAreFound(t *testing.T) {
	onLinux(t)
	t.Parallel()
	c := begin(t)
	count := min(64, *keys)
	c.work(t, count, min(100, *validations))
	sending := c.client(t, keyclient.Config{WithoutNearCache: true, SendTokens: true})
	var sent []*key
	for number, one := range c.keys {
		if number%3 != 2 { // the others are revoked
			sent = append(sent, one)
		}
	}
	for _, one := range sent {
		answer, err := sending.Validate(t.Context(), keyauth.Question{Token: one.live, Requirement: keyauth.Scope(scope)})
		if err != nil || answer.Decision != keysvcv1.Decision_DECISION_ALLOWED {
			t.Fatalf("%+v, %v", answer, err)
		}
	}
	all := c.gather(t)
	c.stop(t)
	c.gatherRest(t, all)
	all.expectIDs(t, c.keys)
	// Memory is used again, so what was there once need not be there still. One of many is enough.
	if found := all["received"]; len(found.secrets) != len(sent) || len(found.tokens) != len(sent) {
		t.Errorf("received were %d tokens; %d secrets and %d tokens are found", len(sent), len(found.secrets), len(found.tokens))
	}
	if all["memory"].nothing() {
		t.Error("the memory of keysvc has none of the tokens that it was sent just now")
	}
	all.expectNothing(t, "received", "memory")
}

// TestSearchFindsEveryForm plants each form of a secret, and parts of it, at every place of a long text.
func TestSearchFindsEveryForm(t *testing.T) {
	t.Parallel()
	x := newIndex()
	drawn, err := token.New("scribe", "0123456789abcdef", strings.NewReader(strings.Repeat("abcdefghijklmnopqrstuvwxyz0123456789", 9)))
	if err != nil {
		t.Fatal(err)
	}
	text := drawn.Reveal()
	secret := text[len(text)-49 : len(text)-6]
	x.addToken("it", text)
	planted := map[string]string{
		"the token": text, "the secret": secret, "with checksum": text[len(text)-49:],
		"its first characters": secret[:window], "its last characters": secret[secretLength-window:], "some": secret[9 : 9+window],
		"between digits": "AAAAAAAAAAAAAAAAAAAAAAAA" + secret + "AAAAAAAAAAAAAAAAAAAAAA",
		"hex":            fmt.Sprintf("%x", secret), "HEX": fmt.Sprintf("%X", text),
	}
	for _, before := range []string{"", "a", "ab"} {
		planted["base64 after "+before] = base64.StdEncoding.EncodeToString([]byte(before + text))
		planted["base64 for URLs after "+before] = base64.URLEncoding.EncodeToString([]byte(before + secret + "\xff\xff"))
	}
	for name, plant := range planted {
		for _, at := range []int{0, 1, pieceBytes - 20, pieceBytes - 1, pieceBytes + 7} {
			for _, filler := range []string{"\x00", "/", "A"} {
				if filler == "A" && at != 1 {
					continue
				}
				found := newFindings()
				if err := found.all(x, strings.NewReader(strings.Repeat(filler, at)+plant+strings.Repeat(filler, 7))); err != nil {
					t.Fatal(err)
				}
				if found.secrets["it"] == nil {
					t.Errorf("%s is not found at %d, between %q", name, at, filler)
				}
			}
		}
	}
	// Digests, which are found only where they are looked for.
	x.addDigest("it", text)
	digest := drawn.Digest()
	for name, plant := range map[string]string{
		"bytes": string(digest[:]), "hex": fmt.Sprintf("%x", digest), "HEX": fmt.Sprintf("%X", digest), "JSON": base64.StdEncoding.EncodeToString(digest[:]),
		"base64": base64.URLEncoding.EncodeToString(append([]byte("y"), digest[:]...)), "more base64": base64.StdEncoding.EncodeToString(append([]byte("yz"), digest[:]...)),
	} {
		for _, at := range []int{0, 3, pieceBytes - 20} {
			found, blind := withDigests(), newFindings()
			planted := strings.Repeat("\x00", at) + plant + "/"
			if err := errors.Join(found.all(x, strings.NewReader(planted)), blind.all(x, strings.NewReader(planted))); err != nil {
				t.Fatal(err)
			}
			if len(found.digests) != 1 || !found.nothing() || len(blind.digests) != 0 || !blind.nothing() {
				t.Errorf("a digest as %s at %d: %v and %v", name, at, found, blind)
			}
		}
	}
	found := newFindings()
	found.piece(x, []byte(text[:len(text)-49]+secret[:window-1]+"_"+secret[secretLength-window+1:]))
	if !found.nothing() {
		t.Errorf("found %v", found.secrets)
	}
	found.piece(newIndex(), []byte("TOKEN_"+text+"x"))
	if len(found.tokens) != 1 {
		t.Errorf("the token of an unknown key is not found: %v", found.tokens)
	}
}
