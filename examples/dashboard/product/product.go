// Package product is a small product whose members manage their API keys on keysvc's settings screen,
// and whose API other programs call with these keys.
//
// A product of one's own needs from here what product.go mounts: the screen under a path and a session,
// and the API behind keyauthhttp. The log-in (session.go) is a stand-in.
package product

import (
	"embed"
	"errors"
	"html/template"
	"io/fs"
	"net/http"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthhttp"
	"github.com/scribe-mail/keysvc/clients/keyclient"
)

const (
	// screenPath is where the settings screen is mounted.
	screenPath = "/settings/api-keys"
	logInPath  = "/log-in"
)

//go:embed pages static
var files embed.FS

// Config is what a product needs.
type Config struct {
	// Keysvc is the client of the keysvc that holds the keys. Required. Its caller validates tokens, and
	// manages the keys and members of Workspace.
	Keysvc *keyclient.Client
	// Workspace is the id of the only workspace of this product. Required.
	Workspace string
	// Members are the members who can log in. keysvc must have them. At least one is required.
	Members []Member
	// URL is where the product is reached, such as http://127.0.0.1:8090, for the commands that it shows.
	URL string
}

// product serves the pages.
type product struct {
	config   Config
	sessions *sessions
	pages    map[string]*template.Template
}

// New returns the product. The error says what is missing in the Config.
func New(config Config) (http.Handler, error) {
	if config.Keysvc == nil || config.Workspace == "" || len(config.Members) == 0 {
		return nil, errors.New("product: Keysvc, Workspace and Members are required")
	}
	p := &product{
		config:   config,
		sessions: &sessions{members: config.Members, open: make(map[string]Member)},
		pages:    make(map[string]*template.Template),
	}
	for _, name := range []string{"log-in", "try", "screen"} {
		page, err := template.ParseFS(files, "pages/page.html", "pages/"+name+".html")
		if err != nil {
			return nil, err
		}
		p.pages[name] = page
	}
	static, err := fs.Sub(files, "static")
	if err != nil {
		return nil, err
	}
	guard, err := keyauth.NewGuard(config.Keysvc, keyauth.Config{})
	if err != nil {
		return nil, err
	}
	protected, err := newAPI().handler(guard)
	if err != nil {
		return nil, err
	}
	screen, err := p.screen()
	if err != nil {
		return nil, err
	}

	pages := http.NewServeMux()
	pages.Handle("GET /{$}", p.loggedIn(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, screenPath, http.StatusSeeOther)
	}))
	pages.HandleFunc("GET "+logInPath, func(w http.ResponseWriter, r *http.Request) { p.show(w, r, "log-in", "Log in") })
	pages.HandleFunc("POST "+logInPath, p.sessions.logIn)
	pages.HandleFunc("POST /log-out", p.sessions.logOut)
	pages.HandleFunc("GET /try", p.loggedIn(func(w http.ResponseWriter, r *http.Request) { p.show(w, r, "try", "Try it") }))
	pages.Handle("GET /static/", http.StripPrefix("/static/", http.FileServerFS(static)))
	pages.Handle("GET /favicon.ico", http.RedirectHandler("/static/icon.svg", http.StatusFound))
	pages.Handle(screenPath, screen)
	pages.Handle(screenPath+"/", screen)

	// The API has keys, the pages have sessions, and neither takes the other's.
	all := http.NewServeMux()
	all.Handle("/v1/", protected)
	all.Handle("/v1/me", keyauthhttp.Me(guard))
	// Other sites cannot send forms to the pages.
	all.Handle("/", new(http.CrossOriginProtection).Handler(pages))
	return all, nil
}

// loggedIn sends whoever is not logged in to the log-in. The screen asks for itself.
func (p *product) loggedIn(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if _, err := p.sessions.of(r); err != nil {
			http.Redirect(w, r, logInPath, http.StatusSeeOther)
			return
		}
		next(w, r)
	}
}

// show answers with a page.
func (p *product) show(w http.ResponseWriter, r *http.Request, name, title string) {
	member, _ := p.sessions.of(r)
	header := w.Header()
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'")
	header.Set("Cache-Control", "no-store")
	// The connection is there, or nobody could be told.
	_ = p.pages[name].ExecuteTemplate(w, "page.html", map[string]any{
		"Title": title, "Member": member, "Members": p.config.Members, "ScreenPath": screenPath, "Head": template.HTML(""), "URL": p.config.URL,
	})
}
