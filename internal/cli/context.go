package cli

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/scribe-mail/keysvc/internal/transport"
)

func (a *app) contextCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "context",
		Short: "Keep servers and ways to reach them under names",
		Long: `A context is a server and how to be a caller of it: the address, the files of TLS,
the file of the caller token, and a workspace. Contexts have names, and one of them
is current. They are in keysvc/contexts.yaml below XDG_CONFIG_HOME or ~/.config,
with mode 0600. The file has paths in it, and no secrets.

A flag wins over --context, --context over a variable such as KEYSVC_ADDR, and a
variable over KEYSVC_CONTEXT and the current context. With --addr or KEYSVC_ADDR,
only a context that --context names is used: a token is for its own server.`,
		Example: `  keysvc context set prod --addr keysvc.example.com:7480 --tls-ca ca.pem --use`,
	},
		a.contextListCommand(),
		a.contextUseCommand(),
		a.contextSetCommand(),
		a.contextShowCommand(),
		a.contextRemoveCommand(),
		a.contextPageCommand(),
	)
}

func (a *app) contextListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the contexts",
		Example: `  keysvc context list
  keysvc context list -o name`,
		Args: positional(),
	}
	format := outputFlag(cmd, formatsOfThings)
	cmd.RunE = func(*cobra.Command, []string) error {
		all, err := a.readContexts()
		if err != nil {
			return a.listMistakes(err, "the contexts are not valid")
		}
		out := &printer{out: a.Stdout, width: terminalWidth(a.Stdout), now: a.Now, format: *format}
		switch out.format {
		case formatName:
			for _, one := range all.list {
				if err := out.line("%s", one.name); err != nil {
					return err
				}
			}
			return nil
		case formatJSON, formatYAML:
			return out.object(all.object())
		case formatTable, formatWide, formatLines:
		}
		rows := newTable([]column{{title: "CURRENT"}, {title: "NAME"}, {title: "ADDRESS", cutTo: 12}, {title: "WORKSPACE", cutTo: 9}}, false, out.width)
		for _, one := range all.list {
			mark := ""
			if one.name == all.current {
				mark = "*"
			}
			rows.add(mark, one.name, orDash(one.values[addressFlagName]), orDash(one.values[workspaceFlagName]))
		}
		return out.write([]byte(rows.take()))
	}
	return cmd
}

// object returns the contexts for JSON and YAML.
func (c *contexts) object() any {
	type object map[string]string
	list := make([]object, len(c.list))
	for index, one := range c.list {
		list[index] = object{"name": one.name}
		maps.Copy(list[index], one.values)
	}
	return struct {
		Current  string   `json:"current"`
		Contexts []object `json:"contexts"`
	}{c.current, list}
}

// object writes what is no message of the API, as JSON or YAML.
func (p *printer) object(value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	if p.format == formatYAML {
		if text, err = yamlFromJSON(text); err != nil {
			return err
		}
		return p.write(text)
	}
	return p.write(append(text, '\n'))
}

func (a *app) contextUseCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "use NAME",
		Short:   "Make a context the current one",
		Example: `  keysvc context use prod`,
		Args:    positional("NAME"),
	}
	a.completeContextArgument(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		all, err := a.contextNamed(cmd, args[0])
		if err != nil {
			return err
		}
		all.current = args[0]
		return a.save(all, "The current context is %s", args[0])
	}
	return cmd
}

func (a *app) contextSetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "Make a context, or change one",
		Long: `Make a context with the settings that the flags give, or change these settings in a
context that there is. An empty value takes a setting out. Files are not read; their
paths are stored as absolute ones.`,
		Example: `  keysvc context set prod --addr keysvc.example.com:7480 --tls-ca ca.pem --tls-cert me.pem --tls-key me-key.pem
  keysvc context set prod --workspace acme --use`,
		Args: positional("NAME"),
	}
	connectionFlags(cmd)
	flags := cmd.Flags()
	flags.String(workspaceFlagName, "", "the workspace")
	use := flags.Bool("use", false, "make it the current context")
	a.completeContextArgument(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !contextName.MatchString(args[0]) {
			return usageError(cmd, "NAME is %q, allowed are up to 64 letters, digits, dots, dashes and underscores", args[0])
		}
		all, err := a.readContexts()
		if err != nil {
			return a.listMistakes(err, "the contexts are not valid")
		}
		if all.file == "" {
			return errNoConfigFolder
		}
		one := all.find(args[0])
		if one == nil {
			one = &clientContext{name: args[0], values: map[string]string{}}
			all.list = append(all.list, one)
		}
		if err := one.take(cmd); err != nil {
			return err
		}
		if *use {
			all.current = one.name
		}
		return a.save(all, "Context %s is in %s", one.name, all.file)
	}
	return cmd
}

