// Command dashboard is an example of a product with the settings screen for API keys. It starts a
// keysvc and the product, and prints a link to open:
//
//	go run ./examples/dashboard
//
// With --running it starts no keysvc, but uses the one that KEYSVC_ADDR and the other variables of
// clients name.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/scribe-mail/keysvc/clients/keyclient"
	"github.com/scribe-mail/keysvc/examples/dashboard/product"
	"github.com/scribe-mail/keysvc/examples/process"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

const workspace = "acme"

// members are who can log in. Each role sees another screen.
var members = []product.Member{
	{ID: "olivia", Name: "Olivia", Role: "owner"},
	{ID: "max", Name: "Max", Role: "manager"},
	{ID: "ann", Name: "Ann", Role: "member"},
}

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	cancel()
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "dashboard:", err)
		os.Exit(1)
	}
}

// run starts everything, serves until the context ends, and stops everything.
func run(ctx context.Context, arguments []string, out io.Writer) error {
	flags := flag.NewFlagSet("dashboard", flag.ContinueOnError)
	running := flags.Bool("running", false, "use the keysvc that KEYSVC_ADDR names, instead of starting one")
	address := flags.String("http", "127.0.0.1:8090", "where to serve the product")
	if err := flags.Parse(arguments); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	// The address first: building keysvc takes a while.
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", *address)
	if err != nil {
		return fmt.Errorf("%w; --http chooses another address", err)
	}
	defer listener.Close() //nolint:errcheck // the server closes it, too
	start := process.Start
	if *running {
		start = func(context.Context) (*process.Keysvc, error) { return process.Running() }
	} else {
		fmt.Fprintln(out, "Building and starting keysvc …")
	}
	keysvc, err := start(ctx)
	if err != nil {
		return fmt.Errorf("starting keysvc: %w", err)
	}
	defer keysvc.Stop()
	return serve(ctx, out, keysvc.Client, listener)
}

// serve serves the product until the context ends.
func serve(ctx context.Context, out io.Writer, keysvc *keyclient.Client, listener net.Listener) error {
	for _, member := range members {
		if _, err := keysvc.Members.PutMember(ctx, &keysvcv1.PutMemberRequest{
			WorkspaceId: workspace, MemberId: member.ID, Role: member.Role, State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
		}); err != nil {
			return fmt.Errorf("telling keysvc of %s: %w", member.Name, err)
		}
	}
	url := "http://" + listener.Addr().String()
	handler, err := product.New(product.Config{Keysvc: keysvc, Workspace: workspace, Members: members, URL: url})
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	defer server.Close() //nolint:errcheck // the program ends
	fmt.Fprintf(out, "Open %s\nLog in as anybody, and go to API keys or to Try it.\nCtrl-C ends it, and everything is gone.\n", url)
	select {
	case <-ctx.Done():
		return nil
	case err := <-ended:
		return err
	}
}
