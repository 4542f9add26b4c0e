//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// patience is how long anything may take that has no bound of its own.
const patience = time.Minute

// server is a keysvc in a process of its own, with clients.
type server struct {
	*exec.Cmd
	log        bytes.Buffer
	ended      chan struct{}
	err        error
	connection *grpc.ClientConn
	keys       keysvcv1.KeyServiceClient
	members    keysvcv1.MemberServiceClient
	policies   keysvcv1.PolicyServiceClient
	validation keysvcv1.ValidationServiceClient
	epoch      string
}

// quickly makes clients connect again soon after a server was started.
var quickly = grpc.WithConnectParams(grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.2, MaxDelay: 20 * time.Millisecond},
	MinConnectTimeout: time.Second,
})

// launch starts keysvc and waits until it serves. All servers of a round have the same socket.
func launch(ctx context.Context, program, socket, data string, arguments ...string) (*server, error) {
	arguments = append([]string{"serve", "--data", data, "--listen", "unix://" + socket, "--log-format", "json", "--log-level", "warn"}, arguments...)
	s := &server{Cmd: exec.Command(program, arguments...), ended: make(chan struct{})}
	s.Stdout, s.Stderr = &s.log, &s.log
	s.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.Start(); err != nil {
		return nil, err
	}
	go func() {
		s.err = s.Wait()
		close(s.ended)
	}()
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), quickly)
	if err != nil {
		return nil, errors.Join(err, s.kill())
	}
	s.connection = connection
	s.keys, s.members = keysvcv1.NewKeyServiceClient(connection), keysvcv1.NewMemberServiceClient(connection)
	s.policies, s.validation = keysvcv1.NewPolicyServiceClient(connection), keysvcv1.NewValidationServiceClient(connection)
	ready, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	go func() {
		select {
		case <-s.ended:
			cancel()
		case <-ready.Done():
		}
	}()
	_, err = grpc_health_v1.NewHealthClient(connection).Check(ready, &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(true))
	if err != nil {
		_ = s.kill()
		return nil, fmt.Errorf("%w: keysvc does not serve: %w\n%s", errBroken, err, s.log.String())
	}
	policy, err := s.policies.GetPolicy(ctx, &keysvcv1.GetPolicyRequest{})
	if err != nil {
		return nil, errors.Join(err, s.kill())
	}
	s.epoch = policy.GetEpoch()
	return s, nil
}

// kill kills the process, and waits until it is gone.
func (s *server) kill() error {
	_ = s.Process.Kill()
	return s.gone()
}

// stop ends the process, and waits until it is gone.
func (s *server) stop() error {
	_ = s.Process.Signal(syscall.SIGTERM)
	if err := s.gone(); err != nil {
		return err
	}
	if s.err != nil {
		return fmt.Errorf("%w: the server's end: %w\n%s", errBroken, s.err, s.log.String())
	}
	return nil
}

func (s *server) gone() error {
	if s.connection != nil {
		_ = s.connection.Close()
	}
	select {
	case <-s.ended:
		return nil
	case <-time.After(patience):
		return fmt.Errorf("%w: the server has not ended after %v", errBroken, patience)
	}
}

// run runs a command of keysvc to its end.
func run(ctx context.Context, program string, arguments ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	command := exec.CommandContext(ctx, program, arguments...)
	var failure bytes.Buffer
	command.Stderr = &failure
	command.Stdin = nil
	answer, err := command.Output()
	if err != nil {
		return answer, fmt.Errorf("%w: keysvc %v: %w\n%s%s", errBroken, arguments, err, answer, failure.String())
	}
	return answer, nil
}

// restored is what the campaign reads of the answer of keysvc restore.
type restored struct {
	Complete bool   `json:"complete"`
	Held     int    `json:"held_keys"`
	Epoch    string `json:"epoch"`
}

// restore makes a store from a backup.
func restore(ctx context.Context, program, backup, data string, arguments ...string) (restored, error) {
	arguments = append([]string{"restore", backup, "--data", data, "-o", "json"}, arguments...)
	answer, err := run(ctx, program, arguments...)
	if err != nil {
		return restored{}, err
	}
	var came restored
	if err := json.Unmarshal(answer, &came); err != nil {
		return came, fmt.Errorf("keysvc restore: %w: %s", err, answer)
	}
	return came, nil
}

// copyFolder copies the files of a folder.
func copyFolder(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	for _, entry := range entries {
		content, err := os.ReadFile(filepath.Join(from, entry.Name()))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, entry.Name()), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}
