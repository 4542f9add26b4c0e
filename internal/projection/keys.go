package projection

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/flat"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/token"
)

// find returns the number of a key; 0 if there is no such key.
func (s *state) find(keyID string) uint32 {
	number := s.ids.Find(keyID, flat.Projection)
	if !s.has(number) {
		return 0
	}
	return number
}

// has reports whether there is a key with a number. Another state that shares the IDs may have keys
// that this one does not have.
func (s *state) has(number uint32) bool {
	return number != 0 && number <= s.highest && s.records.At(number).life != 0
}

// workspaceOf returns the workspace of a key.
func (s *state) workspaceOf(key *record) *workspace {
	return s.numbered[s.lives.At(key.life).workspace]
}

// addKey adds or replaces a key. A malformed record is kept as damaged.
func (s *state) addKey(view *storage.KeyView) {
	of := s.workspace(string(view.WorkspaceID)) // does not allocate if there is one
	number := s.place(of, view.KeyID, view.MemberID, view.MemberIncarnation, view.WorkspaceIncarnation)
	key := s.records.At(number)
	if view.Revoked {
		key.ends |= flagRevoked
		of.revoked++
	}
	s.words.At(number).SetCreated(time.Unix(0, view.CreateTime))
	if problem := s.fill(key, view); problem != "" {
		s.damage(number, &storage.DamagedError{Kind: "key", Name: string(view.KeyID), Problem: problem})
	}
	if view.LastUsed > 0 {
		s.words.At(number).Raise(time.Unix(0, view.LastUsed))
	}
}

// addDamagedKey adds a key of which nothing but its workspace is known.
func (s *state) addDamagedKey(of *workspace, keyID string, problem error) {
	s.damage(s.place(of, []byte(keyID), nil, nil, nil), problem)
}

// damage marks a key as one that cannot be read.
func (s *state) damage(number uint32, problem error) {
	s.records.At(number).ends |= flagDamaged
	s.damagedKeys[number] = problem
}

// place returns the number of a key, whose record has a life and nothing else. If the state has the
// key, the key keeps its number and last use, and what its record referred to is given back.
func (s *state) place(of *workspace, keyID []byte, memberID, incarnation, workspaceIncarnation []byte) uint32 {
	number := s.hold(keyID)
	s.records.Grow(number)
	s.words.Grow(number)
	s.highest = max(s.highest, number)
	// 1. The new life is found before the old one is given up, because it is the same for most keys.
	// The next key of a workspace often is of the same member.
	life := of.latest
	if !s.isLife(life, of, memberID, incarnation, workspaceIncarnation) {
		life = s.lifeOf(of, memberID, incarnation, workspaceIncarnation)
		of.latest = life
	}
	s.lives.At(life).keys++
	// 2. Keep the place in the order of the workspace, unless the key is new there.
	key := s.records.At(number)
	if key.life != 0 && s.workspaceOf(key) == of {
		s.clear(number)
	} else {
		if key.life != 0 {
			s.remove(&s.workspaceOf(key).keys, number)
			s.clear(number)
		} else {
			s.words.At(number).Begin(time.Unix(0, 0))
		}
		s.lists.Add(&of.keys, number)
	}
	key.life = life
	return number
}

// hold returns the number of an id. Keys of a load mostly come in the order of their numbers.
func (s *state) hold(keyID []byte) uint32 {
	number, _ := s.ids.HoldNear(string(keyID), s.guess, flat.Projection)
	s.guess = number + 1
	return number
}

// clear makes the record of a key zero, and gives back what it refers to.
func (s *state) clear(number uint32) {
	key := s.records.At(number)
	if key.ends&flagRevoked != 0 {
		s.workspaceOf(key).revoked--
	}
	if key.ends&flagRare != 0 {
		more := *s.rares.At(key.number())
		s.rares.Free(key.number())
		s.dropLimits(more.limits)
		if more.second != 0 {
			s.seconds.Free(more.second)
		}
		if more.times != 0 {
			s.times.Free(more.times)
		}
	} else {
		s.dropLimits(key.number())
	}
	if key.ends&flagDamaged != 0 {
		delete(s.damagedKeys, number)
	}
	life := key.life
	*key = record{}
	s.lives.At(life).keys--
	s.freeLife(life)
}

func (s *state) removeKey(keyID string) {
	number := s.find(keyID)
	if number == 0 {
		return
	}
	s.remove(&s.workspaceOf(s.records.At(number)).keys, number)
	s.clear(number)
	s.ids.Release(number, flat.Projection)
}

