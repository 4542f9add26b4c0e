package main

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

// keysvc is a keysvc process with an empty store, and a client of it.
type keysvc struct {
	// target is the address that the process listens on, a unix socket.
	target string
	client *keyclient.Client

	folder  string
	process *exec.Cmd
}

// runningKeysvc returns the keysvc that the variables KEYSVC_… name; see docs/clients.md. The caller
// that they describe must be allowed to validate tokens, and to manage members and keys of the
// workspace acme.
func runningKeysvc() (*keysvc, error) {
	client, err := keyclient.FromEnvironment(keyclient.Config{AllowPlaintext: true})
	if err != nil {
		return nil, err
	}
	return &keysvc{target: os.Getenv(keyclient.AddressVariable), client: client}, nil
}

// startKeysvc builds and starts a keysvc and waits until it serves.
func startKeysvc(ctx context.Context) (_ *keysvc, err error) {
	folder, err := os.MkdirTemp("", "signatures-example-")
	if err != nil {
		return nil, err
	}
	k := &keysvc{folder: folder, target: "unix://" + filepath.Join(folder, "keysvc.sock")}
	defer func() {
		if err != nil {
			k.stop()
		}
	}()
	binary := filepath.Join(folder, "keysvc")
	build := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", binary, "github.com/scribe-mail/keysvc/cmd/keysvc") //nolint:gosec // G204: the folder is our own
	if text, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building keysvc: %w\n%s", err, text)
	}
	var log bytes.Buffer
	process := exec.CommandContext(ctx, binary, "serve", "--init", "--listen", k.target, "--data", filepath.Join(folder, "data")) //nolint:gosec // G204: the binary was just built
	process.Stdout, process.Stderr = &log, &log
	process.Cancel = func() error { return process.Process.Signal(syscall.SIGTERM) }
	process.WaitDelay = 20 * time.Second
	if err := process.Start(); err != nil {
		return nil, err
	}
	k.process = process
	if k.client, err = keyclient.New(k.target, keyclient.Config{}); err != nil {
		return nil, err
	}
	waiting, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if _, err := grpc_health_v1.NewHealthClient(k.client.Conn()).Check(waiting, &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(true)); err != nil {
		return nil, fmt.Errorf("waiting for keysvc: %w", err)
	}
	return k, nil
}

// stop ends the process and removes its files.
func (k *keysvc) stop() {
	if k.client != nil {
		k.client.Close() //nolint:errcheck // it was in use until now
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
