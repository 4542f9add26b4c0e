package server_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/channelz/grpc_channelz_v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/race"
)

// The matrix calls every method over every way in as every kind of caller:
//
//	caller                            answer
//	none, unknown, expired            UNAUTHENTICATED; no connection on ways that need an identity (see ways)
//	removed or expired, connected     the same, and its streams end
//	all rights but the method's       PERMISSION_DENIED, before anything is looked up
//	only one right, of another method the same: no right implies another
//	the right, for another workspace  row.elsewhere, whether or not there is what the call names
//	the right, for this workspace     row.right, or PERMISSION_DENIED if the call concerns all workspaces;
//	                                  INVALID_ARGUMENT if the call can name a workspace, and does not
//	the right                         row.right
//
// Health answers anyone who has a connection.

// answer is the code of an answer, the reason of its ErrorInfo, and the decision of a validation.
type answer string

const (
	isOK         answer = "OK"
	isAllowed    answer = "OK DECISION_ALLOWED"
	isNotKnown   answer = "Unauthenticated CALLER_UNKNOWN"
	isNotAllowed answer = "PermissionDenied CALLER_NOT_ALLOWED"
	isNameless   answer = "InvalidArgument FIELD_INVALID"
	noKey        answer = "NotFound KEY_NOT_FOUND"
	noMember     answer = "NotFound MEMBER_NOT_FOUND"
	noChannel    answer = "NotFound"
	noConnection answer = "Unavailable"
)

// row is a method of the matrix.
type row struct {
	method string
	// needs is the right that its callers need by the contract, and not by the server's own table.
	needs access.Right
	// right is the answer to a caller with the right.
	right answer
	// elsewhere is the answer to a caller with the right for another workspace; "" for a method that
	// concerns no workspace, or whatever its caller sees: then it is right.
	elsewhere answer
	// everything is set for a method that concerns all workspaces.
	everything bool
	// finds is set for a method that finds a key, a token or a member, and does not make it.
	finds bool
	// request returns what is sent.
	request func(*scene, place) proto.Message
}

// place is what a call is about.
type place struct {
	workspace, member, key, token string
	// leaver is a member that may be removed, and rotated, revoked and reported are keys, and the
	// token of one, to which that may be done. doomed is a workspace that may be removed.
	leaver, rotated, revoked, reported, doomed string
}

// rows returns the matrix. A method without a row fails TestEveryMethodIsInTheMatrix.
func rows() []row {
	return slices.Concat(validationRows(), keyRows(), digestRows(), memberRows(), auditRows(), backupRows(), anyoneRows(), channelzRows())
}

func validationRows() []row {
	question := func(p place) *keysvcv1.ValidateKeyRequest {
		return &keysvcv1.ValidateKeyRequest{Token: p.token, RequiredScope: "emails:read", WorkspaceId: p.workspace}
	}
	return []row{
		{
			method: keysvcv1.ValidationService_ValidateKey_FullMethodName, needs: access.Validate, right: isAllowed, elsewhere: isNotAllowed, finds: true,
			request: func(_ *scene, p place) proto.Message { return question(p) },
		},
		{
			method: keysvcv1.ValidationService_BatchValidateKeys_FullMethodName, needs: access.Validate, right: isAllowed, elsewhere: isNotAllowed, finds: true,
			request: func(_ *scene, p place) proto.Message {
				return &keysvcv1.BatchValidateKeysRequest{Requests: []*keysvcv1.ValidateKeyRequest{question(p)}}
			},
		},
		{
			method: keysvcv1.SyncService_Sync_FullMethodName, needs: access.Validate, right: isOK,
			request: func(*scene, place) proto.Message {
				return &keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Hello{Hello: &keysvcv1.SyncHello{}}}
			},
		},
	}
}

