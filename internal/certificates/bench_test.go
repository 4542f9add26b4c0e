package certificates_test

import (
	"testing"

	"github.com/scribe-mail/keysvc/internal/certificates"
	"github.com/scribe-mail/keysvc/internal/certificates/certificatestest"
)

// BenchmarkHandshake measures handshakes with a client certificate over loopback, both ends
// included.
func BenchmarkHandshake(b *testing.B) {
	w := newWorld(b)
	server := certificates.Config(certificates.Verifier{Source: w.source}, false)
	client := w.client(w.prod.Issue(b, certificatestest.URI(b, "spiffe://prod.test/mailer")))
	for b.Loop() {
		if _, err := shake(b, server, client); err != nil {
			b.Fatal(err)
		}
	}
}
