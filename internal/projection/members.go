package projection

import (
	"encoding/binary"
	"hash/maphash"
	"strings"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/decide"
)

// addMember stores a member's record: its life becomes the current one.
func (s *state) addMember(record *storagev1.MemberRecord) {
	number := s.setLife(s.workspace(record.GetWorkspaceId()), []byte(record.GetMemberId()),
		[]byte(record.GetIncarnation()), []byte(record.GetWorkspaceIncarnation()))
	life := s.lives.At(number)
	switch record.GetState() { //nolint:exhaustive // a state that this program does not know is neither of the two, and denies
	case storagev1.MemberRecordState_MEMBER_RECORD_STATE_ACTIVE:
		life.standing |= lifeActive
	case storagev1.MemberRecordState_MEMBER_RECORD_STATE_REMOVED:
		life.standing |= lifeRemoved
	}
	life.standing |= s.name([]byte(record.GetRole()))
	life.sourceVersion, life.updated = record.GetSourceVersion(), nanoseconds(record.GetUpdateTime())
}

// setLife makes the life of a member with these incarnations the current one, and returns its
// number. It has no state yet, and no role.
func (s *state) setLife(of *workspace, memberID, incarnation, workspaceIncarnation []byte) uint32 {
	number := s.lifeOf(of, memberID, incarnation, workspaceIncarnation)
	if before := s.currentLife(of, string(memberID)); before != number {
		s.endLife(of, before)
		s.lists.Add(&of.members, number)
	}
	life := s.lives.At(number)
	s.names.drop(life.role())
	life.standing, life.updated, life.sourceVersion = lifeCurrent, 0, 0
	delete(s.damagedLives, number)
	return number
}

// removeMember removes the record of a member.
func (s *state) removeMember(of *workspace, memberID string) {
	s.endLife(of, s.currentLife(of, memberID))
}

// endLife makes a life that is current a former one. The number may be 0.
func (s *state) endLife(of *workspace, number uint32) {
	if number == 0 {
		return
	}
	life := s.lives.At(number)
	life.standing = life.role()
	delete(s.damagedLives, number)
	s.remove(&of.members, number)
	s.freeLife(number)
}

// lifeOf returns the number of the life of a member with these incarnations. A life that is not
// known is a former one, of which there is no record any more.
func (s *state) lifeOf(of *workspace, memberID, incarnation, workspaceIncarnation []byte) uint32 {
	// 1. Find it.
	hash := s.memberHash(of.number, string(memberID))
	of.newest = s.termOf(of, workspaceIncarnation)
	number := s.members.Find(hash, func(number uint32) bool {
		life := s.lives.At(number)
		if life.term != of.newest {
			return false
		}
		id, its := s.textsOf(life)
		return id == string(memberID) && its == string(incarnation)
	})
	if number != 0 {
		return number
	}
	// 2. Or add it.
	number = s.lives.Add()
	life := s.lives.At(number)
	life.term = s.terms.hold(s.termText(of, workspaceIncarnation), func(text string) term { return term{of, text[termHead:]} })
	s.joined = append(append(append(s.joined[:0], memberID...), 0), incarnation...)
	life.texts = s.texts.Add(number, string(s.joined))
	s.members.Insert(hash, number, s.hashOfLife)
	return number
}

// termOf returns the number of the term of a workspace with an incarnation; 0 if no life has it.
func (s *state) termOf(of *workspace, incarnation []byte) uint32 {
	if during := s.terms.get(of.newest); during.workspace == of && during.incarnation == string(incarnation) {
		return of.newest
	}
	return s.terms.find(s.termText(of, incarnation))
}

// termHead is the size of the number of the workspace in the text of a term.
const termHead = 4

// termText returns the text by which a term is interned. It is valid until the next call.
func (s *state) termText(of *workspace, incarnation []byte) []byte {
	s.joined = append(binary.LittleEndian.AppendUint32(s.joined[:0], of.number), incarnation...)
	return s.joined
}

// isLife reports whether a number, which may be 0 or that of a life that was freed, is that of the life
// of a member with these incarnations.
func (s *state) isLife(number uint32, of *workspace, memberID, incarnation, workspaceIncarnation []byte) bool {
	if number == 0 {
		return false
	}
	life := s.lives.At(number)
	if during := s.terms.get(life.term); during.workspace != of || during.incarnation != string(workspaceIncarnation) {
		return false
	}
	id, its := s.textsOf(life)
	return id == string(memberID) && its == string(incarnation)
}

// freeLife removes a life that is neither current nor has keys.
func (s *state) freeLife(number uint32) {
	life := s.lives.At(number)
	if life.standing&lifeCurrent != 0 || life.keys > 0 {
		return
	}
	s.members.Remove(s.hashOfLife(number), number, s.hashOfLife)
	s.terms.drop(life.term)
	s.names.drop(life.role())
	texts := life.texts
	s.lives.Free(number)
	s.texts.Drop(texts)
}

// currentLife returns the number of the life that a member's record has; 0 if there is no record.
func (s *state) currentLife(of *workspace, memberID string) uint32 {
	return s.members.Find(s.memberHash(of.number, memberID), func(number uint32) bool {
		life := s.lives.At(number)
		if life.standing&lifeCurrent == 0 || s.terms.get(life.term).workspace != of {
			return false
		}
		id, _ := s.textsOf(life)
		return id == memberID
	})
}

// presentLife returns the number of the life that the record of a life's member has now; 0 if there
// is no record. For most keys that is the life itself.
func (s *state) presentLife(number uint32) uint32 {
	life := s.lives.At(number)
	if life.standing&lifeCurrent != 0 {
		return number
	}
	id, _ := s.textsOf(life)
	return s.currentLife(s.terms.get(life.term).workspace, id)
}

// textsOf returns the id and the incarnation of a life's member. An id has no NUL.
func (s *state) textsOf(life *life) (id, incarnation string) {
	id, incarnation, _ = strings.Cut(s.texts.Get(life.texts), "\x00")
	return id, incarnation
}

// member returns a life's member as decide sees it.
func (s *state) member(life *life) decide.Member {
	_, incarnation := s.textsOf(life)
	return s.memberAs(life, incarnation)
}

// memberAs is member if the incarnation is known.
func (s *state) memberAs(life *life, incarnation string) decide.Member {
	return decide.Member{
		Incarnation:          incarnation,
		WorkspaceIncarnation: s.terms.get(life.term).incarnation,
		Role:                 *s.names.get(life.role()),
		Active:               life.standing&lifeActive != 0,
		Removed:              life.standing&lifeRemoved != 0,
	}
}

// memberHash returns the seeded hash of a member.
func (s *state) memberHash(workspace uint32, memberID string) uint64 {
	return maphash.String(s.seed, memberID) + uint64(workspace)*0x9e3779b97f4a7c15
}

func (s *state) hashOfLife(number uint32) uint64 {
	life := s.lives.At(number)
	id, _ := s.textsOf(life)
	return s.memberHash(s.terms.get(life.term).workspace.number, id)
}