// digestRows are the calls that can have a digest in the place of a token.
func digestRows() []row {
	draw := func(length int) []byte {
		drawn := make([]byte, length)
		_, _ = rand.Read(drawn) // never fails
		return drawn
	}
	return []row{
		{
			method: keysvcv1.ValidationService_ValidateKey_FullMethodName, needs: access.Validate, right: isAllowed, elsewhere: isNotAllowed, finds: true,
			request: func(_ *scene, p place) proto.Message {
				return &keysvcv1.ValidateKeyRequest{TokenDigest: digestOf(p.token), KeyId: p.key, IdentityOnly: true, WorkspaceId: p.workspace}
			},
		},
		{
			method: keysvcv1.KeyService_CreateKey_FullMethodName, needs: access.IssueLocal, right: isOK, elsewhere: isNotAllowed,
			request: func(_ *scene, p place) proto.Message {
				return &keysvcv1.CreateKeyRequest{
					WorkspaceId: p.workspace, MemberId: p.member, Name: "local", Scopes: []string{"emails:read"},
					TokenDigest: draw(32), KeyIdNonce: draw(16),
				}
			},
		},
		{
			method: keysvcv1.KeyService_RotateKey_FullMethodName, needs: access.IssueLocal, right: isOK, elsewhere: isNotAllowed, finds: true,
			request: func(_ *scene, p place) proto.Message {
				return &keysvcv1.RotateKeyRequest{WorkspaceId: p.workspace, KeyId: p.rotated, Overlap: durationpb.New(0), TokenDigest: draw(32)}
			},
		},
		{
			method: keysvcv1.KeyService_RevokeToken_FullMethodName, needs: access.Report, right: isOK, elsewhere: noKey, finds: true,
			request: func(_ *scene, p place) proto.Message {
				return &keysvcv1.RevokeTokenRequest{TokenDigest: digestOf(p.reported), KeyId: strings.Split(p.reported, "_")[2]}
			},
		},
	}
}

func keyRows() []row {
	return []row{
		{
			method: keysvcv1.KeyService_ImportKeys_FullMethodName, needs: access.IssueLocal, right: isOK, elsewhere: isNotAllowed,
			request: func(_ *scene, p place) proto.Message {
				hash := make([]byte, 32)
				_, _ = rand.Read(hash) // never fails
				return &keysvcv1.ImportKeysRequest{WorkspaceId: p.workspace, Keys: []*keysvcv1.KeyImport{
					{TokenSha256: hash, MemberId: p.member, Name: "imported", Scopes: []string{"emails:read"}},
				}}
			},
		},
		{
			method: keysvcv1.KeyService_CreateKey_FullMethodName, needs: access.Issue, right: isOK, elsewhere: isNotAllowed,
			request: func(_ *scene, p place) proto.Message {
				return &keysvcv1.CreateKeyRequest{WorkspaceId: p.workspace, MemberId: p.member, Name: "matrix", Scopes: []string{"emails:read"}}
			},
		},
		{
			method: keysvcv1.KeyService_GetKey_FullMethodName, needs: access.Read, right: isOK, elsewhere: noKey, finds: true,
			request: func(_ *scene, p place) proto.Message {
				return &keysvcv1.GetKeyRequest{WorkspaceId: p.workspace, KeyId: p.key}
			},
		},
		{
			method: keysvcv1.KeyService_ListKeys_FullMethodName, needs: access.Read, right: isOK, elsewhere: isOK,
			request: func(_ *scene, p place) proto.Message {
				return &keysvcv1.ListKeysRequest{WorkspaceId: p.workspace, MemberId: &p.member}
			},
		},
		{
			method: keysvcv1.KeyService_ListNotices_FullMethodName, needs: access.Read, right: isOK, elsewhere: isOK,
			request: func(_ *scene, p place) proto.Message {
				return &keysvcv1.ListNoticesRequest{WorkspaceId: p.workspace}
			},
		},
		{
			method: keysvcv1.KeyService_UpdateKey_FullMethodName, needs: access.Issue, right: isOK, elsewhere: isNotAllowed, finds: true,
			request: func(_ *scene, p place) proto.Message {
				return &keysvcv1.UpdateKeyRequest{
					Key:        &keysvcv1.Key{WorkspaceId: p.workspace, KeyId: p.key, Name: "renamed"},
					UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name"}},
				}
			},
		},
		{
			method: keysvcv1.KeyService_RotateKey_FullMethodName, needs: access.Issue, right: isOK, elsewhere: isNotAllowed, finds: true,
			request: func(_ *scene, p place) proto.Message {
				return &keysvcv1.RotateKeyRequest{WorkspaceId: p.workspace, KeyId: p.rotated, Overlap: durationpb.New(0)}
			},
		},
		{
			method: keysvcv1.KeyService_FinishRotation_FullMethodName, needs: access.Revoke, right: isOK, elsewhere: isNotAllowed, finds: true,
			request: func(_ *scene, p place) proto.Message {
				return &keysvcv1.FinishRotationRequest{WorkspaceId: p.workspace, KeyId: p.key}
			},
		},
		{
			method: keysvcv1.KeyService_RevokeKey_FullMethodName, needs: access.Revoke, right: isOK, elsewhere: isNotAllowed, finds: true,
			request: func(_ *scene, p place) proto.Message {
				return &keysvcv1.RevokeKeyRequest{WorkspaceId: p.workspace, KeyId: p.revoked}
			},
		},
		{
			method: keysvcv1.KeyService_ReleaseKeys_FullMethodName, needs: access.Administer, right: isOK, elsewhere: isNotAllowed, finds: true,
			request: func(_ *scene, p place) proto.Message {
				return &keysvcv1.ReleaseKeysRequest{WorkspaceId: p.workspace, KeyIds: []string{p.key}}
			},
		},
		{
			// It names no workspace, so it answers as if there were no such key.
			method: keysvcv1.KeyService_RevokeToken_FullMethodName, needs: access.Report, right: isOK, elsewhere: noKey, finds: true,
			request: func(_ *scene, p place) proto.Message { return &keysvcv1.RevokeTokenRequest{Token: p.reported} },
		},
	}
}

