// Command signatures is an example of a service behind keysvc. It starts a keysvc and the
// service, plays what happens to a few requests, and ends:
//
//	go run ./examples/signatures
//
// With --serve it stays up, for curl and grpcurl. With --running it starts no keysvc, but uses the
// one that KEYSVC_ADDR and the other variables of clients name.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/scribe-mail/keysvc/examples/process"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	cancel()
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "signatures:", err)
		os.Exit(1)
	}
}

// run starts everything, plays the story or serves, and then stops everything.
func run(ctx context.Context, arguments []string, out io.Writer) error {
	flags := flag.NewFlagSet("signatures", flag.ContinueOnError)
	serve := flags.Bool("serve", false, "stay up and print commands to try, instead of playing the story")
	running := flags.Bool("running", false, "use the keysvc that KEYSVC_ADDR names, instead of starting one")
	httpAddress := flags.String("http", "127.0.0.1:8080", "where to serve HTTP with --serve")
	grpcAddress := flags.String("grpc", "127.0.0.1:8081", "where to serve gRPC with --serve")
	if err := flags.Parse(arguments); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if !*serve {
		*httpAddress, *grpcAddress = "127.0.0.1:0", "127.0.0.1:0"
	}
	start := process.Start
	if *running {
		start = func(context.Context) (*process.Keysvc, error) { return process.Running() }
	}
	keysvc, err := start(ctx)
	if err != nil {
		return fmt.Errorf("starting keysvc: %w", err)
	}
	defer keysvc.Stop()
	service, err := startService(ctx, keysvc.Client, *httpAddress, *grpcAddress)
	if err != nil {
		return fmt.Errorf("starting the service: %w; --grpc and --http choose other addresses", err)
	}
	defer service.stop()
	if *serve {
		return stay(ctx, out, keysvc, service)
	}
	return play(ctx, out, keysvc, service)
}
