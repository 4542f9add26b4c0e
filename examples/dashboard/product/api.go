package product

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthhttp"
)

// heartbeat is how often an open stream says something, so that whoever watches sees that it is open.
const heartbeat = time.Second

// signature is what the product's API is about.
type signature struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// api is the product's API, which other programs call with a key.
type api struct {
	mutex      sync.Mutex
	signatures []signature
	last       int
}

// newAPI returns an API with two signatures.
func newAPI() *api {
	return &api{signatures: []signature{{"sig-1", "Default"}, {"sig-2", "Support"}}, last: 2}
}

// handler returns the API behind keysvc. What a request needs stands beside its handler.
//
// The example has one workspace. A product with several limits each query by the principal's
// WorkspaceID.
func (a *api) handler(guard *keyauth.Guard) (http.Handler, error) {
	read, write, remove := keyauth.Scope("signatures:read"), keyauth.Scope("signatures:write"), keyauth.Scope("signatures:delete")
	return keyauthhttp.NewMux(guard, keyauthhttp.Config{Routes: map[string]keyauthhttp.Route{
		"GET /v1/signatures":         {Requirement: read, Handler: http.HandlerFunc(a.list)},
		"POST /v1/signatures":        {Requirement: write, Handler: http.HandlerFunc(a.create)},
		"DELETE /v1/signatures/{id}": {Requirement: remove, Handler: http.HandlerFunc(a.remove)},
		// LongLived: the stream ends when its key may no longer read signatures.
		"GET /v1/events": {Requirement: read, Handler: http.HandlerFunc(a.events), LongLived: true},
	}})
}

// list answers with all signatures.
func (a *api) list(w http.ResponseWriter, _ *http.Request) {
	a.mutex.Lock()
	all := append([]signature{}, a.signatures...)
	a.mutex.Unlock()
	writeJSON(w, http.StatusOK, map[string]any{"signatures": all})
}

// create adds a signature.
func (a *api) create(w http.ResponseWriter, r *http.Request) {
	var made signature
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10)).Decode(&made); err != nil || made.Name == "" {
		writeJSON(w, http.StatusBadRequest, map[string]string{"error": "the body must be an object with a name"})
		return
	}
	a.mutex.Lock()
	a.last++
	made.ID = "sig-" + strconv.Itoa(a.last)
	a.signatures = append(a.signatures, made)
	a.mutex.Unlock()
	writeJSON(w, http.StatusCreated, made)
}

// remove deletes a signature.
func (a *api) remove(w http.ResponseWriter, r *http.Request) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	for i, one := range a.signatures {
		if one.ID == r.PathValue("id") {
			a.signatures = append(a.signatures[:i:i], a.signatures[i+1:]...)
			w.WriteHeader(http.StatusNoContent)
			return
		}
	}
	writeJSON(w, http.StatusNotFound, map[string]string{"error": "there is no such signature"})
}

// events streams, as server-sent events, how many signatures there are. The context ends when the
// presenter goes, and when the key may no longer read signatures.
func (a *api) events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	controller := http.NewResponseController(w)
	ticker := time.NewTicker(heartbeat)
	defer ticker.Stop()
	for number := 1; ; number++ {
		a.mutex.Lock()
		count := len(a.signatures)
		a.mutex.Unlock()
		if _, err := fmt.Fprintf(w, "event: signatures\ndata: {\"number\":%d,\"signatures\":%d}\n\n", number, count); err != nil {
			return
		}
		if controller.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-ticker.C:
		}
	}
}

// writeJSON answers in JSON.
func writeJSON(w http.ResponseWriter, status int, answer any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer) // the presenter has gone: nobody could be told
}
