// Package callers holds the identities of callers, and one table of the permission that
// each method needs. A method that is not in the table is refused.
package callers

import (
	"context"

	"google.golang.org/grpc/channelz/grpc_channelz_v1"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1alpha"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// Permission is what a method needs and an identity may have. No identity has the zero
// Permission.
type Permission uint8

// The permissions.
const (
	// Nobody is what methods that are not in the table need. No identity has it.
	Nobody Permission = iota
	// Anyone is what health needs: every caller may ask for it, known or not.
	Anyone
	// Validate allows asking for decisions.
	Validate
	// Manage allows changing and reading keys and members.
	Manage
	// Report allows revoking leaked tokens.
	Report
	// Audit allows reading audit events.
	Audit
	// Administer allows applying policies and removing workspaces.
	Administer
	// Inspect allows reading the policy, reflection and channelz, and waiting until caches have
	// applied a change. Every known identity has it.
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

// Method describes an RPC before it is called.
type Method struct {
	// Needs is the permission that its callers need.
	Needs Permission
	// Work is its kind of work.
	Work Work
}

// Work is a kind of work. Calls of one kind share a bound on how many are in flight, and
// never take a slot of another kind.
type Work uint8

// The kinds of work.
const (
	// NoWork is the kind of methods that are not in the table. It has no slots.
	NoWork Work = iota
	// Probe is health, which must be answered however busy the server is. It has no bound.
	Probe
	// Validation decides from memory, without waiting.
	Validation
	// Change waits for its turn in the workspace, and for the disk.
	Change
	// Read reads the store, for people.
	Read
	// Wait is a unary call that waits for a revision, or for caches.
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

// methods has the permission and the kind of work of each RPC. A test compares it with the
// methods that the server serves.
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
	// A caller that may change something, by whichever permission, may wait for it.
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

// Of returns the description of a method. For a method that is not in the table it is the
// zero Method, which needs Nobody.
func Of(fullMethod string) Method { return methods[fullMethod] }

// Needs returns what a method needs; Nobody if it is not in the table.
func Needs(fullMethod string) Permission { return methods[fullMethod].Needs }

// Identity is an authenticated caller. The zero Identity may call only what Anyone may.
type Identity struct {
	// Name is recorded in audit events: "local", or the name in a certificate.
	Name string
	// permissions has a bit for each Permission of the identity.
	permissions uint
}

// Local is the identity of callers on a listener that only this machine can reach.
// It may do everything.
func Local() Identity {
	return Identity{Name: "local", permissions: 1<<Validate | 1<<Manage | 1<<Report | 1<<Audit | 1<<Administer | 1<<Inspect}
}

// May reports whether the identity may call a method.
func (i Identity) May(fullMethod string) bool { return i.Has(Needs(fullMethod)) }

// Has reports whether the identity has the permission that a method needs.
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

// FromContext returns the caller's identity; the zero Identity if ctx carries no identity.
func FromContext(ctx context.Context) Identity {
	identity, _ := ctx.Value(contextKey{}).(Identity)
	return identity
}