// fill sets a record, which has a life and flagRevoked, from what is stored. It returns what is
// wrong with a malformed record.
func (s *state) fill(key *record, view *storage.KeyView) (problem string) {
	more := rare{limits: s.limitsOf(view.Scopes, view.AllowedCIDRs)}
	scheme := uint32(0)
	// Whatever is wrong further on, the numbers in more belong to the key, and clear gives them back.
	defer func() {
		number := more.limits
		if more != (rare{limits: more.limits}) {
			key.ends |= flagRare
			number = s.rares.Add()
			*s.rares.At(number) = more
		}
		key.more = number | scheme<<numberBits
	}()
	if view.Revoked {
		more.times = s.times.Add()
		s.times.At(more.times).revoked = view.RevokeTime
	}
	if bytes.IndexByte(view.MemberID, 0) >= 0 {
		return "its member is malformed"
	}
	if s.limits.get(more.limits).damaged {
		return "an allowed CIDR is malformed"
	}
	if len(view.Secrets) < 1 || len(view.Secrets) > 2 {
		return "it has neither one secret nor two"
	}
	for index := range view.Secrets {
		if secret := &view.Secrets[index]; len(secret.Hash) != 32 || secret.Scheme > 255 || !secret.HasExpireTime {
			return "a secret is malformed"
		}
	}
	newest := &view.Secrets[0]
	key.sum = [token.ShortLength]byte(newest.Hash)
	if scheme = uint32(newest.Scheme); scheme >= wideScheme { //nolint:gosec // G115: checked above
		scheme, more.scheme = wideScheme, uint8(newest.Scheme) //nolint:gosec // G115: checked above
	}
	expire, can := packExpire(newest.ExpireTime)
	if !can {
		key.ends |= flagExact
		if more.times == 0 {
			more.times = s.times.Add()
		}
		s.times.At(more.times).expire = newest.ExpireTime
	}
	key.ends |= expire
	// The end of the newest secret is the key's expire time, even if it has an overlap, which no
	// sound record has.
	if len(view.Secrets) == 2 {
		more.second = s.seconds.Add()
		*s.seconds.At(more.second) = second{sum: [token.ShortLength]byte(view.Secrets[1].Hash), end: end(&view.Secrets[1])}
		more.secondScheme = uint8(view.Secrets[1].Scheme) //nolint:gosec // G115: checked above
	}
	return ""
}

// end returns when a secret stops matching, in Unix nanoseconds.
func end(secret *storage.SecretView) int64 {
	if secret.HasOverlapEndTime {
		return min(secret.ExpireTime, secret.OverlapEndTime)
	}
	return secret.ExpireTime
}

// limitsOf returns the number of the limits with these scopes and networks.
func (s *state) limitsOf(scopes, cidrs [][]byte) uint32 {
	if len(scopes)+len(cidrs) == 0 {
		return 0
	}
	// No other scopes and networks have the same text: each has its length before it.
	text := binary.AppendUvarint(s.joined[:0], uint64(len(scopes)))
	text = join(join(text, scopes), cidrs)
	s.joined = text
	return s.limits.hold(text, func() limits { return s.newLimits(scopes, cidrs) })
}

// dropLimits ends that a key has limits.
func (s *state) dropLimits(number uint32) {
	if its := s.limits.get(number); s.limits.drop(number) {
		s.scopes.drop(its.scopes)
	}
}

// join appends texts to a text, each behind its length.
func join(text []byte, texts [][]byte) []byte {
	for _, each := range texts {
		text = append(binary.AppendUvarint(text, uint64(len(each))), each...)
	}
	return text
}

func (s *state) newLimits(scopes, cidrs [][]byte) limits {
	made := limits{scopes: s.scopes.hold(join(nil, scopes), func() decide.Scopes {
		names := make([]string, len(scopes))
		for index, name := range scopes {
			names[index] = string(name)
		}
		return decide.NewScopes(names...)
	})}
	for _, cidr := range cidrs {
		prefix, err := netip.ParsePrefix(string(cidr))
		made.networks, made.damaged = append(made.networks, prefix), made.damaged || err != nil
	}
	return made
}

