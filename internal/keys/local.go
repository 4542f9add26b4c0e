package keys

import (
	"context"
	"errors"
	"math"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/token"
)

// This file has what a key is issued locally with: the caller draws the secret, and sends its digest.

// CheckPresented checks the three fields of a message that presents a token or its digest, and
// returns the digest; the zero Presented if the message has none, or a wrong one.
func CheckPresented(fields *problem.Fields, text, keyID string, digest token.Digest) token.Presented {
	if digest.IsZero() {
		if keyID != "" {
			fields.Add("key_id", "is set without token_digest; a token has its key id in it")
		}
		return token.Presented{}
	}
	if text != "" {
		fields.Add("token_digest", "is set beside token; only one of the two is allowed")
	} else {
		checkDigest(fields, digest)
	}
	if keyID != "" && !token.ValidID(keyID) {
		fields.Add("key_id", "is not a key id: 16 characters of [0-9A-Za-z] are required, or none for a text without \"_ksk1_\"")
	}
	return token.PresentDigest(keyID, digest)
}

// checkDigest checks a digest that is there.
func checkDigest(fields *problem.Fields, digest token.Digest) {
	switch {
	case digest.Len() != token.DigestLength:
		fields.Add("token_digest", "has %d bytes; the %d bytes of SHA-256 are required", digest.Len(), token.DigestLength)
	case !digest.IsValid():
		fields.Add("token_digest", "has only zeros; the digest of a token is required")
	}
}

// checkLocal checks the digest and the nonce of a key that is issued locally, and returns the key's
// id. It returns "" if keysvc has to draw the secret, or if a field is wrong.
func checkLocal(fields *problem.Fields, workspaceID string, digest token.Digest, nonce []byte) string {
	if digest.IsZero() {
		if len(nonce) > 0 {
			fields.Add("key_id_nonce", "is set without token_digest; keysvc draws it along with a secret of its own")
		}
		return ""
	}
	checkDigest(fields, digest)
	if len(nonce) != token.NonceLength {
		fields.Add("key_id_nonce", "has %d bytes; %d random bytes are required with token_digest", len(nonce), token.NonceLength)
		return ""
	}
	return token.KeyID(workspaceID, [token.NonceLength]byte(nonce))
}

// repeated returns the key for a call that repeats one with a digest: used is the error of
// requestUnused, and the call that used the request id was about this key and issued this secret. rotated
// reports whether that call was a rotation. For any other call it returns used.
func (a *attempt) repeated(ctx context.Context, used error, keyID string, digest token.Digest, rotated bool) (*storagev1.KeyRecord, error) {
	hash := digest.Hash()
	if of := (*problem.Error)(nil); hash.Scheme == 0 || !errors.As(used, &of) || of.Metadata["key_id"] != keyID {
		return nil, used
	}
	record, err := a.key(ctx, keyID)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return nil, used
	case err != nil:
		return nil, err
	}
	for _, secret := range record.GetSecrets() {
		// The first secret of a key is as old as the key.
		first := !secret.GetCreateTime().AsTime().After(record.GetCreateTime().AsTime())
		if secret.GetIssuedLocally() && first != rotated && hashOf(secret).Equal(hash) {
			return record, nil
		}
	}
	return nil, used
}

// checkNewSecret refuses a digest that is that of a secret which the key has already: after the
// rotation the secret would go on, although the caller believes that it was replaced.
func checkNewSecret(record *storagev1.KeyRecord, digest token.Digest) error {
	hash := digest.Hash()
	for _, secret := range record.GetSecrets() {
		if hashOf(secret).Equal(hash) {
			var fields problem.Fields
			fields.Add("token_digest", "is that of a secret which the key has already; a new secret is required")
			return fields.Err()
		}
	}
	return nil
}

// errIDTaken is the refusal of a nonce whose id a key of the workspace has. The id of another
// workspace's key comes from no nonce that can be found.
func errIDTaken() error {
	var fields problem.Fields
	fields.Add("key_id_nonce", "gives the id of a key that exists; 16 new random bytes are required, or the request_id of the call to repeat")
	return fields.Err()
}

// hashOf returns the hash in a stored secret; the zero Hash if the stored hash is malformed.
func hashOf(secret *storagev1.SecretRecord) token.Hash {
	scheme := secret.GetScheme()
	if len(secret.GetHash()) != token.DigestLength || scheme > math.MaxUint8 {
		return token.Hash{}
	}
	return token.Hash{Scheme: token.Scheme(scheme), Sum: [token.DigestLength]byte(secret.GetHash())}
}

// errTokensRefused is the refusal of a token where only digests are taken.
func errTokensRefused(what string) error {
	return problem.New(problem.TokensRefused, "this server does not take tokens and gives none out: %s", what)
}
