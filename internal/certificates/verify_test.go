package certificates_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/certificates"
	"github.com/scribe-mail/keysvc/internal/certificates/certificatestest"
)

// fixed is a source that a test changes.
type fixed struct {
	own   *tls.Certificate
	trust *certificates.Trust
}

func (f *fixed) Own() *tls.Certificate      { return f.own }
func (f *fixed) Trust() *certificates.Trust { return f.trust }

// world has authorities of two trust domains, one for DNS, and one that nobody trusts.
type world struct {
	prod, stage, dns, foreign *certificatestest.Authority
	source                    *fixed
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	w := &world{
		prod:    certificatestest.NewAuthority(tb, "prod"),
		stage:   certificatestest.NewAuthority(tb, "stage"),
		dns:     certificatestest.NewAuthority(tb, "dns"),
		foreign: certificatestest.NewAuthority(tb, "foreign"),
	}
	w.source = &fixed{
		own: w.dns.Issue(tb, certificatestest.Loopback),
		trust: &certificates.Trust{
			Domains: map[string]*x509.CertPool{"prod.test": w.prod.Pool(), "stage.test": w.stage.Pool()},
			DNS:     w.dns.Pool(),
		},
	}
	return w
}

// shake connects a client to a server of the world over loopback. It returns what the server saw
// and how the server's handshake ended.
func (w *world) shake(tb testing.TB, client *tls.Config, withoutCertificate bool) (tls.ConnectionState, error) {
	tb.Helper()
	return shake(tb, certificates.Config(certificates.Verifier{Source: w.source}, withoutCertificate), client)
}

func shake(tb testing.TB, server, client *tls.Config) (tls.ConnectionState, error) {
	tb.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	done := make(chan struct{})
	go func() {
		defer close(done)
		connection, err := tls.Dial("tcp", listener.Addr().String(), client)
		if err == nil {
			_, _ = io.ReadAll(connection) // session tickets, an alert, or the end
			_ = connection.Close()
		}
	}()
	accepted, err := listener.Accept()
	if err != nil {
		tb.Fatal(err)
	}
	connection := tls.Server(accepted, server)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err = connection.HandshakeContext(ctx)
	state := connection.ConnectionState()
	if err == nil {
		_ = connection.Close()
	}
	_ = accepted.Close()
	<-done
	return state, err
}

func (w *world) client(certificate *tls.Certificate) *tls.Config {
	config := &tls.Config{RootCAs: w.dns.Pool(), ServerName: "localhost", NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS12}
	if certificate != nil {
		config.Certificates = []tls.Certificate{*certificate}
	}
	return config
}

