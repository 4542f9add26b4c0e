// Package process starts a keysvc for the examples. A service of your own does not need it: it connects
// to the keysvc that runs already, with keyclient.FromEnvironment.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/scribe-mail/keysvc/clients/keyclient"
)

// Keysvc is a keysvc and a client of it.
type Keysvc struct {
	// Target is the address that keysvc listens on, as keyclient.New takes it.
	Target string
	// Client is a client that may do everything the examples do.
	Client *keyclient.Client

	folder  string
	process *exec.Cmd
}

// Running returns the keysvc that the variables KEYSVC_… name; see docs/clients.md. The caller that they
// describe must be allowed to validate tokens, and to manage members and keys of the workspace acme.
// The error says which variable is wrong.
func Running() (*Keysvc, error) {
	client, err := keyclient.FromEnvironment(keyclient.Config{AllowPlaintext: true})
	if err != nil {
		return nil, err
	}
	return &Keysvc{Target: os.Getenv(keyclient.AddressVariable), Client: client}, nil
}

// Start builds and starts a keysvc with an empty store, and waits until it serves, for at most 20 s. It
// listens on a unix socket. The error says what could not be built, or does not answer. Call Stop.
func Start(ctx context.Context) (_ *Keysvc, err error) {
	folder, err := os.MkdirTemp("", "keysvc-example-")
	if err != nil {
		return nil, err
	}
	k := &Keysvc{folder: folder, Target: "unix://" + filepath.Join(folder, "keysvc.sock")}
	defer func() {
		if err != nil {
			k.Stop()
		}
	}()
	binary := filepath.Join(folder, "keysvc")
	build := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", binary, "github.com/scribe-mail/keysvc/cmd/keysvc") //nolint:gosec // G204: the folder is our own
	if text, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building keysvc: %w\n%s", err, text)
	}
	var log bytes.Buffer
	process := exec.CommandContext(ctx, binary, "serve", "--init", "--listen", k.Target, "--data", filepath.Join(folder, "data")) //nolint:gosec // G204: the binary was just built
	process.Stdout, process.Stderr = &log, &log
	process.Cancel = func() error { return process.Process.Signal(syscall.SIGTERM) }
	process.WaitDelay = 20 * time.Second
	if err := process.Start(); err != nil {
		return nil, err
	}
	k.process = process
	if k.Client, err = keyclient.New(k.Target, keyclient.Config{}); err != nil {
		return nil, err
	}
	waiting, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if _, err := grpc_health_v1.NewHealthClient(k.Client.Conn()).Check(waiting, &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(true)); err != nil {
		return nil, fmt.Errorf("waiting for keysvc: %w", err)
	}
	return k, nil
}

// Stop ends the process and removes its files.
func (k *Keysvc) Stop() {
	if k.Client != nil {
		k.Client.Close() //nolint:errcheck // it was in use until now
	}
	if k.process != nil {
		if err := k.process.Process.Signal(syscall.SIGTERM); err == nil || errors.Is(err, os.ErrProcessDone) {
			k.process.Wait() //nolint:errcheck // it was ended on purpose
		}
	}
	if k.folder != "" {
		os.RemoveAll(k.folder) //nolint:errcheck // a folder for temporary files
	}
}
