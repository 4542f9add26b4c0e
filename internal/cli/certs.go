package cli

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/spf13/cobra"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/certificates"
)

func (a *app) certsCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:     "certs",
		Short:   "Make certificates to try TLS with",
		Example: `  keysvc certs dev ./dev-certs`,
	},
		a.certsDevCommand(),
	)
}

// devCaller is a caller that certs dev makes.
type devCaller struct {
	Name, About string
	Rights      []string
	// Workspace is the only one that the rights are for; "" for all.
	Workspace string
}

// ID returns the caller's SPIFFE id.
func (c devCaller) ID() string { return certificates.DevelopmentID(c.Name) }

// List returns the rights as YAML has them.
func (c devCaller) List() string { return strings.Join(c.Rights, ", ") }

func devCallers() []devCaller {
	var all []string
	for _, right := range access.Rights() {
		all = append(all, right.String())
	}
	return []devCaller{
		{Name: "validator", About: "a service that asks about tokens", Rights: []string{"validate"}},
		{
			Name: "manager", About: "the product's backend, for the workspace demo alone", Workspace: "demo",
			Rights: []string{"read", "issue", "revoke", "directory"},
		},
		{Name: "admin", About: "an operator", Rights: all},
	}
}

func (a *app) certsDevCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dev DIR",
		Short: "Write certificates, callers and variables to try TLS on this machine",
		Long: `Write into the folder DIR what is needed to try keysvc with TLS on this machine, and
print three lines to paste: for the server, for a caller that validates, and for one
that manages keys. Nothing of it is for production:

- The certificates last a day. Run the command again for new ones; a server that
  runs takes them within a second.
- Their authority vouches for localhost and loopback addresses only, and its key is
  not written anywhere.
- A server that can be reached from other machines refuses them.

The callers have different rights: validator may validate, manager may manage keys
and members of the workspace demo, admin may do everything. DIR/callers.yaml says
so, and can be changed while the server runs. Files have mode 0600, and a folder
that is made has 0700.`,
		Example: `  keysvc certs dev ./dev-certs`,
		Args:    positional("DIR"),
	}
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		folder, err := filepath.Abs(args[0])
		if err != nil {
			return err
		}
		return a.makeDevCerts(folder)
	}
	return cmd
}

// devFolder is what the templates of certs dev are filled with.
type devFolder struct {
	Program, Folder, Address, Domain, Until string
	Callers                                 []devCaller
}

// devAddress is where the server of certs dev listens. It is not the address of serve --dev, so
// that both can run.
const devAddress = "127.0.0.1:7443"

var devFunctions = template.FuncMap{"shell": shellWord, "yaml": yamlWord}

var devServerFile = devTemplate(`# Made by keysvc certs dev. Not for production.
listen: {{.Address}}
tls-server-cert: {{yaml (printf "%s/server.crt" .Folder)}}
tls-server-key: {{yaml (printf "%s/server.key" .Folder)}}
callers: {{yaml (printf "%s/callers.yaml" .Folder)}}
data: {{yaml (printf "%s/data" .Folder)}}
`)

var devCallersFile = devTemplate(`# Made by keysvc certs dev. Who may call, and what each may do. A change is
# applied within a second; keysvc callers check says what is wrong with it.
version: 1
trust_domains:
  - name: {{.Domain}}
    bundle: ca.crt
callers:
{{- range .Callers}}
  - name: {{.Name}} # {{.About}}
    spiffe: [{{yaml .ID}}]
    rights: [{{.List}}]
{{- if .Workspace}}
    workspaces: [{{.Workspace}}]
{{- end}}
{{- end}}
`)

var devVariablesFile = devTemplate(`# Made by keysvc certs dev. In a shell: . {{shell (printf "%s/%s.env" .Folder .Caller.Name)}}
export KEYSVC_ADDR={{shell .Address}}
export KEYSVC_TLS_CA={{shell (printf "%s/ca.crt" .Folder)}}
export KEYSVC_TLS_CERT={{shell (printf "%s/%s.crt" .Folder .Caller.Name)}}
export KEYSVC_TLS_KEY={{shell (printf "%s/%s.key" .Folder .Caller.Name)}}
{{- if .Caller.Workspace}}
export KEYSVC_WORKSPACE={{.Caller.Workspace}}
{{- end}}
`)

