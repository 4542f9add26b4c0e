package keystest

import (
	"context"
	"fmt"
	"slices"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/validation"
)

// workspaceOf returns the workspace that a message names; empty if it names none.
func workspaceOf(request any) string {
	switch request := request.(type) {
	case *keysvcv1.UpdateKeyRequest:
		return request.GetKey().GetWorkspaceId()
	case *question:
		return request.workspaceID
	case interface{ GetWorkspaceId() string }:
		return request.GetWorkspaceId()
	}
	return ""
}

// actor returns who makes a change: in half of the cases a caller that is limited to the workspace that
// the message names. The change must come out the same.
func (r *run) actor(request any) audit.Actor {
	made := Actor
	if workspaceID := workspaceOf(request); workspaceID != "" && r.chance(2) {
		made.Workspaces = access.Only(workspaceID, "elsewhere")
	}
	return made
}

// trespass makes a random call about a workspace in which its caller may do nothing. The call must be
// refused, whatever there is in the workspace, and must change nothing; both is compared with the model.
func (r *run) trespass() {
	workspaceID, keyID := pick(r, workspaceIDs), "Key0000000000000"
	if len(r.model.order) > 0 && !r.chance(4) {
		key := r.model.keys[pick(r, r.model.order)]
		workspaceID, keyID = key.workspace, key.id
	}
	allowed := slices.DeleteFunc(slices.Clone(workspaceIDs), func(id string) bool { return id == workspaceID || r.chance(2) })
	actor := Actor
	actor.Workspaces = access.Only(append(allowed, "elsewhere")...)
	before := r.events()
	ctx := context.Background()
	refused := func(operation string, err error, want keysvcv1.ErrorReason) {
		r.note("foreign "+operation, ReasonOf(err), want)
	}
	const notAllowed = keysvcv1.ErrorReason_ERROR_REASON_CALLER_NOT_ALLOWED
	requestID := fmt.Sprintf("request-%d", r.requests/2)
	switch r.random.IntN(12) {
	case 0:
		_, err := r.CreateKey(ctx, actor, &keysvcv1.CreateKeyRequest{WorkspaceId: workspaceID, MemberId: "ann", Name: "x", Scopes: scopeNames[:1], RequestId: &requestID})
		refused("create", err, notAllowed)
	case 1:
		_, err := r.RotateKey(ctx, actor, &keysvcv1.RotateKeyRequest{WorkspaceId: workspaceID, KeyId: keyID, Overlap: durationpb.New(0), RequestId: &requestID})
		refused("rotate", err, notAllowed)
	case 2:
		_, err := r.FinishRotation(ctx, actor, &keysvcv1.FinishRotationRequest{WorkspaceId: workspaceID, KeyId: keyID})
		refused("finish", err, notAllowed)
	case 3:
		_, err := r.RevokeKey(ctx, actor, &keysvcv1.RevokeKeyRequest{WorkspaceId: workspaceID, KeyId: keyID})
		refused("revoke", err, notAllowed)
	case 4:
		_, err := r.UpdateKey(ctx, actor, &keysvcv1.UpdateKeyRequest{
			Key: &keysvcv1.Key{WorkspaceId: workspaceID, KeyId: keyID, Name: "theirs"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name"}},
		})
		refused("update", err, notAllowed)
	case 5:
		_, err := r.PutMember(ctx, actor, &keysvcv1.PutMemberRequest{
			WorkspaceId: workspaceID, MemberId: pick(r, memberIDs), Role: "owner", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
		})
		refused("put member", err, notAllowed)
	case 6:
		_, err := r.RemoveMember(ctx, actor, &keysvcv1.RemoveMemberRequest{WorkspaceId: workspaceID, MemberId: pick(r, memberIDs)})
		refused("remove member", err, notAllowed)
	case 7:
		_, err := r.RemoveWorkspace(ctx, actor, &keysvcv1.RemoveWorkspaceRequest{WorkspaceId: workspaceID})
		refused("remove workspace", err, notAllowed)
	case 8:
		_, err := r.GetKey(ctx, actor.Workspaces, &keysvcv1.GetKeyRequest{WorkspaceId: workspaceID, KeyId: keyID})
		refused("get", err, keysvcv1.ErrorReason_ERROR_REASON_KEY_NOT_FOUND)
	case 9:
		_, err := r.GetMember(ctx, actor.Workspaces, &keysvcv1.GetMemberRequest{WorkspaceId: workspaceID, MemberId: pick(r, memberIDs)})
		refused("get member", err, keysvcv1.ErrorReason_ERROR_REASON_MEMBER_NOT_FOUND)
	case 10:
		page, err := r.ListKeys(ctx, actor.Workspaces, &keysvcv1.ListKeysRequest{WorkspaceId: workspaceID})
		r.note("foreign list", fmt.Sprint(len(page.GetKeys()), page.GetNextPageToken(), err), fmt.Sprint(0, "", nil))
	case 11:
		r.trespassByToken(ctx, actor, workspaceID)
	}
	if made := r.events() - before; made != 0 {
		r.t.Errorf("a call about a foreign workspace made %d audit events", made)
	}
}

// events returns how many audit events the workspaces have. A revision would not do: over a slow store the fence
// of an earlier call may still be raised.
func (r *run) events() (count int64) {
	for _, id := range workspaceIDs {
		count += r.Projection.Workspace(id).Head.Sequence
	}
	return count
}

// trespassByToken asks about a token, and reports it, without a right in its workspace.
func (r *run) trespassByToken(ctx context.Context, actor audit.Actor, workspaceID string) {
	if len(r.tokens) == 0 {
		return
	}
	token := pick(r, r.tokens)
	for _, key := range r.model.keys {
		for _, secret := range key.secrets {
			if secret.token == token {
				workspaceID = key.workspace
			}
		}
	}
	actor.Workspaces = access.Only("elsewhere")
	_, err := r.RevokeToken(ctx, actor, &keysvcv1.RevokeTokenRequest{Token: token})
	r.note("foreign revoke token", ReasonOf(err), keysvcv1.ErrorReason_ERROR_REASON_KEY_NOT_FOUND)
	asked := validation.Question{Workspaces: actor.Workspaces, Token: token, Requirement: decide.Requirement{IdentityOnly: true}, WorkspaceID: workspaceID}
	_, err = r.Validator.Validate(ctx, asked)
	r.note("foreign validate", ReasonOf(err), keysvcv1.ErrorReason_ERROR_REASON_CALLER_NOT_ALLOWED)
	asked.WorkspaceID = "elsewhere"
	answer, err := r.Validator.Validate(ctx, asked)
	r.note("foreign token", fmt.Sprint(answer.Decision, answer.Reason, answer.KeyID, err), fmt.Sprint(decide.Unauthenticated, decide.KeyInvalid, "", nil))
}

// trespass makes a call about a workspace in which its caller may do nothing. It must be refused
// although the store may be down or slow, because nothing is asked of the store.
func (c *caller) trespass() {
	request := c.request()
	want := keysvcv1.ErrorReason_ERROR_REASON_CALLER_NOT_ALLOWED
	switch request := request.(type) {
	case *keysvcv1.GetKeyRequest:
		want = keysvcv1.ErrorReason_ERROR_REASON_KEY_NOT_FOUND
	case *keysvcv1.GetMemberRequest:
		want = keysvcv1.ErrorReason_ERROR_REASON_MEMBER_NOT_FOUND
	case *keysvcv1.ListKeysRequest, *keysvcv1.RevokeTokenRequest, *keysvcv1.GetPolicyRequest:
		return // these wait for a barrier, or concern no workspace
	case *question:
		if request.workspaceID == "" {
			want = keysvcv1.ErrorReason_ERROR_REASON_FIELD_INVALID
		}
	}
	made := &call{id: c.newID("trespass"), request: request, workspaces: access.Only("elsewhere")}
	ctx, cancel := context.WithTimeout(asCaller(context.Background(), c.number), c.campaign.Deadline)
	defer cancel()
	made.ask(ctx, c.seat(c.random.IntN(len(c.seats))))
	if got := ReasonOf(made.err); got != want {
		c.t.Errorf("a call about a foreign workspace: %v, want %v: %s", got, want, made)
	}
	if c.history.committed(made.id) {
		c.t.Errorf("a call about a foreign workspace changed something: %s", made)
	}
}
