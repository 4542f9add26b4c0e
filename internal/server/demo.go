package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/problem"
)

const (
	// demoWorkspace is the workspace that --dev seeds: a key, and for each role a member of
	// the same name.
	demoWorkspace = "demo"
	// demoTokenFile, in the data folder, holds the token of the demo key for the pasted
	// commands to read. keysvc writes no other token anywhere.
	demoTokenFile = "demo-token"
)

// seedDemo adds the demo workspace and its key if they are missing, and writes commands to
// try to out. Later changes to an existing demo workspace stay.
func (s *Server) seedDemo(ctx context.Context, settings config.Settings, address string, out io.Writer) error {
	active, _, err := s.projection.Policy()
	if err != nil {
		return err
	}
	owner, scopes := "", []string(nil)
	for _, role := range active.Roles {
		if can := active.Role(role.Name); owner == "" || len(can) > len(scopes) {
			owner, scopes = role.Name, can
		}
	}
	if len(scopes) < 2 {
		return errors.New("the policy has no role with two scopes to show the difference between them")
	}
	granted, denied := demoScopes(scopes)
	path := filepath.Join(settings.Data, demoTokenFile)
	workspace := s.projection.Workspace(demoWorkspace).Current
	isNew := workspace == nil || workspace.Removed
	if err := s.addDemoMembers(ctx, active.Roles, isNew); err != nil {
		return err
	}
	token, err := s.demoToken(ctx, path)
	if token == "" && err == nil {
		token, err = s.createDemoKey(ctx, owner, granted, path)
	}
	if err != nil {
		return err
	}
	if settings.TLS() {
		// How a person reaches it, as whom, is not known here; keysvc certs dev has said it.
		_, err = fmt.Fprintf(out, "keysvc serves on %s with TLS, with a demo workspace. The token of its key is in %s\nStop with Ctrl-C.\n", address, path)
		return err
	}
	var text bytes.Buffer
	err = demoText.Execute(&text, map[string]string{
		"Address": address,
		"Target":  quoted(address),
		"Keysvc":  command(os.Args, address),
		"File":    quoted(path),
		"Granted": granted,
		"Denied":  denied,
		"KeyID":   demoKeyID(token),
	})
	if err != nil {
		return err
	}
	_, err = out.Write(text.Bytes())
	return err
}

// demoToken returns the demo token in a file, "" if there is no file. A token whose key is
// revoked, expired or not in this store will never work again: its file is removed, and ""
// is returned.
func (s *Server) demoToken(ctx context.Context, path string) (string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	known, _, err := s.keys.GetKey(ctx, access.All(), demoWorkspace, demoKeyID(string(text)))
	var told *problem.Error
	switch {
	case err == nil && known.State != keys.KeyRevoked && known.State != keys.KeyExpired:
		return string(text), nil
	case err != nil && !errors.As(err, &told): // told: no such key, or no valid key id
		return "", err
	}
	return "", os.Remove(path)
}

// addDemoMembers adds a member for each role, with the role's name. In a workspace that is
// not new it adds only the members that are missing because a start was interrupted.
func (s *Server) addDemoMembers(ctx context.Context, roles []policy.Role, isNew bool) error {
	for _, role := range roles {
		member, err := s.projection.Member(demoWorkspace, role.Name)
		if err != nil {
			return err
		}
		if member != nil && !isNew {
			continue
		}
		_, _, err = s.keys.PutMember(ctx, systemActor, keys.MemberSpec{
			WorkspaceID: demoWorkspace,
			MemberID:    role.Name,
			Role:        role.Name,
			State:       keys.MemberActive,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// demoScopes chooses a scope that the demo key is granted, and a scope that it is not.
func demoScopes(scopes []string) (granted, denied string) {
	granted, denied = scopes[0], scopes[len(scopes)-1]
	for _, scope := range scopes {
		switch scope {
		case "signatures:read":
			granted = scope
		case "signatures:write":
			denied = scope
		}
	}
	return granted, denied
}

// createDemoKey creates the demo key, writes its token and returns it.
func (s *Server) createDemoKey(ctx context.Context, member, scope, path string) (string, error) {
	created, err := s.keys.CreateKey(ctx, systemActor, keys.KeySpec{
		WorkspaceID: demoWorkspace,
		MemberID:    member,
		Name:        "Demo key",
		Scopes:      []string{scope},
	})
	if err != nil {
		return "", err
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	text := created.Token.Reveal()
	_, err = fmt.Fprintln(file, text)
	return text, errors.Join(err, file.Close())
}

// demoKeyID returns the public part of the demo token.
func demoKeyID(text string) string {
	if parts := strings.Split(text, "_"); len(parts) == 4 {
		return parts[2]
	}
	return "KEY_ID"
}

// command returns the command that runs keysvc in another terminal, in the same folder, for a
// person who started this process with the command line args.
func command(args []string, address string) string {
	name := "keysvc"
	switch {
	case len(args) == 0:
	case strings.Contains(args[0], "go-build"):
		name = "go run ./cmd/keysvc"
	case strings.ContainsRune(args[0], filepath.Separator):
		name = quoted(args[0])
	}
	if address != config.DefaultAddress {
		name += " --addr " + quoted(address)
	}
	return name
}

// quoted returns text as one word of a shell's command line.
func quoted(text string) string {
	special := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-_./:@", r)
	}
	if text != "" && strings.IndexFunc(text, special) < 0 {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

var demoText = template.Must(template.New("demo").Parse(`keysvc serves on {{.Address}}, with a demo workspace. In another terminal, try:

  # ALLOWED: the demo key was granted {{.Granted}}
  {{.Keysvc}} validate --scope {{.Granted}} < {{.File}}

  # PERMISSION_DENIED: it was not granted {{.Denied}}
  {{.Keysvc}} validate --scope {{.Denied}} < {{.File}}

  # UNAUTHENTICATED: this is no token
  echo nonsense | {{.Keysvc}} validate --scope {{.Granted}}

Then end the key for good, and ask again:

  {{.Keysvc}} key revoke {{.KeyID}} --yes
  {{.Keysvc}} validate --scope {{.Granted}} < {{.File}}

Any gRPC client can ask, such as grpcurl if you have it:

  printf '{"token":"%s","required_scope":"{{.Granted}}"}' "$(cat {{.File}})" |
    grpcurl -plaintext -d @ {{.Target}} keysvc.v1.ValidationService/ValidateKey

Stop with Ctrl-C.
`))
