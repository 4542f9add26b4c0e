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

// Method is what is known of an RPC before it is called.
type Method struct {
	// Needs is the permission that its callers need.
	Needs Permission
	// Work is what kind of work it is.
	Work Work
}

// Work is a kind of work. Calls of one kind share a bound on how many are in flight; those
// of different kinds never take each other's room.
type Work uint8

// The kinds of work.
const (
	// NoWork is that of methods that are not in the table. There is no room for it.
	NoWork Work = iota
	// Probe is what must be answered however busy the server is: health. It has no bound.
	Probe
	// Validation decides from memory. It waits for nobody.
	Validation
	// Change waits for its turn in the workspace, and for the disk.
	Change
	// Read reads the store, for people.
	Read
	// Wait is a unary call that waits for what others do: for a revision, or for caches.
	Wait
	// Session is a stream that stays open.
	Session
)

// String returns the kind's name, as the log has it.
func (w Work) String() string {
	switch w {
	case Probe:
		return "probe"
	case Validation:
		return "validation"
	case Change:
		return "change"
	case Read:
		return "read"
	case Wait:
		return "wait"
	case Session:
		return "session"
	case NoWork:
	}
	return "none"
}

// methods says what each RPC needs and is. A test compares it with what the server serves.
var methods = map[string]Method{
	keysvcv1.ValidationService_ValidateKey_FullMethodName:       {Validate, Validation},
	keysvcv1.ValidationService_BatchValidateKeys_FullMethodName: {Validate, Validation},

	keysvcv1.KeyService_CreateKey_FullMethodName:      {Manage, Change},
	keysvcv1.KeyService_GetKey_FullMethodName:         {Manage, Read},
	keysvcv1.KeyService_ListKeys_FullMethodName:       {Manage, Read},
	keysvcv1.KeyService_UpdateKey_FullMethodName:      {Manage, Change},
	keysvcv1.KeyService_RotateKey_FullMethodName:      {Manage, Change},
	keysvcv1.KeyService_FinishRotation_FullMethodName: {Manage, Change},
	keysvcv1.KeyService_RevokeKey_FullMethodName:      {Manage, Change},
	keysvcv1.KeyService_RevokeToken_FullMethodName:    {Report, Change},

	keysvcv1.MemberService_PutMember_FullMethodName:       {Manage, Change},
	keysvcv1.MemberService_GetMember_FullMethodName:       {Manage, Read},
	keysvcv1.MemberService_ListMembers_FullMethodName:     {Manage, Read},
	keysvcv1.MemberService_RemoveMember_FullMethodName:    {Manage, Change},
	keysvcv1.MemberService_RemoveWorkspace_FullMethodName: {Administer, Change},

	keysvcv1.PolicyService_GetPolicy_FullMethodName:   {Inspect, Read},
	keysvcv1.PolicyService_ApplyPolicy_FullMethodName: {Administer, Change},

	keysvcv1.SyncService_Sync_FullMethodName: {Validate, Session},
	// Whoever may change something, by whichever permission, may wait for it.
	keysvcv1.SyncService_AwaitRevision_FullMethodName: {Inspect, Wait},

	grpc_health_v1.Health_Check_FullMethodName: {Anyone, Probe},
	grpc_health_v1.Health_List_FullMethodName:  {Anyone, Probe},
	grpc_health_v1.Health_Watch_FullMethodName: {Anyone, Probe},

	grpc_reflection_v1.ServerReflection_ServerReflectionInfo_FullMethodName:      {Inspect, Session},
	grpc_reflection_v1alpha.ServerReflection_ServerReflectionInfo_FullMethodName: {Inspect, Session},

	grpc_channelz_v1.Channelz_GetTopChannels_FullMethodName:   {Inspect, Read},
	grpc_channelz_v1.Channelz_GetServers_FullMethodName:       {Inspect, Read},
	grpc_channelz_v1.Channelz_GetServer_FullMethodName:        {Inspect, Read},
	grpc_channelz_v1.Channelz_GetServerSockets_FullMethodName: {Inspect, Read},
	grpc_channelz_v1.Channelz_GetChannel_FullMethodName:       {Inspect, Read},
	grpc_channelz_v1.Channelz_GetSubchannel_FullMethodName:    {Inspect, Read},
	grpc_channelz_v1.Channelz_GetSocket_FullMethodName:        {Inspect, Read},
}

// Of returns what is known of a method; the zero Method, which needs Nobody, if it is not
// in the table.
func Of(fullMethod string) Method { return methods[fullMethod] }

// Needs returns what a method needs; Nobody if it is not in the table.
func Needs(fullMethod string) Permission { return methods[fullMethod].Needs }

// Identity is an authenticated caller. The zero Identity may do only what anyone may.
type Identity struct {
	// Name is recorded in audit events: "local", or what a certificate says.
	Name string
	// permissions has a bit for each that the identity has.
	permissions uint
}

// Local is the identity of callers on a listener that only this machine can reach.
// It may do everything.
func Local() Identity {
	return Identity{Name: "local", permissions: 1<<Validate | 1<<Manage | 1<<Report | 1<<Audit | 1<<Administer | 1<<Inspect}
}

// May reports whether the identity may call a method.
func (i Identity) May(fullMethod string) bool { return i.Has(Needs(fullMethod)) }

// Has reports whether the identity has what a method needs.
func (i Identity) Has(need Permission) bool {
	switch need {
	case Nobody:
		return false
	case Anyone:
		return true
	case Validate, Manage, Report, Audit, Administer, Inspect:
		return i.permissions&(1<<need) != 0
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
