package cli_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// noLiveKeys is what key list notes where nothing is listed.
const noLiveKeys = "no keys that are live; --revoked lists those that are revoked or expired\n"

func failure(t *testing.T, code codes.Code, message string, details ...protoadapt.MessageV1) error {
	t.Helper()
	s, err := status.New(code, message).WithDetails(details...)
	if err != nil {
		t.Fatal(err)
	}
	return s.Err()
}

func TestErrorsOfTheServerAreShownWithTheirDetails(t *testing.T) {
	var answer error
	c := command{addr: start(t, &fake{getKey: func(ctx context.Context, _ *keysvcv1.GetKeyRequest) (*keysvcv1.GetKeyResponse, error) {
		if err := grpc.SetHeader(ctx, metadata.Pairs("x-request-id", "req-1")); err != nil {
			t.Error(err)
		}
		return nil, answer
	}})}
	tests := []struct {
		answer error
		status int
		stderr string
	}{
		{
			failure(t, codes.NotFound, "there is no such key", &errdetails.ErrorInfo{Reason: "KEY_NOT_FOUND", Domain: "keysvc"}),
			6,
			"error: NOT_FOUND (KEY_NOT_FOUND): there is no such key\n  request id: req-1\n",
		},
		{
			failure(t, codes.InvalidArgument, "2 fields are wrong",
				&errdetails.ErrorInfo{Reason: "FIELD_INVALID", Domain: "keysvc"},
				&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
					{Field: "name", Description: "is empty"}, {Field: "scopes[1]", Description: "is unknown"},
				}}),
			2,
			"error: INVALID_ARGUMENT (FIELD_INVALID): 2 fields are wrong\n  name: is empty\n  scopes[1]: is unknown\n  request id: req-1\n",
		},
		{
			failure(t, codes.AlreadyExists, "used", &errdetails.ErrorInfo{Reason: "REQUEST_ID_USED", Domain: "keysvc", Metadata: map[string]string{"key_id": testID}}),
			7,
			"error: ALREADY_EXISTS (REQUEST_ID_USED): used\n  key_id: " + testID + "\n  request id: req-1\n",
		},
		{
			failure(t, codes.ResourceExhausted, "busy", &errdetails.ErrorInfo{Reason: "TOO_MANY_REQUESTS", Domain: "keysvc"}, &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)}),
			7,
			"error: RESOURCE_EXHAUSTED (TOO_MANY_REQUESTS): busy\n  retry after: 1s\n  request id: req-1\n",
		},
		{
			failure(t, codes.Unavailable, "the store is not ready", &errdetails.ErrorInfo{Reason: "STORE_UNAVAILABLE", Domain: "keysvc"}),
			8,
			"error: UNAVAILABLE (STORE_UNAVAILABLE): the store is not ready\n  request id: req-1\n",
		},
		{
			failure(t, codes.Aborted, "from a proxy", &errdetails.ErrorInfo{Reason: "X", Domain: "proxy.example.com"}),
			7,
			"error: ABORTED: from a proxy\n  request id: req-1\n",
		},
		{
			failure(t, codes.Internal, "line\none \x1b[31m and "+testToken+" too"),
			1,
			"error: INTERNAL: line\\none \\x1b[31m and [redacted token] too\n  request id: req-1\n",
		},
	}
	for _, test := range tests {
		answer = test.answer
		c.run(t, "key", "get", testID).want(t, test.status, "", test.stderr)
	}
}

func TestUnimplementedNamesPossibleCauses(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()
	addr := listener.Addr().String()
	command{addr: addr}.run(t, "policy", "show").want(t, 1, "",
		"error: UNIMPLEMENTED: the server at "+addr+" does not have this call: its listener may be for another purpose, it may be older than this command, or not be keysvc\n")
}

func TestMissingServerIsReportedAtOnce(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := listener.Addr().String()
	// A port that was free a moment ago.
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	missing := "unix://" + filepath.Join(t.TempDir(), "none.sock")
	began := time.Now()
	const hint = "; start a server with \"keysvc serve\", or say with --addr or KEYSVC_ADDR where one is\n"
	command{addr: addr}.run(t, "key", "list").want(t, 8, "", "error: cannot reach keysvc at "+addr+": connection refused: nothing listens there"+hint)
	command{addr: addr, stdin: strings.NewReader(testToken)}.run(t, "validate", "--identity-only").want(t, 1, "", "error: cannot reach keysvc at "+addr+": connection refused: nothing listens there"+hint)
	command{}.run(t, "key", "list", "--addr", missing).want(t, 8, "", "error: cannot reach keysvc at "+missing+": no such file or directory: keysvc is not running, or listens elsewhere"+hint)
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("that took %s", took)
	}
}

