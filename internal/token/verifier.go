package token

import "crypto/sha256"

// SchemeVerifier is SHA-256 over a domain tag and the token's digest, which is what
// SchemeSHA256 kept. What is stored is thus no credential, not even towards keysvc.
const SchemeVerifier Scheme = 3

// verifierTag keeps verifiers apart from any other use of SHA-256.
const verifierTag = "keysvc verifier v1\x00"

// VerifierOf returns the verifier of a token's digest.
func VerifierOf(digest [sha256.Size]byte) [sha256.Size]byte {
	var input [len(verifierTag) + sha256.Size]byte
	copy(input[copy(input[:], verifierTag):], digest[:])
	return sha256.Sum256(input[:])
}
