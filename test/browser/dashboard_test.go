package browser_test

import (
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/scribe-mail/keysvc/clients/keyclient"
	"github.com/scribe-mail/keysvc/examples/dashboard/product"
	"github.com/scribe-mail/keysvc/internal/server/servertest"
)

// TestTheStoryOfTheDashboard plays examples/dashboard: a key from the screen reads, is refused with 403, holds a
// stream open, and is revoked while one watches.
func TestTheStoryOfTheDashboard(t *testing.T) {
	t.Parallel()
	needsBrowser(t)
	keysvc := servertest.Start(t, servertest.Options{})
	keysvc.PutMember(t, "acme", "max", "manager")
	client, err := keyclient.New(keysvc.Address, keyclient.Config{AllowPlaintext: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	handler, err := product.New(product.Config{
		Keysvc: client, Workspace: "acme", URL: "http://" + listener.Addr().String(),
		Members: []product.Member{{ID: "max", Name: "Max", Role: "manager"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: handler}}
	server.Start()
	t.Cleanup(server.Close)

	// 1. Log in, by the stand-in.
	b := open(t, way{script: true})
	w := walker{tab: b}
	b.visit(server.URL + "/log-in")
	b.sees("This log-in is a stand-in.")
	b.checkState("log-in")
	b.uses("button", "Max, manager", "")

	// 2. A key that may only read signatures, from the screen.
	b.sees("No API keys yet")
	b.checkState("the screen in the product")
	b.uses("link", "Create API key", "")
	b.types("Name", "My first key")
	b.uses("box", "Signatures: Read", "")
	b.uses("button", "Create key", "")
	token := w.token()
	b.uses("button", "Copy key", "")
	w.done("I have copied it")

	// 3. It reads, and may not delete.
	tries := b.another()
	tries.visit(server.URL + "/try")
	tries.checkState("try it")
	tries.types("Paste the key", token)
	tries.uses("button", "Read the signatures", "")
	tries.sees("200 OK", "sig-1")
	tries.expect("403")
	tries.uses("button", "Delete a signature", "")
	tries.sees("403 Forbidden", "scope_not_granted")

	// 4. A stream is open until the key is revoked on the screen.
	tries.uses("button", "Open the stream", "")
	tries.sees("The stream is open.")
	tries.expect("401")
	tries.expect("ERR_")
	b.uses("link", "Revoke My first key", "")
	b.types("Type the name of the key to confirm", "My first key")
	b.uses("button", "Revoke key", "")
	b.sees("The key is revoked.")
	tries.sees("The stream has ended", "401 Unauthorized")
	tries.checkState("the stream has ended")
	b.checkTokenIsGone(token)
}
