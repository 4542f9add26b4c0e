// Package keyscreen is the settings screen "API keys" of a product: an http.Handler with which members
// of a workspace list, create, replace and revoke the keys that keysvc keeps for them.
//
// A product mounts it under a path of its own, and says who is signed in:
//
//	screen, err := keyscreen.New(keyscreen.Config{
//		Conn:    client.Conn(),
//		Path:    "/settings/api-keys",
//		Session: session, // returns the workspace and the member of a request
//		FormKey: formKey, // 32 random bytes, the same in every process
//	})
//	…
//	mux.Handle("/settings/api-keys/", screen)
//
// The pages are HTML that the server renders. They work without JavaScript, and better with it. A token is
// in the one answer to the form that made it: in no URL, no log, no file and no entry of the history.
// See docs/settings-screen.md.
package keyscreen
