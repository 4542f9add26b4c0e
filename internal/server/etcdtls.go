package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/scribe-mail/keysvc/internal/certificates"
	"github.com/scribe-mail/keysvc/internal/config"
)

// etcdTLS is the TLS of connections to etcd. It reads its files again for each handshake, of which there
// are few, so a new certificate is used from the next connection on.
type etcdTLS struct {
	files *certificates.Files
	log   *slog.Logger
}

// newEtcdTLS reads the files. The errors name the file.
func newEtcdTLS(settings config.Settings, log *slog.Logger) (*etcdTLS, error) {
	elsewhere := func(member config.Address) bool { return !member.Local() }
	files, err := certificates.OpenFiles(certificates.Paths{
		Certificate: settings.EtcdCert, Key: settings.EtcdKey, ForClient: true, DNS: settings.EtcdCA,
		RefuseDevelopment: slices.ContainsFunc(settings.EtcdEndpoints, elsewhere),
	}, time.Now)
	if err != nil {
		return nil, err
	}
	return &etcdTLS{files: files, log: log}, nil
}

// reload reads the files again. A file that cannot be used now leaves what was read before.
func (t *etcdTLS) reload() {
	if _, err := t.files.Reload(context.Background()); err != nil {
		t.log.Warn("certificates for etcd cannot be read; the ones from before count", "error", err)
	}
}

// config returns the configuration for a member at host:port.
func (t *etcdTLS) config(target string) *tls.Config {
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		host = target
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, // etcd's own default
		ServerName: host,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			t.reload()
			if own := t.files.Own(); own != nil {
				return own, nil
			}
			return &tls.Certificate{}, nil // etcd refuses if it needs one
		},
		// The authorities may have changed since the configuration was made, so VerifyConnection verifies chain
		// and name, with what the file has now. Go runs it for each connection, resumed ones included.
		InsecureSkipVerify: true, //nolint:gosec // G402: see above
		VerifyConnection: func(state tls.ConnectionState) error {
			t.reload()
			return verifyEtcd(state, t.files.Trust().DNS, host)
		},
	}
}

// verifyEtcd verifies the certificate of a member, as crypto/tls would.
func verifyEtcd(state tls.ConnectionState, roots *x509.CertPool, host string) error {
	if len(state.PeerCertificates) == 0 || roots == nil {
		return errors.New("etcd has shown no certificate")
	}
	intermediates := x509.NewCertPool()
	for _, certificate := range state.PeerCertificates[1:] {
		intermediates.AddCert(certificate)
	}
	_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, DNSName: host, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return err
}

// maxPassword bounds a password, in bytes.
const maxPassword = 1024

// readPassword reads a password from a file of one line. The errors have nothing of its content.
func readPassword(name string) (string, error) {
	file, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer file.Close() //nolint:errcheck // it was only read
	info, err := file.Stat()
	switch {
	case err != nil:
		return "", err
	case !info.Mode().IsRegular():
		return "", fmt.Errorf("%s is not a file", name)
	case info.Mode().Perm()&0o037 != 0:
		return "", fmt.Errorf("%s: others may read it, or its group may change it (mode %04o); chmod 600 %[1]s", name, info.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(file, maxPassword+2))
	if err != nil {
		return "", err
	}
	password := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
	if password == "" || len(password) > maxPassword || strings.ContainsAny(password, "\r\n\x00") {
		return "", fmt.Errorf("%s does not have a password in one line of 1 to %d bytes", name, maxPassword)
	}
	return password, nil
}