func memberRows() []row {
	return []row{
		{
			method: keysvcv1.MemberService_PutMember_FullMethodName, needs: access.Directory, right: isOK, elsewhere: isNotAllowed,
			request: func(_ *scene, p place) proto.Message {
				return &keysvcv1.PutMemberRequest{
					WorkspaceId: p.workspace, MemberId: p.member, Role: "owner", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
				}
			},
		},
		{
			method: keysvcv1.MemberService_GetMember_FullMethodName, needs: access.Read, right: isOK, elsewhere: noMember, finds: true,
			request: func(_ *scene, p place) proto.Message {
				return &keysvcv1.GetMemberRequest{WorkspaceId: p.workspace, MemberId: p.member}
			},
		},
		{
			method: keysvcv1.MemberService_ListMembers_FullMethodName, needs: access.Read, right: isOK, elsewhere: isOK,
			request: func(_ *scene, p place) proto.Message {
				return &keysvcv1.ListMembersRequest{WorkspaceId: p.workspace}
			},
		},
		{
			// It names no workspace: it lists those that its caller sees.
			method: keysvcv1.MemberService_ListWorkspaces_FullMethodName, needs: access.Read, right: isOK,
			request: func(*scene, place) proto.Message { return &keysvcv1.ListWorkspacesRequest{} },
		},
		{
			method: keysvcv1.MemberService_RemoveMember_FullMethodName, needs: access.Directory, right: isOK, elsewhere: isNotAllowed,
			request: func(_ *scene, p place) proto.Message {
				return &keysvcv1.RemoveMemberRequest{WorkspaceId: p.workspace, MemberId: p.leaver}
			},
		},
		{
			method: keysvcv1.MemberService_RemoveWorkspace_FullMethodName, needs: access.Administer, right: isOK, elsewhere: isNotAllowed,
			request: func(_ *scene, p place) proto.Message {
				return &keysvcv1.RemoveWorkspaceRequest{WorkspaceId: p.doomed}
			},
		},
		{
			method: keysvcv1.PolicyService_ApplyPolicy_FullMethodName, needs: access.Administer, right: isOK, elsewhere: isNotAllowed, everything: true,
			request: func(s *scene, _ place) proto.Message {
				return &keysvcv1.ApplyPolicyRequest{Policy: s.policy, ReplacesDigest: s.digest, ValidateOnly: true}
			},
		},
		{ // the store is a file, which keeps no settings
			method: keysvcv1.SettingsService_FinishUpgrade_FullMethodName, needs: access.Administer,
			right: "FailedPrecondition SETTINGS_NOT_STORED", elsewhere: isNotAllowed, everything: true,
			request: func(*scene, place) proto.Message { return &keysvcv1.FinishUpgradeRequest{} },
		},
		{ // the store is a file, which keeps no settings
			method: keysvcv1.SettingsService_SetStaleness_FullMethodName, needs: access.Administer,
			right: "FailedPrecondition SETTINGS_NOT_STORED", elsewhere: isNotAllowed, everything: true,
			request: func(*scene, place) proto.Message {
				return &keysvcv1.SetStalenessRequest{Staleness: durationpb.New(time.Second)}
			},
		},
	}
}

