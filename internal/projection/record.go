package projection

import (
	"net/netip"
	"time"

	"github.com/scribe-mail/keysvc/internal/flat"
	"github.com/scribe-mail/keysvc/internal/token"
)

// The table that decisions are made from has no pointer for each key or member, so that the
// garbage collector has nothing to visit, however many there are. What a key takes, in bytes:
//
//	 32    record   half of the verifier, times, flags; numbers of its life and of its limits
//	  8    usage.Word  when the key was last used
//	1/2    census      what the key counts as
//	 17    flat.IDs    the id (12) and its index (5); shared with the store's directory
//	1–3    flat.Lists  the key's place among the keys of its workspace
//	+20    rare     a key with two secrets, that was revoked, is held, or is unusual otherwise
//	+24    second   a key in rotation
//	+24    secretUses  a key in rotation, or one whose last use was that of a secret that has ended
//	+25    imported    a key whose first token another system has issued: 20, and 5 for its index
//	+24    exact    a key that was revoked, is held, or has a time or scheme that record cannot hold
//
// What a member takes: 32 for a life, about 36 for its texts, 5 for the index and 6 for a list. A
// workspace is an ordinary struct of 128 bytes, with about as much for what it refers to.
// Everything that many keys or members have in common is held once (interned): limits, which are
// scopes and networks, and roles and terms, which are incarnations of workspaces.
//
// An index of expire times would be a flat.Lists by day.
//
// A key has the same number in the records, in the words and in the IDs. Numbers of purged keys
// and members, and what only they referred to, are used again.

// record is a key, in 32 bytes, which lie in one cache line. It is changed in place, and read only under Projection.mutex.
type record struct {
	// sum is the beginning of the verifier of the newest secret.
	sum [token.ShortLength]byte
	// ends holds the expire time and flags (see the constants).
	ends uint64
	// life is the number of the life of a member that the key belongs to. It is 0 if there is no key.
	life uint32
	// more is the number of a limits, or of a rare if flagRare is set; above numberBits it has the
	// scheme of sum, if that is below wideScheme.
	more uint32
}

// The parts of record.ends.
//
//	bits 0–59   when the newest secret expires, in nanoseconds since firstExpire, if flagExact is
//	            not set
//	bits 60–63  flags
const (
	expireMask = 1<<60 - 1
	// firstExpire is 2020-01-01T00:00:00Z in Unix nanoseconds. 60 bits are 36 years.
	firstExpire = 1_577_836_800 * int64(time.Second)

	// flagRare: more is the number of a rare.
	flagRare = 1 << 60
	// flagExact: the expire time is in exact, because bits 0–59 cannot hold it.
	flagExact = 1 << 61
	// flagRevoked: the key was revoked.
	flagRevoked = 1 << 62
	// flagDamaged: the record cannot be read; state.damagedKeys has the reason.
	flagDamaged = 1 << 63
)

// The parts of record.more: numbers have 28 bits (flat.MaxNumber), schemes the rest.
const (
	numberBits = 28
	// wideScheme says that the scheme is in exact. keysvc has few schemes.
	wideScheme = 1<<(32-numberBits) - 1
)

// number returns record.more without the scheme.
func (r *record) number() uint32 { return r.more & flat.MaxNumber }

// limits are what a key is limited to. Most keys have the limits of other keys, too.
type limits struct {
	// scopes is the number of an interned set.
	scopes   uint32
	networks []netip.Prefix
	// damaged is set if a network cannot be read.
	damaged bool
}

// rare is what few keys have. Each number is 0 if the key does not have it.
type rare struct {
	// limits is the number of a limits.
	limits uint32
	// second is the number of a second, with its scheme above numberBits as in record.more.
	second uint32
	// exact is the number of an exact.
	exact uint32
	// uses is the number of a secretUses.
	uses uint32
	// imported is the number of an imported.
	imported uint32
}

// second is the older secret of a key in rotation.
type second struct {
	// sum is the beginning of its verifier.
	sum [token.ShortLength]byte
	// end is when it stops matching, in Unix nanoseconds.
	end int64
}

// exact is what does not fit elsewhere. Times are in Unix nanoseconds.
type exact struct {
	// revoked is when the key was revoked; expire is the expire time, if flagExact is set.
	revoked, expire int64
	// schemes are those of the secrets that have wideScheme.
	schemes [2]uint8
	// held is set if the key is held.
	held bool
}

// life is a member, in 32 bytes, from its addition to its removal: a member that was removed and added again has
// another incarnation and is another life. Keys belong to a life, because a key does not come back
// with its member. At most one life of a member is current: the one in its record. Lives that are
// neither current nor have keys are removed.
type life struct {
	// updated is when the record last changed, in Unix nanoseconds, and sourceVersion the highest
	// source version of the member.
	updated, sourceVersion int64
	// texts are the member's id and its incarnation, with a NUL in between.
	texts flat.Text
	// term is the number of the interned term that the life belongs to.
	term uint32
	// keys is how many keys belong to the life.
	keys uint32
	// standing is the number of the interned name of the role, and the flags that begin with life.
	standing uint32
}

// role returns the number of the role's name.
func (l *life) role() uint32 { return l.standing & flat.MaxNumber }

// term is a workspace from its addition to its removal.
type term struct {
	workspace   *workspace
	incarnation string
}

const (
	// lifeCurrent: the member's record is that of this life.
	lifeCurrent = 1 << (numberBits + iota)
	// lifeActive and lifeRemoved are the member's state.
	lifeActive
	lifeRemoved
	// lifeDamaged: the member's record cannot be read; state.damagedLives has the reason.
	lifeDamaged
)

// packExpire returns a time in Unix nanoseconds as record.ends has it, and reports whether it can.
func packExpire(nanoseconds int64) (bits uint64, can bool) {
	if nanoseconds < firstExpire || nanoseconds > firstExpire+expireMask {
		return 0, false
	}
	return uint64(nanoseconds - firstExpire), true
}
