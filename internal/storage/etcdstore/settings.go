package etcdstore

import (
	"context"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

var _ storage.SettingsKeeper = (*Store)(nil)

// GetSettings implements storage.SettingsKeeper.
func (s *Store) GetSettings(ctx context.Context) (*storagev1.SettingsRecord, int64, error) {
	record, at := &storagev1.SettingsRecord{}, int64(0)
	err := s.repeatRead(ctx, func(ctx context.Context) error {
		response, err := s.read(ctx, s.getRevision(), s.get(nameSettings))
		if err != nil {
			return err
		}
		at = s.revision(first(response, 0))
		stored := first(response, 1)
		if stored == nil {
			return storage.ErrNotFound
		}
		return storage.Decode("settings", nameSettings, stored.Value, record)
	})
	if err != nil {
		return nil, at, err
	}
	return record, at, nil
}
