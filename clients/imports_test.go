// Package clients_test checks which modules a program links if it imports a client package.
package clients_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/scribe-mail/keysvc/"

// light is everything that a program links with one of the client packages, beside the
// standard library.
var light = []string{
	module + "clients/", module + "gen/keysvc/v1",
	module + "internal/backoff", module + "internal/decide", module + "internal/lease", module + "internal/spread", module + "internal/tally", module + "internal/token", module + "internal/transport",
	"google.golang.org/grpc", "google.golang.org/protobuf", "google.golang.org/genproto/googleapis/rpc",
	"golang.org/x/net", "golang.org/x/sys", "golang.org/x/text",
}

func TestImportersLinkOnlyLightModules(t *testing.T) {
	for _, name := range []string{"keyauth", "keyauthhttp", "keyauthtest", "keyclient", "keycredentials", "keyscreen"} {
		command := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", module+"clients/"+name)
		text, err := command.Output()
		if err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		for path := range strings.FieldsSeq(string(text)) {
			known := slices.ContainsFunc(light, func(allowed string) bool {
				return path == allowed || strings.HasPrefix(path, strings.TrimSuffix(allowed, "/")+"/")
			})
			if name != "keyscreen" && path == module+"clients/keyscreen" {
				t.Errorf("importing %s links the settings screen", name)
			}
			if !known {
				t.Errorf("importing %s links %s", name, path)
			}
		}
	}
}
