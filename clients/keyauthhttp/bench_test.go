package keyauthhttp_test

import (
	"context"
	"net/http"
	"testing"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthhttp"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// always answers ALLOWED, without any cost.
type always struct{}

// Validate implements keyauth.Validator.
func (always) Validate(context.Context, keyauth.Question) (keyauth.Answer, error) {
	return keyauth.Answer{Decision: keysvcv1.Decision_DECISION_ALLOWED, Principal: fuzzPrincipal}, nil
}

// nowhere is an http.ResponseWriter without any cost.
type nowhere struct{ header http.Header }

// Header implements http.ResponseWriter.
func (n nowhere) Header() http.Header { return n.header }

// Write implements http.ResponseWriter.
func (n nowhere) Write(text []byte) (int, error) { return len(text), nil }

// WriteHeader implements http.ResponseWriter.
func (n nowhere) WriteHeader(int) {}

// BenchmarkMux compares a Mux with an http.ServeMux, without the validation.
func BenchmarkMux(b *testing.B) {
	handler := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	plain := http.NewServeMux()
	plain.Handle("GET /v1/signatures/{id}", handler)
	guard, err := keyauth.NewGuard(always{}, keyauth.Config{})
	if err != nil {
		b.Fatal(err)
	}
	protected := newMux(b, guard, keyauthhttp.Config{Routes: map[string]keyauthhttp.Route{"GET /v1/signatures/{id}": {Requirement: read, Handler: handler}}})
	for _, mux := range []struct {
		name    string
		handler http.Handler
	}{{"ServeMux", plain}, {"Mux", protected}} {
		b.Run(mux.name, func(b *testing.B) {
			request, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "/v1/signatures/1", nil)
			if err != nil {
				b.Fatal(err)
			}
			request.RemoteAddr = "192.0.2.1:1234"
			for name, value := range map[string]string{
				"Authorization": "Bearer " + fuzzToken, "Accept": "application/json", "User-Agent": "bench", "Accept-Encoding": "gzip", "X-Request-Id": "1",
			} {
				request.Header.Set(name, value)
			}
			writer := nowhere{make(http.Header)}
			b.ReportAllocs()
			for b.Loop() {
				mux.handler.ServeHTTP(writer, request)
			}
		})
	}
}
