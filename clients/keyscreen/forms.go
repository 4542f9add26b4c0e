package keyscreen

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// formLifetime is how long a form may be open before it is sent.
	formLifetime = 12 * time.Hour
	// maxForm is how many bytes a form may have.
	maxForm = 64 << 10
)

// formToken returns the token of the forms of this page: when it ends, and a code over that time and the
// member. It protects in depth: CrossOriginProtection refuses other sites before it.
func (v *visit) formToken() string {
	end := strconv.FormatInt(v.now.Add(formLifetime).Unix(), 10)
	return end + "." + v.formCode(end)
}

func (v *visit) formCode(end string) string {
	code := hmac.New(sha256.New, v.config.FormKey)
	for _, text := range []string{"keyscreen form v1", v.viewer.workspace, v.viewer.member, end} {
		// The length keeps two texts apart.
		code.Write([]byte(strconv.Itoa(len(text)) + ":" + text))
	}
	return hex.EncodeToString(code.Sum(nil))
}

// form reads the form of a POST. fresh reports whether its token is one of this member, and has not ended.
func (v *visit) form() (values url.Values, fresh bool) {
	v.r.Body = http.MaxBytesReader(v.w, v.r.Body, maxForm)
	if err := v.r.ParseForm(); err != nil {
		return url.Values{}, false
	}
	end, code, _ := strings.Cut(v.r.PostForm.Get("form_token"), ".")
	seconds, err := strconv.ParseInt(end, 10, 64)
	fresh = err == nil && hmac.Equal([]byte(code), []byte(v.formCode(end))) && v.now.Before(time.Unix(seconds, 0))
	if !fresh {
		v.config.Log.WarnContext(v.r.Context(), "keyscreen: a form without a fresh token was refused", "workspace", v.viewer.workspace, "member", v.viewer.member)
	}
	return v.r.PostForm, fresh
}

// newOnce returns what makes a form one change, however often it is sent.
func newOnce() string { return rand.Text() }

// requestID returns the request_id of a form. The member is in it, so that nobody can ask about the
// forms of others.
func (v *visit) requestID(once string) string {
	hash := sha256.Sum256([]byte(strconv.Itoa(len(v.viewer.member)) + ":" + v.viewer.member + once))
	return "screen-" + hex.EncodeToString(hash[:16])
}
