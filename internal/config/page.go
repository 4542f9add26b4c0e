package config

import (
	"bytes"
	"fmt"
	"strings"
)

// pageHead is the beginning of docs/settings.md.
const pageHead = `# Settings

<!-- Made from the table in internal/config/table.go by "make generate". Do not edit. -->

The settings of ` + "`keysvc serve`" + `. Each has one name in three places: ` + "`max-in-flight`" + ` is the flag
` + "`--max-in-flight`" + `, the environment variable ` + "`KEYSVC_MAX_IN_FLIGHT`" + ` and the field
` + "`max-in-flight`" + ` of the configuration file.

- **Precedence**: a flag wins over a variable, a variable over the file, the file over the
  default. Every value that is given must be allowed, also one that another source overrides.
- **The file** is named by ` + "`--config FILE` or `KEYSVC_CONFIG`" + `. It is one YAML document of at most
  1 MiB, read strictly: unknown and repeated fields, values of another type, aliases, anchors
  and tags are refused, with line and column. Durations and addresses are texts, numbers are
  plain decimal digits, and switches are ` + "`true` or `false`" + `. A file of comments alone is
  allowed. Relative paths in it start at the working directory of the process.
- **Variables**: an empty one counts as not set. Variables that belong to no setting are
  ignored; for a Service named keysvc, Kubernetes sets some that begin with ` + "`KEYSVC_`" + `.
- **Lists**: the flag can be repeated, the variable has commas between the elements, and the
  file has a YAML list. A list of one source replaces that of a weaker one.
- **Reload**: on SIGHUP the file is read again, and settings that say *Reloaded* below are
  applied. The others need a restart; a warning in the log names those that differ. If the
  file is not valid, the settings stay as they are, and the log has the mistakes.

` + "`keysvc config show`" + ` prints each setting with its value and where it came from, and
` + "`keysvc config check`" + ` reports every mistake. Both take the flags of ` + "`keysvc serve`" + `. The settings
of the other commands are in their ` + "`--help`" + `.

` + "```yaml" + `
# keysvc.yaml
listen: unix:///run/keysvc/keysvc.sock
listener:
  - health=127.0.0.1:7481
data: /var/lib/keysvc
log-level: warn
max-in-flight: 2048
drain-timeout: 30s
` + "```" + `
`

// Page returns docs/settings.md.
func Page() []byte {
	var page bytes.Buffer
	page.WriteString(pageHead)
	group := ""
	for _, setting := range table {
		if setting.Group != group {
			group = setting.Group
			fmt.Fprintf(&page, "\n## %s\n\n| setting | default | allowed | |\n|---|---|---|---|\n", group)
		}
		fmt.Fprintf(&page, "| `%s` | %s | %s | %s |\n", setting.Name, setting.pageDefault(), setting.Allowed(), setting.pageText())
	}
	return page.Bytes()
}

func (s Setting) pageDefault() string {
	if s.Default == "" {
		return s.Empty
	}
	return "`" + s.Default + "`"
}

// pageText describes the setting in a cell of a table in Markdown.
func (s Setting) pageText() string {
	text := strings.ToUpper(s.Usage[:1]) + strings.ReplaceAll(s.Usage[1:], "`", "") + "."
	if s.More != "" {
		text += " " + s.More
	}
	if s.Default != "" && s.Empty != "" {
		text += " Empty: " + s.Empty + "."
	}
	if s.Reloadable {
		text += " *Reloaded.*"
	}
	if s.Secret {
		text += " *Secret.*"
	}
	return text
}
