package callers

import (
	"crypto/rand"
	"crypto/sha256"
	"sync"
)

// maxKnownBearers bounds how many tokens a bearerCache remembers. Each takes about 100 bytes.
const maxKnownBearers = 8192

// bearerCache remembers whose token a text is, by a keyed hash of it: not the token itself, and
// nothing that fits another process. It remembers no refusals, so that a flood of wrong tokens takes
// no memory.
type bearerCache struct {
	once sync.Once
	key  [32]byte

	mu    sync.RWMutex
	known map[[32]byte]*Identity
}

func (c *bearerCache) hash(bearer string) [32]byte {
	c.once.Do(func() { _, _ = rand.Read(c.key[:]) }) // never fails; see crypto/rand
	input := make([]byte, 0, 512)
	input = append(append(input, c.key[:]...), bearer...)
	return sha256.Sum256(input)
}

// get returns the identity of a token; nil if it is not remembered.
func (c *bearerCache) get(bearer string) *Identity {
	hash := c.hash(bearer)
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.known[hash]
}

// put remembers the identity of a token if current reports true.
func (c *bearerCache) put(bearer string, identity *Identity, current func() bool) {
	hash := c.hash(bearer)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !current() {
		return
	}
	if c.known == nil {
		c.known = make(map[[32]byte]*Identity)
	}
	for each := range c.known { // some entry, which nobody can choose
		if len(c.known) < maxKnownBearers {
			break
		}
		delete(c.known, each)
	}
	c.known[hash] = identity
}

// clear forgets everything.
func (c *bearerCache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.known)
}
