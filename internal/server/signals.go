package server

import (
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// ignoreSignals keeps the process going on signals that are no wish to end it, and
// returns what stops the telling of them; they stay ignored.
//
//   - SIGPIPE comes when the reader of standard output or error has died, and would end
//     the process in the middle of a call. The write fails instead.
//   - SIGTTOU comes when a process in the background writes to a terminal that does not
//     want that, and would stop the process.
//   - SIGHUP comes from a terminal that closes, or from whoever hopes that files are
//     read anew. It is logged.
//
// SIGINT and SIGTERM are the caller's. The runtime ignores SIGUSR1, SIGUSR2, SIGALRM and
// the like.
func ignoreSignals(log *slog.Logger) func() {
	signal.Ignore(syscall.SIGPIPE, syscall.SIGTTOU)
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	ended := make(chan struct{})
	var logging sync.WaitGroup
	logging.Go(func() {
		for {
			select {
			case <-hangups:
				log.Warn("SIGHUP is ignored: SIGTERM stops the process, and nothing is read anew while it runs")
			case <-ended:
				return
			}
		}
	})
	return func() {
		close(ended)
		logging.Wait()
	}
}
