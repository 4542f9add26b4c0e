package certificates_test

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/scribe-mail/keysvc/internal/certificates"
)

// FuzzSPIFFEID compares ParseSPIFFEID with go-spiffe, which alone decides about ids of the Workload
// API. Only ids with a path name a workload.
func FuzzSPIFFEID(f *testing.F) {
	for _, seed := range []string{
		"spiffe://prod.test/mailer", "spiffe://prod.test/ns/mail/sa/worker", "spiffe://prod.test", "spiffe://prod.test/",
		"spiffe://prod.test//a", "spiffe://prod.test/a/", "spiffe://prod.test/./a", "spiffe://prod.test/../a", "spiffe://user@prod.test/a",
		"spiffe://prod.test:443/a", "spiffe://Prod.test/a", "spiffe:///a", "https://prod.test/a", "spiffe://prod.test/a?b", "spiffe://prod.test/a#b",
		"spiffe://prod.test/a%2fb", "spiffe://prod.test/\u00e4", "SPIFFE://prod.test/a", "",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		id, domain, err := certificates.ParseSPIFFEID(text)
		want, wantErr := spiffeid.FromString(text)
		good := wantErr == nil && want.Path() != "" && len(text) <= 2048 && len(want.TrustDomain().Name()) <= 255
		if (err == nil) != good {
			t.Fatalf("%q: %v, go-spiffe has %v", text, err, wantErr)
		}
		if err == nil && (id != want.String() || domain != want.TrustDomain().Name() || !strings.HasPrefix(id, "spiffe://"+domain+"/")) {
			t.Fatalf("%q is %q of %q, go-spiffe has %q", text, id, domain, want)
		}
	})
}
