package server

import (
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/projection"
)

// Methods of requests and responses that name a subject.
type (
	hasWorkspace interface{ GetWorkspaceId() string }
	hasKeyID     interface{ GetKeyId() string }
	hasMemberID  interface{ GetMemberId() string }
	hasKey       interface{ GetKey() *keysvcv1.Key }
	hasMember    interface{ GetMember() *keysvcv1.Member }
	hasActor     interface{ GetActorMemberId() string }
)

// named returns the subject that a message names; messages of other APIs name nothing.
func named(message any) events.Subject {
	if with, has := message.(hasKey); has && with.GetKey() != nil {
		return events.Subject{WorkspaceID: with.GetKey().GetWorkspaceId(), KeyID: with.GetKey().GetKeyId()}
	}
	if with, has := message.(hasMember); has && with.GetMember() != nil {
		return events.Subject{WorkspaceID: with.GetMember().GetWorkspaceId(), MemberID: with.GetMember().GetMemberId()}
	}
	var subject events.Subject
	if with, has := message.(hasWorkspace); has {
		subject.WorkspaceID = with.GetWorkspaceId()
	}
	if with, has := message.(hasKeyID); has {
		subject.KeyID = with.GetKeyId()
	}
	if with, has := message.(hasMemberID); has {
		subject.MemberID = with.GetMemberId()
	}
	return subject
}

// subjects finds out what calls are about.
type subjects struct {
	// projection knows which ids exist.
	projection *projection.Projection
}

// of returns what a call was about, and the member on whose behalf it was made. Only ids
// of what exists are returned: text of a caller that names nothing may be a secret that
// was sent in the wrong field.
func (s subjects) of(request, response any) (subject events.Subject, actor string) {
	asked, answered := named(request), named(response)
	subject = answered
	if subject == (events.Subject{}) {
		subject = asked
	}
	if with, has := request.(hasActor); has {
		actor = with.GetActorMemberId()
	}
	return s.existing(subject), s.existing(events.Subject{WorkspaceID: subject.WorkspaceID, MemberID: actor}).MemberID
}

// existing returns a subject without the ids that do not exist.
func (s subjects) existing(subject events.Subject) events.Subject {
	if s.projection == nil {
		return events.Subject{}
	}
	if subject.KeyID != "" && !s.projection.Find(subject.KeyID).Exists {
		subject.KeyID = ""
	}
	if subject.WorkspaceID == "" || s.projection.Workspace(subject.WorkspaceID).Current == nil {
		return events.Subject{KeyID: subject.KeyID}
	}
	if member, err := s.projection.Member(subject.WorkspaceID, subject.MemberID); member == nil || err != nil {
		subject.MemberID = ""
	}
	return subject
}
