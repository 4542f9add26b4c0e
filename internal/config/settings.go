// Package config holds the settings of a keysvc process: what they mean, their defaults, what
// is allowed, and where they come from. The table in table.go has all of it, once.
package config

import (
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"time"
)

// DefaultAddress is the address that a server with Settings.Dev listens on by default.
const DefaultAddress = "127.0.0.1:7480"

// DefaultStore is the backend that is used if no other is named: one bbolt file.
const DefaultStore = "bbolt"

// DefaultStaleness is the staleness bound of near-caches if neither a setting nor the store says
// another one.
const DefaultStaleness = time.Second

// EtcdStore is the backend that several processes share.
const EtcdStore = "etcd"

// LogFormat is how log lines are written.
type LogFormat string

// The log formats.
const (
	// LogText is for people.
	LogText LogFormat = "text"
	// LogJSON is one JSON object a line.
	LogJSON LogFormat = "json"
)

// Tokens says in which form callers may present tokens.
type Tokens string

// What Tokens can be.
const (
	// TokensAccepted takes tokens and digests.
	TokensAccepted Tokens = "accept"
	// TokensRefused takes digests only, and gives out no token.
	TokensRefused Tokens = "refuse"
)

// Settings has every setting of `keysvc serve`. The zero value is not valid; start from
// Defaults.
type Settings struct {
	// Listen is the address of the listener that serves everything; see ParseAddress. "" means the
	// unix socket keysvc.sock in the data folder or, with Dev, DefaultAddress. NoListener means none,
	// if Listeners has one.
	Listen string
	// Listeners are further addresses, each with a purpose; at most 16.
	Listeners []Listener
	// SocketMode is the mode of unix sockets, and SocketGroup the name or number of their group;
	// "" means the group of the process.
	SocketMode  fs.FileMode
	SocketGroup string
	// AllowPlaintext allows plaintext on loopback without Dev.
	AllowPlaintext bool
	// Callers is the YAML file that says who may call, and what each may do. "" means that nobody
	// may call but the owner of the process on a unix socket and, where plaintext is served on
	// loopback, everybody who reaches it.
	Callers string
	// TLSServerCert and TLSServerKey are files in PEM: the server's certificate with its
	// intermediates, and its key. Both are set, or neither is.
	TLSServerCert, TLSServerKey string
	// SPIFFESocket is the address of the SPIFFE Workload API, "unix:///path"; "" for none.
	SPIFFESocket string
	// TLSBearers lets clients connect with TLS and no certificate, because their calls bring tokens.
	TLSBearers bool
	// Tokens tells if callers may send tokens and get them, or digests only.
	Tokens Tokens
	// Store is the name of the backend that holds everything: DefaultStore or EtcdStore.
	Store string
	// EtcdEndpoints are the addresses of the members of the etcd cluster, at most 9: at least one with
	// EtcdStore, none otherwise.
	EtcdEndpoints []Address
	// EtcdPrefix is the beginning of all names of the store in etcd. It begins and ends with "/".
	EtcdPrefix string
	// EtcdCA is a file with the authorities of etcd's certificates, in PEM. If it is set, TCP to etcd is
	// TLS; otherwise only a member on loopback or on a unix socket is reached.
	EtcdCA string
	// EtcdCert and EtcdKey are files in PEM: the certificate for etcd with its intermediates, and its
	// key. Both are set, or neither is.
	EtcdCert, EtcdKey string
	// EtcdUser is the user of etcd, and EtcdPasswordFile the file with the user's password. Both are
	// set, or neither is.
	EtcdUser, EtcdPasswordFile string
	// Data is the folder of the store's file. Folder and store must exist if neither Init nor
	// Dev is set.
	Data string
	// Anchor is the file that remembers how far the store had come; "" means beside the
	// store's file. The folder of the anchor must exist.
	Anchor string
	// AuditSink is the path of the file that gets a line for each audit event. Empty stands for no
	// file, and "off" for no file any more. The folder of the file must exist.
	AuditSink string
	// AuditRetentionDays is for how many days the store keeps audit events that the sink has: 1 to
	// 36500, or 0 for ever. The last event of each record stays.
	AuditRetentionDays int
	// AuditSinkMaxBytes is the length of the sink's file from which on the server renames it and
	// begins a new one; 0 for any.
	AuditSinkMaxBytes int
	// AuditSinkKeepDays is for how many days the files that the sink's file was renamed to are kept
	// after their last line: 1 to 36500, or 0 for ever.
	AuditSinkKeepDays int
	// TraceEndpoint is the URL of the collector that traces are sent to; "" for none. Of TraceOneIn
	// calls one is traced.
	TraceEndpoint string
	TraceOneIn    int
	// BackupDir is the folder of scheduled backups, which must exist; "" for none.
	BackupDir string
	// BackupInterval is the time from one scheduled backup to the next, and BackupKeep how many are
	// kept, at least 1.
	BackupInterval time.Duration
	BackupKeep     int
	// BackupRate is how many bytes a second a backup is written or sent with.
	BackupRate int
	// NoticeWebhook is the URL that gets the notices that keys end soon; "" for none. NoticeSecret is the
	// file with the secrets that they are signed with; both are set, or neither is.
	NoticeWebhook, NoticeSecret string
	// NoticeInterval is how often the server looks for notices, and counts the keys that end soon.
	NoticeInterval time.Duration
	// Init makes a new, empty store, and its folder if the folder is missing. The start fails if
	// there is a store already.
	Init bool
	// Policy is a YAML file whose policy an empty store gets; "" means the built-in policy. A
	// store that has a policy keeps it.
	Policy string
	// Dev makes a demonstration workspace, once, and prints commands to try. It makes the store if
	// the store is missing.
	Dev bool

	// LogLevel is the lowest level that is logged.
	LogLevel slog.Level
	// LogFormat is how log lines are written.
	LogFormat LogFormat

	// DrainTimeout is how long requests in flight may take to end when the server stops: 0 to
	// 1 hour. 0 cuts them off at once.
	DrainTimeout time.Duration
	// MaxInFlight is the max. number of requests of one kind (validations, changes, reads,
	// waits) that are worked on at a time; more are refused with RESOURCE_EXHAUSTED.
	MaxInFlight int
	// MaxConnections is the max. number of connections, and MaxConnectionsPerSource that of one
	// address or user; 0 means that sources are not counted.
	MaxConnections, MaxConnectionsPerSource int
	// ConnectionAge is how long a connection may be open before its client is asked to connect
	// again, up to a tenth more or less, and ConnectionIdle how long without a request.
	ConnectionAge, ConnectionIdle time.Duration
	// MaxStreams is the max. number of open requests of one connection.
	MaxStreams int
	// MaxOpenStreams is the max. number of open requests of all connections, without the streams of
	// near-caches.
	MaxOpenStreams int
	// MaxMessageBytes is the max. size of a request.
	MaxMessageBytes int
	// MaxBufferedBytes is the max. number of bytes of requests and of answers that are not written
	// yet, of all calls together.
	MaxBufferedBytes int
	// MaxHeaderBytes is the max. size of the headers of a request.
	MaxHeaderBytes int
	// UsageInterval is how often last-used times are written: a crash loses at most the
	// last-used times of one interval.
	UsageInterval time.Duration
	// SweepInterval is how often keys and members past their retention are purged.
	SweepInterval time.Duration
	// Staleness is how long a near-cache may answer without hearing from the server. It bounds
	// how long a near-cache can miss a change that was acknowledged. 0 means that it was not given: then a
	// store in etcd says it, and otherwise it is DefaultStaleness.
	Staleness time.Duration
	// MaxSessions is the max. number of near-caches that are connected at a time.
	MaxSessions int
	// SessionAge is how long a near-cache stays connected before it has to connect again, up
	// to a tenth more or less.
	SessionAge time.Duration
	// AllowClockBehind starts the server even if the wall clock is behind the last commit.
	// Until the wall clock has caught up, the server's time continues from the last commit.
	AllowClockBehind bool
	// AllowClockAhead purges even if the wall clock was more than 30 days ahead of the last
	// commit at the start. Without it, nothing is purged until a later start.
	AllowClockAhead bool
	// Channelz serves grpc's own channelz service, for debugging.
	Channelz bool
}

