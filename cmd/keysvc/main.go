// Command keysvc issues API keys and decides who a token acts as and what it may
// do. See `keysvc --help`.
package main

import (
	"context"
	"os"

	"github.com/scribe-mail/keysvc/internal/cli"
)

func main() {
	ctx, cancel := context.WithCancel(context.Background())
	go handle(signalsOfPeople(), cancel)

	os.Exit(cli.Main(ctx, cli.Process{
		Args:    os.Args[1:],
		Program: os.Args[0],
		Getenv:  os.Getenv,
		Stdin:   os.Stdin,
		Stdout:  os.Stdout,
		Stderr:  os.Stderr,
	}, cli.DefaultHooks()))
}
