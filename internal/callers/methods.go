package callers

import (
	"maps"
	"slices"

	"google.golang.org/grpc/channelz/grpc_channelz_v1"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1alpha"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
)

// Method describes an RPC before it is called.
type Method struct {
	// Needs is the right that its callers need.
	Needs access.Right
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
	// Probe asks for health once, which must be answered however busy the server is. It has no
	// bound.
	Probe
	// Validation decides from memory, without waiting.
	Validation
	// Change waits for its turn in the workspace, and for the disk.
	Change
	// Read reads the store, for people.
	Read
	// Wait is a unary call that waits for a revision, or for caches.
	Wait
	// Session is a stream of a near-cache.
	Session
	// Watch is a stream that tells of health.
	Watch
	// Inspection is a stream that tells what the server serves.
	Inspection
	// Backup is a stream that copies the store.
	Backup
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
	case Watch:
		return "watch"
	case Inspection:
		return "inspection"
	case Backup:
		return "backup"
	case NoWork:
	}
	return "none"
}

// methods has the right and the kind of work of each RPC. A test compares it with the
// methods that the server serves.
var methods = map[string]Method{
	keysvcv1.ValidationService_ValidateKey_FullMethodName:       {access.Validate, Validation},
	keysvcv1.ValidationService_BatchValidateKeys_FullMethodName: {access.Validate, Validation},

	keysvcv1.KeyService_CreateKey_FullMethodName:      {access.Issue, Change},
	keysvcv1.KeyService_GetKey_FullMethodName:         {access.Read, Read},
	keysvcv1.KeyService_ListKeys_FullMethodName:       {access.Read, Read},
	keysvcv1.KeyService_ListNotices_FullMethodName:    {access.Read, Read},
	keysvcv1.KeyService_UpdateKey_FullMethodName:      {access.Issue, Change},
	keysvcv1.KeyService_RotateKey_FullMethodName:      {access.Issue, Change},
	keysvcv1.KeyService_FinishRotation_FullMethodName: {access.Revoke, Change},
	keysvcv1.KeyService_RevokeKey_FullMethodName:      {access.Revoke, Change},
	keysvcv1.KeyService_RevokeToken_FullMethodName:    {access.Report, Change},
	keysvcv1.KeyService_ImportKeys_FullMethodName:     {access.IssueLocal, Change},
	keysvcv1.KeyService_ReleaseKeys_FullMethodName:    {access.Administer, Change},

	keysvcv1.MemberService_PutMember_FullMethodName:       {access.Directory, Change},
	keysvcv1.MemberService_GetMember_FullMethodName:       {access.Read, Read},
	keysvcv1.MemberService_ListMembers_FullMethodName:     {access.Read, Read},
	keysvcv1.MemberService_ListWorkspaces_FullMethodName:  {access.Read, Read},
	keysvcv1.MemberService_RemoveMember_FullMethodName:    {access.Directory, Change},
	keysvcv1.MemberService_RemoveWorkspace_FullMethodName: {access.Administer, Change},

	keysvcv1.PolicyService_GetPolicy_FullMethodName:   {access.Known, Read},
	keysvcv1.PolicyService_ApplyPolicy_FullMethodName: {access.Administer, Change},

	keysvcv1.SettingsService_GetSettings_FullMethodName:   {access.Known, Read},
	keysvcv1.SettingsService_SetStaleness_FullMethodName:  {access.Administer, Change},
	keysvcv1.SettingsService_FinishUpgrade_FullMethodName: {access.Administer, Change},

	keysvcv1.AuditService_ListAuditEvents_FullMethodName: {access.Audit, Read},
	keysvcv1.AuditService_ExplainKey_FullMethodName:      {access.Audit, Read},

	keysvcv1.BackupService_Backup_FullMethodName: {access.Administer, Backup},
	keysvcv1.DebugService_Profile_FullMethodName: {access.Administer, Inspection},

	keysvcv1.SyncService_Sync_FullMethodName: {access.Validate, Session},
	// A caller that may change something, by whichever right, may wait for it.
	keysvcv1.SyncService_AwaitRevision_FullMethodName: {access.Known, Wait},

	keysvcv1.CallerService_WhoAmI_FullMethodName: {access.Known, Read},

	// While the disk hangs, reads may take all their slots, and that is when the status matters.
	keysvcv1.StatusService_GetStatus_FullMethodName: {access.Known, Wait},

	grpc_health_v1.Health_Check_FullMethodName: {access.Anyone, Probe},
	grpc_health_v1.Health_List_FullMethodName:  {access.Anyone, Probe},
	grpc_health_v1.Health_Watch_FullMethodName: {access.Anyone, Watch},

	grpc_reflection_v1.ServerReflection_ServerReflectionInfo_FullMethodName:      {access.Known, Inspection},
	grpc_reflection_v1alpha.ServerReflection_ServerReflectionInfo_FullMethodName: {access.Known, Inspection},

	grpc_channelz_v1.Channelz_GetTopChannels_FullMethodName:   {access.Known, Read},
	grpc_channelz_v1.Channelz_GetServers_FullMethodName:       {access.Known, Read},
	grpc_channelz_v1.Channelz_GetServer_FullMethodName:        {access.Known, Read},
	grpc_channelz_v1.Channelz_GetServerSockets_FullMethodName: {access.Known, Read},
	grpc_channelz_v1.Channelz_GetChannel_FullMethodName:       {access.Known, Read},
	grpc_channelz_v1.Channelz_GetSubchannel_FullMethodName:    {access.Known, Read},
	grpc_channelz_v1.Channelz_GetSocket_FullMethodName:        {access.Known, Read},
}

// Of returns the description of a method. For a method that is not in the table it is the
// zero Method, which needs access.Nobody.
func Of(fullMethod string) Method { return methods[fullMethod] }

// Needs returns what a method needs; access.Nobody if it is not in the table.
func Needs(fullMethod string) access.Right { return methods[fullMethod].Needs }

// byDigest has the rights that calls need in the place of their method's, if their message has the
// digest of a token whose secret the caller has drawn.
var byDigest = map[string]access.Right{
	keysvcv1.KeyService_CreateKey_FullMethodName: access.IssueLocal,
	keysvcv1.KeyService_RotateKey_FullMethodName: access.IssueLocal,
}

// NeedsOf returns what a call with a message needs; access.Nobody if its method is not in the table.
func NeedsOf(fullMethod string, request any) access.Right {
	if local, has := byDigest[fullMethod]; has {
		if message, can := request.(interface{ GetTokenDigest() []byte }); can && len(message.GetTokenDigest()) > 0 {
			return local
		}
	}
	return Needs(fullMethod)
}

// Methods returns the full names of the methods in the table, sorted.
func Methods() []string { return slices.Sorted(maps.Keys(methods)) }
