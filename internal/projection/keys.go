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
	return s.terms.get(s.lives.At(key.life).term).workspace
}

// addKey adds or replaces a key. A malformed record is kept as damaged.
func (s *state) addKey(view *storage.KeyView) {
	of := s.workspace(string(view.WorkspaceID)) // does not allocate if there is one
	number := s.place(of, view.KeyID, view.MemberID, view.MemberIncarnation, view.WorkspaceIncarnation)
	before := s.cleared
	key := s.records.At(number)
	if view.Revoked {
		key.ends |= flagRevoked
		of.revoked++
	}
	s.words.At(number).SetCreated(time.Unix(0, view.CreateTime))
	if problem := s.fill(number, key, view); problem != "" {
		s.damage(number, &storage.DamagedError{Kind: "key", Name: string(view.KeyID), Problem: problem})
	} else {
		s.countKey(number, key)
	}
	if view.LastUsed > 0 {
		s.words.At(number).Raise(time.Unix(0, view.LastUsed))
	}
	if key.ends&flagDamaged == 0 {
		s.countSecrets(number, view, before)
		s.loadSecretUses(number, view.SecretUses)
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
	s.cleared = LastUses{}
	if key.life != 0 {
		s.cleared = s.lastUses(number)
	}
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
	s.uncountKey(number, key)
	if key.ends&flagRevoked != 0 {
		s.workspaceOf(key).revoked--
	}
	if key.ends&flagRare != 0 {
		more := *s.rares.At(key.number())
		s.rares.Free(key.number())
		s.dropLimits(more.limits)
		if more.second != 0 {
			s.seconds.Free(more.second & flat.MaxNumber)
		}
		if more.exact != 0 {
			s.exacts.Free(more.exact)
		}
		if more.uses != 0 {
			s.uses.Free(more.uses)
		}
		if more.imported != 0 {
			s.dropImported(more.imported)
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
func (s *state) fill(number uint32, key *record, view *storage.KeyView) (problem string) {
	more := rare{limits: s.limitsOf(view.Scopes, view.AllowedCIDRs)}
	scheme := uint32(0)
	// Whatever is wrong further on, the numbers in more belong to the key, and clear gives them back.
	defer func() {
		s.setRare(key, more)
		key.more |= scheme << numberBits
	}()
	if view.Revoked {
		s.exactOf(&more).revoked = view.RevokeTime
	}
	if view.Held {
		s.exactOf(&more).held = true
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
	if view.Imported {
		if len(view.ImportHash) != 32 {
			return "its import is malformed"
		}
		more.imported = s.addImported(number, view.ImportHash)
	}
	newest := &view.Secrets[0]
	key.sum = [token.ShortLength]byte(newest.Hash)
	scheme = s.packScheme(&more, 0, newest)
	expire, can := packExpire(newest.ExpireTime)
	if !can {
		key.ends |= flagExact
		s.exactOf(&more).expire = newest.ExpireTime
	}
	key.ends |= expire
	// The end of the newest secret is the key's expire time, even if it has an overlap, which no
	// sound record has.
	if len(view.Secrets) == 2 {
		number := s.seconds.Add()
		*s.seconds.At(number) = second{sum: [token.ShortLength]byte(view.Secrets[1].Hash), end: end(&view.Secrets[1])}
		more.second = number | s.packScheme(&more, 1, &view.Secrets[1])<<numberBits
	}
	return ""
}

// exactOf returns the exact of a rare, which gets one if it has none.
func (s *state) exactOf(more *rare) *exact {
	if more.exact == 0 {
		more.exact = s.exacts.Add()
	}
	return s.exacts.At(more.exact)
}

// packScheme returns the scheme of a secret in four bits. A scheme that has more is put into exact.
func (s *state) packScheme(more *rare, index int, secret *storage.SecretView) uint32 {
	if secret.Scheme < wideScheme {
		return secret.Scheme
	}
	s.exactOf(more).schemes[index] = uint8(secret.Scheme) //nolint:gosec // G115: the caller has checked it
	return wideScheme
}

// schemeOf is the inverse of packScheme. packed has the scheme above numberBits.
func (s *state) schemeOf(more rare, index int, packed uint32) token.Scheme {
	if scheme := packed >> numberBits; scheme != wideScheme {
		return token.Scheme(scheme)
	}
	return token.Scheme(s.exacts.At(more.exact).schemes[index])
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
	return s.limits.hold(text, func(string) limits { return s.newLimits(scopes, cidrs) })
}

// dropLimits ends that a key has limits.
func (s *state) dropLimits(number uint32) {
	if scopes := s.limits.get(number).scopes; s.limits.drop(number) {
		s.scopes.drop(scopes)
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
	made := limits{scopes: s.scopes.hold(join(nil, scopes), func(string) decide.Scopes {
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
	during := s.terms.get(life.term)
	key.ID, key.Workspace = keyID, during.workspace.id
	key.Member, key.MemberIncarnation = s.textsOf(life)
	key.WorkspaceIncarnation = during.incarnation
	its := s.limits.get(more.limits)
	key.Scopes, key.AllowedPrefixes = *s.scopes.get(its.scopes), its.networks
	key.Revoked = found.ends&flagRevoked != 0
	key.Held = more.exact != 0 && s.exacts.At(more.exact).held
	key.ExpireTime = s.expireOf(found)
	key.Secrets[0] = decide.Secret{
		Hash: token.ShortHash{Scheme: s.schemeOf(more, 0, found.more), Sum: found.sum}, End: key.ExpireTime,
	}
	if more.second != 0 {
		older := s.seconds.At(more.second & flat.MaxNumber)
		key.Secrets[1] = decide.Secret{Hash: token.ShortHash{Scheme: s.schemeOf(more, 1, more.second), Sum: older.sum}, End: older.end}
	}
}

// setRare makes a record refer to a rare, or to its limits if there is nothing else in it. The scheme stays.
func (s *state) setRare(key *record, more rare) {
	scheme := key.more &^ flat.MaxNumber
	number := more.limits
	switch {
	case key.ends&flagRare != 0:
		number = key.number()
		*s.rares.At(number) = more
	case more != (rare{limits: more.limits}):
		key.ends |= flagRare
		number = s.rares.Add()
		*s.rares.At(number) = more
	}
	key.more = number | scheme
}

// rareOf returns the rare of a key. For a key without one it has the limits.
func (s *state) rareOf(key *record) rare {
	if key.ends&flagRare == 0 {
		return rare{limits: key.number()}
	}
	return *s.rares.At(key.number())
}

// isHeld reports whether a key is held.
func (s *state) isHeld(key *record) bool {
	more := s.rareOf(key)
	return more.exact != 0 && s.exacts.At(more.exact).held
}

// expireOf returns when a key expires, in Unix nanoseconds.
func (s *state) expireOf(key *record) int64 {
	if key.ends&flagExact != 0 {
		return s.exacts.At(s.rareOf(key).exact).expire
	}
	return firstExpire + int64(key.ends&expireMask)
}

// problem returns the first damage that an answer about a key depends on.
func (s *state) problem(number uint32) error {
	key := s.records.At(number)
	if key.ends&flagDamaged != 0 {
		return s.damagedKeys[number]
	}
	if len(s.damagedWorkspaces) > 0 {
		if damaged := s.damagedWorkspaces[s.workspaceOf(key).number]; damaged != nil {
			return damaged
		}
	}
	if len(s.damagedLives) > 0 {
		return s.damagedLives[s.presentLife(key.life)]
	}
	return nil
}

// isLive reports whether a key that is not damaged is neither revoked nor expired. Its workspace is
// there and was not removed.
func (s *state) isLive(key *record, now int64) bool {
	during := s.terms.get(s.lives.At(key.life).term)
	if key.ends&flagRevoked != 0 || now >= s.expireOf(key) || during.incarnation != during.workspace.current.Incarnation {
		return false
	}
	present := s.presentLife(key.life)
	if present == 0 {
		return false
	}
	// A key of a damaged member counts as live, because it may be.
	member := s.lives.At(present)
	return member.standing&lifeDamaged != 0 || member.standing&lifeRemoved == 0 && s.isSameMember(key.life, present)
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
	if key.ends&flagRevoked != 0 && s.exacts.At(s.rareOf(key).exact).revoked < before || s.expireOf(key) < before {
		return true
	}
	during := s.terms.get(s.lives.At(key.life).term)
	current := during.workspace.current
	if current == nil || current.Removed || current.Incarnation != during.incarnation {
		return current != nil && current.since < before
	}
	present := s.presentLife(key.life)
	if present == 0 || s.lives.At(present).standing&lifeDamaged != 0 {
		return false
	}
	// If the member was removed and added again, only the time of the addition is known.
	member := s.lives.At(present)
	return (member.standing&lifeRemoved != 0 || !s.isSameMember(key.life, present)) && member.updated < before
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
