package cli

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/certificates"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/strictyaml"
	"github.com/scribe-mail/keysvc/internal/token"
)

const (
	callersVariable = "KEYSVC_CALLERS" // also the variable of the server's setting
	// maxCredentialFile bounds a file with a certificate or a token, in bytes.
	maxCredentialFile = 1 << 20
)

func (a *app) callersCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "callers",
		Short: "Check who may call keysvc, and make caller tokens",
		Example: `  keysvc callers check --callers /etc/keysvc/callers.yaml
  keysvc callers token laptop --token-out laptop.token`,
	},
		a.callersCheckCommand(),
		a.callersTokenCommand(),
	)
}

func (a *app) callersCheckCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check a callers file, and who a credential is by it",
		Long: `Check a callers file, and the files with authorities that it names. Every
mistake goes to standard error, with line and column. If all is well, show the
callers; with --cert, --token-file or --uid, show who that credential is, what
it may do, and because of which line. No server is started or asked: "keysvc
whoami" asks one.

A certificate is verified as a server would verify it now, unless the roots of
its trust domain come from the SPIFFE Workload API. The signature of an OIDC
token is not verified.

` + jsonHelp,
		Example: `  keysvc callers check --callers callers.yaml
  keysvc callers check --callers callers.yaml --cert gateway.crt
  keysvc callers check --callers callers.yaml --token-file laptop.token`,
		Args: positional(),
	}
	flags := cmd.Flags()
	file := flags.String("callers", a.Getenv(callersVariable), "the callers `file` (default: "+callersVariable+")")
	flags.Lookup("callers").DefValue = ""
	certificate := flags.String("cert", "", "a `file` with a client's certificate, and its intermediates after it, in PEM")
	tokenFile := flags.String("token-file", "", "a `file` with a caller token or an OIDC token")
	uid := flags.Int64("uid", -1, "a `number` of a user who connects to the unix socket")
	cmd.MarkFlagsMutuallyExclusive("cert", "token-file", "uid")
	format := outputFlag(cmd, formatsOfAnswers)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *file == "" {
			return usageError(cmd, "--callers or %s is needed", callersVariable)
		}
		check, err := a.readCallers(*file)
		if err != nil {
			return err
		}
		check.out = &printer{out: a.Stdout, width: terminalWidth(a.Stdout), now: a.Now, format: *format}
		switch {
		case *certificate != "":
			return check.certificate(*certificate)
		case *tokenFile != "":
			return check.tokenFile(cmd.Context(), *tokenFile)
		case flags.Changed("uid"):
			if *uid < 0 || *uid >= 1<<32-1 {
				return usageError(cmd, "--uid is %d, allowed are 0 to %d", *uid, uint32(1<<32-2))
			}
			return check.show(check.judge.Connection(&callers.Peer{Source: callers.SourceUnix, UserID: uint32(*uid)}))
		}
		return check.list()
	}
	return cmd
}

// callersCheck is a callers file that a command has read.
type callersCheck struct {
	*app

	file  *callers.File
	judge *callers.TableJudge
	out   *printer
}

// readCallers reads a callers file and the authorities that it names.
func (a *app) readCallers(name string) (*callersCheck, error) {
	text, err := readBounded(name)
	if err != nil {
		return nil, err
	}
	file, err := callers.Parse(name, text, callers.SystemUser)
	var mistakes strictyaml.Errors
	switch {
	case errors.As(err, &mistakes):
		return nil, a.listMistakes(err, "the callers file is not valid")
	case err != nil:
		return nil, err
	}
	paths := certificates.Paths{DNS: file.ClientCA}
	for _, domain := range file.TrustDomains {
		if domain.Bundle != "" {
			paths.Bundles = append(paths.Bundles, certificates.Bundle{TrustDomain: domain.Name, File: domain.Bundle})
		}
	}
	trusted, err := certificates.OpenFiles(paths, a.Now)
	if err != nil {
		return nil, err
	}
	// Nobody is the owner: whoever runs a server is, and that is not known here.
	judge := callers.NewTableJudge(1<<32-1, a.Now)
	judge.SetTrust(certificates.Verifier{Source: trusted, Now: a.Now}, claimed{file})
	judge.SetTable(callers.NewTable(file))
	return &callersCheck{app: a, file: file, judge: judge}, nil
}

func readBounded(name string) ([]byte, error) {
	info, err := os.Stat(name)
	switch {
	case err != nil:
		return nil, err
	case info.Size() > maxCredentialFile:
		return nil, fmt.Errorf("%s has %s, allowed are up to %d", name, count(info.Size(), "byte"), maxCredentialFile)
	}
	return os.ReadFile(name)
}

// list shows the callers of the file.
func (c *callersCheck) list() error {
	if c.out.format != formatTable {
		return errors.New("-o json and yaml are for one caller: give --cert, --token-file or --uid")
	}
	if len(c.file.Callers) == 0 {
		return c.out.line("The callers file is valid, and has no callers: the owner of the process alone may call")
	}
	rows := newTable([]column{{title: "CALLER"}, {title: "PROVED BY"}, {title: "MAY"}, {title: "LINE"}}, false, c.out.width)
	for _, each := range c.file.Callers {
		var proofs, rights []string
		for _, credential := range each.Credentials {
			proofs = append(proofs, credential.String())
		}
		for _, right := range access.Rights() {
			switch workspaces := each.Grants.For(right); {
			case workspaces.IsEmpty():
			case workspaces.IsAll():
				rights = append(rights, right.String())
			default:
				rights = append(rights, right.String()+" ("+workspaces.String()+")")
			}
		}
		rows.add(each.Name, strings.Join(proofs, ", "), strings.Join(rights, ", "), fmt.Sprint(each.Position.Line))
	}
	return c.out.write([]byte(rows.take()))
}