func auditRows() []row {
	return []row{
		{
			method: keysvcv1.AuditService_ListAuditEvents_FullMethodName, needs: access.Audit, right: isOK, elsewhere: isOK,
			request: func(_ *scene, p place) proto.Message {
				return &keysvcv1.ListAuditEventsRequest{WorkspaceId: p.workspace, KeyId: p.key}
			},
		},
		{
			method: keysvcv1.AuditService_ExplainKey_FullMethodName, needs: access.Audit, right: isOK, elsewhere: noKey, finds: true,
			request: func(_ *scene, p place) proto.Message {
				return &keysvcv1.ExplainKeyRequest{WorkspaceId: p.workspace, KeyId: p.key, RequiredScope: "emails:read"}
			},
		},
	}
}

func backupRows() []row {
	return []row{{
		method: keysvcv1.BackupService_Backup_FullMethodName, needs: access.Administer, right: isOK, elsewhere: isNotAllowed, everything: true,
		request: func(*scene, place) proto.Message { return &keysvcv1.BackupRequest{} },
	}, {
		method: keysvcv1.DebugService_Profile_FullMethodName, needs: access.Administer, right: isOK, elsewhere: isNotAllowed, everything: true,
		request: func(*scene, place) proto.Message {
			return &keysvcv1.ProfileRequest{Kind: keysvcv1.ProfileKind_PROFILE_KIND_GOROUTINE}
		},
	}}
}

// anyoneRows are for callers that are known, whatever they may do, and for anyone.
func anyoneRows() []row {
	return []row{
		{
			method: keysvcv1.PolicyService_GetPolicy_FullMethodName, needs: access.Known, right: isOK,
			request: func(*scene, place) proto.Message { return &keysvcv1.GetPolicyRequest{} },
		},
		{
			method: keysvcv1.SettingsService_GetSettings_FullMethodName, needs: access.Known, right: isOK,
			request: func(*scene, place) proto.Message { return &keysvcv1.GetSettingsRequest{} },
		},
		{
			method: keysvcv1.SyncService_AwaitRevision_FullMethodName, needs: access.Known, right: isOK,
			request: func(s *scene, _ place) proto.Message {
				return &keysvcv1.AwaitRevisionRequest{Revision: 1, Epoch: s.epoch}
			},
		},
		{
			method: keysvcv1.CallerService_WhoAmI_FullMethodName, needs: access.Known, right: isOK,
			request: func(*scene, place) proto.Message { return &keysvcv1.WhoAmIRequest{} },
		},
		{
			method: keysvcv1.StatusService_GetStatus_FullMethodName, needs: access.Known, right: isOK,
			request: func(*scene, place) proto.Message { return &keysvcv1.GetStatusRequest{} },
		},
		{
			method: grpc_reflection_v1.ServerReflection_ServerReflectionInfo_FullMethodName, needs: access.Known, right: isOK,
			request: func(*scene, place) proto.Message {
				return &grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}}
			},
		},
		{
			method: grpc_reflection_v1alpha.ServerReflection_ServerReflectionInfo_FullMethodName, needs: access.Known, right: isOK,
			request: func(*scene, place) proto.Message {
				return &grpc_reflection_v1alpha.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1alpha.ServerReflectionRequest_ListServices{}}
			},
		},
		{
			method: grpc_health_v1.Health_Check_FullMethodName, needs: access.Anyone, right: isOK,
			request: func(*scene, place) proto.Message { return &grpc_health_v1.HealthCheckRequest{} },
		},
		{
			method: grpc_health_v1.Health_List_FullMethodName, needs: access.Anyone, right: isOK,
			request: func(*scene, place) proto.Message { return &grpc_health_v1.HealthListRequest{} },
		},
		{
			method: grpc_health_v1.Health_Watch_FullMethodName, needs: access.Anyone, right: isOK,
			request: func(*scene, place) proto.Message { return &grpc_health_v1.HealthCheckRequest{} },
		},
	}
}

