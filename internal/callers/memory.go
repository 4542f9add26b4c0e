package callers

import (
	"crypto/rand"
	"crypto/sha256"
	"sync"
)

// maxRemembered bounds how many values a memory holds. Each takes less than 300 bytes.
const maxRemembered = 8192

// memory remembers what was decided, by a hash of what it was decided on. It remembers no refusals,
// so a flood of wrong tokens takes no memory. The zero memory is empty.
type memory[V any] struct {
	mu      sync.RWMutex
	values  map[[sha256.Size]byte]V
	cleared uint64
}

// get returns a value, and reports whether it is remembered.
func (m *memory[V]) get(key [sha256.Size]byte) (V, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	value, has := m.values[key]
	return value, has
}

// generation returns a number that clear changes.
func (m *memory[V]) generation() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.cleared
}

// put remembers a value that was decided after a call of generation, unless clear was called since.
func (m *memory[V]) put(key [sha256.Size]byte, value V, generation uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cleared != generation {
		return
	}
	if m.values == nil {
		m.values = make(map[[sha256.Size]byte]V)
	}
	for each := range m.values { // some value, which nobody can choose
		if len(m.values) < maxRemembered {
			break
		}
		delete(m.values, each)
	}
	m.values[key] = value
}

// clear forgets everything.
func (m *memory[V]) clear() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cleared++
	m.values = nil
}

// bearerKey makes the hashes of tokens in a memory those of this process alone.
var bearerKey = sync.OnceValue(func() (key [32]byte) {
	_, _ = rand.Read(key[:]) // never fails; see crypto/rand
	return key
})

// hashBearer returns a keyed hash of a token: what is in memory is of no use to anybody else.
func hashBearer(bearer string) [sha256.Size]byte {
	key := bearerKey()
	return sha256.Sum256(append(key[:], bearer...))
}
