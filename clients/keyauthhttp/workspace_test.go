package keyauthhttp_test

import (
	"log/slog"
	"net/http"
	"testing"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthhttp"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	"github.com/scribe-mail/keysvc/internal/server/servertest"
)

// TestLimitedServiceNamesWorkspaces: a service that may validate in the workspace acme only,
// against a real keysvc.
func TestLimitedServiceNamesWorkspaces(t *testing.T) {
	var ours, theirs string
	keysvc := servertest.Limited(t, func(full *servertest.Keysvc) {
		for name, token := range map[string]*string{"acme": &ours, "other": &theirs} {
			full.PutMember(t, name, member, "admin")
			_, *token = full.CreateKey(t, name, member, "signatures:read")
		}
	}, "acme")
	client, err := keyclient.New(keysvc.Address, keyclient.Config{WithoutNearCache: true, AllowPlaintext: true, ValidationTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	guard, err := keyauth.NewGuard(client, keyauth.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	own := func(r *http.Request) string { return r.PathValue("workspace") }
	routes := map[string]keyauthhttp.Route{
		"GET /mine":           {Requirement: keyauth.Scope("signatures:read"), Handler: says("ok")},
		"GET /of/{workspace}": {Requirement: keyauth.Scope("signatures:read"), Handler: says("ok"), WorkspaceID: own},
		"GET /open":           {Requirement: keyauth.Public(), Handler: says("ok")},
		"GET /long":           {Requirement: keyauth.IdentityOnly(), Handler: says("ok"), LongLived: true},
	}
	hooked := serve(t, newMux(t, guard, keyauthhttp.Config{Routes: routes, WorkspaceID: func(r *http.Request) string {
		return r.Header.Get("X-Workspace")
	}}))
	plain := serve(t, newMux(t, guard, keyauthhttp.Config{Routes: routes}))
	for name, test := range map[string]struct {
		service, path, workspace, token string
		want                            int
	}{
		"its workspace":                 {hooked, "/mine", "acme", ours, http.StatusOK},
		"its workspace, long":           {hooked, "/long", "acme", ours, http.StatusOK},
		"key of another":                {hooked, "/mine", "acme", theirs, http.StatusUnauthorized},
		"no token of a key":             {hooked, "/mine", "acme", "nonsense", http.StatusUnauthorized},
		"another workspace":             {hooked, "/mine", "other", theirs, http.StatusInternalServerError},
		"no workspace":                  {hooked, "/mine", "", ours, http.StatusNotFound},
		"impossible workspace":          {hooked, "/mine", "a/b", ours, http.StatusNotFound},
		"the route's own":               {hooked, "/of/acme", "other", ours, http.StatusOK},
		"the route's own, foreign key":  {hooked, "/of/acme", "other", theirs, http.StatusUnauthorized},
		"public":                        {hooked, "/open", "", ours, http.StatusOK},
		"without the hook":              {plain, "/mine", "acme", ours, http.StatusInternalServerError},
		"without the hook, foreign key": {plain, "/mine", "acme", theirs, http.StatusInternalServerError},
		"without hook or key":           {plain, "/mine", "acme", "nonsense", http.StatusInternalServerError},
		"without it, the route's own":   {plain, "/of/acme", "", ours, http.StatusOK},
	} {
		if got := send(t, test.service, http.MethodGet, test.path, bearer(test.token), "X-Workspace: "+test.workspace); got.StatusCode != test.want {
			t.Errorf("%s: status %d, want %d", name, got.StatusCode, test.want)
		}
	}
}
