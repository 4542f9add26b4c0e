package transport

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"
)

// maxFileBytes bounds a file of certificates, or a key.
const maxFileBytes = 1 << 20

// TLS is how a connection is secured. Files are read again for each handshake, so that a new
// certificate takes effect without a restart.
type TLS struct {
	// CAFile has the certificates, in PEM, of the authorities that may issue the server's. If it
	// is empty, the system's authorities are trusted; with ServerSPIFFEID it is required.
	CAFile string
	// CertFile and KeyFile have the client's certificate chain and its key, in PEM. Either both
	// are set or neither is.
	CertFile, KeyFile string
	// ServerName is the name in the server's certificate; "" for the host of the address.
	ServerName string
	// ServerSPIFFEID is the SPIFFE id of the server, as in spiffe://example.org/keysvc. The
	// server's certificate must have this URI and no other; its names do not count.
	ServerSPIFFEID string
}

// secured makes handshakes with TLS.
type secured struct {
	// name is the server's, "" for the host of the address.
	name     string
	spiffeID string
	files    files
	now      func() time.Time
}

func newSecured(config TLS, stale func(error), now func() time.Time) (*secured, error) {
	switch {
	case (config.CertFile == "") != (config.KeyFile == ""):
		return nil, errors.New("a client certificate needs both its certificate file and its key file; one of them is missing")
	case config.ServerSPIFFEID != "" && config.ServerName != "":
		return nil, errors.New("server name and SPIFFE id of the server are both set; exactly one of them names the server")
	case config.ServerSPIFFEID != "" && config.CAFile == "":
		return nil, errors.New("the SPIFFE id of the server needs a CA file: the authorities of the system issue none")
	}
	if config.ServerSPIFFEID != "" {
		if err := checkSPIFFEID(config.ServerSPIFFEID); err != nil {
			return nil, err
		}
	}
	if stale == nil {
		stale = func(error) {}
	}
	s := &secured{name: config.ServerName, spiffeID: config.ServerSPIFFEID, now: now, files: files{ca: config.CAFile, cert: config.CertFile, key: config.KeyFile, stale: stale}}
	_, err := s.files.load()
	return s, err
}

// checkSPIFFEID returns an error for a text that is no SPIFFE id of a workload (SPIFFE-ID
// sections 2.1 to 2.3).
func checkSPIFFEID(text string) error {
	wrong := fmt.Errorf("%q is no SPIFFE id; one looks like spiffe://example.org/keysvc", text)
	id, err := url.Parse(text)
	if err != nil || id.Scheme != "spiffe" || id.Host == "" || id.Port() != "" || id.User != nil || id.RawQuery != "" || id.Fragment != "" ||
		len(id.Path) < 2 || strings.HasSuffix(id.Path, "/") || strings.Contains(text, "%") || id.String() != text || len(text) > 2048 {
		return wrong
	}
	if strings.ContainsFunc(id.Host, func(char rune) bool {
		return (char < 'a' || char > 'z') && (char < '0' || char > '9') && !strings.ContainsRune(".-_", char)
	}) {
		return wrong
	}
	return nil
}

// handshakeUse is what a handshake used, to explain why a server refused it.
type handshakeUse struct {
	// asked is set if the server asked for a client certificate.
	asked bool
	// own is the client's certificate; nil if the client has no certificate.
	own *x509.Certificate
	now func() time.Time
}

func (s *secured) handshake(ctx context.Context, authority string, raw net.Conn) (*tls.Conn, *handshakeUse, error) {
	used := &handshakeUse{now: s.now}
	material, err := s.files.load()
	if err != nil {
		return nil, used, err
	}
	used.own = material.certificate.Leaf
	conn := tls.Client(raw, s.config(authority, material, used))
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, used, err
	}
	if conn.ConnectionState().NegotiatedProtocol != "h2" {
		return nil, used, errNoHTTP2
	}
	return conn, used, nil
}

// verifySPIFFE verifies the server's chain and its SPIFFE id (X.509-SVID sections 2 and 5).
func (s *secured) verifySPIFFE(state tls.ConnectionState, roots *x509.CertPool) error {
	leaf := state.PeerCertificates[0] // a server always presents one
	intermediates := x509.NewCertPool()
	for _, certificate := range state.PeerCertificates[1:] {
		intermediates.AddCert(certificate)
	}
	options := x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: s.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if _, err := leaf.Verify(options); err != nil {
		return err
	}
	if leaf.IsCA || len(leaf.URIs) != 1 || leaf.URIs[0].String() != s.spiffeID {
		return &idError{want: s.spiffeID, certificate: leaf}
	}
	return nil
}

// material is what the files hold.
type material struct {
	roots       *x509.CertPool // nil for the system's
	certificate tls.Certificate
}

// files reads certificates and a key, and remembers the last good ones.
type files struct {
	ca, cert, key string
	stale         func(error)

	mu   sync.Mutex
	good *material
	sum  [sha256.Size]byte // of the files that good was made of
}

// load returns what the files hold now. If that is not valid, it returns what they held when
// they last were, and the first time it fails. A file that is written while it is read is no
// failure, then.
func (f *files) load() (*material, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	loaded, err := f.read()
	switch {
	case err == nil:
		f.good = loaded
		return loaded, nil
	case f.good == nil:
		return nil, err
	}
	f.stale(err)
	return f.good, nil
}

func (f *files) read() (*material, error) {
	texts := make([][]byte, 3)
	hash := sha256.New()
	for index, name := range []string{f.ca, f.cert, f.key} {
		if name == "" {
			continue
		}
		text, err := readFile(name)
		if err != nil {
			return nil, err
		}
		texts[index] = text
		sum := sha256.Sum256(text)
		hash.Write(sum[:])
	}
	sum := [sha256.Size]byte(hash.Sum(nil))
	if f.good != nil && sum == f.sum {
		return f.good, nil
	}
	loaded := &material{}
	if f.ca != "" {
		loaded.roots = x509.NewCertPool()
		if !loaded.roots.AppendCertsFromPEM(texts[0]) {
			return nil, &fileError{f.ca, errors.New("has no certificate in PEM")}
		}
	}
	if f.cert != "" {
		pair, err := tls.X509KeyPair(texts[1], texts[2])
		if err != nil {
			return nil, &fileError{f.cert + " and " + f.key, errors.New("are not a certificate and its key in PEM: " + strings.TrimPrefix(err.Error(), "tls: "))}
		}
		loaded.certificate = pair
	}
	f.sum = sum
	return loaded, nil
}

// readFile reads a file that is not larger than it can sensibly be.
func readFile(name string) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, &fileError{name, err}
	}
	defer file.Close() //nolint:errcheck // it was only read
	text, err := io.ReadAll(io.LimitReader(file, maxFileBytes+1))
	switch {
	case err != nil:
		return nil, &fileError{name, err}
	case len(text) > maxFileBytes:
		return nil, &fileError{name, fmt.Errorf("is larger than %d bytes", maxFileBytes)}
	}
	return text, nil
}

// fileError is a file that cannot be used. It holds nothing of the file's content.
type fileError struct {
	name  string
	cause error
}

// Error names the file, and says what is wrong with it.
func (e *fileError) Error() string {
	if path, is := errors.AsType[*os.PathError](e.cause); is {
		return "the file " + e.name + " cannot be read: " + path.Err.Error()
	}
	return "the file " + e.name + " " + e.cause.Error()
}

// Unwrap returns the cause.
func (e *fileError) Unwrap() error { return e.cause }
