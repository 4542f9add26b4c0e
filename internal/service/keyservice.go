package service

import (
	"context"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/giveway"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/token"
)

// KeyService implements keysvcv1.KeyServiceServer.
type KeyService struct {
	keysvcv1.UnimplementedKeyServiceServer
	management
}

// CreateKey implements keysvcv1.KeyServiceServer.
func (s *KeyService) CreateKey(ctx context.Context, request *keysvcv1.CreateKeyRequest) (*keysvcv1.CreateKeyResponse, error) {
	s.forms.count(ctx, len(request.GetTokenDigest()) > 0)
	return change(ctx, s.management, keysvcv1.KeyService_CreateKey_FullMethodName, request, s.verbs.CreateKey)
}

// GetKey implements keysvcv1.KeyServiceServer.
func (s *KeyService) GetKey(ctx context.Context, request *keysvcv1.GetKeyRequest) (*keysvcv1.GetKeyResponse, error) {
	return read(ctx, s.management, keysvcv1.KeyService_GetKey_FullMethodName, request, s.verbs.GetKey)
}

// ListKeys implements keysvcv1.KeyServiceServer.
func (s *KeyService) ListKeys(ctx context.Context, request *keysvcv1.ListKeysRequest) (*keysvcv1.ListKeysResponse, error) {
	return read(ctx, s.management, keysvcv1.KeyService_ListKeys_FullMethodName, request, s.verbs.ListKeys)
}

// ListNotices implements keysvcv1.KeyServiceServer.
func (s *KeyService) ListNotices(ctx context.Context, request *keysvcv1.ListNoticesRequest) (*keysvcv1.ListNoticesResponse, error) {
	return read(ctx, s.management, keysvcv1.KeyService_ListNotices_FullMethodName, request, s.verbs.ListNotices)
}

// UpdateKey implements keysvcv1.KeyServiceServer.
func (s *KeyService) UpdateKey(ctx context.Context, request *keysvcv1.UpdateKeyRequest) (*keysvcv1.UpdateKeyResponse, error) {
	return change(ctx, s.management, keysvcv1.KeyService_UpdateKey_FullMethodName, request, s.verbs.UpdateKey)
}

// RotateKey implements keysvcv1.KeyServiceServer.
func (s *KeyService) RotateKey(ctx context.Context, request *keysvcv1.RotateKeyRequest) (*keysvcv1.RotateKeyResponse, error) {
	s.forms.count(ctx, len(request.GetTokenDigest()) > 0)
	return change(ctx, s.management, keysvcv1.KeyService_RotateKey_FullMethodName, request, s.verbs.RotateKey)
}

// FinishRotation implements keysvcv1.KeyServiceServer.
func (s *KeyService) FinishRotation(ctx context.Context, request *keysvcv1.FinishRotationRequest) (*keysvcv1.FinishRotationResponse, error) {
	return change(ctx, s.management, keysvcv1.KeyService_FinishRotation_FullMethodName, request, s.verbs.FinishRotation)
}

// RevokeKey implements keysvcv1.KeyServiceServer.
func (s *KeyService) RevokeKey(ctx context.Context, request *keysvcv1.RevokeKeyRequest) (*keysvcv1.RevokeKeyResponse, error) {
	return change(ctx, s.management, keysvcv1.KeyService_RevokeKey_FullMethodName, request, s.verbs.RevokeKey)
}

// RevokeToken implements keysvcv1.KeyServiceServer.
func (s *KeyService) RevokeToken(ctx context.Context, request *keysvcv1.RevokeTokenRequest) (*keysvcv1.RevokeTokenResponse, error) {
	s.forms.count(ctx, len(request.GetTokenDigest()) > 0)
	return change(ctx, s.management, keysvcv1.KeyService_RevokeToken_FullMethodName, request, s.verbs.RevokeToken)
}

// ImportKeys implements keysvcv1.KeyServiceServer.
func (s *KeyService) ImportKeys(ctx context.Context, request *keysvcv1.ImportKeysRequest) (*keysvcv1.ImportKeysResponse, error) {
	return change(ctx, s.management, keysvcv1.KeyService_ImportKeys_FullMethodName, request, s.verbs.ImportKeys)
}