var devLines = devTemplate(`Certificates for this machine, until {{.Until}}, are in {{.Folder}}. In three terminals:

  # the server, with a demo workspace
  {{shell .Program}} serve --dev --config {{shell (printf "%s/keysvc.yaml" .Folder)}}

  # validate a token, as validator
  (. {{shell (printf "%s/validator.env" .Folder)}}; {{shell .Program}} validate --scope signatures:read <{{shell (printf "%s/data/demo-token" .Folder)}})

  # manage keys, as manager
  (. {{shell (printf "%s/manager.env" .Folder)}}; {{shell .Program}} key list)
`)

func devTemplate(text string) *template.Template {
	return template.Must(template.New("certs dev").Funcs(devFunctions).Parse(text))
}

// makeDevCerts writes all files and prints the lines.
func (a *app) makeDevCerts(folder string) error {
	if err := checkDevFolder(folder); err != nil {
		return err
	}
	files, until, err := a.devFiles(folder)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	for _, file := range files {
		if err := replaceFile(filepath.Join(folder, file.name), file.text); err != nil {
			return err
		}
	}
	return devLines.Execute(a.Stdout, devFolder{Program: a.program(), Folder: folder, Until: until})
}

type devFile struct {
	name string
	text []byte
}

// devFiles returns the files of certs dev.
func (a *app) devFiles(folder string) (files []devFile, until string, err error) {
	in := devFolder{Folder: folder, Address: devAddress, Domain: certificates.DevelopmentDomain, Callers: devCallers()}
	var names []string
	for _, caller := range in.Callers {
		names = append(names, caller.Name)
	}
	set, err := certificates.NewDevelopment(a.Now(), names...)
	if err != nil {
		return nil, "", err
	}
	fill := func(name string, form *template.Template, with any) {
		var text bytes.Buffer
		err = errors.Join(err, form.Execute(&text, with))
		files = append(files, devFile{name, text.Bytes()})
	}
	files = append(files, devFile{"ca.crt", set.Authority}, devFile{"server.key", set.Server.Key}, devFile{"server.crt", set.Server.Certificate})
	fill("callers.yaml", devCallersFile, in)
	fill("keysvc.yaml", devServerFile, in)
	for _, caller := range in.Callers {
		pair := set.Clients[caller.Name]
		files = append(files, devFile{caller.Name + ".key", pair.Key}, devFile{caller.Name + ".crt", pair.Certificate})
		fill(caller.Name+".env", devVariablesFile, struct {
			devFolder
			Caller devCaller
		}{in, caller})
	}
	return files, set.NotAfter.Local().Format("2006-01-02 15:04"), err
}

// checkDevFolder returns an error if the folder has certificates that certs dev did not make.
func checkDevFolder(folder string) error {
	for _, name := range []string{"ca.crt", "server.crt"} {
		path := filepath.Join(folder, name)
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		block, _ := pem.Decode(text)
		if block != nil {
			if certificate, err := x509.ParseCertificate(block.Bytes); err == nil && certificates.Development(certificate) {
				continue
			}
		}
		return &refusal{fmt.Sprintf("%s was not made by keysvc certs dev, and nothing was changed: choose another folder", path)}
	}
	return nil
}

// replaceFile writes a file of mode 0600 in one step, so that a server which reads it sees the old
// text or the new one.
func replaceFile(path string, text []byte) error {
	file, err := os.CreateTemp(filepath.Dir(path), ".keysvc-certs-*") // has mode 0600
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		_ = os.Remove(file.Name())
	}
	return err
}

// program returns what a person types to run this program again in the same folder.
func (a *app) program() string {
	switch {
	case a.Program == "" || !strings.ContainsRune(a.Program, filepath.Separator):
		return "keysvc"
	case strings.Contains(a.Program, "go-build"):
		return "go run ./cmd/keysvc"
	}
	return a.Program
}

// shellWord returns text as one word of a shell's command line.
func shellWord(text string) string {
	special := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-_./:@", r)
	}
	if text != "" && strings.IndexFunc(text, special) < 0 || strings.HasPrefix(text, "go run ") {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// yamlWord returns text as a value of YAML in single quotes.
func yamlWord(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }
