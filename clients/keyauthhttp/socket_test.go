package keyauthhttp_test

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthhttp"
	"github.com/scribe-mail/keysvc/clients/keyauthtest"
)

func TestProxyOnAUnixSocketIsTrustedOnlyIfConfigured(t *testing.T) {
	validator := keyauthtest.New(t)
	key := validator.CreateKey(keyauthtest.Key{AllowedCIDRs: []string{"198.51.100.0/24"}})
	for _, test := range []struct {
		trust     bool
		forwarded string
		want      int
	}{
		{true, "198.51.100.7", http.StatusOK},
		{true, "203.0.113.1, 198.51.100.7", http.StatusOK},
		{true, "198.51.100.7, 203.0.113.1", http.StatusForbidden}, // the first was sent by the client
		{true, "", http.StatusForbidden},
		{true, "unknown", http.StatusForbidden},
		{false, "198.51.100.7", http.StatusForbidden},
	} {
		guard, err := keyauth.NewGuard(validator, keyauth.Config{TrustUnixSockets: test.trust, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		mux, err := keyauthhttp.NewMux(guard, keyauthhttp.Config{Routes: map[string]keyauthhttp.Route{
			"GET /x": {Requirement: keyauth.IdentityOnly(), Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})},
		}})
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "s")
		listener, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: mux}
		go func() { _ = server.Serve(listener) }()
		client := &http.Client{Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", path)
			},
		}}
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://service/x", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "Bearer "+key.Token)
		if test.forwarded != "" {
			request.Header.Set("X-Forwarded-For", test.forwarded)
		}
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		if response.StatusCode != test.want {
			t.Errorf("%+v: status %d", test, response.StatusCode)
		}
		if err := response.Body.Close(); err != nil {
			t.Error(err)
		}
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	}
}
