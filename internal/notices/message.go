package notices

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/scribe-mail/keysvc/internal/keys"
)

// messageType is the type of all messages.
const messageType = "key.ending"

// message is the body of a request, in the form of the Standard Webhooks specification 1.0. It has no
// token and no hash of one.
type message struct {
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"`
	Data      data      `json:"data"`
}

// data is a notice. Times are as in RFC 3339.
type data struct {
	NoticeID     string     `json:"notice_id"`
	Days         int        `json:"days"`
	InUse        bool       `json:"in_use"`
	KeyID        string     `json:"key_id"`
	KeyName      string     `json:"key_name"`
	WorkspaceID  string     `json:"workspace_id"`
	MemberID     string     `json:"member_id"`
	State        string     `json:"state"`
	ExpireTime   time.Time  `json:"expire_time"`
	LastUsedTime *time.Time `json:"last_used_time,omitempty"`
}

// stateOf returns the state of a key that has a notice, as messages have it.
func stateOf(state keys.KeyState) string {
	switch state {
	case keys.KeyActive:
		return "active"
	case keys.KeySuspended:
		return "suspended"
	case keys.KeyExpired:
		return "expired"
	case keys.KeyStateUnspecified, keys.KeyRevoked: // have none
	}
	return "unknown"
}

// bodyOf returns the body for a notice.
func bodyOf(notice *keys.Notice) ([]byte, error) {
	key := notice.Key
	body := message{
		Type: messageType, Timestamp: notice.DueTime,
		Data: data{
			NoticeID: notice.ID, Days: notice.Days, InUse: notice.InUse,
			KeyID: key.ID, KeyName: key.Name, WorkspaceID: key.WorkspaceID, MemberID: key.MemberID,
			State: stateOf(key.State), ExpireTime: key.ExpireTime,
		},
	}
	if !key.LastUsedTime.IsZero() {
		body.Data.LastUsedTime = &key.LastUsedTime
	}
	return json.Marshal(body)
}

// secrets are what messages are signed with. They print as nothing.
type secrets struct{ keys [][]byte }

// String returns a text without the secrets.
func (s secrets) String() string { return "[redacted]" }

// GoString returns a text without the secrets.
func (s secrets) GoString() string { return s.String() }

const (
	// secretPrefix begins each secret, by the Standard Webhooks specification.
	secretPrefix = "whsec_"
	// Secrets have 24 to 64 bytes, by the same specification.
	minSecret, maxSecret = 24, 64
	// maxSecrets is how many secrets there may be, so that a receiver can change over to a new one.
	maxSecrets = 2
	// maxSecretFile is the max length of the file.
	maxSecretFile = 4096
)

var errSecrets = errors.New("one or two lines are required, each whsec_ and the base64 of 24 to 64 random bytes")

// CheckSecretFile returns an error if a file has no secrets that notices can be signed with.
func CheckSecretFile(path string) error {
	_, err := readSecrets(path)
	return err
}

// readSecrets reads a file of secrets.
func readSecrets(path string) (secrets, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return secrets{}, err
	case info.Size() > maxSecretFile:
		return secrets{}, fmt.Errorf("%s: %w", path, errSecrets)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return secrets{}, err
	}
	parsed, err := parseSecrets(text)
	if err != nil {
		return secrets{}, fmt.Errorf("%s: %w", path, err)
	}
	return parsed, nil
}

// parseSecrets returns the secrets of a text. The error does not repeat the text.
func parseSecrets(text []byte) (secrets, error) {
	var parsed secrets
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		encoded, has := strings.CutPrefix(string(line), secretPrefix)
		key, err := base64.StdEncoding.Strict().DecodeString(encoded)
		if !has || err != nil || len(key) < minSecret || len(key) > maxSecret || len(parsed.keys) == maxSecrets {
			return secrets{}, errSecrets
		}
		parsed.keys = append(parsed.keys, key)
	}
	if len(parsed.keys) == 0 {
		return secrets{}, errSecrets
	}
	return parsed, nil
}

// sign returns the value of the header webhook-signature: for each secret an HMAC-SHA-256 of id, time and
// body.
func (s secrets) sign(id string, at time.Time, body []byte) string {
	var signatures []string
	for _, key := range s.keys {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(id + "." + strconv.FormatInt(at.Unix(), 10) + "."))
		mac.Write(body)
		signatures = append(signatures, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	return strings.Join(signatures, " ")
}