func (c *callersCheck) certificate(name string) error {
	text, err := readBounded(name)
	if err != nil {
		return err
	}
	var chain []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue // a key may be in the same file
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("%s: certificate %d: %w", name, len(chain)+1, err)
		}
		chain = append(chain, certificate)
	}
	if len(chain) == 0 {
		return fmt.Errorf("%s has no certificate in PEM", name)
	}
	return c.show(c.judge.Connection(&callers.Peer{Source: callers.SourceSPIFFE, Certificates: chain}))
}

func (c *callersCheck) tokenFile(ctx context.Context, name string) error {
	text, err := readBounded(name)
	if err != nil {
		return err
	}
	presented := strings.TrimSpace(string(text))
	identity, err := c.judge.Bearer(ctx, &callers.Peer{Source: callers.SourceSPIFFE, BearerAllowed: true}, presented)
	if err == nil && identity.Source == callers.SourceOIDC {
		_, _ = fmt.Fprintln(c.Stderr, "note: the signature of the token was not verified; a server verifies it")
	}
	return c.show(identity, err)
}

// show shows who a credential is, or fails with the reason why it is nobody.
func (c *callersCheck) show(identity *callers.Identity, err error) error {
	if err != nil {
		return fmt.Errorf("nobody: %w", err)
	}
	response := &keysvcv1.WhoAmIResponse{
		Name: identity.Name, Source: string(identity.Source), Credential: identity.Credential, Rule: identity.Rule,
	}
	if !identity.NotAfter.IsZero() {
		response.NotAfter = timestamppb.New(identity.NotAfter)
	}
	for _, right := range access.Rights() {
		if workspaces := identity.For(right); !workspaces.IsEmpty() {
			response.Rights = append(response.Rights, &keysvcv1.CallerRight{
				Right: right.String(), AllWorkspaces: workspaces.IsAll(), WorkspaceIds: workspaces.Names(),
			})
		}
	}
	return c.out.answer(response, func() error { return c.out.caller(response, "") })
}

// claimed takes the claims of OIDC tokens for true. It is for showing whose a token is.
type claimed struct{ file *callers.File }

var errNoClaims = errors.New("the token is neither a caller token nor that of an issuer in the callers file")

// VerifyBearer implements callers.BearerVerifier.
func (c claimed) VerifyBearer(_ context.Context, _, bearer string) (callers.VerifiedBearer, error) {
	parts := strings.Split(bearer, ".")
	if len(parts) != 3 {
		return callers.VerifiedBearer{}, errNoClaims
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct {
		Issuer  string `json:"iss"`
		Subject string `json:"sub"`
		Expires int64  `json:"exp"`
	}
	if err != nil || json.Unmarshal(payload, &claims) != nil {
		return callers.VerifiedBearer{}, errNoClaims
	}
	for _, issuer := range c.file.Issuers {
		if issuer.URL == claims.Issuer {
			return callers.VerifiedBearer{Issuer: issuer.Name, Subject: claims.Subject, NotAfter: time.Unix(claims.Expires, 0)}, nil
		}
	}
	return callers.VerifiedBearer{}, errNoClaims
}

func (a *app) callersTokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token NAME",
		Short: "Make a caller token, and the line of the callers file for it",
		Long: `Make a token that proves to keysvc who calls, over TLS. The token goes to
standard output, or with --token-out to a new file of mode 0600. It is not shown
again. The lines for the callers file, which have only its hash, go to standard
error, or with --token-out to standard output.

A caller may have two tokens at a time. To replace one, add the line of the new
token, give the token to the caller, and then remove the old line.`,
		Example: `  keysvc callers token laptop >laptop.token
  keysvc callers token laptop --token-out laptop.token --expires-in 90d`,
		Args: positional("NAME"),
	}
	flags := cmd.Flags()
	file := flags.String("token-out", "", "a new `file` for the token")
	prefix := flags.String("prefix", policy.DefaultTokenPrefix, "the `prefix` of the token")
	var lives span
	flags.Var(&lives, "expires-in", "how long the token may be used, as in 90d (default: without end)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := callers.CheckName(args[0]); err != nil {
			return usageError(cmd, "NAME is %s, %s", strictyaml.Quote(args[0]), err)
		}
		if !token.ValidPrefix(*prefix) {
			return usageError(cmd, "--prefix is %s, allowed are 2 to 12 characters of a-z and 0-9, the first a letter", strictyaml.Quote(*prefix))
		}
		made, err := token.NewCaller(*prefix, rand.Reader)
		if err != nil {
			return err
		}
		var ends string
		if lives != 0 {
			ends = fmt.Sprintf(", not_after: %q", a.Now().Add(time.Duration(lives)).UTC().Format(time.RFC3339))
		}
		lines := fmt.Sprintf(`# In the callers file, under callers; a caller that is there already needs the line with the hash only:
  - name: %s
    tokens:
      - {id: %s, hash: %q%s}
    rights: [validate] # what it may do
`, yamlWord(args[0]), yamlWord(made.ID()), callers.FormatHash(made.Hash()), ends)
		if *file == "" {
			if _, err := fmt.Fprintln(a.Stdout, made.Reveal()); err != nil {
				return err
			}
			_, err := fmt.Fprint(a.Stderr, lines)
			return err
		}
		if err := writeSecret(*file, made.Reveal()+"\n"); err != nil {
			return err
		}
		_, err = fmt.Fprint(a.Stdout, lines)
		return err
	}
	return cmd
}

// writeSecret makes a file of mode 0600. It fails if the file is there.
func writeSecret(name, text string) error {
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteString(text)
	return errors.Join(err, file.Sync(), file.Close())
}
