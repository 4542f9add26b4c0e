// Package config holds the settings of a keysvc process: what they mean, their defaults, what
// is allowed, and where they come from. The table in table.go has all of it, once.
package config

import (
	"log/slog"
	"time"
)

// DefaultAddress is where a server listens and a client looks for it unless
// told otherwise.
const DefaultAddress = "127.0.0.1:7480"

// DefaultStore is the backend that is used if no other is named: one bbolt file.
const DefaultStore = "bbolt"

// LogFormat is how log lines are written.
type LogFormat string

// The log formats.
const (
	// LogText is for people.
	LogText LogFormat = "text"
	// LogJSON is one JSON object a line.
	LogJSON LogFormat = "json"
)

// Settings is everything that `keysvc serve` can be told. Defaults has what
// holds for what it was not told; the zero value is not valid.
type Settings struct {
	// Listen is the address of the listener that serves everything; see ParseAddress. Until
	// there is TLS it must be local. "" means none, if Listeners has one.
	Listen string
	// Listeners are further addresses, each with a purpose; at most 16.
	Listeners []Listener
	// Store is the name of the backend that holds everything. The server knows the names,
	// and refuses others at the start.
	Store string
	// Data is the folder of the store's file. Folder and store must be there, unless Init
	// or Dev is set.
	Data string
	// Anchor is the file that remembers how far the store had come; "" means beside the
	// store's file. Its folder must be there.
	Anchor string
	// Init makes a new, empty store, and its folder if need be. The start fails if there
	// is a store already.
	Init bool
	// Policy is a YAML file that fills an empty store; "" means the built-in
	// policy. A store that has a policy keeps it.
	Policy string
	// Dev seeds a demonstration workspace, once, and prints commands to try. A store that
	// is not there is made.
	Dev bool

	// LogLevel is the least level that is logged.
	LogLevel slog.Level
	// LogFormat is how log lines are written.
	LogFormat LogFormat

	// DrainTimeout is how long requests in flight may take to end when the
	// server stops. 0 cuts them off at once.
	DrainTimeout time.Duration
	// MaxInFlight is how many requests of one kind (validations, changes, reads, waits) are
	// worked on at a time; more are refused with RESOURCE_EXHAUSTED.
	MaxInFlight int
	// MaxStreams is how many requests one connection may have open at a time.
	MaxStreams int
	// MaxMessageBytes is how large a request may be.
	MaxMessageBytes int
	// MaxHeaderBytes is how large the headers of a request may be.
	MaxHeaderBytes int
	// UsageInterval is how often last-used times are written; what a crash may lose of
	// them is bounded by it.
	UsageInterval time.Duration
	// SweepInterval is how often keys and members past their retention are purged.
	SweepInterval time.Duration
	// Staleness is how long a near-cache may answer without hearing from the server: for
	// at most so long a change that was acknowledged can go unnoticed by one.
	Staleness time.Duration
	// MaxSessions is how many near-caches may be connected at a time, and SessionAge how
	// long each stays before it has to connect anew, up to a tenth more or less.
	MaxSessions int
	SessionAge  time.Duration
	// AllowClockBehind starts although the wall clock is behind the last commit. Until
	// it has caught up, time goes on from that of the commit.
	AllowClockBehind bool
	// AllowClockAhead purges although the wall clock was more than 30 days ahead of the
	// last commit at the start. Without it, nothing is purged until a later start.
	AllowClockAhead bool
	// Channelz serves grpc's own channelz service, for debugging.
	Channelz bool
}

// Defaults returns the settings of a server that was told nothing.
func Defaults() Settings {
	var settings Settings
	for _, setting := range table {
		if setting.Default == "" {
			continue
		}
		if err := setting.kind.set(&settings, []string{setting.Default}); err != nil {
			panic("config: the default of " + setting.Name + " is wrong: " + err.Error()) // a test calls this
		}
	}
	return settings
}

// FieldError says which setting is wrong.
type FieldError struct {
	// Field is the name of the setting, or "document" for a configuration file as a whole.
	Field string
	// Origin is where the value came from.
	Origin Origin
	// Problem says what is wrong and what is allowed.
	Problem string
}

// Error returns "name: problem" with the setting's name as it was given: "--max-streams",
// "KEYSVC_MAX_STREAMS", "keysvc.yaml:3:14: max-streams", or "max-streams" for a default and
// for settings that were not loaded.
func (e *FieldError) Error() string {
	switch e.Origin.Kind {
	case FromFlag, FromVariable:
		return e.Origin.Name + ": " + e.Problem
	case FromFile:
		return e.Origin.position() + ": " + e.Field + ": " + e.Problem
	case FromDefault:
	}
	return e.Field + ": " + e.Problem
}

// Validate returns nil, or a *FieldError for the first setting that is not allowed. It looks
// at nothing but the settings themselves.
func (s Settings) Validate() error {
	for _, setting := range table {
		if err := setting.kind.check(&s); err != nil {
			return &FieldError{Field: setting.Name, Problem: err.Error()}
		}
	}
	return s.validateListeners()
}
