package bench

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/token"
	"github.com/scribe-mail/keysvc/internal/validation"
)

// sizes are the numbers of keys that a decision is measured with.
var sizes = []int{1_000, 1_000_000}

// BenchmarkDecision measures one decision without the RPC: parse the token, find the key, hash,
// decide, note the use.
func BenchmarkDecision(b *testing.B) {
	for _, size := range sizes {
		b.Run(fmt.Sprintf("keys=%d", size), func(b *testing.B) {
			path := newStore(b)
			tokens := fill(b, path, size, 0)
			began := time.Now()
			p := start(b, path)
			defer p.close()
			loaded := time.Since(began)
			unknown := tokens[0][:len("scribe_ksk1_")] + "0000000000000000" + tokens[0][len("scribe_ksk1_0000000000000000"):]
			digests := make([]token.Presented, len(tokens))
			for i, text := range tokens {
				parsed, err := token.Parse(text)
				if err != nil {
					b.Fatal(err)
				}
				digest := parsed.Digest()
				digests[i] = token.PresentDigest(strings.Clone(parsed.ID()), token.DigestFrom(digest[:]))
			}
			b.Run("by digest", func(b *testing.B) {
				b.ReportAllocs()
				ctx := context.Background()
				for i := range b.N {
					answer, err := p.validator.Validate(ctx, validation.Question{
						Workspaces: access.All(),
						Digest:     digests[i%len(digests)], Requirement: decide.Requirement{Scope: "signatures:read"},
					})
					if err != nil || answer.Decision != decide.Allowed {
						b.Fatal(answer.Decision, err)
					}
				}
			})
			for name, which := range map[string]func(int) string{
				"allowed":   func(i int) string { return tokens[i%len(tokens)] },
				"malformed": func(int) string { return unknown },
			} {
				b.Run(name, func(b *testing.B) {
					b.ReportAllocs()
					b.ReportMetric(loaded.Seconds(), "start-s")
					ctx := context.Background()
					for i := range b.N {
						answer, err := p.validator.Validate(ctx, validation.Question{
							Workspaces: access.All(),
							Token:      which(i), Requirement: decide.Requirement{Scope: "signatures:read"},
						})
						if err != nil || (answer.Decision == decide.Allowed) != (name == "allowed") {
							b.Fatal(answer.Decision, err)
						}
					}
				})
			}
		})
	}
}
