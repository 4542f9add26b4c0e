package config

import (
	"errors"
	"io/fs"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Setting is a row of the table of settings. Everything else about a setting is made from its row:
// the flag, the variable, the key in the file, the default, what is allowed, shell completion,
// `keysvc config show` and docs/settings.md.
type Setting struct {
	// Name is the name of the flag without dashes, and the key in the file: lower-case words
	// joined by "-". No word is "port" or "service": for a Service named keysvc, Kubernetes
	// sets variables such as KEYSVC_PORT and KEYSVC_SERVICE_HOST.
	Name string
	// Usage says in one line what the setting does. A word in backquotes names the value.
	Usage string
	// More is the rest of what docs/settings.md says, in Markdown.
	More string
	// Default is the text of the default; "" for none.
	Default string
	// Empty says what an empty or missing value stands for; "" if it has no meaning.
	Empty string
	// Group is the heading that docs/settings.md has the setting under.
	Group string
	// Path tells if the value is the path of a file or a folder.
	Path Path
	// Reloadable is set if a running server takes a new value on SIGHUP.
	Reloadable bool
	// Secret is set if the value must not be shown.
	Secret bool

	kind kind
}

// Path is the kind of thing that a text is the path of.
type Path int

// What a setting can be the path of.
const (
	// NoPath is for a text that is not a path.
	NoPath Path = iota
	// FilePath is for the path of a file.
	FilePath
	// FolderPath is for the path of a folder.
	FolderPath
)

const day = 24 * time.Hour

// bufferedMessages is how many of the largest requests max-buffered-bytes must have room for. One
// takes three times its size, and callers that are not known have an eighth of the room.
const bufferedMessages = 32

// The headings of docs/settings.md, in its order.
const (
	groupServed  = "What is served, and from where"
	groupStore   = "The store"
	groupEtcd    = "The store in etcd"
	groupNotices = "Notices that keys end"
	groupLog     = "The log"
	groupLimits  = "Limits"
	groupTimes   = "Times"
	groupCaches  = "Near-caches"
	groupCare    = "For special cases"
)

// table has every setting. It is not changed after the start.
var table = []Setting{
	{
		Name: "listen", Group: groupServed, Empty: "keysvc.sock in the folder data; with dev, " + DefaultAddress,
		Usage: "where to listen, and serve everything: an `address` host:port (port 0 means any), unix:///path, or none",
		More:  "The path of a unix socket is absolute, with at most 103 bytes. TCP needs TLS, except on loopback with `dev` or `allow-plaintext`.",
		kind:  text(func(s *Settings) *string { return &s.Listen }, checkListen),
	},
	{
		Name: "listener", Group: groupServed, Empty: "none",
		Usage: "a further `purpose=address` to listen on; purposes are all, validation, management, health and metrics",
		More: "At most 16. The purpose says which services are served there; health is served by each but metrics. " +
			"A listener for health or for [metrics](metrics.md) serves plaintext, also to other machines.",
		kind: repeated("listener", func(s *Settings) *[]Listener { return &s.Listeners }, ParseListener, Listener.Validate),
	},
	{
		Name: "socket-mode", Group: groupServed, Default: "0600",
		Usage: "the `mode` of unix sockets",
		More:  "Who may write to a socket, and enter its folder, can connect. Whether such a user may call is for `callers` to say. See [callers](callers.md#a-socket-for-other-users).",
		kind:  fileMode(func(s *Settings) *fs.FileMode { return &s.SocketMode }),
	},
	{
		Name: "socket-group", Group: groupServed, Empty: "that of the process",
		Usage: "the `group` of unix sockets, by name or number",
		kind:  text(func(s *Settings) *string { return &s.SocketGroup }, anyValue),
	},
	{
		Name: "allow-plaintext", Group: groupServed, Default: "false",
		Usage: "serve plaintext on loopback, where every user of this machine can read it",
		More:  "Without `callers`, every user of this machine may then do everything. See [callers](callers.md#plaintext).",
		kind:  boolean(func(s *Settings) *bool { return &s.AllowPlaintext }),
	},
	{
		Name: "callers", Group: groupServed, Empty: "the owner of the process alone", Path: FilePath,
		Usage: "the `file` that says who may call, and what each may do",
		More:  "Changes of the file are applied within a second. See [callers](callers.md).",
		kind:  text(func(s *Settings) *string { return &s.Callers }, anyValue),
	},
	{
		Name: "tls-server-cert", Group: groupServed, Empty: "none", Path: FilePath,
		Usage: "the PEM `file` of the server's certificate, its intermediates after it; TCP then serves TLS 1.3",
		More:  "Needs `tls-server-key` and `callers`. A new certificate is used within a second. See [TLS](tls.md).",
		kind:  text(func(s *Settings) *string { return &s.TLSServerCert }, anyValue),
	},
	{
		Name: "tls-server-key", Group: groupServed, Empty: "none", Path: FilePath,
		Usage: "the PEM `file` of the key of that certificate",
		kind:  text(func(s *Settings) *string { return &s.TLSServerKey }, anyValue),
	},
	{
		Name: "spiffe-socket", Group: groupServed, Empty: "none",
		Usage: "the `address` of the SPIFFE Workload API, unix:///path; TCP then serves TLS 1.3",
		More:  "It gives the server's certificate, if `tls-server-cert` does not, and the bundles of the trust domains that `callers` has with `workload_api`. See [TLS](tls.md#spire).",
		kind:  text(func(s *Settings) *string { return &s.SPIFFESocket }, checkSocket),
	},
	{
		Name: "tls-bearers", Group: groupServed, Default: "false",
		Usage: "let clients connect with TLS and no certificate, because their calls bring tokens",
		More:  "Needed for caller tokens and for the tokens of `issuers` in `callers`. See [TLS](tls.md#tokens).",
		kind:  boolean(func(s *Settings) *bool { return &s.TLSBearers }),
	},
	{
		Name: "tokens", Group: groupServed, Default: string(TokensAccepted),
		Usage: "accept tokens from callers, or refuse them and take digests only",
		More: "With `refuse` no token comes to this server or leaves it: callers send digests, and draw the secrets of new keys themselves. " +
			"Not with `dev`. See [operations](operations.md#without-tokens).",
		kind: word(func(s *Settings) *Tokens { return &s.Tokens }, TokensAccepted, TokensRefused),
	},
	{
		Name: "store", Group: groupStore, Default: DefaultStore,
		Usage: "the `backend` that holds everything",
		More:  "`bbolt` is a file in the folder `data`. `etcd` is a cluster that several servers share; see [replication](replication.md).",
		kind:  word(func(s *Settings) *string { return &s.Store }, DefaultStore, EtcdStore),
	},
	{
		Name: "data", Group: groupStore, Default: "./keysvc-data", Path: FolderPath,
		Usage: "the `folder` of the store's file",
		More:  "With `store` etcd the folder has sockets and `demo-token` only.",
		kind:  text(func(s *Settings) *string { return &s.Data }, notEmpty("a folder")),
	},
	{
		Name: "init", Group: groupStore, Default: "false",
		Usage: "make a new, empty store, and its folder; fails if there is a store",
		More:  "The folder gets mode 0700. Give it once, as a flag.",
		kind:  boolean(func(s *Settings) *bool { return &s.Init }),
	},
	{
		Name: "read-only", Group: groupStore, Default: "false", Reloadable: true,
		Usage: "refuse every change, while the store is moved; validations and reads go on",
		More: "Changes are refused with UNAVAILABLE. Nothing is purged or pruned, and last-used times are kept in memory. " +
			"See [from a file to etcd](operations.md#from-a-file-to-etcd-and-back).",
		kind: boolean(func(s *Settings) *bool { return &s.ReadOnly }),
	},
	{
		Name: "anchor", Group: groupStore, Empty: "beside the store's file", Path: FilePath,
		Usage: "the `file` that remembers how far the store had come",
		More:  "See [the anchor](operations.md#the-anchor).",
		kind:  text(func(s *Settings) *string { return &s.Anchor }, anyValue),
	},
	{
		Name: "audit-sink", Group: groupStore, Empty: "none", Path: FilePath,
		Usage: "the `file` that gets a line of JSON for each audit event, before the change is answered; off ends it",
		More: "With `store` etcd one server writes it, just after. It is the store's anchor as well. SIGHUP opens the file again. `off` serves a store without the sink that it had. " +
			"See [the audit sink](operations.md#the-audit-sink).",
		kind: text(func(s *Settings) *string { return &s.AuditSink }, anyValue),
	},
	{
		Name: "audit-retention-days", Group: groupStore, Default: "90",
		Usage: "for how many days the store keeps audit events that the audit sink has; 0 for ever",
		More: "The last event of each record stays. Without a sink all events stay. " +
			"See [the audit sink](operations.md#the-audit-sink).",
		kind: number(func(s *Settings) *int { return &s.AuditRetentionDays }, 0, 36500),
	},
	{
		Name: "audit-sink-max-bytes", Group: groupStore, Default: "0",
		Usage: "the length from which on the audit sink is renamed and begun anew; 0 for never",
		More:  "The name gets the time behind it. See [the audit sink](operations.md#the-audit-sink).",
		kind:  number(func(s *Settings) *int { return &s.AuditSinkMaxBytes }, 0, 1<<40),
	},
	{
		Name: "audit-sink-keep-days", Group: groupStore, Default: "0",
		Usage: "for how many days renamed files of the audit sink are kept; 0 for ever",
		More:  "From the last line of each file on. Once a day the server deletes older ones, also those of logrotate.",
		kind:  number(func(s *Settings) *int { return &s.AuditSinkKeepDays }, 0, 36500),
	},
	{
		Name: "backup-dir", Group: groupStore, Empty: "no scheduled backups", Path: FolderPath,
		Usage: "the `folder` of scheduled backups, which must exist",
		More:  "Use another disk, and no folder that another server uses. See [backups](operations.md#scheduled-backups).",
		kind:  text(func(s *Settings) *string { return &s.BackupDir }, anyValue),
	},
	{
		Name: "backup-interval", Group: groupStore, Default: "24h",
		Usage: "the time from one scheduled backup to the next",
		More:  "Up to a tenth later. A start makes one at once if the newest is older.",
		kind:  duration(func(s *Settings) *time.Duration { return &s.BackupInterval }, time.Minute, 30*day),
	},
	{
		Name: "backup-keep", Group: groupStore, Default: "7",
		Usage: "how many scheduled backups to keep",
		More:  "The oldest is deleted after a new one was made and checked.",
		kind:  number(func(s *Settings) *int { return &s.BackupKeep }, 1, 10_000),
	},
	{
		Name: "backup-rate", Group: groupStore, Default: "33554432",
		Usage: "how many bytes a second a backup is written or sent with",
		More:  "`keysvc backup --rate` says otherwise for one backup.",
		kind:  number(func(s *Settings) *int { return &s.BackupRate }, 64<<10, 1<<30),
	},
	{
		Name: "policy", Group: groupStore, Empty: "the built-in policy", Path: FilePath,
		Usage: "a policy `file` that fills an empty store",
		More:  "A store that has a policy keeps it; see [policy](operations.md#policy).",
		kind:  text(func(s *Settings) *string { return &s.Policy }, anyValue),
	},
	{
		Name: "etcd-endpoints", Group: groupEtcd, Empty: "none",
		Usage: "the `address` of each member of the etcd cluster, with commas between them: host:port or unix:///path",
		More: "Required with `store` etcd, and for nothing else; at most 9. Name every member, because each is asked by itself: a name that stands for several members hides one that hangs. " +
			"TCP needs `etcd-ca`, except on loopback.",
		kind: addresses(func(s *Settings) *[]Address { return &s.EtcdEndpoints }),
	},
	{
		Name: "etcd-prefix", Group: groupEtcd, Default: "/keysvc/",
		Usage: "the `beginning` of all names of the store in etcd",
		More:  "Begins and ends with /. Nothing else may be stored under it.",
		kind:  text(func(s *Settings) *string { return &s.EtcdPrefix }, checkPrefix),
	},
	{
		Name: "etcd-ca", Group: groupEtcd, Empty: "none", Path: FilePath,
		Usage: "the PEM `file` of the authorities that etcd's certificates are verified with; TCP to etcd is then TLS",
		More:  "This and the two files below are read for each new connection to etcd. See [replication](replication.md#over-etcd).",
		kind:  text(func(s *Settings) *string { return &s.EtcdCA }, anyValue),
	},
	{
		Name: "etcd-cert", Group: groupEtcd, Empty: "none", Path: FilePath,
		Usage: "the PEM `file` of the certificate that the server shows etcd, its intermediates after it",
		More:  "Needs `etcd-ca` and `etcd-key`.",
		kind:  text(func(s *Settings) *string { return &s.EtcdCert }, anyValue),
	},
	{
		Name: "etcd-key", Group: groupEtcd, Empty: "none", Path: FilePath,
		Usage: "the PEM `file` of the key of that certificate",
		kind:  text(func(s *Settings) *string { return &s.EtcdKey }, anyValue),
	},
	{
		Name: "etcd-user", Group: groupEtcd, Empty: "no authentication by password",
		Usage: "the `name` of the user of etcd, if etcd has authentication by password switched on",
		More:  "Needs `etcd-password-file`.",
		kind:  text(func(s *Settings) *string { return &s.EtcdUser }, anyValue),
	},
	{
		Name: "etcd-password-file", Group: groupEtcd, Empty: "none", Path: FilePath,
		Usage: "the `file` with the password of that user, in one line",
		More:  "Nobody but its owner and group may be able to read the file. It is read at the start.",
		kind:  text(func(s *Settings) *string { return &s.EtcdPasswordFile }, anyValue),
	},
	{
		Name: "notice-webhook", Group: groupNotices, Empty: "none",
		Usage: "the `URL` that gets the notices that keys end soon: https, or http on loopback",
		More:  "Needs `notice-secret`. Do not put a secret into the URL: it is not hidden. See [notices](operations.md#notices-that-keys-end).",
		kind:  text(func(s *Settings) *string { return &s.NoticeWebhook }, checkWebhook),
	},
	{
		Name: "notice-secret", Group: groupNotices, Empty: "none", Path: FilePath,
		Usage: "the `file` with the secret that notices are signed with: whsec_ and base64",
		More:  "A second line may have a second secret, for the time of a change. The file is read for each notice.",
		kind:  text(func(s *Settings) *string { return &s.NoticeSecret }, anyValue),
	},
	{
		Name: "notice-interval", Group: groupNotices, Default: "1h",
		Usage: "how often to look for keys that end soon",
		More:  "Each time all keys are visited in memory.",
		kind:  duration(func(s *Settings) *time.Duration { return &s.NoticeInterval }, time.Second, day),
	},
	{
		Name: "log-level", Group: groupLog, Default: "info", Reloadable: true,
		Usage: "the lowest `level` to log",
		kind:  level(func(s *Settings) *slog.Level { return &s.LogLevel }),
	},
	{
		Name: "log-format", Group: groupLog, Default: string(LogJSON),
		Usage: "how to write logs; at a terminal the default is text",
		kind:  word(func(s *Settings) *LogFormat { return &s.LogFormat }, LogText, LogJSON),
	},
	{
		Name: "trace-endpoint", Group: groupLog, Empty: "no traces",
		Usage: "the `URL` of an OpenTelemetry collector that traces are sent to, over OTLP/gRPC",
		More: "`http://host:port` is plaintext, `https://host:port` is TLS with the certificates of the system. " +
			"See [traces](operations.md#traces).",
		kind: text(func(s *Settings) *string { return &s.TraceEndpoint }, checkCollector),
	},
	{
		Name: "trace-one-in", Group: groupLog, Default: "100",
		Usage: "of how many calls one is traced",
		More:  "A call whose caller sends a trace context (`traceparent`) is traced if the caller traces it.",
		kind:  number(func(s *Settings) *int { return &s.TraceOneIn }, 1, 1_000_000_000),
	},
	{
		Name: "max-in-flight", Group: groupLimits, Default: "4096", Reloadable: true,
		Usage: "how many requests of one kind to work on at a time",
		More: "Of validations that are answered from memory there may be so many; of changes, reads (validations with details too), and waits for a revision or for caches a quarter each. " +
			"More requests are refused with RESOURCE_EXHAUSTED. The changes of one workspace may take a quarter of those that were allowed at the start. Health is exempt.",
		kind: number(func(s *Settings) *int { return &s.MaxInFlight }, 1, 1<<20),
	},
	{
		Name: "max-connections", Group: groupLimits, Default: "2048",
		Usage: "how many connections may be open at a time",
		More:  "More are closed at once. The user of the process may have 64 more on a unix socket. See [connections](operations.md#connections).",
		kind:  number(func(s *Settings) *int { return &s.MaxConnections }, 16, 1<<20),
	},
	{
		Name: "max-connections-per-source", Group: groupLimits, Default: "1024",
		Usage: "how many connections may come from one address, or from one user of a unix socket; 0 if a proxy is in front",
		More:  "A network of IPv6 (/64) counts as one address. The user of the process itself is exempt on a unix socket.",
		kind:  number(func(s *Settings) *int { return &s.MaxConnectionsPerSource }, 0, 1<<20),
	},
	{
		Name: "max-streams", Group: groupLimits, Default: "1000",
		Usage: "how many requests one connection may have open at a time",
		kind:  number(func(s *Settings) *int { return &s.MaxStreams }, 1, 1<<20),
	},
	{
		Name: "max-open-streams", Group: groupLimits, Default: "2048",
		Usage: "how many requests may be open at a time on all connections, near-caches aside",
		More: "Each is about 14 KiB. A connection may have half of what is left, so that one with few requests is served when others have many: up to 16, or 64 validations, in any case. " +
			"Validations may have all of them, and everything else three quarters.",
		kind: number(func(s *Settings) *int { return &s.MaxOpenStreams }, 16, 1<<20),
	},
	{
		Name: "max-message-bytes", Group: groupLimits, Default: "1048576",
		Usage: "how large a request may be, in bytes",
		// Below the minimum, requests that the API allows would not fit.
		kind: number(func(s *Settings) *int { return &s.MaxMessageBytes }, 64<<10, 64<<20),
	},
	{
		Name: "max-buffered-bytes", Group: groupLimits, Default: "67108864",
		Usage: "how many bytes of requests and answers to hold at a time",
		More:  "At least " + strconv.Itoa(bufferedMessages) + " times `max-message-bytes`. See [what is held in memory](operations.md#what-is-held-in-memory).",
		kind:  number(func(s *Settings) *int { return &s.MaxBufferedBytes }, 16<<20, 64<<30),
	},
	{
		Name: "max-header-bytes", Group: groupLimits, Default: "16384",
		Usage: "how large the headers of a request may be, in bytes",
		kind:  number(func(s *Settings) *int { return &s.MaxHeaderBytes }, 4<<10, 1<<20),
	},
	{
		Name: "drain-timeout", Group: groupTimes, Default: "10s",
		Usage: "how long requests in flight may take to end at a stop; 0s cuts them off",
		kind:  duration(func(s *Settings) *time.Duration { return &s.DrainTimeout }, 0, time.Hour),
	},
	{
		Name: "connection-age", Group: groupTimes, Default: "1h",
		Usage: "how long a connection may be open before its client is asked to open another one",
		More:  "Each connection has its own time, up to a tenth more or less. Requests in flight go on, sessions of near-caches for at most `session-age`.",
		kind:  duration(func(s *Settings) *time.Duration { return &s.ConnectionAge }, time.Minute, 7*day),
	},
	{
		Name: "connection-idle", Group: groupTimes, Default: "10m",
		Usage: "how long a connection may be open without a request",
		kind:  duration(func(s *Settings) *time.Duration { return &s.ConnectionIdle }, 10*time.Second, 7*day),
	},
	{
		Name: "usage-interval", Group: groupTimes, Default: "1m",
		Usage: "how often last-used times are written; a crash loses at most those of one interval",
		More:  "With `store` etcd, 1m stands for 10m. See [last-used times](operations.md#last-used-times).",
		kind:  duration(func(s *Settings) *time.Duration { return &s.UsageInterval }, time.Second, day),
	},
	{
		Name: "sweep-interval", Group: groupTimes, Default: "1h",
		Usage: "how often keys and members past their retention are purged",
		More:  "See [retention](operations.md#retention-and-the-sweep).",
		kind:  duration(func(s *Settings) *time.Duration { return &s.SweepInterval }, time.Second, day),
	},
	{
		Name: "staleness", Group: groupCaches, Empty: "1s, or what the store in etcd has",
		Usage: "max. time for which a near-cache can miss a change",
		More: "See [near-caches](operations.md#near-caches). With `store` etcd the value fills an empty store. " +
			"A store that has another one keeps it, and the server does not start; change it with `keysvc staleness set`.",
		kind: optionalDuration(func(s *Settings) *time.Duration { return &s.Staleness }, 100*time.Millisecond, time.Minute),
	},
	{
		Name: "max-sessions", Group: groupCaches, Default: "1500",
		Usage: "how many near-caches may be connected at a time",
		More:  "Each costs about 40 KiB. More are refused with RESOURCE_EXHAUSTED.",
		kind:  number(func(s *Settings) *int { return &s.MaxSessions }, 1, 1<<20),
	},
	{
		Name: "session-age", Group: groupCaches, Default: "1h",
		Usage: "how long a near-cache stays connected before it has to connect again",
		More:  "Each near-cache has its own time, up to a tenth more or less.",
		kind:  duration(func(s *Settings) *time.Duration { return &s.SessionAge }, time.Minute, day),
	},
	{
		Name: "dev", Group: groupCare, Default: "false",
		Usage: "make a demonstration workspace with a key, once, and the store if it is missing, and print commands to try",
		More:  "Writes a token to `demo-token` in the data folder. Not for production.",
		kind:  boolean(func(s *Settings) *bool { return &s.Dev }),
	},
	{
		Name: "allow-clock-behind", Group: groupCare, Default: "false",
		Usage: "start although the wall clock is behind the last commit",
		More:  "See [the clock](operations.md#the-clock).",
		kind:  boolean(func(s *Settings) *bool { return &s.AllowClockBehind }),
	},
	{
		Name: "allow-clock-ahead", Group: groupCare, Default: "false",
		Usage: "purge although the wall clock is more than 30 days ahead of the last commit",
		More:  "See [the clock](operations.md#the-clock).",
		kind:  boolean(func(s *Settings) *bool { return &s.AllowClockAhead }),
	},
	{
		Name: "channelz", Group: groupCare, Default: "false",
		Usage: "serve grpc's channelz, for debugging; it shows peers and connections",
		kind:  boolean(func(s *Settings) *bool { return &s.Channelz }),
	},
}

// checkListen accepts NoListener, which Settings.Validate refuses if there is no other listener.
func checkListen(text string) error {
	if text == "" || text == NoListener {
		return nil
	}
	return Listener{Address: text, Purpose: PurposeAll}.Validate()
}

// Table returns every setting, in the order of docs/settings.md.
func Table() []Setting { return slices.Clone(table) }

// Variable returns the name of the environment variable: KEYSVC_MAX_IN_FLIGHT for
// max-in-flight.
func (s Setting) Variable() string { return variable(s.Name) }

func variable(name string) string {
	return "KEYSVC_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// Type names the value in the help of the flag: "int", "duration", "bool", …
func (s Setting) Type() string { return s.kind.name }

// Allowed names the allowed values, for people; "" if Usage names them.
func (s Setting) Allowed() string { return s.kind.allowed }

// Help returns the help of the flag: what the setting does, which values are allowed, and
// what an empty value stands for.
func (s Setting) Help() string {
	help := s.Usage
	if s.kind.allowed != "" && s.kind.name != "bool" {
		help += " (" + s.kind.allowed + ")"
	}
	if s.Default == "" && s.Empty != "" {
		help += " (default: " + s.Empty + ")"
	}
	return help
}

// Words returns the values that a shell can complete; nil if there are too many.
func (s Setting) Words() []string { return slices.Clone(s.kind.words) }

// Repeated reports whether the setting is a list. A flag then adds to it, the variable has
// commas between the elements, and the file has a YAML list.
func (s Setting) Repeated() bool { return s.kind.repeated }

// hidden stands for the value of a secret.
const hidden = "(hidden)"

// Show returns the value that the settings have, for people: elements of a list with commas
// between them, "(hidden)" for a secret that is set.
func (s Setting) Show(settings Settings) string {
	value := strings.Join(s.kind.texts(&settings), ",")
	if s.Secret && value != "" {
		return hidden
	}
	return value
}

// set changes one setting to the texts. The error names what is wrong with them.
func (s Setting) set(settings *Settings, texts []string) error {
	err := s.kind.set(settings, texts)
	if err != nil && s.Secret {
		return errSecret
	}
	return err
}

// errSecret takes the place of an error that would show a secret.
var errSecret = errors.New("is not allowed; the value is not shown because it is a secret")
