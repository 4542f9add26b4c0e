package projection

import (
	"sync/atomic"
	"time"

	"github.com/scribe-mail/keysvc/internal/flat"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/token"
	"github.com/scribe-mail/keysvc/internal/usage"
)

// A state is the usage.Table of the words that were found in it.
var _ usage.Table = (*state)(nil)

// secretUses is when each secret of a key was last used. A key has it while it has two secrets, and
// afterwards until its last secret was used later than the one that ended. For all other keys that
// follows from the last use of the key and the creation of the secret.
type secretUses struct {
	// times are in Unix microseconds, 0 for never; the first is that of the newest secret. They are raised
	// under the read lock of Projection.mutex.
	times [2]atomic.Int64
	// tags are those of the secrets; 0 for none.
	tags [2]uint32
}

// LastUses are the last uses of a key and of its secrets.
type LastUses struct {
	key     time.Time
	counted bool
	times   [2]int64
	tags    [2]uint32
}

// LastUses returns when a key and its secrets were last used.
func (p *Projection) LastUses(keyID string) LastUses {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	if number := p.state.find(keyID); number != 0 {
		return p.state.lastUses(number)
	}
	return LastUses{}
}

// Key returns when the key was last used; zero if it never was.
func (u LastUses) Key() time.Time { return u.key }

// Secret returns when a secret of the key was last used, which was created at a time; zero if it never
// was. A use of the key that is later than the creation of its only secret was a use of that secret.
func (u LastUses) Secret(hash token.ShortHash, created time.Time) time.Time {
	if !u.counted {
		if u.key.Before(created) {
			return time.Time{}
		}
		return u.key
	}
	if at := u.secret(hash.Tag()); at != 0 {
		return latest(time.UnixMicro(at).UTC(), created)
	}
	return time.Time{}
}

// secret returns when a secret was last used, in Unix microseconds; 0 if it never was.
func (u LastUses) secret(tag uint32) (at int64) {
	for index, each := range u.tags {
		if each == tag {
			at = max(at, u.times[index])
		}
	}
	return at
}

func latest(one, other time.Time) time.Time {
	if one.Before(other) {
		return other
	}
	return one
}

// lastUses returns the last uses of a key that the state has.
func (s *state) lastUses(number uint32) LastUses {
	found := LastUses{key: s.words.At(number).Time()}
	key := s.records.At(number)
	if more := s.rareOf(key); more.uses != 0 {
		uses := s.uses.At(more.uses)
		found.counted, found.tags = true, uses.tags
		for index := range found.times {
			found.times[index] = uses.times[index].Load()
		}
	} else if key.ends&flagDamaged == 0 {
		found.tags[0] = s.tagsOf(key)[0]
	}
	return found
}

// tagsOf returns the tags of the secrets of a key that is not damaged; 0 for none.
func (s *state) tagsOf(key *record) (tags [2]uint32) {
	more := s.rareOf(key)
	tags[0] = token.ShortHash{Scheme: s.schemeOf(more, 0, key.more), Sum: key.sum}.Tag()
	if more.second != 0 {
		tags[1] = token.ShortHash{Scheme: s.schemeOf(more, 1, more.second), Sum: s.seconds.At(more.second & flat.MaxNumber).sum}.Tag()
	}
	return tags
}

// countSecrets sets the last uses of the secrets of a key that was put, if they have to be kept. before are
// those of the key before; zero for a new key.
func (s *state) countSecrets(number uint32, view *storage.KeyView, before LastUses) {
	if len(view.Secrets) < 2 && before.key.IsZero() {
		return // as most keys, and all of a load
	}
	key := s.records.At(number)
	tags, word := s.tagsOf(key), s.words.At(number).Time()
	var times [2]int64
	for index := range view.Secrets {
		created := time.Unix(0, view.Secrets[index].CreateTime)
		switch {
		case before.counted:
			times[index] = before.secret(tags[index])
		case before.tags[0] == tags[index], before.tags[0] == 0 && index > 0:
			// It was the only secret, or it is not known what the older secret's uses were.
			times[index] = since(word, created)
		}
	}
	if len(view.Secrets) < 2 && times[0] == since(word, time.Unix(0, view.Secrets[0].CreateTime)) {
		return
	}
	s.setSecretUses(key, tags, times)
}

