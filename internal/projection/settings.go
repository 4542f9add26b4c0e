package projection

import (
	"fmt"
	"time"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// Settings are the settings that all processes over the store share. They are not changed once they
// are made.
type Settings struct {
	// Staleness is S, the length of the leases of near-caches.
	Staleness time.Duration
	// Previous is a larger S that was in force before, and under which leases may still hold; 0 if no
	// larger one was.
	Previous time.Duration
	// Changed is when S was last set to another value; zero if that is not known.
	Changed time.Time
	// Record is what is stored. It must not be changed.
	Record *storagev1.SettingsRecord
}

// prepareSettings returns the settings of a record, or why they cannot be used. A bound that no command
// can set was not written by this version: going by it could mean to wait too short.
func prepareSettings(record *storagev1.SettingsRecord) (*Settings, error) {
	settings := &Settings{
		Staleness: record.GetStaleness().AsDuration(), Previous: record.GetPreviousStaleness().AsDuration(), Record: record,
	}
	if record.GetChangeTime() != nil {
		settings.Changed = record.GetChangeTime().AsTime()
	}
	var problem string
	switch {
	case record.GetStaleness().CheckValid() != nil || settings.Staleness < storage.MinStaleness || settings.Staleness > storage.MaxStaleness:
		problem = fmt.Sprintf("a staleness bound of %s", settings.Staleness)
	case record.GetPreviousStaleness() != nil && record.GetPreviousStaleness().CheckValid() != nil || settings.Previous < 0 || settings.Previous > storage.MaxStaleness:
		problem = fmt.Sprintf("a previous staleness bound of %s", settings.Previous)
	default:
		return settings, nil
	}
	return nil, &storage.DamagedError{Kind: "settings", Name: "shared", Problem: problem}
}

// settingsOf returns the settings that an item has, and reports whether it has any. The settings are nil
// if they cannot be read, and err says why.
func settingsOf(item storage.Item) (settings *Settings, err error, has bool) { //nolint:revive // the error is a part of the item
	switch {
	case item.Settings != nil:
		settings, err = prepareSettings(item.Settings)
		return settings, err, true
	case item.Damaged != nil && item.Damaged.Settings:
		return nil, item.Damaged.Err, true
	}
	return nil, nil, false
}

// Settings returns the shared settings and the revision at which they held. Errors:
// storage.ErrNotFound if the store has none, a storage.DamagedError if they cannot be read.
func (p *Projection) Settings() (*Settings, int64, error) {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	s := p.state
	switch {
	case s.damagedSettings != nil:
		return nil, s.revision, s.damagedSettings
	case s.settings == nil:
		return nil, s.revision, storage.ErrNotFound
	}
	return s.settings, s.revision, nil
}

// newerSchema returns ErrNewer if a change raises the schema beyond what this version knows.
func newerSchema(change *storage.Committed) error {
	for _, item := range change.Put {
		if item.Settings != nil {
			if damaged := storage.NotUnderstood(item); damaged != nil {
				item = storage.Item{Damaged: damaged}
			}
		}
		var err error
		switch {
		case item.Settings != nil:
			err = storage.CheckSchema(item.Settings)
		case item.Damaged != nil && item.Damaged.Settings:
			err = storage.CheckSettings(item.Damaged.Err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// publishSettings passes on the settings of a change.
func (p *Projection) publishSettings(change *storage.Committed) {
	for _, item := range change.Put {
		if settings, _, has := settingsOf(item); has {
			p.publisher.Settings(settings)
		}
	}
}
