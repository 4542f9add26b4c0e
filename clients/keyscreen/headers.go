package keyscreen

import (
	"net/http"
	"strings"
)

// contentSecurityPolicy allows what the screen needs, and nothing inline. styles are the sources of style
// sheets. Images and fonts of the product's own origin are for its header.
func contentSecurityPolicy(styles []string) string {
	return strings.Join([]string{
		"default-src 'none'", "style-src " + strings.Join(styles, " "), "script-src 'self'", "connect-src 'self'",
		"img-src 'self'", "font-src 'self'", "form-action 'self'", "frame-ancestors 'none'", "base-uri 'none'",
	}, "; ")
}

// setHeaders sets the headers of every answer. Those of an asset replace Cache-Control.
func (s *Screen) setHeaders(header http.Header) {
	header.Set("Content-Security-Policy", s.policy)
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("X-Frame-Options", "DENY")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Permissions-Policy", "clipboard-read=(), clipboard-write=(self)")
}
