package keyscreen

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"html/template"
	"net/http"
	"path"
	"strings"
	"time"
)

//go:embed assets/keyscreen.css assets/keyscreen.js
var assetFiles embed.FS

// asset is a file that pages link, under a name with the hash of its content. So it may be cached for good.
type asset struct {
	name, kind string
	content    []byte
}

var styleAsset, scriptAsset = newAsset("keyscreen.css", "text/css; charset=utf-8"), newAsset("keyscreen.js", "text/javascript; charset=utf-8")

func newAsset(file, kind string) asset {
	content, err := assetFiles.ReadFile("assets/" + file)
	if err != nil {
		panic(err) // it was embedded when the program was built
	}
	hash := sha256.Sum256(content)
	ending := path.Ext(file)
	return asset{name: strings.TrimSuffix(file, ending) + "-" + hex.EncodeToString(hash[:8]) + ending, kind: kind, content: content}
}

// serveAsset answers with the asset of a name.
func serveAsset(w http.ResponseWriter, r *http.Request, name string) {
	for _, known := range []asset{styleAsset, scriptAsset} {
		if known.name == name {
			w.Header().Set("Content-Type", known.kind)
			w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
			http.ServeContent(w, r, known.name, time.Time{}, bytes.NewReader(known.content))
			return
		}
	}
	http.NotFound(w, r)
}

// head returns the elements that a page has in its head.
func (v *visit) head() template.HTML {
	var text bytes.Buffer
	if err := pages.ExecuteTemplate(&text, "head", frame{visit: v}); err != nil {
		panic(err) // it has no data that could fail
	}
	return template.HTML(text.String()) //nolint:gosec // G203: our own template has escaped it
}
