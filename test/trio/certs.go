package trio

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Certs are the files with the certificates of a Trio with TLS. keysvc certs dev makes them.
type Certs struct {
	// Folder has everything.
	Folder string
	// CA has the authority of all certificates. ServerCert and ServerKey are those of etcd's members and of keysvc.
	CA, ServerCert, ServerKey string
	// Callers is the file of those who may call keysvc: admin, manager and validator.
	Callers string
}

// Certs returns the files. They are there if the Trio was started with TLS.
func (t *Trio) Certs() Certs {
	folder := filepath.Join(t.folder, "certs")
	in := func(name string) string { return filepath.Join(folder, name) }
	return Certs{Folder: folder, CA: in("ca.crt"), ServerCert: in("server.crt"), ServerKey: in("server.key"), Callers: in("callers.yaml")}
}

// Pair returns the files with certificate and key of a caller of keysvc: admin, manager or validator. etcd takes each
// of them as well.
func (c Certs) Pair(caller string) (certificate, key string) {
	return filepath.Join(c.Folder, caller+".crt"), filepath.Join(c.Folder, caller+".key")
}

// ClientTLS returns how a client of etcd connects.
func (c Certs) ClientTLS() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(c.Pair("admin"))
	if err != nil {
		return nil, err
	}
	content, err := os.ReadFile(c.CA)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(content) {
		return nil, errors.New("no certificate in " + c.CA)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS12}, nil
}

func (t *Trio) makeCerts(ctx context.Context) error {
	output, err := exec.CommandContext(ctx, t.programs.Keysvc, "certs", "dev", t.Certs().Folder).CombinedOutput()
	if err != nil {
		return fmt.Errorf("keysvc certs dev: %w: %s", err, output)
	}
	return nil
}
