package keyauthhttp

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// Problem is the reason why a Mux, or a middleware of Require, answers in place of a handler.
type Problem struct {
	// Status is the HTTP status: 401, 403, 404, 405, 500 or 503.
	Status int
	// Type is the kind of problem, one for each status: authentication_error, permission_error,
	// not_found, method_not_allowed, internal_error or unavailable.
	Type string
	// Code is a fixed name of the problem: with 401, key_invalid; with 403, scope_not_granted,
	// scope_beyond_role, address_not_allowed or permission_denied; otherwise equal to Type.
	Code string
	// Message is for people. It holds nothing of the request.
	Message string
	// Refusal is the Guard's refusal; nil with 404 and 405. It is shared: do not change it.
	Refusal *keyauth.RefusalError
}

// jsonBody is the default of Config.Body, in the shape of Scribe's API.
func jsonBody(_ *http.Request, problem Problem) (contentType string, body []byte) {
	type details struct {
		Type    string `json:"type"`
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	// Strings can always be marshalled.
	body, _ = json.Marshal(struct {
		Error details `json:"error"`
	}{details{problem.Type, problem.Code, problem.Message}})
	return "application/json", append(body, '\n')
}

// WriteRefusal answers a request that a handler finds is not allowed, exactly as the middleware in front of the
// handler would: the same status, headers and body. err is a *keyauth.RefusalError, such as Guard.Admit
// returns and keyauth.Lacks makes; every other error is answered with 500, and is not shown. Realm and body are
// those of the Mux or Require that admitted the request, and the defaults without them. Write nothing before,
// and return after.
func WriteRefusal(w http.ResponseWriter, r *http.Request, err error) {
	if outer, ok := r.Context().Value(carriedKey{}).(*carried); ok {
		outer.settings.refuse(w, r, err)
		return
	}
	made, _ := new(settings).with(nil) // the defaults are right
	made.refuse(w, r, err)
}

// WriteRefusal answers a request as a middleware of this Protector would. It is for middlewares of one's own,
// which run in front; handlers use the function of the same name.
func (p *Protector) WriteRefusal(w http.ResponseWriter, r *http.Request, err error) {
	if p == nil || p.guard == nil {
		WriteRefusal(w, r, err)
		return
	}
	p.settings.refuse(w, r, err)
}

// refuse answers a request that the Guard did not admit.
func (s *settings) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var refusal *keyauth.RefusalError
	if !errors.As(err, &refusal) {
		refusal = &keyauth.RefusalError{Code: codes.Internal}
	}
	problem := Problem{Status: http.StatusInternalServerError, Message: refusal.Error(), Refusal: refusal}
	header := w.Header()
	switch refusal.Code { // every other code is a fault of this service
	case codes.Unauthenticated:
		problem.Status, problem.Code = http.StatusUnauthorized, "key_invalid"
		header.Set("WWW-Authenticate", s.challenge(refusal))
	case codes.PermissionDenied:
		problem.Status, problem.Code = http.StatusForbidden, deniedCode(refusal.Reason)
		if lacksScope(refusal) {
			header.Set("WWW-Authenticate", s.challenge(refusal))
		}
	case codes.NotFound:
		s.answer(w, r, Problem{Status: http.StatusNotFound})
		return
	case codes.Unavailable, codes.Canceled:
		// Nobody reads the answer if the presenter cancelled the request; if something else
		// did, the presenter should try again.
		problem.Status = http.StatusServiceUnavailable
		header.Set("Retry-After", "1")
	}
	s.answer(w, r, problem)
}

// challenge returns the value of WWW-Authenticate (RFC 6750 section 3).
func (s *settings) challenge(refusal *keyauth.RefusalError) string {
	challenge := `Bearer realm="` + s.realm + `"`
	switch {
	case lacksScope(refusal):
		challenge += fmt.Sprintf(`, error="insufficient_scope", scope="%s"`, strings.Join(missingScopes(refusal), " "))
	case !refusal.TokenMissing:
		challenge += `, error="invalid_token"`
	}
	return challenge
}

