package keyclient_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/server/servertest"
)

// Every unary method of the API.
func TestReadsAreRepeatedAndChangesAreNot(t *testing.T) {
	reads := map[string]bool{
		"/keysvc.v1.KeyService/GetKey":                   true,
		"/keysvc.v1.KeyService/ListKeys":                 true,
		"/keysvc.v1.KeyService/ListNotices":              true,
		"/keysvc.v1.MemberService/GetMember":             true,
		"/keysvc.v1.MemberService/ListMembers":           true,
		"/keysvc.v1.MemberService/ListWorkspaces":        true,
		"/keysvc.v1.PolicyService/GetPolicy":             true,
		"/keysvc.v1.SyncService/AwaitRevision":           true,
		"/keysvc.v1.ValidationService/ValidateKey":       true,
		"/keysvc.v1.ValidationService/BatchValidateKeys": true,
	}
	var methods []string
	protoregistry.GlobalFiles.RangeFilesByPackage("keysvc.v1", func(file protoreflect.FileDescriptor) bool {
		for index := range file.Services().Len() {
			service := file.Services().Get(index)
			for index := range service.Methods().Len() {
				if method := service.Methods().Get(index); !method.IsStreamingClient() && !method.IsStreamingServer() {
					methods = append(methods, "/"+string(service.FullName())+"/"+string(method.Name()))
				}
			}
		}
		return true
	})
	if len(methods) < 17 {
		t.Fatalf("only %d methods", len(methods))
	}
	for _, method := range methods {
		for _, test := range []struct {
			code codes.Code
			// attempts is how often a read is tried.
			attempts int
		}{{codes.Unavailable, 4}, {codes.Unknown, 1}, {codes.DeadlineExceeded, 1}, {codes.ResourceExhausted, 1}, {codes.Internal, 1}} {
			t.Run(method+" "+test.code.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					attempts := 0
					client := serve(t, func(_ any, stream grpc.ServerStream) error {
						if err := stream.RecvMsg(new(emptypb.Empty)); err != nil {
							return err
						}
						attempts++
						return status.Error(test.code, "for a test")
					}, keyclient.Config{WithoutNearCache: true})
					want := 1
					if reads[method] {
						want = test.attempts
					}
					begun := time.Now()
					err := client.Conn().Invoke(t.Context(), method, new(emptypb.Empty), new(emptypb.Empty))
					if status.Code(err) != test.code || attempts != want {
						t.Errorf("%v after %d attempts, want %d", err, attempts, want)
					}
					if elapsed := time.Since(begun); elapsed > 250*time.Millisecond || want > 1 && elapsed < 100*time.Millisecond {
						t.Errorf("took %s", elapsed)
					}
				})
			})
		}
	}
}

func TestRetriesWaitDifferentTimes(t *testing.T) {
	waits := make(map[time.Duration]bool)
	for range 8 {
		synctest.Test(t, func(t *testing.T) {
			attempts := 0
			client := serve(t, func(_ any, stream grpc.ServerStream) error {
				if attempts++; attempts == 1 {
					return status.Error(codes.Unavailable, "for a test")
				}
				return stream.SendMsg(&keysvcv1.ValidateKeyResponse{Decision: keysvcv1.Decision_DECISION_UNAUTHENTICATED, ByDigest: true})
			}, keyclient.Config{WithoutNearCache: true})
			begun := time.Now()
			if _, err := client.Validate(t.Context(), reading(newToken(t))); err != nil {
				t.Error(err)
			}
			waits[time.Since(begun)] = true
		})
	}
	if len(waits) < 4 {
		t.Fatalf("waits of %v", waits)
	}
}

// The real keysvc ends connections of clients that ping too often.
func TestIdleClientKeepsItsConnection(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keysvc.db")
	synctest.Test(t, func(t *testing.T) {
		listener := bufconn.Listen(1 << 20)
		keysvc := servertest.Start(t, servertest.Options{Listener: listener, File: file})
		var dials atomic.Int64
		client := newClient(t, bufferedTarget, keyclient.Config{WithoutNearCache: true, DialOptions: []grpc.DialOption{dialer(listener, &dials)}})
		for range 5 {
			answer, err := client.Validate(t.Context(), reading(newToken(t)))
			if err != nil || answer.Decision != keysvcv1.Decision_DECISION_UNAUTHENTICATED {
				t.Fatalf("answered %+v, %v", answer, err)
			}
			time.Sleep(5 * time.Minute) // of the bubble's time
		}
		if dials.Load() != 1 {
			t.Errorf("dialled %d times", dials.Load())
		}
		keysvc.Stop()
	})
}

