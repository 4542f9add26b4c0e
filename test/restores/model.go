//go:build linux

package main

import (
	"fmt"
	"net/netip"
	"time"
)

// scopeNames are all scopes of the campaign's policies. A set of scopes is a uint8 with a bit for each.
var scopeNames = [8]string{"mails:read", "mails:write", "mails:delete", "files:read", "files:write", "files:delete", "tags:read", "tags:write"}

const allScopes = uint8(0xff)

// addresses are the addresses that tokens are tried from.
var addresses = [4]netip.Addr{
	netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("10.1.9.9"), netip.MustParseAddr("10.9.9.9"), netip.MustParseAddr("192.168.1.1"),
}

// networks are the address rules of keys. None means any address.
var networks = [][]string{nil, {"10.0.0.0/8"}, {"10.1.0.0/16"}, {"10.1.2.0/24"}, {"192.168.0.0/16"}, {"10.1.2.0/24", "192.168.0.0/16"}}

// inside reports in which of addresses a rule allows a key: a bit for each address.
func inside(rule []string) (set uint8) {
	for bit, address := range addresses {
		allowed := len(rule) == 0
		for _, prefix := range rule {
			allowed = allowed || netip.MustParsePrefix(prefix).Contains(address)
		}
		if allowed {
			set |= 1 << bit
		}
	}
	return set
}

// powers is what a token may do: a bit for each scope and address.
type powers uint32

func powersOf(scopes, places uint8) (all powers) {
	for scope := range scopeNames {
		if scopes>>scope&1 == 1 {
			all |= powers(places&0xf) << (scope * len(addresses))
		}
	}
	return all
}

// everywhere returns the same scopes, from all addresses.
func everywhere(some powers) (all powers) {
	for scope := range scopeNames {
		if shift := scope * len(addresses); some>>shift&0xf != 0 {
			all |= 0xf << shift
		}
	}
	return all
}

func (p powers) String() string {
	text := ""
	for scope, name := range scopeNames {
		if places := p >> (scope * len(addresses)) & 0xf; places != 0 {
			text += fmt.Sprintf(" %s@%04b", name, places)
		}
	}
	if text == "" {
		return "nothing"
	}
	return text[1:]
}

// model is what the campaign knows of a store, from the changes that it made.
type model struct {
	roles   map[string]uint8 // the scopes of each role
	scopes  uint8            // the catalogue
	members map[string]*member
	keys    []*key
	tokens  []*token
	lives   int
	// since is true after the backup was made. Then the model also keeps what was narrowed.
	since bool
	// policies is how many policies came since the backup.
	policies int
	// moved has the members, by their paths, who got another role since the backup.
	moved map[string]bool
	story []string
}

// member is a member of a workspace. A member who is removed and added again is another one.
type member struct {
	workspace, name, role string
	suspended             bool
	life                  int
	// narrowed reports whether the member was suspended since the backup, or got a role that does not
	// allow all that the role before allowed.
	narrowed bool
}

func (m *member) path() string { return m.workspace + "/" + m.name }

type key struct {
	id, workspace, member string
	life                  int
	scopes, places        uint8
	revoked               bool
	// narrowed reports whether the key was revoked or lost scopes or addresses since the backup.
	narrowed bool
	// readdressed reports whether the key got other address rules since the backup.
	readdressed bool
	tokens      []*token // newest first; those of ended secrets are left out
}

// token is a token that was issued, whatever became of it.
type token struct {
	number int
	text   string
	key    *key
	ended  bool
	end    time.Time // of the overlap; zero for none
	// atBackup and atLoss are what the token could do then, and least what it could do at all times
	// from the backup to the loss.
	atBackup, atLoss, least powers
	// granted is what the key had in the backup, whatever the role allowed.
	granted powers
	// inBackup reports whether the secret is live in the backup, of a key that is not revoked and
	// whose member is not removed.
	inBackup bool
}

// owner returns the member whom a key belongs to, or nil.
func (m *model) owner(k *key) *member {
	owner := m.members[k.workspace+"/"+k.member]
	if owner == nil || owner.life != k.life {
		return nil
	}
	return owner
}

// can returns what a token may do, apart from the end of its overlap.
func (m *model) can(t *token) powers {
	owner := m.owner(t.key)
	if owner == nil || owner.suspended || t.key.revoked || t.ended {
		return 0
	}
	return powersOf(t.key.scopes&m.roles[owner.role]&m.scopes, t.key.places)
}

// live reports whether a key can be changed.
func (m *model) live(k *key) bool {
	owner := m.owner(k)
	return owner != nil && !owner.suspended && !k.revoked
}

// soon reports whether the token's overlap ends while the campaign looks.
func (t *token) soon() bool { return !t.end.IsZero() && time.Until(t.end) < 10*time.Minute }

// backedUp remembers what every token can do in the backup.
func (m *model) backedUp() {
	m.since = true
	for _, t := range m.tokens {
		t.atBackup = m.can(t)
		t.least = t.atBackup
		t.granted = powersOf(t.key.scopes&m.scopes, t.key.places)
		t.inBackup = !t.ended && !t.key.revoked && m.owner(t.key) != nil
	}
}

// changed is called after each change.
func (m *model) changed(format string, values ...any) {
	mark := ""
	if m.since {
		mark = "after the backup: "
	}
	m.story = append(m.story, mark+fmt.Sprintf(format, values...))
	for _, t := range m.tokens {
		t.atLoss = m.can(t)
		t.least &= t.atLoss
	}
}

// untouched reports whether nothing was taken from the token since the backup, but what a policy took.
func (m *model) untouched(t *token) bool {
	owner := m.owner(t.key)
	return t.inBackup && !t.ended && !t.key.narrowed && owner != nil && !owner.narrowed &&
		!(m.moved[owner.path()] && m.policies > 0) // what a role allowed and allows is then not one simple rule
}
