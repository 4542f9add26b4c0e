package token

import (
	"encoding/hex"
	"testing"
)

func TestVerifierHasItsVector(t *testing.T) {
	digest, err := hex.DecodeString("da764224824550e5d2d791a060cabb138be6942bf526f791d73995e456547a7e")
	if err != nil {
		t.Fatal(err)
	}
	const want = "93e6088f85a80797a0fa384c43f5bae63626636cd4f237c2811e18c11087cca6"
	if got := VerifierOf([32]byte(digest)); hex.EncodeToString(got[:]) != want {
		t.Errorf("%x, want %s", got, want)
	}
}

// TestForeignVerifierHasItsVector: ADR 0022 has the vector.
func TestForeignVerifierHasItsVector(t *testing.T) {
	digest := ForeignDigest("sk_live_1")
	got := ForeignVerifierOf(digest)
	const wantDigest, want = "992621cb15795f3e17e7e637aad64ef2cacf8471091104c0153e98355c520261", "1e6e3520b7fccec78f1d5a91db7bb499803c2dfcc47aaebeb9e3751cbbc201ef"
	if hex.EncodeToString(digest[:]) != wantDigest || hex.EncodeToString(got[:]) != want {
		t.Errorf("%x and %x, want %s and %s", digest, got, wantDigest, want)
	}
	if got == VerifierOf(digest) {
		t.Error("it is the verifier of a token of keysvc")
	}
}
