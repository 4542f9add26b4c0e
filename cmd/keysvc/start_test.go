package main_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// startBound is the maximum time until a start that fails has said so.
const startBound = 2 * time.Second

// shortDir returns a new folder with a path that is short enough for the address of a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "ks")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	return folder
}

// truncate cuts a file to its first four pages. Most of the other pages are free space.
func truncate(file string) error { return os.Truncate(file, 4*int64(os.Getpagesize())) }

// overwrite writes nonsense over the bytes of a file from from up to to.
func overwrite(file string, from, to int) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for index := from; index < min(to, len(text)); index++ {
		text[index] = byte(index * 7)
	}
	return os.WriteFile(file, text, 0o600)
}

// changeHeader gives a store the header of a newer version, or a damaged one.
func changeHeader(file string, newer bool) error {
	database, err := bolt.Open(file, 0o600, nil)
	if err != nil {
		return err
	}
	err = database.Update(func(tx *bolt.Tx) error {
		meta := tx.Bucket([]byte("meta"))
		header := &storagev1.HeaderRecord{}
		if err := storage.Decode("header", "meta/header", meta.Get([]byte("header")), header); err != nil {
			return err
		}
		header.Schema = 99
		encoded, err := storage.Encode(header)
		if err != nil {
			return err
		}
		name := "meta/elsewhere"
		if newer {
			name = "meta/header"
		}
		return meta.Put([]byte("header"), storage.Frame(name, encoded))
	})
	return errors.Join(err, database.Close())
}

// call is a call of ValidateKey in flight: the server has begun it, and the client has not sent the
// request yet.
type call struct {
	stream grpc.ClientStream
}

func (s *serving) begin(t *testing.T) *call {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	stream, err := s.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, keysvcv1.ValidationService_ValidateKey_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	// The server answers a later call on the same connection, so it has seen this stream.
	s.decide(t, "", "emails:read")
	return &call{stream: stream}
}

// finish sends the request and returns the answer.
func (c *call) finish(token string) (*keysvcv1.ValidateKeyResponse, error) {
	response := &keysvcv1.ValidateKeyResponse{}
	if err := c.stream.SendMsg(&keysvcv1.ValidateKeyRequest{Token: token, RequiredScope: "emails:read"}); err != nil {
		return nil, err
	}
	if err := c.stream.CloseSend(); err != nil {
		return nil, err
	}
	return response, c.stream.RecvMsg(response)
}

var stopping = regexp.MustCompile(`"msg":"(stopping)"`)

func TestTerminationDrains(t *testing.T) {
	t.Parallel()
	s := serve(t, t.TempDir())
	s.putMember(t, "acme", "ann", "owner")
	token := s.create(t, "acme", "ann", "emails:read").GetToken()
	call := s.begin(t)
	s.signal(t, syscall.SIGTERM)
	if _, err := s.stderr.await(s.ended, stopping); err != nil {
		t.Fatal(err)
	}
	// No new connection is accepted.
	for dialling := testContext(t); ; {
		conn, err := (&net.Dialer{}).DialContext(dialling, "tcp", s.address)
		if err != nil {
			if dialling.Err() != nil {
				t.Error("the listener stays open")
			}
			break
		}
		_ = conn.Close()
	}
	select {
	case <-s.ended:
		t.Fatal("it did not wait for the call")
	default:
	}
	if response, err := call.finish(token); err != nil || inWords(response) != "ALLOWED" {
		t.Errorf("the call in flight got %v, %v", response, err)
	}
	if status := s.wait(t); status != 0 {
		t.Errorf("exit status %d\n%s", status, s.stderr)
	}
	if checked := command(t, "", "check", s.file); checked.status != 0 {
		t.Errorf("check: %s%s", checked.stdout, checked.stderr)
	}
}

func TestTerminationHasADeadline(t *testing.T) {
	t.Parallel()
	s := serve(t, t.TempDir(), "--drain-timeout", "100ms")
	call := s.begin(t)
	s.signal(t, syscall.SIGTERM)
	if status := s.wait(t); status != 0 {
		t.Errorf("exit status %d\n%s", status, s.stderr)
	}
	if _, err := call.finish(""); status.Code(err) != codes.Unavailable && !errors.Is(err, fs.ErrClosed) && err == nil {
		t.Error("the call that did not end got an answer")
	}
	if !strings.Contains(s.stderr.String(), "cut off") {
		t.Errorf("the log does not say that calls were cut off:\n%s", s.stderr)
	}
}

// TestSecondSignalExitsAtOnce: SIGINT and SIGTERM, in each order.
func TestSecondSignalExitsAtOnce(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		first, second syscall.Signal
		status        int
	}{
		{syscall.SIGINT, syscall.SIGINT, 130},
		{syscall.SIGINT, syscall.SIGTERM, 143},
		{syscall.SIGTERM, syscall.SIGTERM, 143},
		{syscall.SIGTERM, syscall.SIGINT, 130},
	} {
		t.Run(test.first.String()+", "+test.second.String(), func(t *testing.T) {
			t.Parallel()
			s := serve(t, t.TempDir(), "--drain-timeout", "1h")
			s.begin(t)
			s.signal(t, test.first)
			if _, err := s.stderr.await(s.ended, stopping); err != nil {
				t.Fatal(err)
			}
			// SIGHUP is ignored: it does not count as the second signal.
			s.signal(t, syscall.SIGHUP)
			if _, err := s.stderr.await(s.ended, hangUp); err != nil {
				t.Fatal(err)
			}
			s.signal(t, test.second)
			if status := s.wait(t); status != test.status {
				t.Errorf("exit status %d, want %d", status, test.status)
			}
			if checked := command(t, "", "check", s.file); checked.status != 0 {
				t.Errorf("check: %s%s", checked.stdout, checked.stderr)
			}
		})
	}
}
