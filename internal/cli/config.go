package cli

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/scribe-mail/keysvc/internal/config"
)

func (a *app) configCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:     "config",
		Short:   "Show and check the settings of the server",
		Example: `  keysvc config show --config /etc/keysvc/keysvc.yaml`,
	},
		a.configShowCommand(),
		a.configCheckCommand(),
		a.configPageCommand(),
	)
}

// showFormat is how `config show` writes the settings.
type showFormat string

const (
	showTable showFormat = "table"
	showJSON  showFormat = "json"
)

func (a *app) configShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show each setting, and where its value came from",
		Long: `Show the settings that "keysvc serve" would have with the same flags, the same
environment and the same file: each with its value and where that came from, a flag,
a variable, a line of the file, or the default. Secrets are hidden. No server is
started or asked.`,
		Example: `  keysvc config show --config /etc/keysvc/keysvc.yaml
  keysvc config show -o json`,
		Args: positional(),
	}
	source := a.settingsFlags(cmd)
	format := showTable
	choice(cmd, &format, "output", "o", "how to write the answer", showTable, showJSON)
	cmd.RunE = func(*cobra.Command, []string) error {
		loaded, err := source().Load()
		if err != nil {
			return a.listMistakes(err, "the settings are not valid")
		}
		return a.showSettings(loaded, format)
	}
	return cmd
}

func (a *app) configCheckCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the settings, without starting a server",
		Long: `Check the settings that "keysvc serve" would have with the same flags, the same
environment and the same file. Every mistake goes to standard error, with the flag,
the variable, or file, line and column. Files that settings name are not read; for
the policy, there is "keysvc policy check".`,
		Example: `  keysvc config check --config /etc/keysvc/keysvc.yaml`,
		Args:    positional(),
	}
	source := a.settingsFlags(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		loaded, err := source().Load()
		if err != nil {
			return a.listMistakes(err, "the settings are not valid")
		}
		given := 0
		for _, setting := range config.Table() {
			if loaded.Origin(setting.Name).Kind != config.FromDefault {
				given++
			}
		}
		_, err = fmt.Fprintf(a.Stdout, "The settings are valid: %d are given, %d have their default\n", given, len(config.Table())-given)
		return err
	}
	return cmd
}

// configPageCommand is for the Makefile.
func (a *app) configPageCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "page",
		Short: "Print docs/settings.md",
		Long: `Print the page of the documentation that lists the settings of "keysvc serve", in
Markdown, as this version has them.`,
		Example: `  keysvc config page >docs/settings.md`,
		Args:    positional(),
		Hidden:  true,
		RunE: func(*cobra.Command, []string) error {
			_, err := a.Stdout.Write(config.Page())
			return err
		},
	}
}

// settingsRow is a setting as `config show` writes it.
type settingsRow struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Origin string `json:"origin"`
}

func (a *app) showSettings(loaded config.Loaded, format showFormat) error {
	var rows []settingsRow
	empty := map[string]string{}
	for _, setting := range config.Table() {
		rows = append(rows, settingsRow{
			Name:   setting.Name,
			Value:  redact(setting.Show(loaded.Settings)),
			Origin: redact(loaded.Origin(setting.Name).String()),
		})
		empty[setting.Name] = setting.Empty
	}
	if format == showJSON {
		encoder := json.NewEncoder(a.Stdout)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		return encoder.Encode(rows)
	}
	out := tabwriter.NewWriter(a.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(out, "SETTING\tVALUE\tFROM") // Flush returns what fails
	for _, row := range rows {
		value := row.Value
		if value == "" {
			value = "(" + empty[row.Name] + ")"
		}
		_, _ = fmt.Fprintf(out, "%s\t%s\t%s\n", row.Name, printable(value), printable(row.Origin))
	}
	return out.Flush()
}

// settingsFlags adds --config and a flag for each setting to the command. It returns a function
// that makes the Source of the settings; call it once the command line is parsed.
func (a *app) settingsFlags(cmd *cobra.Command) func() config.Source {
	return a.someSettingsFlags(cmd, func(config.Setting) bool { return true })
}

// someSettingsFlags is settingsFlags with flags for those settings alone that wanted accepts. The variables
// and the file may have the others.
func (a *app) someSettingsFlags(cmd *cobra.Command, wanted func(config.Setting) bool) func() config.Source {
	defaults := config.Defaults()
	if isTerminal(a.Stderr) {
		defaults.LogFormat = config.LogText
	}
	given := map[string][]string{}
	flags := cmd.Flags()
	flags.Var(&textFlag{name: config.FileFlag, given: given}, config.FileFlag, "the YAML `file` with settings (default: "+config.FileVariable+", else none)")
	must(cmd.MarkFlagFilename(config.FileFlag, "yaml", "yml"))
	for _, setting := range config.Table() {
		if !wanted(setting) {
			continue
		}
		value := &textFlag{name: setting.Name, given: given, typeName: setting.Type(), repeated: setting.Repeated(), shown: setting.Show(defaults)}
		flag := flags.VarPF(value, setting.Name, "", setting.Help())
		if setting.Type() == "bool" {
			flag.NoOptDefVal = "true"
		}
		completeSetting(cmd, setting)
	}
	return func() config.Source {
		return config.Source{Defaults: defaults, Flags: given, Getenv: a.Getenv}
	}
}

// completeSetting registers the values that shells complete for a flag.
func completeSetting(cmd *cobra.Command, setting config.Setting) {
	switch setting.Path {
	case config.FilePath:
		must(cmd.MarkFlagFilename(setting.Name))
	case config.FolderPath:
		must(cmd.MarkFlagDirname(setting.Name))
	case config.NoPath:
		completions(cmd, setting.Name, setting.Words())
	}
}

// must panics on an error, which can only mean that there is no such flag.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// textFlag records the texts of a flag. config.Source parses and checks them, with the same errors
// for every source.
type textFlag struct {
	name, typeName string
	repeated       bool
	shown          string // the default, for the help
	given          map[string][]string
}

// String returns the default.
func (f *textFlag) String() string { return f.shown }

// Type names the value in the help text.
func (f *textFlag) Type() string { return f.typeName }

// Set records a text. Of a flag that is no list, the last one counts.
func (f *textFlag) Set(text string) error {
	if f.repeated {
		f.given[f.name] = append(f.given[f.name], text)
	} else {
		f.given[f.name] = []string{text}
	}
	return nil
}
