package keys

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// clocksDiffer is more than the clocks of servers over one store may differ by: a server that is a
// minute off says NOT_SERVING (R11 of docs/replication.md).
const clocksDiffer = 5 * time.Minute

// Settings are the settings that all servers over a store share.
type Settings struct {
	// Staleness is the staleness bound of near-caches.
	Staleness time.Duration
	// Previous is a larger bound that was in force before; 0 if no larger one was.
	Previous time.Duration
	// Changed is when the bound was last set to another value; zero if that is not known.
	Changed time.Time
	// Stored reports whether the store keeps them. Otherwise they are those of this server.
	Stored bool
}

// GetSettings reads the settings. They belong to no workspace, so visible need not be all of them, but a
// caller without any is refused. Errors: CALLER_NOT_ALLOWED, storage.ErrDamaged,
// storage.ErrUnavailable as long as a store that keeps settings has none, and those of the store and the context.
func (m *Manager) GetSettings(ctx context.Context, visible access.Workspaces) (Settings, Position, error) {
	if visible.IsEmpty() {
		return Settings{}, Position{}, notAllowed()
	}
	if err := m.projection.Fresh(ctx); err != nil {
		return Settings{}, Position{}, err
	}
	stored, revision, err := m.projection.Settings()
	switch {
	case err == nil:
		return Settings{Staleness: stored.Staleness, Previous: stored.Previous, Changed: stored.Changed, Stored: true}, m.at(revision), nil
	case errors.Is(err, storage.ErrNotFound) && !m.keepsSettings:
		return Settings{Staleness: m.staleness}, m.at(revision), nil
	case errors.Is(err, storage.ErrNotFound):
		return Settings{}, Position{}, storage.ErrUnavailable
	}
	return Settings{}, Position{}, err
}

// InstallSettings stores the settings of a store that has none yet, and returns those that hold then. In
// a store that has settings it changes nothing. A read-only server does it as well: a store that was filled
// from a file has none, and no server can go by settings that others do not know. Errors: those of the store and
// of the context.
func (m *Manager) InstallSettings(ctx context.Context, actor audit.Actor, staleness time.Duration) (*projection.Settings, error) {
	now := m.clock()
	_, err := m.changeAlways(ctx, actor, "", func(view *attempt) (*storage.Change, error) {
		if view.Settings != nil || view.DamagedSettings != nil {
			view.unclaimed = true
			return nil, nil //nolint:nilerr // nothing to change: damaged settings are not replaced
		}
		return settingsChange(actor, nil, &storagev1.SettingsRecord{Staleness: durationpb.New(staleness), ChangeTime: timestamppb.New(now)}, now), nil
	})
	if err != nil {
		return nil, err
	}
	settings, _, err := m.projection.Settings()
	return settings, err
}

// SetStaleness changes the staleness bound, and returns the one before. It concerns all workspaces, so an
// actor that is limited to some of them is refused. Errors: FIELD_INVALID, CALLER_NOT_ALLOWED,
// SETTINGS_NOT_STORED, storage.ErrDamaged, and those of the store and the context.
func (m *Manager) SetStaleness(ctx context.Context, actor audit.Actor, wanted time.Duration) (before time.Duration, _ Position, _ error) {
	if err := mayChangeAll(actor); err != nil {
		return 0, Position{}, err
	}
	var fields problem.Fields
	if wanted < storage.MinStaleness || wanted > storage.MaxStaleness {
		fields.Add("staleness", "is missing, or not one of the durations that are allowed: %s to %s", storage.MinStaleness, storage.MaxStaleness)
	}
	checkActor(&fields, actor)
	if err := fields.Err(); err != nil {
		return 0, Position{}, err
	}
	if !m.keepsSettings {
		return 0, Position{}, problem.New(problem.SettingsNotStored,
			"the store has one server alone, so the staleness bound is that server's setting staleness: change it there")
	}
	now := m.clock()
	position, err := m.change(ctx, actor, "", func(view *attempt) (*storage.Change, error) {
		settings, err := view.StoredSettings()
		if err != nil {
			return nil, err
		}
		if before = settings.Staleness; before == wanted {
			return nil, nil
		}
		record := proto.CloneOf(settings.Record)
		record.Staleness, record.ChangeTime, record.PreviousStaleness = durationpb.New(wanted), timestamppb.New(now), nil
		if previous := previousStaleness(settings, wanted, now); previous > 0 {
			record.PreviousStaleness = durationpb.New(previous)
		}
		change := settingsChange(actor, settings.Record, record, now)
		change.Narrows = wanted < before
		return change, nil
	})
	return before, position, err
}

// FinishUpgrade raises the schema of the store to storage.Newest, and returns the one before. Whoever calls
// it has made sure that every server over the store knows that schema, which is wanted; 0 stands for
// storage.Newest. Errors: FIELD_INVALID, CALLER_NOT_ALLOWED, SETTINGS_NOT_STORED, SCHEMA_DIFFERS, storage.ErrDamaged, and
// those of the store and the context.
func (m *Manager) FinishUpgrade(ctx context.Context, actor audit.Actor, wanted int32) (before int32, _ Position, _ error) {
	if err := mayChangeAll(actor); err != nil {
		return 0, Position{}, err
	}
	var fields problem.Fields
	checkActor(&fields, actor)
	if wanted < 0 {
		fields.Add("schema", "is negative")
	}
	if err := fields.Err(); err != nil {
		return 0, Position{}, err
	}
	if !m.keepsSettings {
		return 0, Position{}, problem.New(problem.SettingsNotStored,
			"the store is a file, whose schema is raised when it is opened: nothing is to be done")
	}
	if wanted != 0 && wanted != storage.Newest {
		return 0, Position{}, problem.New(problem.SchemaDiffers,
			"the newest schema that this server knows is %d, and not %d; look again at what each server knows", storage.Newest, wanted)
	}
	now := m.clock()
	position, err := m.change(ctx, actor, "", func(view *attempt) (*storage.Change, error) {
		settings, err := view.StoredSettings()
		if err != nil {
			return nil, err
		}
		if before = storage.SchemaOf(settings.Record); before >= storage.Newest {
			return nil, nil
		}
		record := proto.CloneOf(settings.Record)
		record.Schema = storage.Newest
		change := settingsChange(actor, settings.Record, record, now)
		change.Event.Action = storagev1.AuditAction_AUDIT_ACTION_UPGRADE_FINISHED
		return change, nil
	})
	return before, position, err
}

// previousStaleness returns the largest bound that leases may still have when another bound begins; 0
// if none is larger (R9 of docs/replication.md). A server that starts then counts with it. It may be the bound
// before the last one, if that was replaced a short time ago. Times of other servers' changes are
// compared, so their clocks may differ.
func previousStaleness(before *projection.Settings, wanted time.Duration, now time.Time) time.Duration {
	previous := before.Staleness
	if now.Sub(before.Changed) < before.Previous+clocksDiffer {
		previous = max(previous, before.Previous)
	}
	if previous <= wanted {
		return 0
	}
	return previous
}

// settingsChange returns the change that stores settings. before is nil for the first ones.
func settingsChange(actor audit.Actor, before, after *storagev1.SettingsRecord, now time.Time) *storage.Change {
	event := audit.NewEvent(actor, storagev1.AuditAction_AUDIT_ACTION_SETTINGS_CHANGED, now, "")
	event.Fields = audit.SettingsFields(before, after)
	// No near-cache has to drop anything: the grants that it keeps are as right as before.
	return &storage.Change{Event: event, Kind: storagev1.FeedKind_FEED_KIND_PURGE, PutSettings: after}
}
