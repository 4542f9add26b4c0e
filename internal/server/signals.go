package server

import (
	"context"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/systemd"
)

// signals keeps signals that are not meant to end the process from ending it. They stay ignored
// after the component has stopped.
//
//   - SIGPIPE comes when the reader of standard output or error has died. It would end the
//     process in the middle of a call. While it is ignored, the write fails instead.
//   - SIGTTOU comes when a process in the background writes to a terminal that forbids
//     this. It would stop the process.
//   - SIGHUP comes when a terminal closes. An operator sends it to have the settings read
//     again, and logrotate to have the audit sink opened again: see reloadSettings and reopenSink.
//
// SIGINT and SIGTERM are handled by the caller of Run. The runtime ignores SIGUSR1, SIGUSR2,
// SIGALRM and the like.
func (p *process) signals() component {
	hangups := make(chan os.Signal, 1)
	return component{
		name: "signals",
		start: func(context.Context) error {
			signal.Ignore(syscall.SIGPIPE, syscall.SIGTTOU)
			signal.Notify(hangups, syscall.SIGHUP)
			return nil
		},
		run: func(ctx context.Context) error {
			for {
				select {
				case <-hangups:
					p.told(ctx, systemd.Reloading())
					p.reopenSink()
					p.reloadSettings(ctx)
					p.told(ctx, systemd.Ready())
				case <-ctx.Done():
					return nil
				}
			}
		},
	}
}

// reopenSink lets the store go over to the next file of its audit sink. It does not depend on the
// settings, which may not be valid at the time.
func (p *process) reopenSink() {
	if opened := p.opened.Load(); opened != nil {
		if reopener, has := storage.As[storage.SinkReopener](*opened); has {
			reopener.ReopenSink()
		}
	}
	if writer := p.server.sink.Load(); writer != nil {
		writer.ReopenSink()
	}
}

// reloadSettings reads the settings again and applies them. If they cannot be read or are
// not valid, the log says why and those before them stay.
func (p *process) reloadSettings(ctx context.Context) {
	if p.reload == nil {
		p.log.WarnContext(ctx, "SIGHUP is ignored: SIGTERM stops the process, and nothing is read anew while it runs")
		return
	}
	settings, err := p.reload()
	if err == nil {
		err = settings.Validate()
	}
	if err != nil {
		p.log.ErrorContext(ctx, "the settings stay as they are: what SIGHUP read is not valid", "error", err)
		return
	}
	p.server.lookAtFiles()
	if later := p.apply(settings); len(later) > 0 {
		p.log.WarnContext(ctx, "the settings were read again; some need a restart", "at_next_start", strings.Join(later, ", "))
		return
	}
	p.log.InfoContext(ctx, "the settings were read again")
}

// apply applies the settings that can change while the process runs: those that the table of
// internal/config marks as Reloadable. It returns the names of the other settings that differ from
// those of the start. These apply from the next start on.
//
// The limit for the changes of one workspace also stays as it was at the start.
func (p *process) apply(settings config.Settings) (later []string) {
	merged, _, later := p.settings.Reload(settings)
	if p.level != nil {
		p.level.Set(merged.LogLevel)
	}
	p.server.slots.resize(merged)
	p.server.setReadOnly(merged.ReadOnly)
	return later
}