func TestClientCertificates(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	now := time.Now()
	uri := func(text string) certificatestest.Option { return certificatestest.URI(t, text) }
	dns, valid := certificatestest.DNS, certificatestest.Valid
	prodID := uri("spiffe://prod.test/mailer")
	usage := func(usage x509.KeyUsage, extended ...x509.ExtKeyUsage) certificatestest.Option {
		return func(c *x509.Certificate) { c.KeyUsage, c.ExtKeyUsage = usage, extended }
	}
	chained := w.prod.Intermediate(t, "prod intermediate").Issue(t, prodID)
	unchained := *chained
	unchained.Certificate = unchained.Certificate[:1]
	long := *w.prod.Issue(t, prodID)
	for range 8 {
		long.Certificate = append(long.Certificate, w.foreign.Certificate.Raw)
	}
	// An attacker presents the root of the trust domain as an intermediate, below a root of its own.
	smuggled := *w.foreign.Issue(t, prodID)
	smuggled.Certificate = append(smuggled.Certificate, w.prod.Certificate.Raw, w.foreign.Certificate.Raw)

	for name, test := range map[string]struct {
		present *tls.Certificate
		id      string   // what is proved, or
		names   []string // what is proved, or
		refused string   // part of the error
	}{
		"a SPIFFE id of its own trust domain": {present: w.prod.Issue(t, prodID), id: "spiffe://prod.test/mailer"},
		"of the other trust domain":           {present: w.stage.Issue(t, uri("spiffe://stage.test/a/b")), id: "spiffe://stage.test/a/b"},
		"through an intermediate":             {present: chained, id: "spiffe://prod.test/mailer"},
		"a SPIFFE id beside DNS names":        {present: w.prod.Issue(t, prodID, dns("mailer.test")), id: "spiffe://prod.test/mailer"},
		"DNS names":                           {present: w.dns.Issue(t, dns("Mailer.test", "*.test")), names: []string{"mailer.test"}},

		"an intermediate that is not presented":   {present: &unchained, refused: "unknown authority"},
		"a chain that is too long":                {present: &long, refused: "at most 8"},
		"signed by the other trust domain":        {present: w.stage.Issue(t, prodID), refused: "unknown authority"},
		"a SPIFFE id signed by the DNS authority": {present: w.dns.Issue(t, prodID, dns("mailer.test")), refused: "unknown authority"},
		"DNS names signed by a trust domain":      {present: w.prod.Issue(t, dns("mailer.test")), refused: "unknown authority"},
		"signed by a stranger":                    {present: w.foreign.Issue(t, prodID), refused: "unknown authority"},
		"a smuggled root":                         {present: &smuggled, refused: "unknown authority"},
		"a trust domain that is not configured":   {present: w.prod.Issue(t, uri("spiffe://other.test/mailer")), refused: `trust domain "other.test" is not configured`},
		"two URIs":                                {present: w.prod.Issue(t, prodID, uri("spiffe://prod.test/other")), refused: "must be the only one"},
		"a SPIFFE id beside another URI":          {present: w.prod.Issue(t, prodID, uri("https://prod.test/")), refused: "must be the only one"},
		"another URI beside DNS names":            {present: w.dns.Issue(t, uri("https://prod.test/"), dns("mailer.test")), refused: "must start with spiffe://"},
		"a SPIFFE id without a path":              {present: w.prod.Issue(t, uri("spiffe://prod.test")), refused: "has no path"},
		"a SPIFFE id with a port":                 {present: w.prod.Issue(t, uri("spiffe://prod.test:443/mailer")), refused: "not allowed"},
		"expired":                                 {present: w.prod.Issue(t, prodID, valid(now.Add(-2*time.Hour), now.Add(-time.Hour))), refused: "expired"},
		"not yet valid":                           {present: w.prod.Issue(t, prodID, valid(now.Add(time.Hour), now.Add(2*time.Hour))), refused: "not yet valid"},
		"for servers only":                        {present: w.prod.Issue(t, prodID, usage(x509.KeyUsageDigitalSignature, x509.ExtKeyUsageServerAuth)), refused: "lacks clientAuth"},
		"for nothing by name":                     {present: w.prod.Issue(t, prodID, usage(x509.KeyUsageDigitalSignature)), refused: "lacks clientAuth"},
		"not for signatures":                      {present: w.prod.Issue(t, prodID, usage(x509.KeyUsageKeyEncipherment, x509.ExtKeyUsageClientAuth)), refused: "lacks digitalSignature"},
		"may sign certificates":                   {present: w.prod.Issue(t, prodID, usage(x509.KeyUsageDigitalSignature|x509.KeyUsageCertSign, x509.ExtKeyUsageClientAuth)), refused: "may sign"},
		"an authority":                            {present: w.prod.Issue(t, prodID, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), refused: "that of an authority"},
		"wildcards only":                          {present: w.dns.Issue(t, dns("*.test")), refused: "neither a SPIFFE id nor a DNS name"},
		"a common name only":                      {present: w.dns.Issue(t), refused: "neither a SPIFFE id nor a DNS name"},
		"none":                                    {refused: "client didn't provide a certificate"},
		"an address only":                         {present: w.dns.Issue(t, func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} }), refused: "neither a SPIFFE id nor a DNS name"},
		"an authority of the trust domain itself": {present: w.prod.Self(), refused: "that of an authority"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, withoutCertificate := range []bool{false, true} {
				state, err := w.shake(t, w.client(test.present), withoutCertificate)
				if test.present == nil && withoutCertificate {
					if err != nil {
						t.Errorf("without a certificate: %v", err)
					}
					continue
				}
				if test.id == "" && test.names == nil {
					if err == nil || !strings.Contains(err.Error(), test.refused) {
						t.Errorf("the handshake ended with %v, want an error with %q", err, test.refused)
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				verified, err := certificates.Verifier{Source: w.source}.VerifyCertificate(state.PeerCertificates)
				if err != nil {
					t.Fatal(err)
				}
				checkVerified(t, verified, test.present.Leaf, test.id, test.names)
			}
		})
	}
}

func checkVerified(t *testing.T, verified callers.Verified, leaf *x509.Certificate, id string, names []string) {
	t.Helper()
	if verified.SPIFFEID != id || strings.Join(verified.DNSNames, ",") != strings.Join(names, ",") {
		t.Errorf("proved are %q and %q, want %q and %q", verified.SPIFFEID, verified.DNSNames, id, names)
	}
	if id != "" && !strings.HasPrefix(id, "spiffe://"+verified.TrustDomain+"/") {
		t.Errorf("the trust domain of %q is %q", id, verified.TrustDomain)
	}
	if want := leaf.SerialNumber.Text(16); verified.Serial != want {
		t.Errorf("the serial number is %q, want %q", verified.Serial, want)
	}
	if !verified.NotAfter.Equal(leaf.NotAfter) {
		t.Errorf("it ends at %v, want %v", verified.NotAfter, leaf.NotAfter)
	}
}

func TestVerifiedEndsWithTheFirstCertificateOfItsChain(t *testing.T) {
	t.Parallel()
	now := time.Now()
	root := certificatestest.NewAuthority(t, "root")
	leaf := root.Issue(t, certificatestest.URI(t, "spiffe://prod.test/mailer"), certificatestest.Valid(now.Add(-time.Hour), now.Add(48*time.Hour)))
	trust := &certificates.Trust{Domains: map[string]*x509.CertPool{"prod.test": root.Pool()}}
	verified, err := certificates.Verify([]*x509.Certificate{leaf.Leaf}, trust, now)
	if err != nil {
		t.Fatal(err)
	}
	if !verified.NotAfter.Equal(root.Certificate.NotAfter) {
		t.Errorf("it ends at %v, want %v, when the authority ends", verified.NotAfter, root.Certificate.NotAfter)
	}
}

