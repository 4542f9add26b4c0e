package cli

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/scribe-mail/keysvc/internal/transport"
)

// clientPageHead is the beginning of docs/client-settings.md.
const clientPageHead = `# Settings of clients

<!-- Made from the table in internal/transport/variables.go by "make generate". Do not edit. -->

How the ` + "`keysvc`" + ` command and a service with ` + "`keyclient.FromEnvironment`" + ` reach keysvc.
[Clients](clients.md) says which of these settings each way in needs. Those of the server are in
[settings](settings.md).

Each setting has a variable, a flag of the command, and a field of a context
(` + "`keysvc context`" + `); flag and field have the same name. For the command a flag wins over
` + "`--context`" + `, ` + "`--context`" + ` over a variable, and a variable over ` + "`KEYSVC_CONTEXT`" + ` and the
current context. With ` + "`--addr` or `KEYSVC_ADDR`" + `, only a context that ` + "`--context`" + ` names is used,
because the token in it is for its own server. A service reads variables alone. An empty variable
counts as not set.

A unix socket has no TLS, so the settings of TLS do not count for it. Any other address gets TLS if
one of them is given, or if the address may be on another machine. Certificates, keys and tokens are
read from their files again when they change.

| variable | flag and field | | if it is not set |
|---|---|---|---|
`

const clientPageTail = `
The command alone reads these as well:

| variable | flag | |
|---|---|---|
| ` + "`KEYSVC_CONTEXT` | `context`" + ` | the name of a context; it may not stand beside ` + "`KEYSVC_ADDR`" + ` |
| ` + "`KEYSVC_WORKSPACE` | `workspace`" + ` | the workspace; a field of a context, too |
| ` + "`KEYSVC_TOKEN`" + ` | | the token that ` + "`keysvc validate`" + ` asks about. It does not say who calls |
`

// contextPageCommand is for the Makefile.
func (a *app) contextPageCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "page",
		Short:   "Print docs/client-settings.md",
		Long:    `Print the page of the documentation that lists the settings of clients, in Markdown.`,
		Example: `  keysvc context page >docs/client-settings.md`,
		Args:    positional(),
		Hidden:  true,
		RunE: func(*cobra.Command, []string) error {
			_, err := a.Stdout.Write(clientPage())
			return err
		},
	}
}

// clientPage returns docs/client-settings.md.
func clientPage() []byte {
	var page bytes.Buffer
	page.WriteString(clientPageHead)
	for _, variable := range transport.Variables() {
		fmt.Fprintf(&page, "| `%s` | `%s` | %s | %s |\n", variable.Name, variable.Flag, strings.ReplaceAll(variable.Usage, "`", ""), variable.Empty)
	}
	page.WriteString(clientPageTail)
	return page.Bytes()
}
