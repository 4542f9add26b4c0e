package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Notice says that a key ends soon. Fields that a later keysvc adds are ignored.
type Notice struct {
	Days         int        `json:"days"`
	InUse        bool       `json:"in_use"`
	KeyID        string     `json:"key_id"`
	KeyName      string     `json:"key_name"`
	WorkspaceID  string     `json:"workspace_id"`
	MemberID     string     `json:"member_id"`
	State        string     `json:"state"`
	ExpireTime   time.Time  `json:"expire_time"`
	LastUsedTime *time.Time `json:"last_used_time"`
}

const (
	// tolerance is how old a message may be, so that a recorded one cannot be sent again later.
	tolerance = 5 * time.Minute
	maxBody   = 64 << 10
	// remembered is how many ids of messages are remembered. A real service keeps them beside what it
	// does with the notice, in one transaction.
	remembered = 10_000
)

// Receiver takes notices as keysvc sends them, by the Standard Webhooks specification.
type Receiver struct {
	// Secret is what follows on whsec_ in the secret, decoded.
	Secret []byte
	// Handle is called once for each notice. If it returns an error, keysvc sends the notice again.
	Handle func(Notice) error
	Log    *slog.Logger
	Now    func() time.Time

	mutex sync.Mutex
	seen  map[string]bool
	order []string
}

// ParseSecret returns the bytes of a secret, "whsec_" and base64.
func ParseSecret(text string) ([]byte, error) {
	encoded, is := strings.CutPrefix(strings.TrimSpace(text), "whsec_")
	secret, err := base64.StdEncoding.DecodeString(encoded)
	if !is || err != nil || len(secret) < 24 {
		return nil, errors.New("the secret is not whsec_ and the base64 of 24 bytes or more")
	}
	return secret, nil
}

// ServeHTTP implements http.Handler.
func (r *Receiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, request.Body, maxBody))
	id := request.Header.Get("webhook-id")
	switch {
	case request.Method != http.MethodPost:
		http.Error(w, "only POST", http.StatusMethodNotAllowed)
		return
	case err != nil || !r.isGenuine(id, request.Header.Get("webhook-timestamp"), request.Header.Get("webhook-signature"), body):
		http.Error(w, "the signature does not match", http.StatusUnauthorized)
		return
	}
	var message struct {
		Type string `json:"type"`
		Data Notice `json:"data"`
	}
	if err := json.Unmarshal(body, &message); err != nil || message.Type != "key.ending" {
		// Taken and ignored: a refused message would be sent again, and hold up those that follow.
		w.WriteHeader(http.StatusNoContent)
		return
	}
	// One message at a time, as keysvc sends them.
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if !r.seen[id] {
		if err := r.Handle(message.Data); err != nil {
			r.Log.ErrorContext(request.Context(), "a notice could not be handled; keysvc sends it again", "key", message.Data.KeyID, "error", err)
			http.Error(w, "try again", http.StatusServiceUnavailable)
			return
		}
		r.remember(id)
	}
	w.WriteHeader(http.StatusNoContent)
}

// isGenuine reports whether a message is signed with the secret, and new.
func (r *Receiver) isGenuine(id, timestamp, signatures string, body []byte) bool {
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil || id == "" || r.Now().Sub(time.Unix(seconds, 0)).Abs() > tolerance {
		return false
	}
	mac := hmac.New(sha256.New, r.Secret)
	mac.Write([]byte(id + "." + timestamp + "."))
	mac.Write(body)
	want := mac.Sum(nil)
	for each := range strings.FieldsSeq(signatures) { // more than one while the secret changes
		encoded, is := strings.CutPrefix(each, "v1,")
		if got, err := base64.StdEncoding.DecodeString(encoded); is && err == nil && hmac.Equal(got, want) {
			return true
		}
	}
	return false
}

// remember notes that a message was handled. mutex is held.
func (r *Receiver) remember(id string) {
	if r.seen == nil {
		r.seen = make(map[string]bool)
	}
	r.seen[id] = true
	if r.order = append(r.order, id); len(r.order) > remembered {
		delete(r.seen, r.order[0])
		r.order = r.order[1:]
	}
}
