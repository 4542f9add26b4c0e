package keyclient_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/server/servertest"
)

// certificates writes ca.pem, cert.pem and key.pem into a new folder.
func certificates() (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "example"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return "", err
	}
	folder, err := os.MkdirTemp("", "keyclient")
	if err != nil {
		return "", err
	}
	return folder, writePair(folder, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, der)
}

// writePair writes ca.pem, cert.pem and key.pem into a folder.
func writePair(folder string, certificate tls.Certificate, ca []byte) error {
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		return err
	}
	for name, block := range map[string]*pem.Block{
		"ca.pem":   {Type: "CERTIFICATE", Bytes: ca},
		"cert.pem": {Type: "CERTIFICATE", Bytes: certificate.Certificate[0]},
		"key.pem":  {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(filepath.Join(folder, name), pem.EncodeToMemory(block), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// secure is a server with TLS that asks for a client certificate, and remembers its callers.
type secure struct {
	address string
	folder  string // has ca.pem, cert.pem and key.pem for a client

	mu     sync.Mutex
	bearer string
}

func serveSecurely(t *testing.T) *secure {
	t.Helper()
	authority := newAuthority(t)
	s := &secure{folder: t.TempDir()}
	if err := writePair(s.folder, authority.issue(t, "signatures.test"), authority.certificate.Raw); err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{authority.issue(t, "keysvc.test")},
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: authority.pool,
		})),
		grpc.UnknownServiceHandler(func(service any, stream grpc.ServerStream) error {
			s.mu.Lock()
			s.bearer = strings.Join(metadata.ValueFromIncomingContext(stream.Context(), "authorization"), ",")
			s.mu.Unlock()
			return answering(&keysvcv1.ValidateKeyResponse{Decision: keysvcv1.Decision_DECISION_UNAUTHENTICATED, ByDigest: true}, nil)(service, stream)
		}))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	s.address = listener.Addr().String()
	return s
}

func (s *secure) file(name string) string { return filepath.Join(s.folder, name) }

