package projection

import (
	"crypto/subtle"
	"hash/maphash"

	"github.com/scribe-mail/keysvc/internal/flat"
	"github.com/scribe-mail/keysvc/internal/token"
)

// imported is a token that was imported, by the beginning of its hash. A key has it for as long as its record
// is kept, also after the token's secret has ended: so the token is not imported again.
type imported struct {
	sum [token.ShortLength]byte
	key uint32
}

// ImportedKey is the key that has, or had, an imported token.
type ImportedKey struct {
	// WorkspaceID and MemberID are those of the key, and KeyID is its id.
	WorkspaceID, MemberID, KeyID string
}

// Imported returns the key that has, or had, an imported token with a hash, and reports whether there is one.
func (p *Projection) Imported(hash token.Hash) (key ImportedKey, is bool) {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	s := p.state
	found := s.findImported(hash.Short().Sum, 0)
	if found == 0 {
		return ImportedKey{}, false
	}
	number := s.imports.At(found).key
	record := s.records.At(number)
	member, _ := s.textsOf(s.lives.At(record.life))
	return ImportedKey{WorkspaceID: s.workspaceOf(record).id, MemberID: member, KeyID: s.ids.ID(number)}, true
}

// FindPresented is Find for what a caller presents. The token of another system has no key id, and is found
// by its hash. It allocates for such a token only.
func (p *Projection) FindPresented(presented token.Presented) Found {
	if !presented.IsForeign() {
		return p.Find(presented.KeyID())
	}
	sum := presented.Hash().Short().Sum // before the lock
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	s := p.state
	found := s.findImported(sum, 0)
	// Two keys never have one token (keys.Manager.ImportKeys). If a store has such keys, then the token is
	// that of neither.
	if found == 0 || s.findImported(sum, found) != 0 {
		return p.find("", 0)
	}
	number := s.imports.At(found).key
	return p.find(s.ids.ID(number), number)
}

// findImported returns the number of an imported other than one; 0 if the state has no such one. A search
// compares hashes in constant time.
func (s *state) findImported(sum [token.ShortLength]byte, other uint32) uint32 {
	if s.byHash == nil {
		return 0
	}
	return s.byHash.Find(maphash.Bytes(s.seed, sum[:]), func(number uint32) bool {
		of := s.imports.At(number)
		return subtle.ConstantTimeCompare(of.sum[:], sum[:]) == 1 && number != other
	})
}

// addImported adds the imported token of a key, and returns its number.
func (s *state) addImported(key uint32, hash []byte) uint32 {
	if s.byHash == nil {
		s.byHash = flat.NewIndex(0)
	}
	number := s.imports.Add()
	*s.imports.At(number) = imported{sum: [token.ShortLength]byte(hash), key: key}
	s.byHash.Insert(s.hashOfImported(number), number, s.hashOfImported)
	return number
}

// dropImported removes the imported token of a key.
func (s *state) dropImported(number uint32) {
	s.byHash.Remove(s.hashOfImported(number), number, s.hashOfImported)
	s.imports.Free(number)
}

func (s *state) hashOfImported(number uint32) uint64 {
	sum := s.imports.At(number).sum
	return maphash.Bytes(s.seed, sum[:])
}
