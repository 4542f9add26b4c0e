package keyscreen

import (
	"embed"
	"html/template"
	"io"
	"net/http"
)

// Page is the screen inside of a product's page.
type Page struct {
	// Title is for the title element, in the language of the page.
	Title string
	// Language is the tag of that language, for the lang attribute.
	Language string
	// Head belongs into the head element: it links the style sheets and the script.
	Head template.HTML
	// Body belongs into the main element. It begins with a heading h1. It may have a token: do not keep it.
	Body template.HTML
}

//go:embed templates/*.html
var templateFiles embed.FS

var pages = template.Must(template.New("").ParseFS(templateFiles, "templates/*.html"))

// frame is what templates see: the data of a page, and the methods of the visit.
type frame struct {
	*visit
	Data any
}

// With returns the frame with other data, for a template inside of another one.
func (f frame) With(data any) frame { return frame{visit: f.visit, Data: data} }

// plainLayout returns the layout of a product that has none.
func plainLayout(theme string) func(io.Writer, *http.Request, Page) error {
	return func(w io.Writer, _ *http.Request, page Page) error {
		return pages.ExecuteTemplate(w, "layout", struct {
			Page
			Theme string
		}{page, theme})
	}
}

// T returns a message.
func (v *visit) T(key string, arguments ...any) string { return v.language.text(key, arguments...) }

// Path returns the address of a page of the screen.
func (v *visit) Path(elements ...string) string { return v.path(elements...) }

// Home returns the address of the table.
func (v *visit) Home() string { return v.home() }

// Theme returns Config.Theme.
func (v *visit) Theme() string { return v.config.Theme }

// Style and Script return the addresses of the assets.
func (v *visit) Style() string { return v.path("assets", styleAsset.name) }

// Script returns the address of the script.
func (v *visit) Script() string { return v.path("assets", scriptAsset.name) }

// Stylesheets returns Config.Stylesheets.
func (v *visit) Stylesheets() []string { return v.config.Stylesheets }

// FormToken returns the token of the forms of this page.
func (v *visit) FormToken() string { return v.formToken() }

// LanguageTag returns the tag of the page's language.
func (v *visit) LanguageTag() string { return v.language.Tag }

// Count returns a message about a number.
func (v *visit) Count(key string, n int) string { return v.language.count(key, n) }
