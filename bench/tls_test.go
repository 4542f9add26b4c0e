package bench

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// tlsVariable names the folder of the certificates of an empty server that is served with TLS.
const tlsVariable = "BENCH_TLS"

// tlsCallers is how many callers TestMeasureOverTLS has.
const tlsCallers = 64

// TestMeasureOverTLS prints what a validation costs over TLS with client certificates, beside an
// empty call over the same TLS, and both in plaintext: there with the binary BENCH_BEFORE if one is
// given. No figure is judged. It needs the binary BENCH_AFTER.
func TestMeasureOverTLS(t *testing.T) {
	after, before := os.Getenv(afterVariable), os.Getenv(beforeVariable)
	if after == "" {
		t.Skip("for measuring only: see bench/README.md")
	}
	if before == "" {
		before = after
	}
	folder := t.TempDir()
	if text, err := exec.CommandContext(t.Context(), after, "certs", "dev", folder).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	in := func(name string) string { return filepath.Join(folder, name) }
	emptyTLS := startProcess(t, "TestProcessServer", serverVariable+"="+emptyServer, tlsVariable+"="+folder)
	t.Cleanup(func() { emptyTLS.end(t) })
	emptyTLS.address = emptyTLS.line(t, "address")
	keysvcTLS := startBinary(t, after, "serve", "--init", "--tls-server-cert", in("server.crt"), "--tls-server-key", in("server.key"), "--callers", in("callers.yaml"))
	over := credentials.NewTLS(clientTLS(t, folder))
	servers := []*quickServer{
		newQuickServer(t, "empty", startServer(t, emptyServer)),
		newQuickServer(t, "before", startBinary(t, before, "serve", "--dev")),
		connectQuickServer(t, "empty", emptyTLS, dialWith(t, emptyTLS.address, over)),
		connectQuickServer(t, "over TLS", keysvcTLS, dialWith(t, keysvcTLS.address, over)),
	}
	servers[2].name = "empty over TLS"
	for _, server := range servers {
		server.callers = tlsCallers
		server.ask(t, time.Second) // not counted: caches and heaps grow to their usual size
	}
	measureQuick(t, servers, quickPairs, quickTime/time.Duration(quickPairs*len(servers)*quickRounds))
	for index, what := range []string{"server's processor time", "throughput"} {
		var plain, tls, both []float64
		for pair := range servers[0].pairs {
			cost := func(server int) float64 {
				if index == 1 {
					return 1 / servers[server].pairs[pair].rate()
				}
				return servers[server].pairs[pair].serverCall()
			}
			plain = append(plain, cost(0)/cost(1))
			tls = append(tls, cost(2)/cost(3))
			both = append(both, cost(2)/cost(3)*cost(1)/cost(0))
		}
		fmt.Printf("%s, %d callers: empty ÷ validation in plaintext before %s, over TLS %s, the second ÷ the first %s\n",
			what, tlsCallers, spread(plain), spread(tls), spread(both))
	}
}

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
