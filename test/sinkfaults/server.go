//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// server is a keysvc in a process of its own.
type server struct {
	*exec.Cmd
	socket string
	ended  chan struct{}
	err    error
}

// patience is how long anything may take that has no bound of its own.
const patience = time.Minute

// launch starts keysvc. Its log is appended to the file log.
func launch(program, data, sink, log string, first bool) (*server, error) {
	output, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer output.Close()
	arguments := []string{"serve", "--data", data, "--audit-sink", sink, "--log-format", "json", "--log-level", "warn"}
	if first {
		arguments = append(arguments, "--init")
	}
	s := &server{Cmd: exec.Command(program, arguments...), socket: filepath.Join(data, "keysvc.sock"), ended: make(chan struct{})}
	s.Stdout, s.Stderr = output, output
	s.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.Start(); err != nil {
		return nil, err
	}
	go func() {
		s.err = s.Wait()
		close(s.ended)
	}()
	return s, nil
}

// ready waits until the server serves.
func (s *server) ready(ctx context.Context) error {
	connection, err := s.dial()
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	go func() {
		select {
		case <-s.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	_, err = grpc_health_v1.NewHealthClient(connection).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(true))
	if err != nil {
		_ = s.kill()
		return fmt.Errorf("%w: keysvc does not serve: %w", errBroken, err)
	}
	return nil
}

// dial returns a new connection. Nothing is tried again by itself.
func (s *server) dial() (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+s.socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
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
		return fmt.Errorf("%w: the server's end: %w", errBroken, s.err)
	}
	return nil
}

func (s *server) gone() error {
	select {
	case <-s.ended:
		return nil
	case <-time.After(patience):
		return fmt.Errorf("%w: the server has not ended after %v", errBroken, patience)
	}
}

// reopen asks for the sink to be opened again.
func (s *server) reopen() { _ = s.Process.Signal(syscall.SIGHUP) }

// logged reports whether the log has a text after an offset.
func logged(log string, offset int64, text string) bool {
	content, _ := os.ReadFile(log)
	return strings.Contains(string(content[min(offset, int64(len(content))):]), text)
}

// size returns the length of a file, or 0.
func size(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}