// since returns a time in Unix microseconds; 0 if it is zero or before another time.
func since(at, created time.Time) int64 {
	if at.IsZero() || at.Before(created) {
		return 0
	}
	return at.UnixMicro()
}

// setSecretUses gives a key a secretUses if it has none, and sets it.
func (s *state) setSecretUses(key *record, tags [2]uint32, times [2]int64) {
	more := s.rareOf(key)
	if more.uses == 0 {
		more.uses = s.uses.Add()
		s.setRare(key, more)
	}
	uses := s.uses.At(more.uses)
	uses.tags = tags
	for index, at := range times {
		uses.times[index].Store(at)
	}
}

// loadSecretUses takes over the stored last uses of secrets. Those of other secrets than the key has now
// are ignored.
func (s *state) loadSecretUses(number uint32, stored [2]storage.SecretUseView) {
	if stored == [2]storage.SecretUseView{} || s.records.At(number).ends&flagDamaged != 0 {
		return
	}
	key := s.records.At(number)
	tags := s.tagsOf(key)
	var times [2]int64
	known := false
	for index, tag := range tags {
		for _, use := range stored {
			if tag != 0 && use.Tag == tag {
				times[index], known = max(times[index], use.Time/int64(time.Microsecond)), true
			}
		}
	}
	if known {
		s.setSecretUses(key, tags, times)
	}
}

// LearnUses takes over stored last uses that other processes have recorded, as far as they are later than
// those that are known. They do not wait for a write. Keys that do not exist are skipped.
func (p *Projection) LearnUses(uses []storage.Usage) {
	if counted := p.learnUses(uses); len(counted) > 0 {
		p.mutex.Lock()
		defer p.mutex.Unlock()
		for _, use := range counted {
			if number := p.state.find(use.KeyID); number != 0 {
				p.state.learnSecretUses(number, use)
			}
		}
	}
}

// learnUses is LearnUses without the uses whose secrets have no secretUses yet. It returns these.
func (p *Projection) learnUses(uses []storage.Usage) (counted []storage.Usage) {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	for _, use := range uses {
		number := p.state.find(use.KeyID)
		if number == 0 {
			continue
		}
		more := p.state.rareOf(p.state.records.At(number))
		if more.uses == 0 && use.Secrets != [2]storage.SecretUse{} {
			counted = append(counted, use) // before the word is raised, which would speak for the secret
			continue
		}
		for _, secret := range use.Secrets {
			if more.uses != 0 && secret.Tag != 0 && !secret.Time.IsZero() {
				p.state.uses.At(more.uses).raise(secret.Tag, secret.Time.UnixMicro())
			}
		}
		p.state.words.At(number).Raise(use.Time)
	}
	return counted
}

// learnSecretUses is learnUses for a key that gets secretUses by it, if one of its secrets is named.
func (s *state) learnSecretUses(number uint32, use storage.Usage) {
	if s.records.At(number).ends&flagDamaged == 0 {
		before, tags := s.lastUses(number), s.tagsOf(s.records.At(number))
		var times [2]int64
		known := false
		for index, tag := range tags {
			for _, secret := range use.Secrets {
				if tag != 0 && secret.Tag == tag {
					known = true
					if !secret.Time.IsZero() {
						times[index] = max(times[index], secret.Time.UnixMicro())
					}
				}
			}
		}
		if known {
			// Until now a use of the key was one of its only secret, unless it was before the secret.
			if at := before.key; !before.counted && at.After(latest(use.Time, time.UnixMicro(times[0]))) {
				times[0] = at.UnixMicro()
			}
			s.setSecretUses(s.records.At(number), tags, times)
		}
	}
	s.words.At(number).Raise(use.Time)
}