// ImportKeys calls keys.Manager.ImportKeys.
func (v Verbs) ImportKeys(ctx context.Context, actor audit.Actor, request *keysvcv1.ImportKeysRequest) (*keysvcv1.ImportKeysResponse, error) {
	imports := make([]keys.KeyImport, 0, len(request.GetKeys()))
	for _, key := range request.GetKeys() {
		imports = append(imports, keys.KeyImport{
			Digest:       token.DigestFrom(key.GetTokenSha256()),
			CreateTime:   timeOf(key.GetCreateTime()),
			MemberID:     key.GetMemberId(),
			Name:         keys.NormalName(key.GetName()),
			Scopes:       key.GetScopes(),
			AllowedCIDRs: key.GetAllowedCidrs(),
			Labels:       key.GetLabels(),
			ExpireTime:   timeOf(key.GetExpireTime()),
		})
	}
	results, position, err := v.Manager.ImportKeys(ctx, onBehalf(actor, request.ActorMemberId), request.GetWorkspaceId(), imports, request.GetValidateOnly())
	if err != nil {
		return nil, err
	}
	response := &keysvcv1.ImportKeysResponse{Revision: position.Revision, Epoch: position.Epoch}
	for _, result := range results {
		shown := &keysvcv1.KeyImportResult{KeyId: result.KeyID, Imported: result.Imported}
		if result.Err != nil {
			shown.Error = showError(result.Err)
		}
		response.Results = append(response.Results, shown)
	}
	return response, nil
}

// ReleaseKeys implements keysvcv1.KeyServiceServer.
func (s *KeyService) ReleaseKeys(ctx context.Context, request *keysvcv1.ReleaseKeysRequest) (*keysvcv1.ReleaseKeysResponse, error) {
	return change(ctx, s.management, keysvcv1.KeyService_ReleaseKeys_FullMethodName, request, s.verbs.ReleaseKeys)
}

// CreateKey calls keys.Manager.CreateKey.
func (v Verbs) CreateKey(ctx context.Context, actor audit.Actor, request *keysvcv1.CreateKeyRequest) (*keysvcv1.CreateKeyResponse, error) {
	issued, err := v.Manager.CreateKey(ctx, onBehalf(actor, request.ActorMemberId), keys.KeySpec{
		WorkspaceID:  request.GetWorkspaceId(),
		MemberID:     request.GetMemberId(),
		Name:         keys.NormalName(request.GetName()),
		Scopes:       request.GetScopes(),
		AllowedCIDRs: request.GetAllowedCidrs(),
		Labels:       request.GetLabels(),
		ExpireTime:   timeOf(request.GetExpireTime()),
		RequestID:    request.RequestId,
		Digest:       token.DigestFrom(request.GetTokenDigest()),
		KeyIDNonce:   request.GetKeyIdNonce(),
	})
	if err != nil {
		return nil, err
	}
	return &keysvcv1.CreateKeyResponse{
		Key: showKey(issued.Key), Token: issued.Token.Reveal(), Revision: issued.Revision, Epoch: issued.Epoch,
		ByDigest: len(request.GetTokenDigest()) > 0,
	}, nil
}

// GetKey calls keys.Manager.GetKey.
func (v Verbs) GetKey(ctx context.Context, visible access.Workspaces, request *keysvcv1.GetKeyRequest) (*keysvcv1.GetKeyResponse, error) {
	key, position, err := v.Manager.GetKey(ctx, visible, request.GetWorkspaceId(), request.GetKeyId())
	if err != nil {
		return nil, err
	}
	return &keysvcv1.GetKeyResponse{
		Key: showKey(key), Role: key.Role, EffectiveScopes: key.EffectiveScopes, Revision: position.Revision, Epoch: position.Epoch,
	}, nil
}

