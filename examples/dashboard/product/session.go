package product

import (
	"crypto/rand"
	"errors"
	"net/http"
	"slices"
	"sync"
)

// sessionCookie is the name of the cookie that holds the id of a session.
const sessionCookie = "dashboard_session"

// errNoSession says that nobody is logged in.
var errNoSession = errors.New("nobody is logged in")

// Member is a member of the workspace who can log in.
type Member struct {
	// ID is the member's id in keysvc.
	ID string
	// Name is how the pages call the member.
	Name string
	// Role is the member's role in keysvc's policy.
	Role string
}

// sessions is the STAND-IN for a product's log-in: whoever comes chooses who they are, and there is no
// password. Everything after that is as in a real product: a random id in a cookie, which scripts
// cannot read and other sites cannot send with a form.
type sessions struct {
	members []Member

	mutex sync.Mutex
	open  map[string]Member // by session id
}

// of returns the member whose session a request belongs to.
func (s *sessions) of(r *http.Request) (Member, error) {
	cookie, err := r.Cookie(sessionCookie)
	if err != nil {
		return Member{}, errNoSession
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	member, ok := s.open[cookie.Value]
	if !ok {
		return Member{}, errNoSession
	}
	return member, nil
}

// logIn begins a session for the member whom the form names.
func (s *sessions) logIn(w http.ResponseWriter, r *http.Request) {
	chosen := slices.IndexFunc(s.members, func(m Member) bool { return m.ID == r.PostFormValue("member") })
	if chosen < 0 {
		http.Error(w, "There is no such member.", http.StatusBadRequest)
		return
	}
	id := rand.Text()
	s.mutex.Lock()
	s.open[id] = s.members[chosen]
	s.mutex.Unlock()
	http.SetCookie(w, &http.Cookie{Name: sessionCookie, Value: id, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode}) //nolint:gosec // G124: no Secure, because the example is served without TLS, on the loopback
	http.Redirect(w, r, screenPath, http.StatusSeeOther)
}

// logOut ends the session of a request.
func (s *sessions) logOut(w http.ResponseWriter, r *http.Request) {
	if cookie, err := r.Cookie(sessionCookie); err == nil {
		s.mutex.Lock()
		delete(s.open, cookie.Value)
		s.mutex.Unlock()
	}
	http.SetCookie(w, &http.Cookie{Name: sessionCookie, Path: "/", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteLaxMode}) //nolint:gosec // G124: as above
	http.Redirect(w, r, logInPath, http.StatusSeeOther)
}
