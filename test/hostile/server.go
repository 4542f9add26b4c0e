//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// workspace is that of the 1,000 keys. Callers validate the tokens of another one.
const workspace, goodWorkspace = "attacked", "good"

// server is a keysvc in a process of its own.
type server struct {
	*exec.Cmd
	doors   doors
	address string
	probe   *os.File
	answers *json.Decoder
	log     string
}

// startServer starts keysvc over a folder, and waits until it serves.
func startServer(ctx context.Context, program, folder string, d doors) (*server, error) {
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "probe")
	defer theirs.Close()
	s := &server{doors: d, address: address, probe: os.NewFile(uintptr(pair[0]), "probe"), log: filepath.Join(filepath.Dir(folder), "log")}
	s.answers = json.NewDecoder(bufio.NewReader(s.probe))
	output, err := os.Create(s.log)
	if err != nil {
		return nil, err
	}
	defer output.Close()
	s.Cmd = exec.Command(program, append([]string{"serve", "--dev", "--data", folder, "--listen", address, "--log-format", "json"}, d.flags...)...)
	s.Stdout, s.Stderr = output, output
	s.ExtraFiles = []*os.File{theirs}
	s.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.Start(); err != nil {
		return nil, err
	}
	connection, err := s.dial()
	if err != nil {
		return nil, errors.Join(err, s.stop())
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if _, err := grpc_health_v1.NewHealthClient(connection).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(true)); err != nil {
		text, _ := os.ReadFile(s.log)
		return nil, errors.Join(fmt.Errorf("keysvc does not serve: %w\n%s", err, text), s.stop())
	}
	return s, nil
}

// startCopy starts keysvc over a copy of a store.
func startCopy(ctx context.Context, program, template, folder string, d doors) (*server, error) {
	if err := os.CopyFS(folder, os.DirFS(template)); err != nil {
		return nil, err
	}
	if err := os.Chmod(folder, 0o700); err != nil {
		return nil, err
	}
	return startServer(ctx, program, folder, d)
}

// dial returns a connection of the good caller. Nothing is tried again by itself.
func (s *server) dial(options ...grpc.DialOption) (*grpc.ClientConn, error) {
	options = append(options, grpc.WithTransportCredentials(s.doors.good), grpc.WithDisableRetry())
	return grpc.NewClient("passthrough:///"+s.address, options...)
}

// stop ends the process, and waits until it is gone.
func (s *server) stop() error {
	_ = s.Process.Signal(syscall.SIGTERM)
	gone := make(chan error, 1)
	go func() { gone <- s.Wait() }()
	defer s.probe.Close()
	select {
	case err := <-gone:
		return err
	case <-time.After(20 * time.Second):
		_ = s.Process.Kill()
		<-gone
		return errors.New("keysvc did not stop in 20 s")
	}
}

// alive reports whether the process still runs.
func (s *server) alive() bool {
	return s.Process.Signal(syscall.Signal(0)) == nil && resident(s.Process.Pid) > 0
}

// counts are what the probe counts in the server's process.
type counts struct{ Goroutines, Heap, Stacks int64 }

// count asks the probe. collect collects garbage first.
func (s *server) count(collect bool) (counts, error) {
	request := []byte{'c'}
	if collect {
		request[0] = 'g'
	}
	var answer counts
	_ = s.probe.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := s.probe.Write(request); err != nil {
		return answer, err
	}
	return answer, s.answers.Decode(&answer)
}

func freeAddress(ctx context.Context) (string, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer listener.Close()
	return listener.Addr().String(), nil
}

// prepare makes a store with 1,000 keys that have large labels, and some tokens for the good
// caller. It returns the tokens.
func prepare(ctx context.Context, program, folder string, d doors) ([]string, error) {
	s, err := startServer(ctx, program, folder, d)
	if err != nil {
		return nil, err
	}
	tokens, err := fill(ctx, s)
	return tokens, errors.Join(err, s.stop())
}

func fill(ctx context.Context, s *server) ([]string, error) {
	connection, err := s.dial()
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	members, keys := keysvcv1.NewMemberServiceClient(connection), keysvcv1.NewKeyServiceClient(connection)
	for _, name := range []string{workspace, goodWorkspace} {
		if _, err := members.PutMember(ctx, &keysvcv1.PutMemberRequest{WorkspaceId: name, MemberId: "owner", Role: "owner", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE}); err != nil {
			return nil, err
		}
	}
	labels := make(map[string]string)
	for i := range 12 {
		labels[fmt.Sprintf("label-%d", i)] = strings.Repeat("v", 250)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i := range 1000 {
		group.Go(func() error {
			_, err := keys.CreateKey(ctx, &keysvcv1.CreateKeyRequest{WorkspaceId: workspace, MemberId: "owner", Name: fmt.Sprintf("key %d", i), Scopes: []string{"signatures:read"}, Labels: labels})
			return err
		})
	}
	tokens := make([]string, 64)
	for i := range tokens {
		group.Go(func() error {
			created, err := keys.CreateKey(ctx, &keysvcv1.CreateKeyRequest{WorkspaceId: goodWorkspace, MemberId: "owner", Name: fmt.Sprintf("key %d", i), Scopes: []string{"signatures:read"}})
			tokens[i] = created.GetToken()
			return err
		})
	}
	return tokens, group.Wait()
}
