package service

import (
	"context"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/condition"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// StatusService implements keysvcv1.StatusServiceServer.
type StatusService struct {
	keysvcv1.UnimplementedStatusServiceServer
	condition func(context.Context) *condition.Condition
	errors    Errors
}

// NewStatus returns the service that tells how a server is. of returns that.
func NewStatus(of func(context.Context) *condition.Condition, errors Errors) *StatusService {
	return &StatusService{condition: of, errors: errors}
}

// GetStatus implements keysvcv1.StatusServiceServer.
func (s *StatusService) GetStatus(ctx context.Context, _ *keysvcv1.GetStatusRequest) (*keysvcv1.GetStatusResponse, error) {
	if !callers.FromContext(ctx).May(access.Known) { // not reached as long as the door refuses unknown callers
		return nil, s.errors.Status(ctx, problem.New(keysvcv1.ErrorReason_ERROR_REASON_CALLER_UNKNOWN, "the caller is not known"))
	}
	return showCondition(s.condition(ctx)), nil
}

func showCondition(c *condition.Condition) *keysvcv1.GetStatusResponse {
	response := &keysvcv1.GetStatusResponse{
		Version:        c.Version,
		StartTime:      timestamppb.New(c.Started),
		ServerTime:     timestamppb.New(c.Now),
		Epoch:          c.Epoch,
		Schema:         c.Schema,
		NewestSchema:   c.NewestSchema,
		StoreKind:      c.StoreKind,
		Revision:       c.Revision,
		LastCommitTime: stampOf(c.LastCommit),
		LastBackupTime: stampOf(c.LastBackup),
		Keys:           &keysvcv1.KeyCounts{Total: c.Keys},
		MemberCount:    c.Members,
		WorkspaceCount: c.Workspaces,
		Sessions: &keysvcv1.SessionStatus{
			Open: c.Sessions.Open, Limit: c.Sessions.Limit, Leased: c.Sessions.Leased, Behind: c.Sessions.Behind,
			UnconfirmedChanges: c.Sessions.Unconfirmed, Lag: durationpb.New(c.Sessions.Lag), Staleness: durationpb.New(c.Sessions.Staleness),
		},
		Store:     &keysvcv1.StoreStatus{},
		AuditSink: &keysvcv1.FollowerStatus{},
		Anchor:    &keysvcv1.FollowerStatus{},
		Clock: &keysvcv1.ClockStatus{
			State: keysvcv1.ClockState_CLOCK_STATE_OK, WallAhead: durationpb.New(c.Clock.WallAhead), Purges: c.Clock.Purges,
		},
	}
	if states := c.States; states != nil {
		response.Keys.States = []*keysvcv1.KeyStateCount{
			{State: keysvcv1.KeyState_KEY_STATE_ACTIVE, Count: states.Active},
			{State: keysvcv1.KeyState_KEY_STATE_SUSPENDED, Count: states.Suspended},
			{State: keysvcv1.KeyState_KEY_STATE_HELD, Count: states.Held},
			{State: keysvcv1.KeyState_KEY_STATE_EXPIRED, Count: states.Expired},
			{State: keysvcv1.KeyState_KEY_STATE_REVOKED, Count: states.Revoked},
		}
		response.Keys.ExpiringWithin_7Days, response.Keys.ExpiringWithin_30Days = &states.Within7Days, &states.Within30Days
	}
	if c.Store != nil {
		response.Store = showStore(c.Store)
		response.AuditSink, response.Anchor = showFollower(c.Store.Sink), showFollower(c.Store.Anchor)
	}
	switch {
	case c.Clock.Jumped:
		response.Clock.State = keysvcv1.ClockState_CLOCK_STATE_JUMPED
	case c.Clock.Apart != 0:
		response.Clock.State = keysvcv1.ClockState_CLOCK_STATE_APART
		response.Clock.OthersAhead = durationpb.New(c.Clock.Apart)
	}
	if c.Certificate != nil {
		response.Certificates = []*keysvcv1.CertificateStatus{{
			Use:       keysvcv1.CertificateUse_CERTIFICATE_USE_SERVER,
			StartTime: timestamppb.New(c.Certificate.Start), ExpireTime: timestamppb.New(c.Certificate.End),
		}}
	}
	for _, each := range c.Authorities {
		response.Certificates = append(response.Certificates, &keysvcv1.CertificateStatus{
			Use: keysvcv1.CertificateUse_CERTIFICATE_USE_CLIENT_AUTHORITY, TrustDomain: each.TrustDomain,
			StartTime: timestamppb.New(each.Start), ExpireTime: timestamppb.New(each.End),
		})
	}
	for _, wrong := range c.Problems() {
		response.Problems = append(response.Problems, &keysvcv1.StatusProblem{
			ProblemId: wrong.ID, Severity: keysvcv1.ProblemSeverity(wrong.Severity), Description: wrong.Description, Action: wrong.Action,
		})
	}
	return response
}

func showStore(store *storage.Status) *keysvcv1.StoreStatus {
	shown := &keysvcv1.StoreStatus{
		State:     keysvcv1.StoreState_STORE_STATE_OK,
		FileBytes: store.FileBytes, FreeBytes: store.FreeBytes, ReserveBytes: store.ReserveBytes,
		DiskFreeBytes: store.DiskFreeBytes, DiskBytes: store.DiskBytes,
	}
	switch {
	case store.Silent:
		shown.State = keysvcv1.StoreState_STORE_STATE_SILENT
	case store.Down:
		shown.State = keysvcv1.StoreState_STORE_STATE_DOWN
	case store.Exhausted:
		shown.State = keysvcv1.StoreState_STORE_STATE_EXHAUSTED
	case store.Full:
		shown.State = keysvcv1.StoreState_STORE_STATE_FULL
	}
	for index, member := range store.Members {
		state := keysvcv1.StoreMemberState_STORE_MEMBER_STATE_FOLLOWS
		switch {
		case member.Silent:
			state = keysvcv1.StoreMemberState_STORE_MEMBER_STATE_SILENT
		case member.Leads:
			state = keysvcv1.StoreMemberState_STORE_MEMBER_STATE_LEADS
		}
		// The number, and not the address: any known caller may ask for the status.
		shown.Members = append(shown.Members, &keysvcv1.StoreMember{
			Number: int32(index + 1), State: state,
			DatabaseBytes: member.DatabaseBytes, FreeBytes: member.FreeBytes, QuotaBytes: member.QuotaBytes,
		})
	}
	return shown
}

func showFollower(follower storage.Follower) *keysvcv1.FollowerStatus {
	shown := &keysvcv1.FollowerStatus{State: keysvcv1.FollowerState_FOLLOWER_STATE_OK, Revision: follower.Revision}
	switch {
	case !follower.On:
		shown.State = keysvcv1.FollowerState_FOLLOWER_STATE_OFF
	case follower.Failing:
		shown.State = keysvcv1.FollowerState_FOLLOWER_STATE_FAILING
	case follower.Full:
		shown.State = keysvcv1.FollowerState_FOLLOWER_STATE_FULL
	}
	return shown
}