// take takes over the settings that flags give.
func (c *clientContext) take(cmd *cobra.Command) error {
	files := map[string]bool{}
	for _, variable := range transport.Variables() {
		files[variable.Flag] = variable.File
	}
	for _, name := range contextFields() {
		if !cmd.Flags().Changed(name) {
			continue
		}
		value := cmd.Flag(name).Value.String()
		switch {
		case value == "":
			delete(c.values, name)
			continue
		case files[name]:
			absolute, err := filepath.Abs(value)
			if err != nil {
				return err
			}
			value = absolute
		case name == addressFlagName:
			address := &connection{values: map[string]given{name: {value, "--" + name}}}
			if err := address.parseAddress(cmd); err != nil {
				return err
			}
		}
		c.values[name] = value
	}
	return nil
}

func (a *app) contextRemoveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "remove NAME",
		Short:   "Remove a context",
		Long:    `Remove a context. The files that it names stay.`,
		Example: `  keysvc context remove prod`,
		Args:    positional("NAME"),
	}
	a.completeContextArgument(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		all, err := a.contextNamed(cmd, args[0])
		if err != nil {
			return err
		}
		all.list = slices.DeleteFunc(all.list, func(one *clientContext) bool { return one.name == args[0] })
		if all.current == args[0] {
			all.current = ""
		}
		return a.save(all, "Context %s is removed", args[0])
	}
	return cmd
}

func (a *app) contextShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show how a command would connect, and why",
		Long: `Show how a command with the same flags and the same environment would connect: each
setting that is given, with its value and where that came from, a flag, a variable,
a context, or the default. Nothing is connected to, and no file of TLS is read.`,
		Example: `  keysvc context show
  keysvc context show --context prod -o json`,
		Args: positional(),
	}
	connectionFlags(cmd)
	a.contextFlag(cmd)
	format := showTable
	choice(cmd, &format, "output", "o", "how to write the answer", showTable, showJSON)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.connection(cmd)
		if err != nil {
			return a.listMistakes(err, "the contexts are not valid")
		}
		if workspace, err := a.workspaceOf(cmd); err == nil && workspace.text != "" {
			c.values[workspaceFlagName] = workspace
		}
		return a.showConnection(c, format)
	}
	return cmd
}

func (a *app) showConnection(c *connection, format showFormat) error {
	rows := []settingsRow{}
	for _, name := range contextFields() {
		if value, has := c.values[name]; has {
			rows = append(rows, settingsRow{Name: name, Value: redact(value.text), Origin: value.origin})
		}
	}
	if format == showJSON {
		return (&printer{out: a.Stdout, format: formatJSON}).object(rows)
	}
	how := "in plaintext"
	switch {
	case c.secure != nil:
		how = "with TLS 1.3"
	case c.isUnix():
		how = "in plaintext, to a socket whose owner is checked"
	}
	out := tabwriter.NewWriter(a.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(out, "SETTING\tVALUE\tFROM") // Flush returns what fails
	for _, row := range rows {
		_, _ = fmt.Fprintf(out, "%s\t%s\t%s\n", row.Name, printable(row.Value), printable(row.Origin))
	}
	if err := out.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.Stderr, "A command connects %s.\n", how)
	return err
}

// contextNamed returns the contexts, of which one has the name.
func (a *app) contextNamed(cmd *cobra.Command, name string) (*contexts, error) {
	all, err := a.readContexts()
	if err != nil {
		return nil, a.listMistakes(err, "the contexts are not valid")
	}
	if all.find(name) == nil {
		return nil, usageError(cmd, "there is no context %q%s", name, all.known())
	}
	return all, nil
}

// save writes the file, and says so on standard error.
func (a *app) save(all *contexts, format string, arguments ...any) error {
	if err := all.write(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(a.Stderr, printable(fmt.Sprintf(format, arguments...)))
	return err
}

// completeContexts suggests the names of the contexts.
func (a *app) completeContexts(_ *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	all, err := a.readContexts()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []cobra.Completion
	for _, one := range all.list {
		if strings.HasPrefix(one.name, typed) {
			names = append(names, suggestion(one.name, one.values[addressFlagName]))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeContextArgument(cmd *cobra.Command) {
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.completeContexts(cmd, args, typed)
	}
}
