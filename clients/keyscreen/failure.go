package keyscreen

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// retryAfter is how many seconds a browser should wait after 503.
const retryAfter = "10"

// changes are the methods whose outcome may be open.
var changes = []string{"CreateKey", "RotateKey", "FinishRotation", "RevokeKey"}

// failure is an error of keysvc, for people: a message of the language, and the status of the answer. It has
// nothing of the error's own text, which is for the operator.
type failure struct {
	status  int
	message string
	// fields are the messages of fields that were refused.
	fields map[string]string
	// keyID is the key that an earlier sending of the same form made.
	keyID string
}

// reasonOf returns the ErrorReason and the metadata of an error.
func reasonOf(err error) (keysvcv1.ErrorReason, map[string]string) {
	for _, detail := range status.Convert(err).Details() {
		if info, is := detail.(*errdetails.ErrorInfo); is && info.GetDomain() == "keysvc" {
			return keysvcv1.ErrorReason(keysvcv1.ErrorReason_value["ERROR_REASON_"+info.GetReason()]), info.GetMetadata()
		}
	}
	return keysvcv1.ErrorReason_ERROR_REASON_UNSPECIFIED, nil
}

// explain turns an error of a call into a failure, and logs what the operator should know.
func (v *visit) explain(method string, err error) failure {
	reason, metadata := reasonOf(err)
	refused := func(message string) failure { return failure{status: http.StatusConflict, message: message} }
	switch reason { //nolint:exhaustive // those that a screen can cause; the others are the operator's
	case keysvcv1.ErrorReason_ERROR_REASON_REQUEST_ID_USED:
		return failure{status: http.StatusConflict, message: "error.repeated", keyID: metadata["key_id"]}
	case keysvcv1.ErrorReason_ERROR_REASON_LIMIT_REACHED:
		return refused("error.limit")
	case keysvcv1.ErrorReason_ERROR_REASON_MEMBER_SUSPENDED:
		return refused("problem.member_suspended")
	case keysvcv1.ErrorReason_ERROR_REASON_KEY_REVOKED:
		return refused("error.key_revoked")
	case keysvcv1.ErrorReason_ERROR_REASON_KEY_EXPIRED:
		return refused("error.key_expired")
	case keysvcv1.ErrorReason_ERROR_REASON_KEY_HELD:
		return refused("error.key_held")
	case keysvcv1.ErrorReason_ERROR_REASON_ROTATION_IN_PROGRESS:
		return refused("error.rotation_in_progress")
	case keysvcv1.ErrorReason_ERROR_REASON_CONCURRENT_CHANGE:
		return refused("error.concurrent")
	case keysvcv1.ErrorReason_ERROR_REASON_SCOPE_BEYOND_ROLE, keysvcv1.ErrorReason_ERROR_REASON_SCOPE_UNKNOWN:
		return failure{status: http.StatusUnprocessableEntity, message: "error.form", fields: map[string]string{"scopes": "error.scopes_beyond"}}
	case keysvcv1.ErrorReason_ERROR_REASON_FIELD_INVALID:
		if fields := fieldsOf(err); len(fields) > 0 {
			return failure{status: http.StatusUnprocessableEntity, message: "error.form", fields: fields}
		}
	}
	attributes := []any{"method", method, "code", status.Code(err).String(), "reason", reason.String()}
	if reason == keysvcv1.ErrorReason_ERROR_REASON_UNSPECIFIED && status.Code(err) == codes.Unavailable {
		// Of the connection, such as its address and why it failed. Errors of keysvc have a reason.
		attributes = append(attributes, "error", status.Convert(err).Message())
	}
	v.config.Log.ErrorContext(v.r.Context(), "keyscreen: a call to keysvc failed", attributes...)
	// Without a reason of keysvc the answer was lost on its way.
	open := reason == keysvcv1.ErrorReason_ERROR_REASON_UNSPECIFIED || reason == keysvcv1.ErrorReason_ERROR_REASON_OUTCOME_UNKNOWN || lost(err)
	if open && slices.Contains(changes, method) {
		return failure{status: http.StatusServiceUnavailable, message: "error.outcome"}
	}
	return failure{status: http.StatusServiceUnavailable, message: "problem.unavailable"}
}

// lost reports whether an error leaves open what became of a key that was issued locally.
func lost(err error) bool {
	var open *keyclient.LostAnswerError
	return errors.As(err, &open)
}

// fieldsOf returns messages for the fields that keysvc refused, by the names that the form gives them.
func fieldsOf(err error) map[string]string {
	fields := map[string]string{}
	for _, detail := range status.Convert(err).Details() {
		bad, is := detail.(*errdetails.BadRequest)
		if !is {
			continue
		}
		for _, violation := range bad.GetFieldViolations() {
			switch field := violation.GetField(); {
			case field == "name":
				fields["name"] = "error.name"
			case strings.HasPrefix(field, "scopes"):
				fields["scopes"] = "error.scopes_beyond"
			case field == "expire_time":
				fields["expiry"] = "error.date"
			}
		}
	}
	return fields
}

// failed answers with a page for an error of a call.
func (v *visit) failed(method string, err error) {
	f := v.explain(method, err)
	v.problem(f.status, f.message)
}

// problem answers with a page that says what is wrong. key is its message; key with ".title" is its heading.
func (v *visit) problem(status int, key string) {
	if status == http.StatusServiceUnavailable {
		v.w.Header().Set("Retry-After", retryAfter)
	}
	title := v.language.text("problem.title")
	if v.language.has(key + ".title") {
		title = v.language.text(key + ".title")
	}
	data := struct {
		Title, Text, SignIn string
		Retry, Back         bool
		// Action and Fields send the same form again, so that nothing that was typed is lost.
		Action string
		Fields url.Values
	}{Title: title, Text: v.language.text(key), Retry: status == http.StatusServiceUnavailable && !v.posted()}
	if status == http.StatusServiceUnavailable && v.posted() && v.viewer.member != "" {
		if values, fresh := v.form(); fresh {
			data.Action, data.Fields = v.r.URL.Path, values
		}
	}
	data.Back = status == http.StatusNotFound || status == http.StatusConflict || status == http.StatusMethodNotAllowed || v.posted()
	if status == http.StatusUnauthorized {
		data.SignIn, data.Back = v.config.SignIn, false
	}
	v.render(status, "problem", title, data)
}