// key sets what decide needs of a key. keyID is its id.
func (s *state) key(key *decide.Key, keyID string, number uint32) {
	found := s.records.At(number)
	more := s.rareOf(found)
	life := s.lives.At(found.life)
	key.ID, key.Workspace = keyID, s.numbered[life.workspace].id
	key.Member, key.MemberIncarnation = s.textsOf(life)
	key.WorkspaceIncarnation = s.names.get(life.workspaceIncarnation)
	its := s.limits.get(more.limits)
	key.Scopes, key.AllowedPrefixes = s.scopes.get(its.scopes), its.networks
	key.Revoked = found.ends&flagRevoked != 0
	key.ExpireTime = s.expireOf(found)
	key.Secrets[0] = decide.Secret{
		Hash: token.ShortHash{Scheme: token.Scheme(more.scheme), Sum: found.sum}, End: key.ExpireTime,
	}
	if more.second != 0 {
		older := s.seconds.At(more.second)
		key.Secrets[1] = decide.Secret{Hash: token.ShortHash{Scheme: token.Scheme(more.secondScheme), Sum: older.sum}, End: older.end}
	}
}

// rareOf returns the rare of a key, with the limits and the scheme that most keys have elsewhere.
func (s *state) rareOf(key *record) rare {
	more := rare{limits: key.number()}
	if key.ends&flagRare != 0 {
		more = *s.rares.At(key.number())
	}
	if scheme := key.more >> numberBits; scheme != wideScheme {
		more.scheme = uint8(scheme)
	}
	return more
}

// expireOf returns when a key expires, in Unix nanoseconds.
func (s *state) expireOf(key *record) int64 {
	if key.ends&flagExact != 0 {
		return s.times.At(s.rareOf(key).times).expire
	}
	return firstExpire + int64(key.ends&expireMask)
}

// problem returns the first damage that an answer about a key depends on.
func (s *state) problem(number uint32) error {
	key := s.records.At(number)
	if key.ends&flagDamaged != 0 {
		return s.damagedKeys[number]
	}
	if damaged := s.workspaceOf(key).damaged; damaged != nil {
		return damaged
	}
	if present := s.presentLife(key.life); present != 0 && s.lives.At(present).flags&lifeDamaged != 0 {
		return s.damagedLives[present]
	}
	return nil
}

// isLive reports whether a key that is not damaged is neither revoked nor expired. Its workspace is
// there and was not removed.
func (s *state) isLive(key *record, now int64) bool {
	life := s.lives.At(key.life)
	if key.ends&flagRevoked != 0 || now >= s.expireOf(key) ||
		s.names.get(life.workspaceIncarnation) != s.numbered[life.workspace].current.Incarnation {
		return false
	}
	present := s.presentLife(key.life)
	if present == 0 {
		return false
	}
	// A key of a damaged member counts as live, because it may be.
	member := s.lives.At(present)
	return member.flags&lifeDamaged != 0 || member.flags&lifeRemoved == 0 && s.isSameMember(key.life, present)
}

// isSameMember reports whether two lives of a member have the same incarnation.
func (s *state) isSameMember(one, other uint32) bool {
	if one == other {
		return true
	}
	_, first := s.textsOf(s.lives.At(one))
	_, second := s.textsOf(s.lives.At(other))
	return first == second
}

// diedBefore reports whether a key that is not damaged stopped being live before a time, in Unix
// nanoseconds, and can never be live again.
func (s *state) diedBefore(key *record, before int64) bool {
	if key.ends&flagRevoked != 0 && s.times.At(s.rareOf(key).times).revoked < before || s.expireOf(key) < before {
		return true
	}
	life := s.lives.At(key.life)
	current := s.numbered[life.workspace].current
	if current == nil || current.Removed || current.Incarnation != s.names.get(life.workspaceIncarnation) {
		return current != nil && current.since < before
	}
	present := s.presentLife(key.life)
	if present == 0 || s.lives.At(present).flags&lifeDamaged != 0 {
		return false
	}
	// If the member was removed and added again, only the time of the addition is known.
	member := s.lives.At(present)
	return (member.flags&lifeRemoved != 0 || !s.isSameMember(key.life, present)) && member.updated < before
}

// giveUp gives back the numbers of the keys of this state that another state does not have. The
// state is not used any more.
func (s *state) giveUp(kept *state) {
	if s.ids != kept.ids {
		return
	}
	for number := uint32(1); number <= s.highest; number++ {
		if s.has(number) && !kept.has(number) {
			s.ids.Release(number, flat.Projection)
		}
	}
}