func channelzRows() []row {
	const nothing = 1 << 40 // is the id of nothing
	lists := map[string]proto.Message{
		grpc_channelz_v1.Channelz_GetTopChannels_FullMethodName:   &grpc_channelz_v1.GetTopChannelsRequest{},
		grpc_channelz_v1.Channelz_GetServers_FullMethodName:       &grpc_channelz_v1.GetServersRequest{},
		grpc_channelz_v1.Channelz_GetServerSockets_FullMethodName: &grpc_channelz_v1.GetServerSocketsRequest{ServerId: nothing},
	}
	finds := map[string]proto.Message{
		grpc_channelz_v1.Channelz_GetServer_FullMethodName:     &grpc_channelz_v1.GetServerRequest{ServerId: nothing},
		grpc_channelz_v1.Channelz_GetChannel_FullMethodName:    &grpc_channelz_v1.GetChannelRequest{ChannelId: nothing},
		grpc_channelz_v1.Channelz_GetSubchannel_FullMethodName: &grpc_channelz_v1.GetSubchannelRequest{SubchannelId: nothing},
		grpc_channelz_v1.Channelz_GetSocket_FullMethodName:     &grpc_channelz_v1.GetSocketRequest{SocketId: nothing},
	}
	var all []row
	for right, requests := range map[answer]map[string]proto.Message{isOK: lists, noChannel: finds} {
		for method, request := range requests {
			all = append(all, row{
				method: method, needs: access.Known, right: right,
				request: func(*scene, place) proto.Message { return request },
			})
		}
	}
	return all
}

// descriptor returns the method's descriptor.
func (r row) descriptor(t *testing.T) protoreflect.MethodDescriptor {
	t.Helper()
	name := strings.ReplaceAll(strings.TrimPrefix(r.method, "/"), "/", ".")
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		t.Fatal(err)
	}
	method, _ := found.(protoreflect.MethodDescriptor)
	return method
}

// streams reports whether the method is a stream.
func (r row) streams(t *testing.T) bool {
	t.Helper()
	return r.descriptor(t).IsStreamingServer()
}

// anybody reports whether every known caller has what the method needs.
func (r row) anybody() bool { return r.needs == access.Known || r.needs == access.Anyone }

// scene has what the calls are about.
type scene struct {
	*entrance

	rows []row
	way  way
	// here is a workspace with everything in it, strange the same workspace with nothing of it that
	// there is, and nowhere a workspace that there is not.
	here, strange, nowhere place
	policy                 *keysvcv1.Policy
	digest, epoch          string
}

const (
	noSuchKey = "0123456789abcdef"
	// own is the workspace of callers that are limited to another one.
	own = "other"
)

