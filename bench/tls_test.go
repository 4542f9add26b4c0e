package bench

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// tlsVariable names the folder of the certificates of an empty server that is served with TLS.
const tlsVariable = "BENCH_TLS"

// clientTLS returns the configuration of a client with the certificate that may do everything.
func clientTLS(t *testing.T, folder string) *tls.Config {
	t.Helper()
	own, authorities := readCertificates(t, folder, "admin")
	return &tls.Config{Certificates: []tls.Certificate{own}, RootCAs: authorities, ServerName: "localhost", MinVersion: tls.VersionTLS13}
}

// serverTLS returns the options of an empty server with TLS; none without the variable.
func serverTLS(t *testing.T) []grpc.ServerOption {
	t.Helper()
	folder := os.Getenv(tlsVariable)
	if folder == "" {
		return nil
	}
	own, authorities := readCertificates(t, folder, "server")
	return []grpc.ServerOption{grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{own}, ClientCAs: authorities, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13,
	}))}
}

func readCertificates(t *testing.T, folder, name string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	own, err := tls.LoadX509KeyPair(filepath.Join(folder, name+".crt"), filepath.Join(folder, name+".key"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(folder, "ca.crt"))
	authorities := x509.NewCertPool()
	if err != nil || !authorities.AppendCertsFromPEM(text) {
		t.Fatalf("ca.crt: %v", err)
	}
	return own, authorities
}
