package storagetest

import "github.com/scribe-mail/keysvc/internal/storage"

// Behaviour is one optional behaviour of stores.
type Behaviour struct {
	// Name is that of the interface in package storage.
	Name string
	// Of reports whether storage.As finds the behaviour in a store.
	Of func(store any) bool
	// Replaces is the method of storage.Store that users of the behaviour do not call because of it; ""
	// for none. A wrapper that changes that method must change the behaviour as well.
	Replaces string
}

// Behaviours are all optional behaviours. TestWrappersPassEveryBehaviourOn checks that none is left out.
var Behaviours = []Behaviour{
	behaviour[storage.AuditFollower]("AuditFollower", ""),
	behaviour[storage.AuditPruner]("AuditPruner", ""),
	behaviour[storage.Elector]("Elector", ""),
	behaviour[storage.Fencer]("Fencer", "Commit"),
	behaviour[storage.LocalBarrierReader]("LocalBarrierReader", "Barrier"),
	behaviour[storage.RefusalStore]("RefusalStore", ""),
	behaviour[storage.Resumer]("Resumer", ""),
	behaviour[storage.SettingsKeeper]("SettingsKeeper", ""),
	behaviour[storage.SinkReopener]("SinkReopener", ""),
	behaviour[storage.SinkTrimmer]("SinkTrimmer", ""),
	behaviour[storage.Snapshotter]("Snapshotter", ""),
	behaviour[storage.StatsReader]("StatsReader", ""),
	behaviour[storage.StatusReader]("StatusReader", ""),
	behaviour[storage.UsageReader]("UsageReader", ""),
	behaviour[storage.ViewLoader]("ViewLoader", "Load"),
}

func behaviour[T any](name, replaces string) Behaviour {
	return Behaviour{Name: name, Replaces: replaces, Of: func(store any) bool {
		_, has := storage.As[T](store)
		return has
	}}
}