// newScene prepares what the calls are about.
func newScene(t *testing.T, way way) *scene {
	t.Helper()
	s := &scene{entrance: way.open(t), rows: rows(), way: way}
	for _, member := range []string{"ann", "leaver"} {
		s.putMember(t, "acme", member, "owner")
	}
	s.putMember(t, own, "bob", "owner")
	s.putMember(t, "doomed", "dan", "owner")
	key, rotated := s.create(t, "acme", "ann", "emails:read"), s.create(t, "acme", "ann", "emails:read")
	revoked, reported := s.create(t, "acme", "ann", "emails:read"), s.create(t, "acme", "ann", "emails:read")
	s.here = place{
		workspace: "acme", member: "ann", key: key.GetKey().GetKeyId(), token: key.GetToken(),
		leaver: "leaver", rotated: rotated.GetKey().GetKeyId(), revoked: revoked.GetKey().GetKeyId(), reported: reported.GetToken(), doomed: "doomed",
	}
	// A token that was never issued: the prefix and the form are right.
	stranger := "never_" + strings.SplitN(key.GetToken(), "_", 2)[1]
	s.strange = place{
		workspace: "acme", member: "nobody", key: noSuchKey, token: stranger,
		leaver: "nobody", rotated: noSuchKey, revoked: noSuchKey, reported: stranger, doomed: "nowhere",
	}
	s.nowhere = s.strange
	s.nowhere.workspace = "nowhere"
	current, err := s.policies.GetPolicy(testContext(t), &keysvcv1.GetPolicyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	s.policy, s.digest, s.epoch = current.GetPolicy(), current.GetDigest(), current.GetEpoch()
	return s
}

// visitor is a caller with its connection.
type visitor struct {
	credential

	name string
	conn *grpc.ClientConn
}

// enter has a caller connect, of which the callers file says so much: rights, and workspaces. Nobody
// else is in the file.
func (s *scene) enter(t *testing.T, what string) *visitor {
	t.Helper()
	made := s.credential(t, s.later())
	s.list(t, "name: visitor, "+made.line+", "+what)
	return &visitor{credential: made, name: what, conn: made.dial()}
}

// outcome is what a call ends with.
type outcome struct {
	answer answer
	// text is all of it, for a comparison.
	text string
}

// call calls a method. Of a stream the first message counts.
func (v *visitor) call(t *testing.T, row row, request proto.Message) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	response := dynamicResponse(t, row.method)
	if !row.streams(t) {
		return outcomeOf(t, response, v.conn.Invoke(v.context(ctx), row.method, request, response))
	}
	_, err := v.begin(ctx, t, row, request, response)
	return outcomeOf(t, response, err)
}

// begin begins a stream, and receives the first message.
func (v *visitor) begin(ctx context.Context, t *testing.T, row row, request, response proto.Message) (grpc.ClientStream, error) {
	t.Helper()
	both := row.descriptor(t).IsStreamingClient()
	stream, err := v.conn.NewStream(v.context(ctx), &grpc.StreamDesc{ServerStreams: true, ClientStreams: both}, row.method)
	if err != nil {
		return nil, err
	}
	if err := stream.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if !both {
		if err := stream.CloseSend(); err != nil {
			return nil, err
		}
	}
	return stream, stream.RecvMsg(response)
}

// outcomeOf returns the outcome of a call. That of a batch is that of its only item.
func outcomeOf(t *testing.T, response proto.Message, err error) outcome {
	t.Helper()
	if batch, is := response.(*keysvcv1.BatchValidateKeysResponse); is && err == nil {
		item := batch.GetResponses()[0]
		if refused := item.GetError(); refused != nil {
			reason := strings.TrimPrefix(refused.GetReason().String(), "ERROR_REASON_")
			if item.GetDecision() != keysvcv1.Decision_DECISION_UNSPECIFIED {
				t.Errorf("an item with an error has the decision %s", item.GetDecision())
			}
			return outcome{answer: answer(codes.Code(refused.GetCode()).String() + " " + reason), text: prototext.Format(batch)}
		}
		return outcome{answer: answer("OK " + item.GetDecision().String()), text: prototext.Format(batch)}
	}
	if err != nil {
		text := status.Code(err).String()
		if found := detailsOf(t, err).info; found != nil {
			text += " " + found.GetReason()
		}
		return outcome{answer: answer(text), text: prototext.Format(status.Convert(err).Proto())}
	}
	if validated, is := response.(*keysvcv1.ValidateKeyResponse); is {
		return outcome{answer: answer("OK " + validated.GetDecision().String()), text: prototext.Format(response)}
	}
	if notices, is := response.(*keysvcv1.ListNoticesResponse); is {
		notices.NextPageToken = "" // it has the time of the call
	}
	return outcome{answer: isOK, text: prototext.Format(response)}
}

// expect calls a method, and checks the answer.
func (s *scene) expect(t *testing.T, v *visitor, row row, about place, want ...answer) outcome {
	t.Helper()
	asked := s.counted.asked.Load()
	got := v.call(t, row, row.request(s, about))
	if !slices.Contains(want, got.answer) {
		t.Errorf("%s, by a caller with %s: %s\nwant %q", row.method, v.name, got.text, want)
	}
	if refused := slices.Contains([]answer{isNotAllowed, isNotKnown, isNameless, noConnection}, want[0]); refused && s.counted.asked.Load() != asked {
		t.Errorf("%s, by a caller with %s: it is refused after a look into the store", row.method, v.name)
	}
	return got
}