// ListKeys calls keys.Manager.ListKeys.
func (v Verbs) ListKeys(ctx context.Context, visible access.Workspaces, request *keysvcv1.ListKeysRequest) (*keysvcv1.ListKeysResponse, error) {
	query := keys.KeyQuery{
		WorkspaceID:    request.GetWorkspaceId(),
		MemberID:       request.MemberId,
		Scope:          request.Scope,
		ExpiringBefore: timeOf(request.GetExpiringBefore()),
		UnusedSince:    timeOf(request.GetUnusedSince()),
		IssuedLocally:  request.IssuedLocally,
		Imported:       request.Imported,
		NameContains:   keys.NormalName(request.GetNameContains()),
		WithTotal:      request.GetWithTotalSize(),
		PageSize:       int(request.GetPageSize()),
		PageToken:      request.GetPageToken(),
	}
	for _, state := range request.GetStates() {
		query.States = append(query.States, keys.KeyState(state))
	}
	page, err := v.Manager.ListKeys(ctx, visible, query)
	if err != nil {
		return nil, err
	}
	response := &keysvcv1.ListKeysResponse{NextPageToken: page.NextPageToken, Revision: page.Revision, Epoch: page.Epoch}
	if page.Total != nil {
		total := int32(*page.Total) //nolint:gosec // 10,000 and less
		response.TotalSize = &total
	}
	response.Keys = make([]*keysvcv1.Key, 0, len(page.Keys))
	work := giveway.From(ctx)
	for _, key := range page.Keys {
		work.GiveWay()
		response.Keys = append(response.Keys, showKey(key))
	}
	return response, nil
}

// ListNotices calls keys.Manager.ListNotices.
func (v Verbs) ListNotices(ctx context.Context, visible access.Workspaces, request *keysvcv1.ListNoticesRequest) (*keysvcv1.ListNoticesResponse, error) {
	page, err := v.Manager.ListNotices(ctx, visible, keys.NoticeQuery{
		WorkspaceID: request.GetWorkspaceId(),
		InUse:       request.InUse,
		DueAfter:    timeOf(request.GetDueAfter()),
		PageSize:    int(request.GetPageSize()),
		PageToken:   request.GetPageToken(),
	})
	if err != nil {
		return nil, err
	}
	response := &keysvcv1.ListNoticesResponse{
		NextPageToken: page.NextPageToken, More: page.Waiting > 0, Revision: page.Revision, Epoch: page.Epoch,
	}
	for _, notice := range page.Notices {
		response.Notices = append(response.Notices, &keysvcv1.Notice{
			NoticeId: notice.ID, Days: int32(notice.Days), DueTime: stampOf(notice.DueTime), //nolint:gosec // G115: up to 30
			InUse: notice.InUse, Key: showKey(notice.Key),
		})
	}
	return response, nil
}

// UpdateKey calls keys.Manager.UpdateKey.
func (v Verbs) UpdateKey(ctx context.Context, actor audit.Actor, request *keysvcv1.UpdateKeyRequest) (*keysvcv1.UpdateKeyResponse, error) {
	key, position, err := v.Manager.UpdateKey(ctx, onBehalf(actor, request.ActorMemberId), keys.KeyUpdate{
		WorkspaceID:  request.GetKey().GetWorkspaceId(),
		KeyID:        request.GetKey().GetKeyId(),
		Mask:         request.GetUpdateMask().GetPaths(),
		Name:         keys.NormalName(request.GetKey().GetName()),
		Labels:       request.GetKey().GetLabels(),
		Scopes:       request.GetKey().GetScopes(),
		AllowedCIDRs: request.GetKey().GetAllowedCidrs(),
		Etag:         request.Etag,
	})
	if err != nil {
		return nil, err
	}
	return &keysvcv1.UpdateKeyResponse{Key: showKey(key), Revision: position.Revision, Epoch: position.Epoch}, nil
}

// RotateKey calls keys.Manager.RotateKey.
func (v Verbs) RotateKey(ctx context.Context, actor audit.Actor, request *keysvcv1.RotateKeyRequest) (*keysvcv1.RotateKeyResponse, error) {
	issued, err := v.Manager.RotateKey(ctx, onBehalf(actor, request.ActorMemberId), keys.Rotation{
		WorkspaceID: request.GetWorkspaceId(),
		KeyID:       request.GetKeyId(),
		Overlap:     durationOf(request.GetOverlap()),
		ExpireTime:  timeOf(request.GetExpireTime()),
		RequestID:   request.RequestId,
		Digest:      token.DigestFrom(request.GetTokenDigest()),
	})
	if err != nil {
		return nil, err
	}
	return &keysvcv1.RotateKeyResponse{
		Key: showKey(issued.Key), Token: issued.Token.Reveal(), Revision: issued.Revision, Epoch: issued.Epoch,
		ByDigest: len(request.GetTokenDigest()) > 0,
	}, nil
}

