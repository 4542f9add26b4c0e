package cli

import (
	"context"
	"errors"
	"io"

	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/server"
)

// Hooks is the code behind the commands that do not call a server. A command
// whose hook is nil answers with an error.
type Hooks struct {
	// Serve runs a server until the context ends or the server fails. Before it returns
	// it drains, flushes and closes. It returns nil if the context ended. settings is
	// valid; reload reads the settings again, from the same flags, the environment and the
	// file. Text for a person goes to stdout, logs go to stderr. An error is one line that
	// makes sense alone.
	Serve func(ctx context.Context, settings config.Settings, reload server.Reload, stdout, stderr io.Writer) error
	// Check reads a store's file and writes its findings to out. No server may have the
	// file open. It returns an error if the file cannot be read or is not sound.
	Check func(ctx context.Context, file string, outside server.Outside, out io.Writer) error
	// CheckEtcd is Check for the store in etcd that the settings name, which servers may use meanwhile.
	CheckEtcd func(ctx context.Context, settings config.Settings, out io.Writer) error
	// AcceptAnchor accepts a store's file that does not agree with its anchor or its audit sink. No
	// server may have the file open. It writes its findings to out and calls confirm before it
	// changes anything; it returns the error of confirm.
	AcceptAnchor func(ctx context.Context, file string, outside server.Outside, out io.Writer, confirm func() error) error
	// AcceptEtcd is AcceptAnchor for the store in etcd that the settings name. sink is the path of its audit sink, empty
	// without one.
	AcceptEtcd func(ctx context.Context, settings config.Settings, sink string, out io.Writer, confirm func() error) error
	// RepairClock finds times in a store's file that lie in the future, writes how many
	// there are to out and, if apply is set, sets them to now. No server may have the
	// file open.
	RepairClock func(ctx context.Context, file string, outside server.Outside, apply bool, out io.Writer) error
	// RepairClockEtcd is RepairClock for the store in etcd that the settings name.
	RepairClockEtcd func(ctx context.Context, settings config.Settings, apply bool, out io.Writer) error
	// AuditFile opens a store's file and calls use with a function that lists the audit events in
	// the file. No server may have the file open. It returns the error of use.
	AuditFile func(ctx context.Context, file string, use func(server.ListAuditEvents) error) error
	// VerifyAudit checks the audit events in a store's file and compares them with its audit sink.
	// No server may have the file open.
	VerifyAudit func(ctx context.Context, file string, options server.VerifyOptions) (server.Verification, error)
	// VerifyAuditEtcd is VerifyAudit for the store in etcd that the settings name, which servers may use meanwhile.
	VerifyAuditEtcd func(ctx context.Context, settings config.Settings, options server.VerifyOptions) (server.Verification, error)
	// Restore makes a store from a backup.
	Restore func(ctx context.Context, options server.RestoreOptions) (*server.Restored, error)
	// RestoreEtcd is Restore for the store in etcd that the settings name, after etcd was restored.
	RestoreEtcd func(ctx context.Context, settings config.Settings, options server.RestoreOptions) (*server.Restored, error)
	// Migrate copies a store from a file into etcd, or back, and compares the two. With
	// server.ErrDiffers it returns what differs.
	Migrate func(ctx context.Context, options server.MigrateOptions) (*server.Migrated, error)
	// DiscardMigration removes what an unfinished migration has written to its target.
	DiscardMigration func(ctx context.Context, options server.MigrateOptions) error
}

// DefaultHooks returns the hooks of the keysvc binary.
func DefaultHooks() Hooks {
	return Hooks{
		Serve: server.RunWithReload, Check: server.Check, CheckEtcd: server.CheckEtcd, AcceptAnchor: server.AcceptAnchor, AcceptEtcd: server.AcceptEtcd, RepairClock: server.RepairClock, RepairClockEtcd: server.RepairClockEtcd,
		AuditFile: server.AuditFile, VerifyAudit: server.VerifyAudit, VerifyAuditEtcd: server.VerifyAuditEtcd,
		Restore: server.Restore, RestoreEtcd: server.RestoreEtcd, Migrate: server.Migrate, DiscardMigration: server.DiscardMigration,
	}
}

var errNoHook = errors.New("this build of keysvc does not have the command")