// TestEveryMethodIsInTheMatrix: a new method needs a row.
func TestEveryMethodIsInTheMatrix(t *testing.T) {
	t.Parallel()
	var known []string
	for _, row := range rows() {
		known = append(known, row.method)
	}
	slices.Sort(known)
	known = slices.Compact(known) // by token, and by digest
	if served := callers.Methods(); !slices.Equal(known, served) {
		t.Errorf("the matrix has %q\nwant %q", known, served)
	}
}

// TestCallersGetWhatTheyMayAndNoMore is the matrix.
func TestCallersGetWhatTheyMayAndNoMore(t *testing.T) {
	t.Parallel()
	for _, way := range ways() {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, way)
			for index, right := range access.Rights() {
				if index%race.Rounds(1, 4) != 0 {
					continue // the code is the same for each, so the race detector need not see all
				}
				s.withRight(t, right)
				s.withoutRight(t, right)
				s.withRightHere(t, right)
				s.withRightElsewhere(t, right)
			}
			s.strangers(t)
			s.leaves(t, removed)
			s.leaves(t, ended) // last, because the clock is moved
		})
	}
}

// withRight calls every method as a caller with one right.
func (s *scene) withRight(t *testing.T, right access.Right) {
	t.Helper()
	v := s.enter(t, fmt.Sprintf("rights: [%s]", right))
	for _, row := range s.rows {
		if row.needs == right || row.anybody() {
			s.expect(t, v, row, s.here, row.right)
		} else {
			s.expect(t, v, row, s.here, isNotAllowed)
		}
	}
}

// withoutRight calls the methods that need a right as a caller with all others.
func (s *scene) withoutRight(t *testing.T, right access.Right) {
	t.Helper()
	var others []string
	for _, other := range access.Rights() {
		if other != right {
			others = append(others, other.String())
		}
	}
	v := s.enter(t, fmt.Sprintf("rights: [%s]", strings.Join(others, ", ")))
	for _, row := range s.rows {
		if row.needs == right {
			s.expect(t, v, row, s.here, isNotAllowed)
		}
	}
}

// withRightHere calls methods as a caller with the right for the workspace that the calls are about.
func (s *scene) withRightHere(t *testing.T, right access.Right) {
	t.Helper()
	v := s.enter(t, fmt.Sprintf("rights: [%s], workspaces: [acme, doomed]", right))
	nameless := s.here
	nameless.workspace, nameless.doomed = "", ""
	for _, row := range s.rows {
		switch {
		case row.needs != right && !row.anybody():
			continue
		case row.everything:
			s.expect(t, v, row, s.here, isNotAllowed)
			continue
		}
		s.expect(t, v, row, s.here, row.right)
		if row.elsewhere != "" && row.method != keysvcv1.KeyService_RevokeToken_FullMethodName {
			s.expect(t, v, row, nameless, isNameless)
		}
	}
}

// withRightElsewhere calls methods as a caller with the right for another workspace. It is not told
// whether there is what it names.
func (s *scene) withRightElsewhere(t *testing.T, right access.Right) {
	t.Helper()
	v := s.enter(t, fmt.Sprintf("rights: [%s], workspaces: [%s]", right, own))
	for _, row := range s.rows {
		switch {
		case row.needs != right && !row.anybody():
			continue
		case row.elsewhere == "":
			s.expect(t, v, row, s.here, row.right)
			continue
		}
		there := s.expect(t, v, row, s.here, row.elsewhere)
		for _, about := range []place{s.strange, s.nowhere} {
			if not := s.expect(t, v, row, about, row.elsewhere); not != there {
				t.Errorf("%s tells what there is in another workspace: %s\nand what there is not: %s", row.method, there.text, not.text)
			}
		}
		if !row.finds {
			continue
		}
		// In its own workspace it does not find what is in another one.
		foreign, absent := s.here, s.strange
		foreign.workspace, absent.workspace = own, own
		found, not := v.call(t, row, row.request(s, foreign)), v.call(t, row, row.request(s, absent))
		if found != not || found.answer == isOK || found.answer == isAllowed {
			t.Errorf("%s finds in a workspace what is in another one: %s\nand what is nowhere: %s", row.method, found.text, not.text)
		}
	}
}

