package token

import "crypto/sha256"

// SchemeVerifier is the scheme of new hashes. The hash is the verifier of the token's digest:
// SHA-256 of a domain tag and the digest. A slow password hash would add nothing, because a
// secret of 256 bits cannot be guessed. The digest, which validators send in the token's
// place, cannot be computed from the verifier.
const SchemeVerifier Scheme = 3

// verifierTag makes verifiers different from the hashes of any other use of SHA-256.
const verifierTag = "keysvc verifier v1\x00"

// VerifierOf returns the verifier of a digest. The store holds the verifier, and not the digest.
func VerifierOf(digest [32]byte) [32]byte {
	var input [len(verifierTag) + sha256.Size]byte
	copy(input[copy(input[:], verifierTag):], digest[:])
	return sha256.Sum256(input[:])
}

// SchemeForeign is the scheme of tokens that another system has issued, see ForeignDigest. Such a token
// may be shorter than those of keysvc, and then it can be guessed from its hash.
const SchemeForeign Scheme = 4

// foreignTag makes the hashes of SchemeForeign different from verifiers, so that neither a text nor a
// digest is taken for the other.
const foreignTag = "keysvc foreign v1\x00"

// ForeignVerifierOf returns the hash that is stored of a ForeignDigest.
func ForeignVerifierOf(digest [32]byte) [32]byte {
	var input [len(foreignTag) + sha256.Size]byte
	copy(input[copy(input[:], foreignTag):], digest[:])
	return sha256.Sum256(input[:])
}
