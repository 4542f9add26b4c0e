package server

import (
	"errors"
	"time"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// staleness returns S and, if the store had a larger one before, that one. A store that several
// processes share has them; otherwise, and as long as such a store has none, the setting counts.
func (s *Server) staleness() (staleness, previous time.Duration, err error) {
	settings, _, err := s.projection.Settings()
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return s.config.Settings.Staleness, 0, nil
	case err != nil:
		return 0, 0, err
	}
	return settings.Staleness, settings.Previous, nil
}