// strangers calls every method as callers that nobody knows, each over a connection of its own.
func (s *scene) strangers(t *testing.T) {
	t.Helper()
	everything := "rights: [validate, read, issue, issue_local, revoke, report, directory, audit, administer]"
	for _, state := range []state{none, unknown, expired} {
		if _, lacks := s.way.lacks[state]; lacks {
			continue
		}
		var made credential
		switch state {
		case none:
			made = s.nothing(t)
			s.list(t, "name: visitor, "+s.credential(t, s.later()).line+", "+everything)
		case unknown:
			made = s.credential(t, s.later())
			s.list(t, "name: cron, uid: [4711], "+everything)
		default:
			made = s.credential(t, s.clock.Now().Add(-10*time.Minute).Truncate(time.Second))
			s.list(t, "name: visitor, "+made.line+", "+everything)
		}
		s.refusesAll(t, &visitor{credential: made, name: "the state " + string(state), conn: made.dial()}, state)
	}
}

// refused returns the answers to a caller that nobody knows.
func (s *scene) refused(row row, state state) []answer {
	want := isNotKnown
	if row.needs == access.Anyone {
		want = row.right
	}
	switch {
	case !slices.Contains(s.way.refused, state):
		return []answer{want}
	case state == ended: // calls are refused at once, and the connection ends within a second
		return []answer{want, noConnection}
	}
	return []answer{noConnection}
}

func (s *scene) refusesAll(t *testing.T, v *visitor, state state) {
	t.Helper()
	for _, row := range s.rows {
		s.expect(t, v, row, s.here, s.refused(row, state)...)
	}
}

// leaves calls every method as a caller that is known no longer, over the connection of before. Its
// streams end.
func (s *scene) leaves(t *testing.T, state state) {
	t.Helper()
	if _, lacks := s.way.lacks[state]; lacks {
		return
	}
	const life = 10 * time.Minute
	made := s.credential(t, s.clock.Now().Add(life).Truncate(time.Second))
	s.list(t, "name: visitor, "+made.line+", rights: [validate]")
	v := &visitor{credential: made, name: "the state " + string(state), conn: made.dial()}
	ends := map[string]<-chan outcome{}
	for _, row := range s.rows {
		if row.streams(t) && row.needs != access.Administer {
			ends[row.method] = v.follow(t, row, row.request(s, s.here))
		}
	}
	if state == removed {
		s.list(t, "name: cron, uid: [4711], rights: [validate]")
	} else {
		s.clock.pass(2 * life)
		s.tick(t)
	}
	for _, row := range s.rows {
		end, streams := ends[row.method]
		switch {
		case !streams || row.needs == access.Anyone && state == ended: // it may go on for a second
		case row.needs == access.Anyone && !slices.Contains(s.way.refused, state):
			select {
			case got := <-end:
				t.Errorf("%s ended: %s", row.method, got.text)
			default:
			}
		default:
			want := []answer{isNotKnown}
			if slices.Contains(s.way.refused, state) {
				want = append(want, noConnection)
			}
			if got := waitFor(t, end, "the end of "+row.method); !slices.Contains(want, got.answer) {
				t.Errorf("%s ended: %s\nwant %q", row.method, got.text, want)
			}
		}
	}
	s.refusesAll(t, v, state)
}

// follow begins a stream, and returns what it ends with.
func (v *visitor) follow(t *testing.T, row row, request proto.Message) <-chan outcome {
	t.Helper()
	response, ended := dynamicResponse(t, row.method), make(chan outcome, 1)
	stream, err := v.begin(t.Context(), t, row, request, response)
	if err != nil {
		t.Fatalf("%s: %v", row.method, err)
	}
	go func() {
		for err == nil {
			err = stream.RecvMsg(response)
		}
		if t.Context().Err() == nil {
			ended <- outcomeOf(t, response, err)
		}
	}()
	return ended
}