// raise moves the last use of the secrets with a tag forward, and reports whether one moved.
func (u *secretUses) raise(tag uint32, at int64) (raised bool) {
	for index, each := range u.tags {
		for each == tag {
			before := u.times[index].Load()
			if at <= before {
				break
			}
			if u.times[index].CompareAndSwap(before, at) {
				raised = true
				break
			}
		}
	}
	return raised
}

// lastOf returns the Last of a key.
func (s *state) lastOf(keyID string, number uint32) usage.Last {
	id, _ := flat.Pack(keyID)
	return usage.LastOf(s, s.words.At(number), id, s.rareOf(s.records.At(number)).uses != 0)
}

// Replaced implements usage.Table.
func (s *state) Replaced() bool { return s.replaced.Load() }

// Find implements usage.Table.
func (s *state) Find(id flat.ID) usage.Last {
	p := s.projection
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	keyID := id.String()
	number := p.state.find(keyID)
	if number == 0 {
		return usage.Last{}
	}
	return p.state.lastOf(keyID, number)
}

// RaiseSecret implements usage.Table.
func (s *state) RaiseSecret(id flat.ID, tag uint32, at time.Time) bool {
	p := s.projection
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	number := p.state.find(id.String())
	if number == 0 {
		return false
	}
	more := p.state.rareOf(p.state.records.At(number))
	return more.uses != 0 && p.state.uses.At(more.uses).raise(tag, at.UnixMicro())
}

// Words implements usage.Table. It gives way as walks do.
func (s *state) Words(ids []flat.ID, visit func(id flat.ID, word *usage.Word, secrets [2]storage.SecretUse)) {
	p := s.projection
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	for index, id := range ids {
		if number := p.state.find(id.String()); number != 0 {
			visit(id, p.state.words.At(number), p.state.storedSecretUses(number))
		}
		if index%stride == stride-1 {
			p.giveWay()
		}
	}
}

// storedSecretUses returns the last uses of secrets as they are stored.
func (s *state) storedSecretUses(number uint32) (stored [2]storage.SecretUse) {
	more := s.rareOf(s.records.At(number))
	if more.uses == 0 {
		return stored
	}
	uses := s.uses.At(more.uses)
	for index, tag := range uses.tags {
		stored[index].Tag = tag
		if at := uses.times[index].Load(); at != 0 {
			stored[index].Time = time.UnixMicro(at).UTC()
		}
	}
	return stored
}

// keepUses takes over the last uses from an older state, because they may not be stored yet. shown is set if
// s is shown already: then it may only raise what is there.
func (s *state) keepUses(older *state, shown bool) {
	for number := uint32(1); number <= older.highest; number++ {
		if !older.has(number) {
			continue
		}
		here := number
		if s.ids != older.ids {
			here = s.find(older.ids.ID(number))
		}
		if s.has(here) {
			s.words.At(here).Follow(older.words.At(number))
			s.keepSecretUses(here, older, number, shown)
		}
	}
}

// keepSecretUses is keepUses for the secrets of one key.
func (s *state) keepSecretUses(here uint32, older *state, number uint32, shown bool) {
	key, of := s.records.At(here), older.records.At(number)
	if s.rareOf(key).uses == 0 && older.rareOf(of).uses == 0 || (key.ends|of.ends)&flagDamaged != 0 {
		return
	}
	before := older.lastUses(number)
	if more := s.rareOf(key); more.uses != 0 {
		uses := s.uses.At(more.uses)
		if !before.counted && uses.tags == before.tags && !shown {
			// What was stored is out of date: the only secret was used last.
			s.uses.Free(more.uses)
			more.uses = 0
			s.setRare(key, more)
			return
		}
		for index, tag := range before.tags {
			if tag != 0 {
				uses.raise(tag, before.times[index])
			}
		}
		return
	}
	if tags := s.tagsOf(key); !shown && (before.tags[0] == tags[0] || before.tags[1] == tags[0]) {
		s.setSecretUses(key, tags, [2]int64{before.secret(tags[0])})
	}
}