// missingScopes returns the scopes that would help. A refusal that a handler made may have Scope alone.
func missingScopes(refusal *keyauth.RefusalError) []string {
	if len(refusal.MissingScopes) == 0 && refusal.Scope != "" {
		return []string{refusal.Scope}
	}
	return refusal.MissingScopes
}

// lacksScope reports whether another scope would help. It would not if the address is not
// allowed, and RFC 6750 has no error code for that.
func lacksScope(refusal *keyauth.RefusalError) bool {
	return refusal.Code == codes.PermissionDenied && len(missingScopes(refusal)) > 0 &&
		(refusal.Reason == keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED || refusal.Reason == keysvcv1.Reason_REASON_SCOPE_BEYOND_ROLE)
}

// deniedCode returns the code of a 403. A reason that does not belong to a 403, or that this
// version does not know, gets the general code.
func deniedCode(reason keysvcv1.Reason) string {
	switch reason {
	case keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED, keysvcv1.Reason_REASON_SCOPE_BEYOND_ROLE, keysvcv1.Reason_REASON_ADDRESS_NOT_ALLOWED:
		return strings.ToLower(strings.TrimPrefix(reason.String(), "REASON_"))
	case keysvcv1.Reason_REASON_UNSPECIFIED, keysvcv1.Reason_REASON_KEY_INVALID, keysvcv1.Reason_REASON_KEY_REVOKED,
		keysvcv1.Reason_REASON_KEY_EXPIRED, keysvcv1.Reason_REASON_MEMBER_INACTIVE, keysvcv1.Reason_REASON_KEY_HELD:
	}
	return "permission_denied"
}

// unmatched answers a request that no pattern matches, given the handler that http.ServeMux has
// for it: 405 with the methods that would match, if there are any. A redirect to a path that no
// pattern matches is answered in the same way.
func (m *Mux) unmatched(w http.ResponseWriter, r *http.Request, handler http.Handler) {
	said := &unsent{header: make(http.Header)}
	handler.ServeHTTP(said, r)
	if said.status != http.StatusMethodNotAllowed {
		m.protector.settings.answer(w, r, Problem{Status: http.StatusNotFound})
		return
	}
	w.Header().Set("Allow", said.header.Get("Allow"))
	m.protector.settings.answer(w, r, Problem{Status: http.StatusMethodNotAllowed})
}

// answer answers in place of a handler. It fills in the fields that follow from the status.
func (s *settings) answer(w http.ResponseWriter, r *http.Request, problem Problem) {
	switch problem.Status {
	case http.StatusUnauthorized:
		problem.Type = "authentication_error"
	case http.StatusForbidden:
		problem.Type = "permission_error"
	case http.StatusNotFound:
		problem.Type, problem.Message = "not_found", "there is nothing at this path"
	case http.StatusMethodNotAllowed:
		problem.Type, problem.Message = "method_not_allowed", "this path does not take this method"
	case http.StatusServiceUnavailable:
		problem.Type = "unavailable"
	default:
		problem.Type = "internal_error"
	}
	if problem.Code == "" {
		problem.Code = problem.Type
	}
	contentType, body := s.body(withoutAuthorization(r.Context(), r), problem)
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(problem.Status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // the presenter has gone: nobody could be told
	}
}

// unsent is an http.ResponseWriter that keeps status and headers, and sends nothing.
type unsent struct {
	header http.Header
	status int
}

// Header implements http.ResponseWriter.
func (u *unsent) Header() http.Header { return u.header }

// Write implements http.ResponseWriter.
func (u *unsent) Write(body []byte) (int, error) { return len(body), nil }

// WriteHeader implements http.ResponseWriter.
func (u *unsent) WriteHeader(status int) { u.status = status }
