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
