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
//	 48    record   verifier, times, flags; numbers of its life and of its scopes
//	  8    usage.Word  when the key was last used
//	 18    flat.IDs    the id (12) and its index (5); shared with the store's directory
//	  5    list     the key's place among the keys of its workspace
//	+20    rare     a key with two secrets, with networks, that was revoked, or is unusual otherwise
//	+40    second   a key in rotation
//	+16    extraTimes  a key that was revoked, or has a time that record cannot hold
//
// What a member takes: 40 for a life, about 45 for its texts, 5 for the index and 5 for a list.
// Everything that many keys or members have in common is held once (interned): sets of scopes,
// sets of networks, roles and incarnations of workspaces. A workspace is an ordinary struct.
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
	// flagExact: the expire time is in extraTimes, because bits 0–59 cannot hold it.
	flagExact = 1 << 61
	// flagRevoked: the key was revoked.
	flagRevoked = 1 << 62
	// flagDamaged: the record cannot be read; state.damagedKeys has the reason.
	flagDamaged = 1 << 63
)

// The parts of record.more: numbers have 28 bits (flat.MaxNumber), schemes the rest.
const (
	numberBits = 28
	// wideScheme in record.more says that the scheme is in the key's rare. keysvc has few schemes.
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
	// second is the number of a second, and times of an extraTimes.
	second, times uint32
	// scheme is the scheme of the newest secret if record.more says wideScheme, and secondScheme
	// that of the second.
	scheme, secondScheme uint8
}

// second is the older secret of a key in rotation.
type second struct {
	// sum is the beginning of its verifier.
	sum [token.ShortLength]byte
	// end is when it stops matching, in Unix nanoseconds.
	end int64
}

// extraTimes are times of a key, in Unix nanoseconds.
type extraTimes struct {
	// revoked is when the key was revoked; expire is the expire time, if flagExact is set.
	revoked, expire int64
}

// life is a member from its addition to its removal: a member that was removed and added again has
// another incarnation and is another life. Keys belong to a life, because a key does not come back
// with its member. At most one life of a member is current: the one in its record. Lives that are
// neither current nor have keys are removed.
type life struct {
	// updated is when the record last changed, in Unix nanoseconds, and sourceVersion the highest
	// source version of the member.
	updated, sourceVersion int64
	// texts are the member's id and its incarnation, with a NUL in between.
	texts flat.Text
	// workspace is the number of the workspace.
	workspace uint32
	// workspaceIncarnation and role are numbers of interned names.
	workspaceIncarnation, role uint32
	// keys is how many keys belong to the life.
	keys uint32
	// flags are those that begin with life.
	flags uint32
}

const (
	// lifeCurrent: the member's record is that of this life.
	lifeCurrent = 1 << iota
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
