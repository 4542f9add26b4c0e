package service

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// SettingsService implements keysvcv1.SettingsServiceServer.
type SettingsService struct {
	keysvcv1.UnimplementedSettingsServiceServer
	management
}

// NewSettings returns the service over a Manager. requestID returns the id under which a call is logged.
func NewSettings(manager *keys.Manager, errors Errors, requestID RequestIDFunc) *SettingsService {
	return &SettingsService{management: management{verbs: Verbs{manager}, errors: errors, requestID: requestID}}
}

// GetSettings implements keysvcv1.SettingsServiceServer.
func (s *SettingsService) GetSettings(ctx context.Context, request *keysvcv1.GetSettingsRequest) (*keysvcv1.GetSettingsResponse, error) {
	return read(ctx, s.management, keysvcv1.SettingsService_GetSettings_FullMethodName, request, s.verbs.GetSettings)
}

// SetStaleness implements keysvcv1.SettingsServiceServer.
func (s *SettingsService) SetStaleness(ctx context.Context, request *keysvcv1.SetStalenessRequest) (*keysvcv1.SetStalenessResponse, error) {
	return change(ctx, s.management, keysvcv1.SettingsService_SetStaleness_FullMethodName, request, s.verbs.SetStaleness)
}

// FinishUpgrade implements keysvcv1.SettingsServiceServer.
func (s *SettingsService) FinishUpgrade(ctx context.Context, request *keysvcv1.FinishUpgradeRequest) (*keysvcv1.FinishUpgradeResponse, error) {
	return change(ctx, s.management, keysvcv1.SettingsService_FinishUpgrade_FullMethodName, request, s.verbs.FinishUpgrade)
}

// FinishUpgrade calls keys.Manager.FinishUpgrade.
func (v Verbs) FinishUpgrade(ctx context.Context, actor audit.Actor, request *keysvcv1.FinishUpgradeRequest) (*keysvcv1.FinishUpgradeResponse, error) {
	before, position, err := v.Manager.FinishUpgrade(ctx, onBehalf(actor, request.ActorMemberId), request.GetSchema())
	if err != nil {
		return nil, err
	}
	return &keysvcv1.FinishUpgradeResponse{ReplacedSchema: before, Schema: storage.Newest, Revision: position.Revision, Epoch: position.Epoch}, nil
}

// GetSettings calls keys.Manager.GetSettings.
func (v Verbs) GetSettings(ctx context.Context, visible access.Workspaces, _ *keysvcv1.GetSettingsRequest) (*keysvcv1.GetSettingsResponse, error) {
	settings, position, err := v.Manager.GetSettings(ctx, visible)
	if err != nil {
		return nil, err
	}
	response := &keysvcv1.GetSettingsResponse{
		Staleness: durationpb.New(settings.Staleness), ChangeTime: stampOf(settings.Changed), Stored: settings.Stored,
		Revision: position.Revision, Epoch: position.Epoch,
	}
	if settings.Previous > 0 {
		response.PreviousStaleness = durationpb.New(settings.Previous)
	}
	return response, nil
}

// SetStaleness calls keys.Manager.SetStaleness.
func (v Verbs) SetStaleness(ctx context.Context, actor audit.Actor, request *keysvcv1.SetStalenessRequest) (*keysvcv1.SetStalenessResponse, error) {
	var wanted time.Duration // 0, which is refused, if it is missing
	if given := durationOf(request.GetStaleness()); given != nil {
		wanted = *given
	}
	before, position, err := v.Manager.SetStaleness(ctx, onBehalf(actor, request.ActorMemberId), wanted)
	if err != nil {
		return nil, err
	}
	return &keysvcv1.SetStalenessResponse{ReplacedStaleness: durationpb.New(before), Revision: position.Revision, Epoch: position.Epoch}, nil
}
