package nearcache

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/lease"
)

// This file has the questions of the simulated clients: those that memory answers, and those that
// the server is asked.

// hit begins a validation that memory may answer, or ends one.
func (s *simulation) hit(client *simulated) {
	if len(client.hits) > 0 && (s.chance(60) || len(client.hits) > 6) {
		index := s.random.IntN(len(client.hits))
		last := client.hits[index]
		client.hits = append(client.hits[:index], client.hits[index+1:]...)
		now := s.clock(client)
		switch {
		case s.breaks(answersWithoutLease):
			last.found.lease = lease.New(now, time.Hour)
		case s.breaks(leaseReadLast):
			last.found.lease = client.core.freshness.Current()
		case s.breaks(clockReadFirst):
			now = last.read
		}
		if last.found.Confirm(now) && last.wrong {
			s.violation = "another scope or another secret was allowed"
		} else if last.found.Confirm(now) {
			// The clock is read last, so P1 holds even for the time of the answer (C2).
			s.allowed("hit", last.key, s.now, last.awaited)
		}
		return
	}
	key := s.random.IntN(simulatedKeys)
	if s.chance(10) {
		asked := s.wrongQuestion(key)
		found, ok := client.core.Find(asked)
		kept := client.core.findToken(asked.Token)
		if s.breaks(keyedByID) {
			found, ok = client.core.Find(&keyauth.Question{Token: simulatedQuestion(key).Token, Requirement: asked.Requirement, WorkspaceID: asked.WorkspaceID})
		}
		if s.breaks(authorizedOnce) && kept != nil {
			found, ok = Found{lease: client.core.freshness.Current(), entry: kept}, true
		}
		if ok {
			client.hits = append(client.hits, pendingHit{key: key, wrong: true, found: found, awaited: s.awaited, read: s.clock(client)})
		}
		return
	}
	if s.breaks(leaseReadLast) || s.breaks(answersWithoutLease) {
		// The entry is found without a lease, too.
		if kept := client.core.findToken(simulatedQuestion(key).Token); kept != nil {
			client.hits = append(client.hits, pendingHit{key: key, found: Found{entry: kept}, awaited: s.awaited})
		}
		return
	}
	if found, ok := client.core.Find(simulatedQuestion(key)); ok {
		client.hits = append(client.hits, pendingHit{key: key, found: found, awaited: s.awaited, read: s.clock(client)})
	}
}

// fill moves one question forward: asked, sent, decided, answered.
func (s *simulation) fill(client *simulated) {
	if len(client.fills) == 0 || (len(client.fills) < 4 && s.chance(35)) {
		key := s.random.IntN(simulatedKeys)
		asked := waiter{started: s.now, awaited: s.awaited}
		for _, fill := range client.fills {
			if fill.key == key && (!fill.sent || s.breaks(joinSent)) {
				fill.waiters = append(fill.waiters, asked)
				return
			}
		}
		client.fills = append(client.fills, &pendingFill{key: key, waiters: []waiter{asked}})
		return
	}
	index := s.random.IntN(len(client.fills))
	fill := client.fills[index]
	switch {
	case !fill.sent:
		fill.fill, fill.sent, fill.sentAt = s.beginFill(client), true, s.now
	case !fill.decided:
		if fill.fill.Epoch() != "" && fill.fill.MinRevision > int64(s.published) && !s.breaks(noMinRevision) {
			fill.decided = true // min_revision was not reached in time
			return
		}
		fill.decided = true
		if !client.rights.Has(simulatedOwner(fill.key).WorkspaceID) {
			return // the caller may not ask about the workspace
		}
		revision := s.published
		if s.breaks(noMinRevision) {
			// A replica that is behind answers.
			revision = max(0, revision-s.random.IntN(3))
		}
		stamp := revision
		switch {
		case s.breaks(stampedLate):
			revision = max(0, revision-s.random.IntN(3))
		case s.breaks(stampedEarly) && revision > int(fill.fill.MinRevision):
			stamp--
		}
		fill.reply = &keysvcv1.ValidateKeyResponse{Revision: int64(stamp), Epoch: "epoch"}
		if until := s.truth.until[revision][fill.key]; s.truth.allowed[revision][fill.key] && (until.IsZero() || s.now.Before(until)) {
			validFor := time.Hour
			if !until.IsZero() {
				validFor = until.Sub(s.now)
			}
			owner := simulatedOwner(fill.key)
			fill.answer = keyauth.Answer{Decision: keysvcv1.Decision_DECISION_ALLOWED, Principal: &owner}
			fill.reply.Grant = &keysvcv1.Grant{Scopes: []string{"a:b"}, ValidFor: durationpb.New(validFor), VisibleWorkspaces: client.rights.Fingerprint()}
		} else {
			fill.answer = keyauth.Answer{Decision: keysvcv1.Decision_DECISION_UNAUTHENTICATED}
		}
	default:
		client.fills = append(client.fills[:index], client.fills[index+1:]...)
		if fill.reply == nil {
			return // the answer is an error: UNAVAILABLE
		}
		verdict := s.endFill(client, fill)
		s.note("fill of %d from %d: %v, verdict %d", fill.key, fill.reply.GetRevision(), fill.answer.Decision, verdict)
		if verdict == AskAgain || fill.answer.Decision != keysvcv1.Decision_DECISION_ALLOWED {
			return
		}
		if s.breaks(noMinRevision) || s.breaks(stampedLate) {
			return // the answer of a lagging replica may be old itself; only what is kept of it is checked
		}
		if late := s.now.Sub(fill.sentAt); s.breaks(useLate) && late > simulatedStaleness {
			s.violation = fmt.Sprintf("an answer was used %s after its question was sent", late)
		}
		for _, waiting := range fill.waiters {
			s.allowed("answer", fill.key, waiting.started, waiting.awaited)
		}
	}
}
