package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// settingsKeeper returns what keeps the settings that all servers over the store share; nil for a store
// of one server.
func (s *Server) settingsKeeper() storage.SettingsKeeper {
	keeper, _ := storage.As[storage.SettingsKeeper](s.config.Store)
	return keeper
}

// ownStaleness returns S as this process was told it.
func (s *Server) ownStaleness() time.Duration {
	return cmp.Or(s.config.Settings.Staleness, config.DefaultStaleness)
}

// staleness returns S and, if the store had a larger one before, that one. A store that several
// processes share has them; otherwise, and as long as such a store has none, the setting counts.
func (s *Server) staleness() (staleness, previous time.Duration, err error) {
	settings, _, err := s.projection.Settings()
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return s.ownStaleness(), 0, nil
	case err != nil:
		return 0, 0, err
	}
	return settings.Staleness, settings.Previous, nil
}

// agreeOnSettings stores the settings that all servers over the store share if the store keeps them and
// has none. If this process was told other ones, it must not serve: it would seem to go by them.
func (s *Server) agreeOnSettings(ctx context.Context) error {
	if s.settingsKeeper() == nil {
		return nil
	}
	stored, err := s.keys.InstallSettings(ctx, systemActor, s.ownStaleness())
	if err != nil {
		return fmt.Errorf("storing them: %w", err)
	}
	if told := s.config.Settings.Staleness; told != 0 && told != stored.Staleness {
		return fmt.Errorf("staleness is %s here and %s in the store, where it counts for all servers; leave the setting out, and change the store's with keysvc staleness set %s",
			told, stored.Staleness, told)
	}
	s.log.InfoContext(ctx, "settings of the store", "staleness", stored.Staleness.String())
	return nil
}
