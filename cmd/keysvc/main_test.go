package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// These tests run the built binary, as its users do.

// binary is the path of the built command; its folder can be put on the PATH.
var binary string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	folder, err := os.MkdirTemp("", "keysvc-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(folder)
	binary = filepath.Join(folder, "keysvc")
	if output, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building keysvc: %v\n%s", err, output)
		return 1
	}
	return m.Run()
}

// patience bounds every wait of these tests; none comes near it unless something hangs.
const patience = 30 * time.Second

// clean returns the environment of this process without the variables of keysvc.
func clean() []string {
	var kept []string
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "KEYSVC_") {
			kept = append(kept, variable)
		}
	}
	return kept
}

// process is a running keysvc.
type process struct {
	command        *exec.Cmd
	stdout, stderr *output
	// ended is closed when the process has ended and all of its output was read.
	ended chan struct{}
}

// launch starts keysvc. If it still runs at the end of the test, it is killed.
func launch(t *testing.T, arguments ...string) *process {
	t.Helper()
	command := exec.Command(binary, arguments...)
	command.Env = clean()
	p, err := begin(command)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return p
}

// begin starts a program and collects what it writes.
func begin(command *exec.Cmd) (*process, error) {
	p := &process{command: command, stdout: newOutput(), stderr: newOutput(), ended: make(chan struct{})}
	command.Stdout, command.Stderr = p.stdout, p.stderr
	if err := command.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = command.Wait()
		close(p.ended)
	}()
	return p, nil
}

// kill ends the process with SIGKILL, if it has not ended yet.
func (p *process) kill() {
	_ = p.command.Process.Kill()
	<-p.ended
}

// signal sends a signal.
func (p *process) signal(t *testing.T, signal os.Signal) {
	t.Helper()
	if err := p.command.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

// wait waits until the process has ended and returns its exit status.
func (p *process) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-p.ended:
		return p.command.ProcessState.ExitCode()
	case <-time.After(patience):
		t.Fatalf("keysvc still runs after %s\n%s", patience, p.stderr)
		return -1
	}
}

// stop ends the process with SIGTERM and expects status 0.
func (p *process) stop(t *testing.T) {
	t.Helper()
	p.signal(t, syscall.SIGTERM)
	if status := p.wait(t); status != 0 {
		t.Errorf("exit status %d after SIGTERM\n%s", status, p.stderr)
	}
}

// serving is a keysvc that serves.
type serving struct {
	*process
	address string
	file    string

	keys       keysvcv1.KeyServiceClient
	members    keysvcv1.MemberServiceClient
	policies   keysvcv1.PolicyServiceClient
	validation keysvcv1.ValidationServiceClient
	conn       *grpc.ClientConn
}

var serves = regexp.MustCompile(`keysvc serves on ([^\s,]+)`)

// serve starts a server on a free port and waits until it serves.
func serve(t *testing.T, data string, arguments ...string) *serving {
	t.Helper()
	p := launch(t, append(serveOn(data), arguments...)...)
	s, err := p.serving(data)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.conn.Close() })
	return s
}

// serveOn returns the arguments that serve a data folder on a free port, and make a missing store.
func serveOn(data string) []string {
	arguments := []string{"serve", "--allow-plaintext", "--listen", "127.0.0.1:0", "--data", data}
	if _, err := os.Lstat(filepath.Join(data, "keysvc.db")); errors.Is(err, fs.ErrNotExist) {
		arguments = append(arguments, "--init")
	}
	return arguments
}

// serving waits until the process serves and connects to it.
func (p *process) serving(data string) (*serving, error) {
	found, err := p.stdout.await(p.ended, serves)
	if err != nil {
		return nil, fmt.Errorf("it does not serve: %w\n%s", err, p.stderr)
	}
	s := &serving{process: p, address: found, file: filepath.Join(data, "keysvc.db")}
	if s.conn, err = dial(s.address); err != nil {
		return nil, err
	}
	s.keys = keysvcv1.NewKeyServiceClient(s.conn)
	s.members = keysvcv1.NewMemberServiceClient(s.conn)
	s.policies = keysvcv1.NewPolicyServiceClient(s.conn)
	s.validation = keysvcv1.NewValidationServiceClient(s.conn)
	return s, nil
}

func dial(address string) (*grpc.ClientConn, error) {
	target := "passthrough:///" + address
	if strings.HasPrefix(address, "unix:") {
		target = address
	}
	return grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
}

// testContext returns a context that ends after patience.
func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func (s *serving) putMember(t *testing.T, workspaceID, memberID, role string) {
	t.Helper()
	if _, err := s.members.PutMember(testContext(t), &keysvcv1.PutMemberRequest{
		WorkspaceId: workspaceID, MemberId: memberID, Role: role, State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
	}); err != nil {
		t.Fatal(err)
	}
}

func (s *serving) create(t *testing.T, workspaceID, memberID string, scopes ...string) *keysvcv1.CreateKeyResponse {
	t.Helper()
	response, err := s.keys.CreateKey(testContext(t), &keysvcv1.CreateKeyRequest{
		WorkspaceId: workspaceID, MemberId: memberID, Name: "a key", Scopes: scopes,
	})
	if err != nil {
		t.Fatal(err)
	}
	return response
}

func (s *serving) decide(t *testing.T, token, scope string) *keysvcv1.ValidateKeyResponse {
	t.Helper()
	response, err := s.validation.ValidateKey(testContext(t), &keysvcv1.ValidateKeyRequest{Token: token, RequiredScope: scope})
	if err != nil {
		t.Fatal(err)
	}
	return response
}

// result is the outcome of a command.
type result struct {
	status         int
	stdout, stderr string
	took           time.Duration
}

// command runs keysvc to its end. input is its standard input.
func command(t *testing.T, input string, arguments ...string) result {
	t.Helper()
	return execute(t, clean(), "", input, binary, arguments...)
}

// execute runs a program to its end.
func execute(t *testing.T, environment []string, folder, input, program string, arguments ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, arguments...)
	cmd.Env, cmd.Dir = environment, folder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	begin := time.Now()
	err := cmd.Run()
	var exited *exec.ExitError
	if err != nil && !errors.As(err, &exited) || ctx.Err() != nil {
		t.Fatalf("%s %q: %v\n%s", program, arguments, err, stderr.String())
	}
	return result{status: cmd.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String(), took: time.Since(begin)}
}

// output collects what a process writes.
type output struct {
	mutex   sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
}

var _ io.Writer = (*output)(nil)

func newOutput() *output { return &output{changed: make(chan struct{})} }

// Write implements io.Writer.
func (o *output) Write(text []byte) (int, error) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	close(o.changed)
	o.changed = make(chan struct{})
	return o.text.Write(text)
}

// String returns all that was written.
func (o *output) String() string {
	text, _ := o.now()
	return text
}

func (o *output) now() (string, <-chan struct{}) {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	return o.text.String(), o.changed
}

var errEnded = errors.New("the process ended")

// await waits until the text matches and returns the first group.
func (o *output) await(ended <-chan struct{}, pattern *regexp.Regexp) (string, error) {
	deadline := time.After(patience)
	for {
		text, changed := o.now()
		// Only whole lines are searched.
		if end := strings.LastIndexByte(text, '\n'); end >= 0 {
			if found := pattern.FindStringSubmatch(text[:end+1]); found != nil {
				return found[len(found)-1], nil
			}
		}
		select {
		case <-changed:
		case <-ended:
			if again, _ := o.now(); again == text {
				return "", errEnded
			}
		case <-deadline:
			return "", fmt.Errorf("nothing like %s within %s", pattern, patience)
		}
	}
}
