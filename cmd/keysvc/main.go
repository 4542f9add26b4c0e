// Command keysvc issues API keys and decides who a token acts as and what it may
// do. See `keysvc --help`.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/scribe-mail/keysvc/internal/cli"
)

// exitInterrupted is what shells give a program that SIGINT ended.
const exitInterrupted = 130

func main() {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		// The first one asks to stop; after that Ctrl-C means at once.
		<-signals
		cancel()
		for received := range signals {
			if received == os.Interrupt {
				os.Exit(exitInterrupted)
			}
		}
	}()

	os.Exit(cli.Main(ctx, cli.Process{
		Args:   os.Args[1:],
		Getenv: os.Getenv,
		Stdin:  os.Stdin,
		Stdout: os.Stdout,
		Stderr: os.Stderr,
	}, cli.DefaultHooks()))
}
