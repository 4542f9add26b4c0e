// Package validation answers what every request of the product asks: who does this
// token act as, and may it do this? It looks the token's key up in the projection
// and lets package decide say; it writes nothing and, details aside, reads nothing
// but memory.
package validation

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"time"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/patience"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/token"
	"github.com/scribe-mail/keysvc/internal/usage"
)

// longestWait bounds the wait for min_revision, and for details, which the store has.
const longestWait = time.Second

// DetailsReader reads the names and labels that only the store has.
type DetailsReader interface {
	GetKey(ctx context.Context, workspaceID, keyID string) (*storagev1.KeyRecord, int64, error)
}

// Validator answers questions. Its methods may be called from many goroutines.
type Validator struct {
	projection *projection.Projection
	details    DetailsReader
	now        func() time.Time
	recorder   *usage.Recorder
	latest     func() time.Time // of DoubtTime; nil if nobody called it
}

// New returns a Validator that decides on a projection. now is the clock; nil means
// time.Now.
func New(projection *projection.Projection, details DetailsReader, now func() time.Time) *Validator {
	if now == nil {
		now = time.Now
	}
	return &Validator{projection: projection, details: details, now: now}
}

// RecordTo lets the validator note each key that was allowed. It is called before the
// first validation.
func (v *Validator) RecordTo(recorder *usage.Recorder) { v.recorder = recorder }

// DoubtTime tells the validator how late it may be while nobody knows: latest returns the
// zero Time as long as the clock is right. A token that is good now, and would not be good
// then, is not decided on. It is called before the first validation.
func (v *Validator) DoubtTime(latest func() time.Time) { v.latest = latest }

// Question is what is asked about a token.
type Question struct {
	// Token is the text that was presented, whatever it is.
	Token string
	// Requirement is what the request needs.
	Requirement decide.Requirement
	// WorkspaceID is the workspace of the resource; empty means any.
	WorkspaceID string
	// Address is the presenter's; the zero Addr if it is not known.
	Address netip.Addr
	// MinRevision and Epoch ask for an answer at least as fresh; 0 asks for nothing.
	MinRevision int64
	Epoch       string
	// WithDetails asks for Details, too.
	WithDetails bool
}

// Answer is the decision on a token. Only Decision Allowed says yes.
type Answer struct {
	// Decision and Reason are decide's.
	Decision decide.Decision
	Reason   decide.Reason
	// KeyID is the key's, empty until the secret matched and the workspace agreed.
	KeyID string
	// Grant is what was authenticated; on Allowed only.
	Grant decide.Grant
	// Now is the moment of the decision.
	Now time.Time
	// Details are the key's; on Allowed with WithDetails only.
	Details *storagev1.KeyRecord
	// Revision that the answer holds at.
	Revision int64
}

// Epoch returns the epoch that the revisions of answers belong to.
func (v *Validator) Epoch() string { return v.projection.Epoch() }

// Reached reports whether answers are at least as fresh as a revision without a wait.
func (v *Validator) Reached(revision int64) bool { return v.projection.Revision() >= revision }

// Validate decides. The error speaks of the question or of the service, never of
// the token: *problem.Error, storage's, or the context's.
func (v *Validator) Validate(ctx context.Context, question Question) (Answer, error) {
	if question.MinRevision != 0 {
		if err := v.wait(ctx, question); err != nil {
			return Answer{}, err
		}
	}
	// What was acknowledged before the question came, by whatever process, is reflected.
	if err := v.projection.Fresh(ctx); err != nil {
		return Answer{}, err
	}
	// An error leaves the zero Token, which has no id, is found nowhere, and matches
	// nothing.
	presented, _ := token.Parse(question.Token)
	found := v.projection.Find(presented.ID())
	if found.Policy == nil {
		return Answer{}, cmp.Or(found.Damaged, storage.ErrUnavailable)
	}
	if !question.Requirement.IdentityOnly && !found.Policy.Catalogue.Contains(question.Requirement.Scope) {
		return Answer{}, unknownScope(question.Requirement.Scope, found.Policy.Catalogue)
	}
	if found.Damaged != nil {
		return Answer{}, found.Damaged
	}
	answer := Answer{Now: v.now(), Revision: found.Revision}
	answer.Grant, answer.Reason = decide.Authenticate(presented, found.Subject, question.WorkspaceID, answer.Now)
	answer.KeyID = answer.Grant.Principal.KeyID
	if answer.Reason != decide.NoReason {
		answer.Decision = answer.Reason.Decision()
		answer.Grant = decide.Grant{}
		return answer, nil
	}
	answer.Decision, answer.Reason = decide.Authorize(
		&answer.Grant, question.WorkspaceID, question.Requirement, question.Address, answer.Now)
	if answer.Decision != decide.Allowed {
		answer.Grant = decide.Grant{}
		return answer, nil
	}
	used := answer.Now
	if err := v.doubt(&answer, question); err != nil {
		return Answer{}, err
	}
	if question.WithDetails {
		var err error
		if answer.Details, err = v.detailsOf(ctx, answer.Grant.Principal); err != nil {
			return Answer{}, err
		}
	}
	if v.recorder != nil {
		v.recorder.Used(found.Last, used)
	}
	return answer, nil
}

