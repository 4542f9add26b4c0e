// Package callers knows who calls keysvc and what each method needs: one table,
// and what is not in it is refused.
package callers

import (
	"context"

	"google.golang.org/grpc/channelz/grpc_channelz_v1"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1alpha"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// Permission is what a method needs and an identity may have. The zero Permission is
// nobody's.
type Permission uint8

// The permissions.
const (
	// Nobody may do it.
	Nobody Permission = iota
	// Anyone may do it, known or not: health.
	Anyone
	// Validate asks for decisions.
	Validate
	// Manage changes and reads keys and members.
	Manage
	// Report revokes leaked tokens.
	Report
	// Audit reads audit events.
	Audit
	// Administer applies policies and removes workspaces.
	Administer
	// Inspect reads the policy and how the API and its connections look: reflection,
	// channelz; and waits for caches to have applied a change. Every known identity may.
	Inspect
)

// String returns the permission's name, as operators write it.
func (p Permission) String() string {
	switch p {
	case Anyone:
		return "anyone"
	case Validate:
		return "validate"
	case Manage:
		return "manage"
	case Report:
		return "report"
	case Audit:
		return "audit"
	case Administer:
		return "administer"
	case Inspect:
		return "inspect"
	case Nobody:
	}
	return "nobody"
}

// methods says what each RPC needs. A test compares it with what the server serves.
var methods = map[string]Permission{
	keysvcv1.ValidationService_ValidateKey_FullMethodName:       Validate,
	keysvcv1.ValidationService_BatchValidateKeys_FullMethodName: Validate,

	keysvcv1.KeyService_CreateKey_FullMethodName:      Manage,
	keysvcv1.KeyService_GetKey_FullMethodName:         Manage,
	keysvcv1.KeyService_ListKeys_FullMethodName:       Manage,
	keysvcv1.KeyService_UpdateKey_FullMethodName:      Manage,
	keysvcv1.KeyService_RotateKey_FullMethodName:      Manage,
	keysvcv1.KeyService_FinishRotation_FullMethodName: Manage,
	keysvcv1.KeyService_RevokeKey_FullMethodName:      Manage,
	keysvcv1.KeyService_RevokeToken_FullMethodName:    Report,

	keysvcv1.MemberService_PutMember_FullMethodName:       Manage,
	keysvcv1.MemberService_GetMember_FullMethodName:       Manage,
	keysvcv1.MemberService_ListMembers_FullMethodName:     Manage,
	keysvcv1.MemberService_RemoveMember_FullMethodName:    Manage,
	keysvcv1.MemberService_RemoveWorkspace_FullMethodName: Administer,

	keysvcv1.PolicyService_GetPolicy_FullMethodName:   Inspect,
	keysvcv1.PolicyService_ApplyPolicy_FullMethodName: Administer,

	keysvcv1.SyncService_Sync_FullMethodName: Validate,
	// Whoever may change something, by whichever permission, may wait for it.
	keysvcv1.SyncService_AwaitRevision_FullMethodName: Inspect,

	grpc_health_v1.Health_Check_FullMethodName: Anyone,
	grpc_health_v1.Health_List_FullMethodName:  Anyone,
	grpc_health_v1.Health_Watch_FullMethodName: Anyone,

	grpc_reflection_v1.ServerReflection_ServerReflectionInfo_FullMethodName:      Inspect,
	grpc_reflection_v1alpha.ServerReflection_ServerReflectionInfo_FullMethodName: Inspect,

	grpc_channelz_v1.Channelz_GetTopChannels_FullMethodName:   Inspect,
	grpc_channelz_v1.Channelz_GetServers_FullMethodName:       Inspect,
	grpc_channelz_v1.Channelz_GetServer_FullMethodName:        Inspect,
	grpc_channelz_v1.Channelz_GetServerSockets_FullMethodName: Inspect,
	grpc_channelz_v1.Channelz_GetChannel_FullMethodName:       Inspect,
	grpc_channelz_v1.Channelz_GetSubchannel_FullMethodName:    Inspect,
	grpc_channelz_v1.Channelz_GetSocket_FullMethodName:        Inspect,
}

// Needs returns what a method needs; Nobody if it is not in the table.
func Needs(fullMethod string) Permission { return methods[fullMethod] }

// Identity is an authenticated caller. The zero Identity may do only what anyone may.
type Identity struct {
	// Name is recorded in audit events: "local", or what a certificate says.
	Name string
	// permissions are what the identity may do.
	permissions map[Permission]bool
}

// Local is the identity of callers on a listener that only this machine can reach.
// It may do everything.
func Local() Identity {
	return Identity{Name: "local", permissions: map[Permission]bool{ //nolint:exhaustive // nobody and anyone are not given
		Validate: true, Manage: true, Report: true, Audit: true, Administer: true, Inspect: true,
	}}
}

// May says whether the identity may call a method.
func (i Identity) May(fullMethod string) bool {
	switch need := Needs(fullMethod); need {
	case Nobody:
		return false
	case Anyone:
		return true
	case Validate, Manage, Report, Audit, Administer, Inspect:
		return i.permissions[need]
	}
	return false
}

type contextKey struct{}

// NewContext returns a context that carries the caller's identity.
func NewContext(ctx context.Context, identity Identity) context.Context {
	return context.WithValue(ctx, contextKey{}, identity)
}

// FromContext returns the caller's identity; the zero Identity if there is none.
func FromContext(ctx context.Context) Identity {
	identity, _ := ctx.Value(contextKey{}).(Identity)
	return identity
}
