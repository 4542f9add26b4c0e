// Package validation answers the question that every request of the product raises: who does
// this token act as, and may it do this? It looks the token's key up in the projection, and
// package decide makes the decision. It writes nothing, and reads only memory, except for
// the details of a key.
package validation

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"time"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/patience"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/token"
	"github.com/scribe-mail/keysvc/internal/usage"
)

// maxWait bounds the wait for min_revision, and for the details of a key, which are read from
// the store.
const maxWait = time.Second

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
	latest     func() time.Time // DoubtTime's argument; nil if DoubtTime was not called
	digests    bool             // set by RefuseTokens
}

// New returns a Validator that decides on a projection. now is the clock; nil means
// time.Now.
func New(projection *projection.Projection, details DetailsReader, now func() time.Time) *Validator {
	if now == nil {
		now = time.Now
	}
	return &Validator{projection: projection, details: details, now: now}
}

// RecordTo sets the recorder that is told each key that was allowed. Call it before the first
// validation.
func (v *Validator) RecordTo(recorder *usage.Recorder) { v.recorder = recorder }

// DoubtTime sets latest, which returns the latest time that it may be while the clock is in
// doubt, and the zero Time while it is not. A token that is allowed now, and would not be allowed
// at that time, is answered with CLOCK_UNSURE. Call DoubtTime before the first validation.
func (v *Validator) DoubtTime(latest func() time.Time) { v.latest = latest }

// RefuseTokens makes the Validator take digests only. Call it before the first validation.
func (v *Validator) RefuseTokens() { v.digests = true }

// Question is what is asked about a token.
type Question struct {
	// Token is the text that was presented, whatever it is. It is empty if Digest is set.
	Token string
	// Digest is what the caller sent in the place of the text; zero if it sent the text.
	Digest token.Presented
	// Requirement is what the presenter's request needs.
	Requirement decide.Requirement
	// Workspaces are those that the caller may validate in. The zero value refuses every question.
	Workspaces access.Workspaces
	// WorkspaceID is the workspace of the resource; empty means any, for a caller that may validate
	// in all of them.
	WorkspaceID string
	// Address is that of the presenter; the zero Addr if it is not known.
	Address netip.Addr
	// MinRevision, if not 0, is the min revision that the answer must reflect. Epoch is then the
	// epoch of that revision, and otherwise empty.
	MinRevision int64
	Epoch       string
	// WithDetails asks for the answer's Details.
	WithDetails bool
}

// Answer is the decision on a token. Only the decision decide.Allowed lets a request pass.
type Answer struct {
	// Decision and Reason are those of package decide.
	Decision decide.Decision
	Reason   decide.Reason
	// KeyID is the key's. It is empty if no secret matched, or the key is of another workspace.
	KeyID string
	// Missing are the scopes that the requirement names and the token lacks, in the order of the
	// requirement; with decide.ScopeNotGranted and decide.ScopeBeyondRole only.
	Missing []string
	// Grant is that of decide.Authenticate; on Allowed only.
	Grant decide.Grant
	// Now is the moment of the decision.
	Now time.Time
	// Details are the key's; on Allowed with WithDetails only.
	Details *storagev1.KeyRecord
	// Revision is a revision at which the answer is true.
	Revision int64
}

// Epoch returns the epoch that the revisions of answers belong to.
func (v *Validator) Epoch() string { return v.projection.Epoch() }

// Reached reports whether answers reflect a revision already, so that MinRevision needs no wait.
func (v *Validator) Reached(revision int64) bool { return v.projection.Revision() >= revision }

// Validate decides on a token. Whatever is wrong with the token is in the answer. An error is
// about the question or the service: *problem.Error, that of the store, or the context's.
func (v *Validator) Validate(ctx context.Context, question Question) (Answer, error) {
	// 1. Refuse a question about a workspace that the caller may not validate in, before anything is
	// looked up, so that neither the answer nor its time tells what there is. A caller that is limited
	// to some workspaces names one of them, and steps 6 and 7 refuse the keys of any other workspace
	// before they tell what state a key is in.
	if err := permit(&question); err != nil {
		return Answer{}, err
	}
	if v.digests && question.Token != "" {
		return Answer{}, problem.New(problem.TokensRefused, "this server takes no tokens; send token_digest and key_id")
	}
	// 2. Wait for the revision that the caller demands. That is a lower bound, and step 3 still
	// has to follow.
	if question.MinRevision != 0 {
		if err := v.wait(ctx, question); err != nil {
			return Answer{}, err
		}
	}
	// 3. Take a barrier before the look-up: every change that was acknowledged before the question
	// came, by whatever process, must be reflected.
	if err := v.projection.Fresh(ctx); err != nil {
		return Answer{}, err
	}
	// 4. Look up key, member, workspace, role and policy in one look, so that all of them are of
	// one revision. Text that is not a token becomes the zero Presented, which has no id and matches
	// nothing; it takes the same steps as any other. A text without "_ksk1_" is looked up as an imported token.
	presented := question.Digest
	if !presented.ByDigest() {
		presented = token.Present(question.Token)
	}
	found := v.projection.FindPresented(presented)
	if found.Policy == nil {
		return Answer{}, cmp.Or(found.Damaged, storage.ErrUnavailable)
	}
	// 5. Judge the question before the token: a caller that asks for a scope that does not exist
	// has a fault, which must show with any token.
	if err := checkScopes(&question.Requirement, found.Policy.Catalogue); err != nil {
		return Answer{}, err
	}
	// 6. Nothing is decided on a damaged record. Damage in another workspace than the expected one is
	// not told, because that would tell that there is a key; step 7 answers as for an unknown key.
	if found.Damaged != nil && (question.WorkspaceID == "" || found.WorkspaceID == "" || question.WorkspaceID == found.WorkspaceID) {
		return Answer{}, found.Damaged
	}
	// 7. Decide at one moment.
	answer := Answer{Now: v.now(), Revision: found.Revision}
	answer.Grant, answer.Reason = decide.Authenticate(presented, found.Subject(), question.WorkspaceID, answer.Now)
	answer.KeyID = answer.Grant.Principal.KeyID
	if answer.Reason != decide.NoReason {
		answer.Decision = answer.Reason.Decision()
		answer.Grant = decide.Grant{}
		return answer, nil
	}
	answer.Decision, answer.Reason = decide.Authorize(
		&answer.Grant, question.WorkspaceID, question.Requirement, question.Address, answer.Now)
	if answer.Decision != decide.Allowed {
		if answer.Reason == decide.ScopeNotGranted || answer.Reason == decide.ScopeBeyondRole {
			answer.Missing = question.Requirement.Missing(&answer.Grant)
		}
		answer.Grant = decide.Grant{}
		return answer, nil
	}
	// 8. While the clock is in doubt, refuse what its latest time would refuse. That time replaces
	// answer.Now, so the use is recorded with the time of the decision.
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
	// 9. Record the use last: only an answer that is given counts.
	if v.recorder != nil {
		var tag uint32
		if found.Last.CountsSecrets() {
			tag = answer.Grant.Secret.Tag()
		}
		v.recorder.Used(found.Last, tag, used)
	}
	return answer, nil
}