// The client returns UNAVAILABLE at once, and answers again when there is a keysvc again.
func TestClientOutlivesItsServer(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	file := filepath.Join(t.TempDir(), "keysvc.db")
	start := func() *servertest.Keysvc {
		listener, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		return servertest.Start(t, servertest.Options{Listener: listener, File: file})
	}
	keysvc := start()
	keysvc.PutMember(t, "acme", "ann", "owner")
	_, text := keysvc.CreateKey(t, "acme", "ann", "signatures:read")
	client := newClient(t, "unix://"+socket, keyclient.Config{WithoutNearCache: true})
	allowed := func(ctx context.Context) error {
		answer, err := client.Validate(ctx, reading(text))
		if err == nil && answer.Decision != keysvcv1.Decision_DECISION_ALLOWED {
			t.Fatalf("answered %+v", answer)
		}
		return err
	}
	if err := allowed(t.Context()); err != nil {
		t.Fatal(err)
	}
	keysvc.Stop()
	if err := allowed(t.Context()); !unavailable(err) {
		t.Fatalf("without a keysvc: %v", err)
	}
	start()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn := client.Conn().(*grpc.ClientConn)
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		if !conn.WaitForStateChange(ctx, state) {
			t.Fatal("no connection")
		}
	}
	if err := allowed(ctx); err != nil {
		t.Fatal(err)
	}
}

// authority issues certificates for a name.
type authority struct {
	pool        *x509.CertPool
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(certificate)
	return &authority{pool: pool, certificate: certificate, key: key}
}

func (a *authority) issue(t testing.TB, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{name}, NotBefore: a.certificate.NotBefore, NotAfter: a.certificate.NotAfter,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Two servers behind one name, with TLS 1.3 and client certificates: both get calls. A server
// that cannot prove its name gets none.
func TestCallsAreSecuredAndSpread(t *testing.T) {
	authority := newAuthority(t)
	var calls [2]atomic.Int64
	var addresses []resolver.Address
	for index := range calls {
		server := grpc.NewServer(
			grpc.Creds(credentials.NewTLS(&tls.Config{
				MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{authority.issue(t, "keysvc.test")},
				ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: authority.pool,
			})),
			grpc.UnknownServiceHandler(func(service any, stream grpc.ServerStream) error {
				calls[index].Add(1)
				return answering(&keysvcv1.ValidateKeyResponse{Decision: keysvcv1.Decision_DECISION_UNAUTHENTICATED, ByDigest: true}, nil)(service, stream)
			}))
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go server.Serve(listener)
		t.Cleanup(server.Stop)
		addresses = append(addresses, resolver.Address{Addr: listener.Addr().String()})
	}
	connect := func(name string, certificates ...tls.Certificate) *keyclient.Client {
		resolve := manual.NewBuilderWithScheme("test")
		resolve.InitialState(resolver.State{Addresses: addresses})
		return newClient(t, "test:///"+name, keyclient.Config{
			WithoutNearCache:     true,
			TransportCredentials: credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: authority.pool, Certificates: certificates}),
			ValidationTimeout:    patience,
			DialOptions:          []grpc.DialOption{grpc.WithResolvers(resolve)},
		})
	}

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	client := connect("keysvc.test", authority.issue(t, "signatures.test"))
	for calls[0].Load() == 0 || calls[1].Load() == 0 {
		answer, err := client.Validate(ctx, reading(newToken(t)))
		if err != nil || answer.Decision != keysvcv1.Decision_DECISION_UNAUTHENTICATED {
			t.Fatalf("calls %d and %d; answered %+v, %v", calls[0].Load(), calls[1].Load(), answer, err)
		}
	}

	before := calls[0].Load() + calls[1].Load()
	for name, client := range map[string]*keyclient.Client{
		"another name":   connect("other.test", authority.issue(t, "signatures.test")),
		"no certificate": connect("keysvc.test"),
	} {
		text := newToken(t)
		answer, err := client.Validate(t.Context(), reading(text))
		if !unavailable(err) || !reflect.DeepEqual(answer, keyauth.Answer{}) || strings.Contains(err.Error(), text) {
			t.Errorf("%s: answered %+v, %v", name, answer, err)
		}
	}
	if calls[0].Load()+calls[1].Load() != before {
		t.Error("a server was asked that it should not have been")
	}
}

func BenchmarkValidate(b *testing.B) {
	keysvc := servertest.Start(b, servertest.Options{})
	keysvc.PutMember(b, "acme", "ann", "owner")
	_, text := keysvc.CreateKey(b, "acme", "ann", "signatures:read")
	client := newClient(b, keysvc.Address, keyclient.Config{WithoutNearCache: true, ValidationTimeout: patience})
	for _, test := range []struct{ name, text string }{
		{"call", text},
		{"refused without a call", text[:len(text)-1]},
	} {
		b.Run(test.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := client.Validate(b.Context(), reading(test.text)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
