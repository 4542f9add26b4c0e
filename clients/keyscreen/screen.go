package keyscreen

import (
	"bytes"
	"context"
	"html/template"
	"net/http"
	"strings"
	"time"
)

// callTimeout bounds everything that keysvc is asked for one page.
const callTimeout = 15 * time.Second

// ServeHTTP serves the pages and forms of the screen.
func (s *Screen) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.setHeaders(w.Header())
	rest, under := strings.CutPrefix(r.URL.Path, s.config.Path)
	if !under || rest != "" && rest[0] != '/' {
		s.config.Log.ErrorContext(r.Context(), "keyscreen: mounted at another path than Config.Path; do not strip it", "path", r.URL.Path, "config_path", s.config.Path)
		http.Error(w, "This page is not set up correctly.", http.StatusInternalServerError)
		return
	}
	rest = strings.Trim(rest, "/")
	if name, is := strings.CutPrefix(rest, "assets/"); is {
		serveAsset(w, r, name)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	v := &visit{Screen: s, w: w, r: r.WithContext(ctx), now: s.config.Now()}
	v.locate()
	handle, allowed := v.route(rest)
	switch {
	case handle == nil:
		v.problem(http.StatusNotFound, "problem.page")
	case r.Method != http.MethodGet && r.Method != http.MethodHead && (r.Method != http.MethodPost || !allowed):
		w.Header().Set("Allow", "GET, HEAD")
		if allowed {
			w.Header().Set("Allow", "GET, HEAD, POST")
		}
		v.problem(http.StatusMethodNotAllowed, "problem.page")
	case r.Method == http.MethodPost && s.config.CrossOrigin.Check(r) != nil:
		s.config.Log.WarnContext(r.Context(), "keyscreen: a form from another site was refused", "origin", r.Header.Get("Origin"))
		v.problem(http.StatusForbidden, "problem.cross_site")
	case v.enter():
		handle()
	}
}

// visit is one request, and what is known about it.
type visit struct {
	*Screen
	w        http.ResponseWriter
	r        *http.Request
	now      time.Time
	language *Language
	zone     *time.Location
	viewer   viewer
}

// route returns what serves a path below Config.Path, and whether it takes POST.
func (v *visit) route(rest string) (handle func(), post bool) {
	parts := strings.Split(rest, "/")
	switch {
	case rest == "":
		return v.list, false
	case rest == "new":
		return v.create, true
	case len(parts) == 3 && parts[0] == "keys" && parts[2] == "replace":
		return func() { v.replace(parts[1]) }, true
	case len(parts) == 3 && parts[0] == "keys" && parts[2] == "finish":
		return func() { v.finish(parts[1]) }, true
	case len(parts) == 3 && parts[0] == "keys" && parts[2] == "revoke":
		return func() { v.revoke(parts[1]) }, true
	}
	return nil, false
}

// locate chooses language and time zone.
func (v *visit) locate() {
	tag, zone := v.config.Locale(v.r)
	v.language, v.zone = v.languages[tag], zone
	if v.language == nil {
		v.language = v.config.Languages[0]
	}
	if zone == nil {
		v.zone = time.UTC
	}
}

// posted reports whether the request sends a form.
func (v *visit) posted() bool { return v.r.Method == http.MethodPost }

// path returns the address of a page of the screen.
func (v *visit) path(elements ...string) string {
	return strings.Join(append([]string{v.config.Path}, elements...), "/")
}

// home returns the address of the table.
func (v *visit) home() string { return v.config.Path + "/" }

// render answers with a page.
func (v *visit) render(status int, name, title string, data any) {
	var body, whole bytes.Buffer
	// Both are rendered before the first byte is sent, so that a failure is a whole answer.
	err := pages.ExecuteTemplate(&body, name, frame{visit: v, Data: data})
	if err == nil {
		err = v.config.Layout(&whole, v.r, Page{
			Title: title, Language: v.language.Tag,
			Head: v.head(), Body: template.HTML(body.String()), //nolint:gosec // G203: our own template has escaped it
		})
	}
	if err != nil {
		v.config.Log.ErrorContext(v.r.Context(), "keyscreen: a page was not rendered", "page", name, "error", err)
		http.Error(v.w, "This page cannot be shown.", http.StatusInternalServerError)
		return
	}
	v.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	v.w.WriteHeader(status)
	if v.r.Method != http.MethodHead {
		v.w.Write(whole.Bytes()) //nolint:errcheck // the browser has gone
	}
}