// FinishRotation calls keys.Manager.FinishRotation.
func (v Verbs) FinishRotation(ctx context.Context, actor audit.Actor, request *keysvcv1.FinishRotationRequest) (*keysvcv1.FinishRotationResponse, error) {
	key, position, err := v.Manager.FinishRotation(ctx, onBehalf(actor, request.ActorMemberId), request.GetWorkspaceId(), request.GetKeyId())
	if err != nil {
		return nil, err
	}
	return &keysvcv1.FinishRotationResponse{Key: showKey(key), Revision: position.Revision, Epoch: position.Epoch}, nil
}

// RevokeKey calls keys.Manager.RevokeKey.
func (v Verbs) RevokeKey(ctx context.Context, actor audit.Actor, request *keysvcv1.RevokeKeyRequest) (*keysvcv1.RevokeKeyResponse, error) {
	key, position, err := v.Manager.RevokeKey(ctx, onBehalf(actor, request.ActorMemberId), request.GetWorkspaceId(), request.GetKeyId())
	if err != nil {
		return nil, err
	}
	return &keysvcv1.RevokeKeyResponse{Key: showKey(key), Revision: position.Revision, Epoch: position.Epoch}, nil
}

// RevokeToken calls keys.Manager.RevokeToken.
func (v Verbs) RevokeToken(ctx context.Context, actor audit.Actor, request *keysvcv1.RevokeTokenRequest) (*keysvcv1.RevokeTokenResponse, error) {
	name, position, err := v.Manager.RevokeToken(ctx, onBehalf(actor, request.ActorMemberId), keys.Reported{
		Text: request.GetToken(), Digest: token.DigestFrom(request.GetTokenDigest()), KeyID: request.GetKeyId(),
	})
	if err != nil {
		return nil, err
	}
	return &keysvcv1.RevokeTokenResponse{
		WorkspaceId: name.WorkspaceID, KeyId: name.KeyID, Revision: position.Revision, Epoch: position.Epoch,
		ByDigest: len(request.GetTokenDigest()) > 0,
	}, nil
}

// ReleaseKeys calls keys.Manager.ReleaseKeys.
func (v Verbs) ReleaseKeys(ctx context.Context, actor audit.Actor, request *keysvcv1.ReleaseKeysRequest) (*keysvcv1.ReleaseKeysResponse, error) {
	released, position, err := v.Manager.ReleaseKeys(ctx, onBehalf(actor, request.ActorMemberId), keys.Release{
		WorkspaceID: request.GetWorkspaceId(), KeyIDs: request.GetKeyIds(), ValidateOnly: request.GetValidateOnly(),
	})
	if err != nil {
		return nil, err
	}
	return &keysvcv1.ReleaseKeysResponse{ReleasedKeyIds: released, Revision: position.Revision, Epoch: position.Epoch}, nil
}

// showKey returns a key as messages have it.
func showKey(key *keys.Key) *keysvcv1.Key {
	shown := &keysvcv1.Key{
		KeyId:        key.ID,
		WorkspaceId:  key.WorkspaceID,
		MemberId:     key.MemberID,
		Name:         key.Name,
		Scopes:       key.Scopes,
		State:        keysvcv1.KeyState(key.State),
		CreateTime:   stampOf(key.CreateTime),
		ExpireTime:   stampOf(key.ExpireTime),
		LastUsedTime: stampOf(key.LastUsedTime),
		ImportTime:   stampOf(key.ImportTime),
		RevokeTime:   stampOf(key.RevokeTime),
		Labels:       key.Labels,
		AllowedCidrs: key.AllowedCIDRs,
		Etag:         key.Etag,
		CreatedBy:    showChangedBy(key.CreatedBy),
		RevokedBy:    showChangedBy(key.RevokedBy),
		StopTime:     stampOf(key.StopTime),
		StopReason:   keysvcv1.StopReason(key.StopReason),
	}
	for _, secret := range key.Secrets {
		shown.Secrets = append(shown.Secrets, &keysvcv1.KeySecret{
			CreateTime: stampOf(secret.CreateTime), ExpireTime: stampOf(secret.ExpireTime), LastUsedTime: stampOf(secret.LastUsedTime),
			IssuedLocally: secret.IssuedLocally, Imported: secret.Imported,
		})
	}
	return shown
}

// showChangedBy returns who made a change as messages have it; nil for nil.
func showChangedBy(by *keys.ChangedBy) *keysvcv1.ChangedBy {
	if by == nil {
		return nil
	}
	return &keysvcv1.ChangedBy{Caller: by.Caller, ActorMemberId: by.MemberID}
}
