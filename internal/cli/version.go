package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by a release: go build -ldflags "-X …/internal/cli.version=v1.2.3".
var version string

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this command",
		Example: `  keysvc version`,
		Args:    positional(),
		RunE: func(*cobra.Command, []string) error {
			out := &printer{out: a.Stdout}
			return out.line("keysvc %s", versionText())
		},
	}
}

// versionText says which build this is, and of what.
func versionText() string {
	name, commit, changed := version, "", ""
	if info, known := debug.ReadBuildInfo(); known {
		if name == "" {
			name = info.Main.Version
		}
		for _, setting := range info.Settings {
			switch setting.Key {
			case "vcs.revision":
				commit = setting.Value
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
	if commit != "" {
		commit = ", commit " + commit + changed
	}
	return fmt.Sprintf("%s%s, %s %s/%s", name, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