func TestAddressesThatMakeNoSenseAreRefused(t *testing.T) {
	for _, addr := range []string{":7480", "127.0.0.1:0", "unix://relative", "127.0.0.1:port", "http://127.0.0.1:7480", "[::1"} {
		for origin, r := range map[string]result{"--addr": command{}.run(t, "key", "list", "--addr", addr), "KEYSVC_ADDR": command{addr: addr}.run(t, "key", "list")} {
			if r.status != 2 || !strings.HasPrefix(r.stderr, "error: "+origin+": ") {
				t.Errorf("%s: %+v", addr, r)
			}
		}
	}
	command{}.run(t, "key", "list", "--addr=").want(t, 2, "", "error: --addr is empty, allowed are host:port and unix:///path (see keysvc key list --help)\n")

	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, &fake{listKeys: (&shelf{}).list}, listener)
	command{addr: "10.0.0.1:7480"}.run(t, "key", "list", "--addr", "unix://"+socket, "-o", "json").want(t, 0,
		"{\n  \"keys\": [],\n  \"next_page_token\": \"\",\n  \"revision\": \"0\",\n  \"epoch\": \"\"\n}\n", noLiveKeys)
	// The first of several servers that can be reached is asked.
	nobody := "unix://" + filepath.Join(t.TempDir(), "nobody")
	command{addr: nobody + ",unix://" + socket}.run(t, "key", "list", "-o", "json").want(t, 0,
		"{\n  \"keys\": [],\n  \"next_page_token\": \"\",\n  \"revision\": \"0\",\n  \"epoch\": \"\"\n}\n", noLiveKeys)
	command{}.run(t, "key", "list", "--addr", nobody+",127.0.0.1:7480").want(t, 2, "",
		"error: --addr: a list has unix sockets or other servers, not both (see keysvc key list --help)\n")
}

func TestAnotherProgramAtTheAddressIsReported(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer closeIt(t, listener)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "SSH-2.0-OpenSSH_9.9\r\n")
			closeIt(t, conn)
		}
	}()
	addr := listener.Addr().String()
	r := command{addr: addr}.run(t, "key", "list")
	if r.status != 8 || !strings.Contains(r.stderr, "is it keysvc that listens there?") || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("%+v", r)
	}
}

func TestTimeoutReportsAChangeInDoubt(t *testing.T) {
	addr := start(t, &fake{
		getKey: func(ctx context.Context, _ *keysvcv1.GetKeyRequest) (*keysvcv1.GetKeyResponse, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
		revokeKey: func(ctx context.Context, _ *keysvcv1.RevokeKeyRequest) (*keysvcv1.RevokeKeyResponse, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
	})
	c := command{addr: addr}
	c.run(t, "key", "get", testID, "--timeout", "50ms").want(t, 8, "", "error: DEADLINE_EXCEEDED: no answer from "+addr+" within 50ms\n")
	c.run(t, "key", "revoke", testID, "--workspace", "acme", "--yes", "--timeout", "50ms").want(t, 8, "",
		"error: DEADLINE_EXCEEDED: no answer from "+addr+" within 50ms; the change may have been made or not\n")
}

func TestInterruptReportsAChangeInDoubt(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	addr := start(t, &fake{
		revokeKey: func(ctx context.Context, _ *keysvcv1.RevokeKeyRequest) (*keysvcv1.RevokeKeyResponse, error) {
			cancel()
			<-ctx.Done()
			return nil, ctx.Err()
		},
	})
	var stderr bytes.Buffer
	status := command{addr: addr}.runTo(ctx, io.Discard, &stderr, "key", "revoke", testID, "--workspace", "acme", "--yes")
	if want := "error: interrupted; the change may have been made or not\n"; status != 1 || stderr.String() != want {
		t.Errorf("status %d, %q", status, stderr.String())
	}
}

func TestTextThatIsNotUTF8IsNotSent(t *testing.T) {
	addr := start(t, &fake{})
	command{addr: addr}.run(t, "key", "get", "\xff").want(t, 1, "", "error: a value is not text in UTF-8, so it cannot be sent\n")
}