func TestNothingIsTrustedWithoutTrust(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.source.trust = nil
	for _, leaf := range []*tls.Certificate{
		w.prod.Issue(t, certificatestest.URI(t, "spiffe://prod.test/mailer")),
		w.dns.Issue(t, certificatestest.DNS("mailer.test")),
	} {
		if verified, err := (certificates.Verifier{Source: w.source}).VerifyCertificate([]*x509.Certificate{leaf.Leaf}); err == nil {
			t.Errorf("%v is proved", verified)
		}
	}
	if _, err := certificates.Verify(nil, &certificates.Trust{}, time.Now()); err == nil {
		t.Error("an empty chain proves something")
	}
}

func TestOldVersionsOfTLSAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	client := w.client(w.prod.Issue(t, certificatestest.URI(t, "spiffe://prod.test/mailer")))
	client.MaxVersion = tls.VersionTLS12
	if _, err := w.shake(t, client, false); err == nil || !strings.Contains(err.Error(), "versions") {
		t.Errorf("the handshake ended with %v", err)
	}
}

func TestProtocolsOtherThanHTTP2AreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	client := w.client(w.prod.Issue(t, certificatestest.URI(t, "spiffe://prod.test/mailer")))
	client.NextProtos = []string{"http/1.1"}
	if _, err := w.shake(t, client, false); err == nil {
		t.Error("the handshake succeeded")
	}
}

func TestEachConnectionIsVerifiedInFull(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	client := w.client(w.prod.Issue(t, certificatestest.URI(t, "spiffe://prod.test/mailer")))
	client.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	server := certificates.Config(certificates.Verifier{Source: w.source}, false)
	for range 2 {
		state, err := shake(t, server, client)
		if err != nil {
			t.Fatal(err)
		}
		if state.DidResume {
			t.Error("the connection resumed another one")
		}
	}
	// With tickets, which Config does not hand out, a resumption is judged by what is trusted now.
	server = server.Clone()
	server.SessionTicketsDisabled = false
	client.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	if _, err := shake(t, server, client); err != nil {
		t.Fatal(err)
	}
	state, err := shake(t, server, client)
	if err != nil || !state.DidResume {
		t.Fatalf("no resumption (%v), so this test shows nothing", err)
	}
	w.source.trust = &certificates.Trust{Domains: map[string]*x509.CertPool{"prod.test": w.foreign.Pool()}}
	if _, err := shake(t, server, client); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("after the authority was removed, the handshake ended with %v", err)
	}
}

func TestHandshakesUseTheNewestCertificateAndTrust(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := certificates.Config(certificates.Verifier{Source: w.source}, false)
	client := w.client(w.prod.Issue(t, certificatestest.URI(t, "spiffe://prod.test/mailer")))
	seen := func() (serial string) {
		client.VerifyConnection = func(state tls.ConnectionState) error {
			serial = state.PeerCertificates[0].SerialNumber.String()
			return nil
		}
		if _, err := shake(t, server, client); err != nil {
			t.Fatal(err)
		}
		return serial
	}
	first := seen()
	w.source.own = w.dns.Issue(t, certificatestest.Loopback)
	if second := seen(); second == first {
		t.Error("a new certificate is not used")
	}
	w.source.trust = &certificates.Trust{Domains: map[string]*x509.CertPool{"stage.test": w.stage.Pool()}}
	if _, err := shake(t, server, client); err == nil {
		t.Error("a trust domain that was removed is still trusted")
	}
	w.source.own = nil
	if _, err := shake(t, server, client); err == nil {
		t.Error("a server without a certificate shook hands")
	}
}

func TestJoinTakesEachTrustDomainFromOneSource(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	second := &fixed{
		own: w.foreign.Issue(t, certificatestest.Loopback),
		trust: &certificates.Trust{Domains: map[string]*x509.CertPool{
			"prod.test": w.foreign.Pool(), "other.test": w.foreign.Pool(),
		}},
	}
	both := certificates.Verifier{Source: certificates.Join(w.source, &fixed{}, second)}
	if both.Source.Own() != w.source.own {
		t.Error("the certificate is not that of the first source")
	}
	for _, test := range []struct {
		leaf *tls.Certificate
		good bool
	}{
		{w.prod.Issue(t, certificatestest.URI(t, "spiffe://prod.test/mailer")), true},
		{w.foreign.Issue(t, certificatestest.URI(t, "spiffe://prod.test/mailer")), false},
		{w.foreign.Issue(t, certificatestest.URI(t, "spiffe://other.test/mailer")), true},
		{w.dns.Issue(t, certificatestest.DNS("mailer.test")), true},
	} {
		if verified, err := both.VerifyCertificate([]*x509.Certificate{test.leaf.Leaf}); (err == nil) != test.good {
			t.Errorf("%v, %v, want good: %v", verified, err, test.good)
		}
	}
}
