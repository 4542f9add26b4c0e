package certificates_test

import (
	"crypto/tls"
	"testing"

	"github.com/scribe-mail/keysvc/internal/certificates"
	"github.com/scribe-mail/keysvc/internal/certificates/certificatestest"
)

// BenchmarkHandshake measures handshakes with a client certificate, both ends included, over
// loopback: in full, as Config has it, and resumed, as it would be with session tickets.
func BenchmarkHandshake(b *testing.B) {
	for _, resumed := range []bool{false, true} {
		name := "full"
		if resumed {
			name = "resumed"
		}
		b.Run(name, func(b *testing.B) {
			w := newWorld(b)
			server := certificates.Config(certificates.Verifier{Source: w.source}, false)
			client := w.client(w.prod.Issue(b, certificatestest.URI(b, "spiffe://prod.test/mailer")))
			if resumed {
				server.SessionTicketsDisabled = false
				client.ClientSessionCache = tls.NewLRUClientSessionCache(4)
			}
			for n := 0; b.Loop(); n++ {
				state, err := shake(b, server, client)
				if err != nil || state.DidResume != resumed && n > 0 {
					b.Fatalf("resumed: %v (%v)", state.DidResume, err)
				}
			}
		})
	}
}
