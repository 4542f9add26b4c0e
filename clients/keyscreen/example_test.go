package keyscreen_test

import (
	"fmt"
	"net/http"

	"github.com/scribe-mail/keysvc/clients/keyclient"
	"github.com/scribe-mail/keysvc/clients/keyscreen"
)

// A product mounts the screen under a path of its settings, with its own session.
func ExampleNew() {
	keysvc, err := keyclient.New("unix:///run/keysvc/keysvc.sock", keyclient.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer keysvc.Close()
	screen, err := keyscreen.New(keyscreen.Config{
		Conn: keysvc.Conn(),
		Path: "/settings/api-keys",
		Session: func(r *http.Request) (workspace, member string, err error) {
			cookie, err := r.Cookie("session")
			if err != nil {
				return "", "", keyscreen.ErrSignedOut
			}
			return "acme", cookie.Value, nil // in earnest, look the session up
		},
		AllKeysRoles: []string{"owner", "admin"},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	mux := http.NewServeMux()
	mux.Handle("/settings/api-keys/", screen)
	fmt.Println("mounted")
	// Output: mounted
}