// doubt returns an error for a token that is allowed, but perhaps expired. One that is not
// holds no longer than from the latest time on.
func (v *Validator) doubt(answer *Answer, question Question) error {
	if v.latest == nil {
		return nil
	}
	latest := v.latest()
	if latest.IsZero() {
		return nil
	}
	if decision, _ := decide.Authorize(&answer.Grant, question.WorkspaceID, question.Requirement, question.Address, latest); decision != decide.Allowed {
		return problem.New(problem.ClockUnsure,
			"whether the token is expired is not known: the server's clock was set forward, and waits for its operator")
	}
	answer.Now = latest
	return nil
}

// UsedElsewhere notes that a near-cache allowed a key at a time, which is taken for the
// nearest one between the key's creation and now. Keys that are not known, or belong to a
// workspace that is not visible, are passed over; nil means that all are.
func (v *Validator) UsedElsewhere(keyID string, at time.Time, visible func(workspaceID string) bool) {
	found := v.projection.Find(keyID)
	if v.recorder == nil || found.Last == nil || visible != nil && !visible(found.Subject.Key.Workspace) {
		return
	}
	if created := time.Unix(0, found.Created); at.Before(created) {
		at = created
	}
	if now := v.now(); at.After(now) {
		at = now
	}
	v.recorder.Used(found.Last, at)
}

type patienceKey struct{}

// Together returns a context for several questions that belong to one call: all of them
// wait no longer than one would.
func Together(ctx context.Context) (context.Context, context.CancelFunc) {
	bounded, cancel := patience.Bound(ctx, longestWait)
	return context.WithValue(ctx, patienceKey{}, bounded), cancel
}

// bound returns a context for a wait. It ends early enough for the caller to be told.
func bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if shared, has := ctx.Value(patienceKey{}).(context.Context); has {
		return shared, func() {}
	}
	return patience.Bound(ctx, longestWait)
}

// wait returns once the projection is as fresh as the question demands.
func (v *Validator) wait(ctx context.Context, question Question) error {
	if question.Epoch != v.projection.Epoch() {
		return problem.New(problem.EpochMismatch,
			"min_revision belongs to another epoch than the store's; drop what was cached and ask without it")
	}
	bounded, cancel := bound(ctx)
	defer cancel()
	err := v.projection.WaitFor(bounded, question.MinRevision)
	if err != nil && ctx.Err() == nil {
		return problem.New(problem.RevisionNotReached,
			"min_revision %d was not reached in time, which is %s at most and less than the call's deadline", question.MinRevision, longestWait)
	}
	return err
}

// detailsOf reads what only the store has.
func (v *Validator) detailsOf(ctx context.Context, principal decide.Principal) (*storagev1.KeyRecord, error) {
	bounded, cancel := bound(ctx)
	defer cancel()
	record, _, err := v.details.GetKey(bounded, principal.WorkspaceID, principal.KeyID)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return nil, storage.ErrUnavailable // purged since; asked again, the answer is another
	case err != nil && bounded.Err() != nil && ctx.Err() == nil:
		return nil, problem.New(problem.StoreUnavailable,
			"the store did not give the key's details in time, which is %s at most; without with_details it is not asked", longestWait)
	}
	return record, err
}

func unknownScope(scope string, catalogue []string) error {
	var fields problem.Fields
	fields.AddAs(problem.ScopeUnknown, "required_scope", "%s", policy.UnknownScope(scope, catalogue, "GetPolicy (keysvc policy show)"))
	return fields.Err()
}