// Defaults returns the default of every setting.
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
	if err := s.validateListeners(); err != nil {
		return err
	}
	if least := bufferedMessages * s.MaxMessageBytes; s.MaxBufferedBytes < least {
		return &FieldError{Field: "max-buffered-bytes", Problem: fmt.Sprintf("is %d; with this max-message-bytes at least %d are required", s.MaxBufferedBytes, least)}
	}
	if err := s.validateTLS(); err != nil {
		return err
	}
	if err := s.validateEtcd(); err != nil {
		return err
	}
	switch {
	case s.NoticeWebhook != "" && s.NoticeSecret == "":
		return &FieldError{Field: "notice-secret", Problem: "is missing; notice-webhook needs it"}
	case s.NoticeWebhook == "" && s.NoticeSecret != "":
		return &FieldError{Field: "notice-webhook", Problem: "is missing; notice-secret is for it alone"}
	}
	servesAll := func(listener Listener) bool { return listener.Purpose == PurposeAll }
	if s.Dev && s.Tokens == TokensRefused {
		return &FieldError{Field: "tokens", Problem: "is refuse; with dev it must be accept, because the key of the demo workspace and the commands to try have a token"}
	}
	if s.Dev && !slices.ContainsFunc(s.AllListeners(), servesAll) {
		return &FieldError{Field: "dev", Problem: "needs a listener that serves everything"}
	}
	return nil
}
