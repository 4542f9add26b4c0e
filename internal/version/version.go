// Package version tells which build of keysvc runs.
package version

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
)

// release is the name of the release, and commit what it was built from. They are set when a release
// is built: go build -ldflags "-X github.com/scribe-mail/keysvc/internal/version.release=v1.2.3".
// Otherwise Go tells them.
var release, commit string

// Header is the name of the response header in which a server tells its version.
const Header = "keysvc-version"

// Text returns the release, the commit that it was built from if that is known, the version
// of Go and the platform. It is printable ASCII on one line.
var Text = sync.OnceValue(text)

func text() string {
	name, source, changed := release, commit, ""
	if info, known := debug.ReadBuildInfo(); known {
		if name == "" {
			name = info.Main.Version
		}
		for _, setting := range info.Settings {
			switch setting.Key {
			case "vcs.revision":
				source = cmp.Or(source, setting.Value)
			case "vcs.modified":
				if setting.Value == "true" {
					changed = " with changes"
				}
			}
		}
	}
	if name == "" {
		name = "(devel)"
	}
	if source != "" {
		source = ", commit " + source + changed
	}
	return fmt.Sprintf("%s%s, %s %s/%s", name, source, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