func TestClientSpeaksTLSWithFilesAndToken(t *testing.T) {
	s := serveSecurely(t)
	token := s.file("token")
	if err := os.WriteFile(token, []byte("caller-token\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	named := &keyclient.TLS{CAFile: s.file("ca.pem"), CertFile: s.file("cert.pem"), KeyFile: s.file("key.pem"), ServerName: "keysvc.test"}
	for name, open := range map[string]func() (*keyclient.Client, error){
		"by configuration": func() (*keyclient.Client, error) {
			return keyclient.New(s.address, keyclient.Config{WithoutNearCache: true, TLS: named, CallerTokenFile: token, ValidationTimeout: patience})
		},
		"by environment": func() (*keyclient.Client, error) {
			t.Setenv("KEYSVC_ADDR", s.address)
			t.Setenv("KEYSVC_TLS_CA", named.CAFile)
			t.Setenv("KEYSVC_TLS_CERT", named.CertFile)
			t.Setenv("KEYSVC_TLS_KEY", named.KeyFile)
			t.Setenv("KEYSVC_TLS_SERVER_NAME", named.ServerName)
			t.Setenv("KEYSVC_CALLER_TOKEN_FILE", token)
			return keyclient.FromEnvironment(keyclient.Config{WithoutNearCache: true, AllowPlaintext: true, ValidationTimeout: patience})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s.mu.Lock()
			s.bearer = ""
			s.mu.Unlock()
			client, err := open()
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			answer, err := client.Validate(t.Context(), reading(newToken(t)))
			if err != nil || answer.Decision != keysvcv1.Decision_DECISION_UNAUTHENTICATED {
				t.Fatalf("answered %+v, %v", answer, err)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.bearer != "Bearer caller-token" {
				t.Errorf("the server got %q", s.bearer)
			}
		})
	}
}

// Plaintext is never what an address of another machine gets.
func TestFromEnvironmentChoosesTheWayByTheTarget(t *testing.T) {
	for _, test := range []struct {
		name      string
		variables map[string]string
		config    keyclient.Config
		want      string // of the error; "" for none
	}{
		{"another machine", map[string]string{"KEYSVC_ADDR": "keysvc.internal"}, keyclient.Config{WithoutNearCache: true, AllowPlaintext: true}, ""},
		{"another machine, wrong file", map[string]string{"KEYSVC_ADDR": "keysvc.internal", "KEYSVC_TLS_CA": "/nowhere"}, keyclient.Config{WithoutNearCache: true, AllowPlaintext: true}, "the file /nowhere"},
		{"this machine", map[string]string{"KEYSVC_ADDR": "127.0.0.1:1"}, keyclient.Config{WithoutNearCache: true}, "set AllowPlaintext"},
		{"this machine, with TLS", map[string]string{"KEYSVC_ADDR": "127.0.0.1:1", "KEYSVC_TLS_SERVER_NAME": "keysvc.test"}, keyclient.Config{WithoutNearCache: true}, ""},
		{"this machine, with a token", map[string]string{"KEYSVC_ADDR": "127.0.0.1:1", "KEYSVC_CALLER_TOKEN_FILE": "/nowhere"}, keyclient.Config{WithoutNearCache: true, AllowPlaintext: true}, "in plaintext"},
		{"a socket", map[string]string{"KEYSVC_ADDR": "unix:///run/s", "KEYSVC_TLS_CA": "/nowhere"}, keyclient.Config{WithoutNearCache: true}, ""},
		{"a socket of an unknown user", map[string]string{"KEYSVC_ADDR": "unix:///run/s", "KEYSVC_SOCKET_OWNER": "no such user"}, keyclient.Config{WithoutNearCache: true}, "SocketOwner"},
		{"the program knows better", map[string]string{"KEYSVC_ADDR": "unix:///run/s", "KEYSVC_SOCKET_OWNER": "no such user"}, keyclient.Config{WithoutNearCache: true, SocketOwner: "0"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			for name, value := range test.variables {
				t.Setenv(name, value)
			}
			client, err := keyclient.FromEnvironment(test.config)
			if err == nil {
				client.Close()
			}
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error %v, want %q", err, test.want)
			}
		})
	}
}

// Without KEYSVC_ADDR the socket of the working directory is taken, and needs no permission.
func TestFromEnvironmentFindsTheSocket(t *testing.T) {
	folder, err := os.MkdirTemp("", "ks")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	if err := os.Mkdir(filepath.Join(folder, "keysvc-data"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(folder)
	t.Setenv("KEYSVC_ADDR", "")
	listener, err := net.Listen("unix", filepath.Join("keysvc-data", "keysvc.sock"))
	if err != nil {
		t.Fatal(err)
	}
	servertest.Start(t, servertest.Options{Listener: listener, File: filepath.Join(t.TempDir(), "keysvc.db")})
	client, err := keyclient.FromEnvironment(keyclient.Config{WithoutNearCache: true, ValidationTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	answer, err := client.Validate(t.Context(), reading(newToken(t)))
	if err != nil || answer.Decision != keysvcv1.Decision_DECISION_UNAUTHENTICATED {
		t.Fatalf("answered %+v, %v", answer, err)
	}
	other, err := keyclient.FromEnvironment(keyclient.Config{WithoutNearCache: true, SocketOwner: "4000000000", ValidationTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.Validate(t.Context(), reading(newToken(t))); !unavailable(err) || !strings.Contains(err.Error(), "the socket belongs to uid ") {
		t.Fatalf("a socket of another user: %v", err)
	}
}

// lines counts the lines of a log by their message.
type lines struct {
	slog.Handler

	mu    sync.Mutex
	count map[string]int
	texts []string
}

func (l *lines) Enabled(context.Context, slog.Level) bool { return true }

func (l *lines) Handle(_ context.Context, record slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count == nil {
		l.count = map[string]int{}
	}
	l.count[record.Message]++
	record.Attrs(func(attribute slog.Attr) bool { l.texts = append(l.texts, attribute.Value.String()); return true })
	return nil
}

// A service sees UNAVAILABLE with the reason, and the log has it once in ten seconds.
func TestFailedConnectionIsSaidInErrorAndLog(t *testing.T) {
	s := serveSecurely(t)
	var mu sync.Mutex
	now := time.Now()
	log := &lines{}
	client, err := keyclient.New(s.address, keyclient.Config{
		WithoutNearCache: true,
		TLS:              &keyclient.TLS{CAFile: s.file("ca.pem"), ServerName: "keysvc.test"}, ValidationTimeout: patience, Log: slog.New(log),
		Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	const want = "the server asks for a client certificate, and there is none"
	fail := func(times int) {
		t.Helper()
		for begun := time.Now(); times > 0 && time.Since(begun) < patience; times-- {
			text := newToken(t)
			_, err := client.Validate(t.Context(), reading(text))
			if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), s.address) || strings.Contains(err.Error(), text) {
				t.Fatalf("error %v", err)
			}
			// The next attempt to connect.
			client.Conn().(*grpc.ClientConn).ResetConnectBackoff()
		}
	}
	warnings := func() int {
		log.mu.Lock()
		defer log.mu.Unlock()
		return log.count["keysvc cannot be reached"]
	}
	fail(20)
	if warnings() != 1 || !strings.Contains(strings.Join(log.texts, "\n"), want) {
		t.Fatalf("%d warnings: %q", warnings(), log.texts)
	}
	mu.Lock()
	now = now.Add(10 * time.Second)
	mu.Unlock()
	deadline := time.Now().Add(patience)
	for warnings() < 2 && time.Now().Before(deadline) {
		fail(1)
	}
	fail(5)
	if warnings() != 2 {
		t.Fatalf("%d warnings", warnings())
	}
	if _, err := client.Keys.GetKey(t.Context(), &keysvcv1.GetKeyRequest{}); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), want) {
		t.Errorf("another call: %v", err)
	}
	var guard keyauth.Validator = client
	if _, err := guard.Validate(t.Context(), reading(newToken(t))); !unavailable(err) {
		t.Errorf("as a Validator: %v", err)
	}
}