// doubt returns CLOCK_UNSURE for a token that is allowed now, but would not be allowed at the
// latest time that it may be. For any other token it sets the answer's Now to that time, so that a
// near-cache keeps the grant no longer than that time allows.
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
			"it is not known whether the token has expired: the server's clock was set forward, and its operator has to check it")
	}
	answer.Now = latest
	return nil
}

// permit refuses a question that the caller may not ask.
func permit(question *Question) error {
	switch {
	case question.Workspaces.IsAll(), question.WorkspaceID != "" && question.Workspaces.Has(question.WorkspaceID):
		return nil
	case question.WorkspaceID == "" && !question.Workspaces.IsEmpty():
		var fields problem.Fields
		fields.Add("workspace_id", "is missing; the caller may validate in some workspaces only, and must name one of them")
		return fields.Err()
	}
	return problem.New(problem.CallerNotAllowed, "the caller may not validate, or not in this workspace")
}

// UsedElsewhere records that a near-cache allowed a key at a time, with the secret that has a tag; 0 if the
// near-cache does not say which. A time before the key's creation
// (see usage.Word) or after now is replaced by the nearer of the two. Keys that do not exist, or belong to
// another workspace than the given ones, are ignored.
func (v *Validator) UsedElsewhere(keyID string, tag uint32, at time.Time, workspaces access.Workspaces) {
	found := v.projection.Find(keyID)
	if v.recorder == nil || !found.Exists || !workspaces.Has(found.Subject().Key.Workspace) {
		return
	}
	if now := v.now(); at.After(now) {
		at = now
	}
	v.recorder.Used(found.Last, tag, at)
}

// sharedWaitKey is the key of the context that the questions of one call share.
type sharedWaitKey struct{}

// Together returns a context for several questions of one call. All their waits together are
// bounded as the wait of one question.
func Together(ctx context.Context) (context.Context, context.CancelFunc) {
	bounded, cancel := patience.Bound(ctx, maxWait)
	return context.WithValue(ctx, sharedWaitKey{}, bounded), cancel
}

// bound returns a context for a wait. It ends before the caller's deadline, early enough for the
// answer to reach the caller.
func bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if shared, has := ctx.Value(sharedWaitKey{}).(context.Context); has {
		return shared, func() {}
	}
	return patience.Bound(ctx, maxWait)
}

// wait returns once the projection shows the question's MinRevision.
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
			"min_revision %d was not reached in time; the wait takes at most %s, and ends before the call's deadline", question.MinRevision, maxWait)
	}
	return err
}

// detailsOf reads the key's record, because the projection does not have names and labels.
func (v *Validator) detailsOf(ctx context.Context, principal decide.Principal) (*storagev1.KeyRecord, error) {
	bounded, cancel := bound(ctx)
	defer cancel()
	record, _, err := v.details.GetKey(bounded, principal.WorkspaceID, principal.KeyID)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return nil, storage.ErrUnavailable // purged since the decision; a retry gets another answer
	case err != nil && bounded.Err() != nil && ctx.Err() == nil:
		return nil, problem.New(problem.StoreUnavailable,
			"the store did not return the key's details within %s; without with_details it is not asked", maxWait)
	}
	return record, err
}

// checkScopes refuses a requirement with a scope that the policy does not have.
func checkScopes(requirement *decide.Requirement, catalogue decide.Scopes) error {
	var fields problem.Fields
	check := func(field, scope string) {
		if !catalogue.Contains(scope) {
			fields.AddAs(problem.ScopeUnknown, field, "%s", policy.UnknownScope(scope, catalogue, policy.WhereScopesAreListed))
		}
	}
	if !requirement.IdentityOnly && len(requirement.AllOf) == 0 && len(requirement.AnyOf) == 0 {
		check("required_scope", requirement.Scope)
	}
	for _, scope := range requirement.AllOf {
		check("all_of", scope)
	}
	for _, scope := range requirement.AnyOf {
		check("any_of", scope)
	}
	return fields.Err()
}
