package callers

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net/url"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/strictyaml"
	"github.com/scribe-mail/keysvc/internal/token"
)

const (
	formatVersion = 1
	// maxFile bounds the text of a callers file, in bytes.
	maxFile = 1 << 20
	// maxTokens is how many tokens one caller may have at a time: the old one and the new one.
	maxTokens = 2
)

// LookupUser returns the user id of a user name.
type LookupUser func(name string) (uint32, error)

// SystemUser looks a user name up in the system's user database.
func SystemUser(name string) (uint32, error) {
	found, err := user.Lookup(name)
	if err != nil {
		return 0, err
	}
	id, err := strconv.ParseUint(found.Uid, 10, 32)
	return uint32(id), err
}

// Parse reads a callers file. name is the name of the file: messages have it, and relative paths
// begin at its folder. lookup finds users by name; SystemUser is the usual one.
//
// The error is a strictyaml.Errors with every mistake, each with its position.
func Parse(name string, text []byte, lookup LookupUser) (*File, error) {
	root, found := strictyaml.Parse(name, text, strictyaml.Form{MaxBytes: maxFile, Expected: "version and callers"})
	if !root.Present() {
		return nil, found.Err()
	}
	r := &reader{
		file: &File{Name: name}, found: found, lookup: lookup,
		names: map[string]int{}, credentials: map[credentialKey]int{},
	}
	r.read(root)
	if err := found.Err(); err != nil {
		return nil, err
	}
	return r.file, nil
}

// reader takes a File out of a document.
type reader struct {
	file   *File
	found  *strictyaml.Mistakes
	lookup LookupUser
	// names and credentials have the lines of what must be unique.
	names       map[string]int
	credentials map[credentialKey]int
}

func (r *reader) read(root strictyaml.Value) {
	fields := root.Mapping("version", "trust_domains", "client_ca", "issuers", "callers", "deny")
	if fields == nil {
		return
	}
	if version := fields["version"]; !version.Present() {
		r.found.Add("version", "is missing, allowed is %d", formatVersion)
	} else if number, ok := version.Number(); ok && number != formatVersion {
		version.Refuse("is %d, allowed is %d", number, formatVersion)
	}
	for _, value := range fields["trust_domains"].List() {
		r.readTrustDomain(value)
	}
	r.file.ClientCA = r.path(fields["client_ca"])
	for _, value := range fields["issuers"].List() {
		r.readIssuer(value)
	}
	// Callers name trust domains and issuers, so these come first, wherever they stand.
	if callers := fields["callers"]; !callers.Present() {
		r.found.Add("callers", "is missing, allowed is a list, [] for none")
	} else {
		for _, value := range callers.List() {
			r.readCaller(value)
		}
	}
	r.readDenials(fields["deny"])
}

func positionOf(value strictyaml.Value) Position { return Position{value.Line(), value.Column()} }

// text returns a text that check accepts. Otherwise it records a mistake, and returns "".
func (r *reader) text(value strictyaml.Value, check func(string) error) string {
	text, ok := value.TextOK()
	if !ok {
		return ""
	}
	if err := check(text); err != nil {
		value.Refuse("is %s, %s", quote(text), err)
		return ""
	}
	return text
}

// quote quotes a text for a message. It does not show what looks like a token: people paste tokens
// into wrong fields.
func quote(text string) string {
	if token.In(text) || token.CallerIn(text) {
		return "something that looks like a token"
	}
	return strictyaml.Quote(text)
}

// needed is text for a field that must be present.
func (r *reader) needed(of, value strictyaml.Value, name string, check func(string) error) string {
	if !value.Present() {
		of.Refuse("has no %s, which is needed", name)
		return ""
	}
	return r.text(value, check)
}

// once records a mistake if a name was used before in the same list of names.
func (r *reader) once(value strictyaml.Value, kind, name string) {
	if name == "" {
		return
	}
	if line, again := r.names[kind+name]; again {
		value.Refuse("is the %s %s for the second time; line %d has it, too", kind, strictyaml.Quote(name), line)
		return
	}
	r.names[kind+name] = value.Line()
}

// path returns the path of a file, which begins at the folder of the callers file.
func (r *reader) path(value strictyaml.Value) string {
	path := r.text(value, func(text string) error {
		if text == "" || strings.ContainsRune(text, 0) {
			return errors.New("allowed is the path of a file")
		}
		return nil
	})
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(r.file.Name), path)
}

func (r *reader) readTrustDomain(value strictyaml.Value) {
	fields := value.Mapping("name", "bundle", "workload_api")
	if fields == nil {
		return
	}
	domain := TrustDomain{
		Name:     r.needed(value, fields["name"], "name", checkTrustDomain),
		Bundle:   r.path(fields["bundle"]),
		Position: positionOf(value),
	}
	workload, _ := fields["workload_api"].Bool()
	if fields["bundle"].Present() == workload {
		value.Refuse("needs either bundle, a PEM file, or workload_api: true")
	}
	r.once(fields["name"], "trust domain", domain.Name)
	r.file.TrustDomains = append(r.file.TrustDomains, domain)
}

// algorithms are the signature algorithms of OIDC tokens that can be allowed: those with a public
// key. With a shared secret, keysvc could make tokens.
var algorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}

func (r *reader) readIssuer(value strictyaml.Value) {
	fields := value.Mapping("name", "url", "audience", "algorithms", "ca", "token_file", "jwks")
	if fields == nil {
		return
	}
	issuer := Issuer{
		Name:     r.needed(value, fields["name"], "name", checkName),
		URL:      r.needed(value, fields["url"], "url", checkIssuerURL),
		Audience: r.needed(value, fields["audience"], "audience", checkExact),
		CA:       r.path(fields["ca"]), JWKS: r.path(fields["jwks"]),
		Position: positionOf(value),
	}
	for _, each := range fields["algorithms"].List() {
		issuer.Algorithms = append(issuer.Algorithms, r.text(each, func(text string) error {
			if !slices.Contains(algorithms, text) {
				return fmt.Errorf("allowed are %s", strings.Join(algorithms, ", "))
			}
			return nil
		}))
	}
	if len(issuer.Algorithms) == 0 {
		value.Refuse("names no algorithms, allowed are %s", strings.Join(algorithms, ", "))
	}
	r.once(fields["name"], "issuer", issuer.Name)
	r.once(fields["url"], "URL", issuer.URL)
	r.file.Issuers = append(r.file.Issuers, issuer)
}

// ways are the fields that say how a caller proves who it is.
var ways = []string{"spiffe", "dns", "uid", "oidc", "tokens", "loopback"}

func (r *reader) readCaller(value strictyaml.Value) {
	fields := value.Mapping(append([]string{"name", "rights", "workspaces", "grants"}, ways...)...)
	if fields == nil {
		return
	}
	caller := Caller{Name: r.needed(value, fields["name"], "name", checkCallerName), Position: positionOf(value)}
	r.once(fields["name"], "caller", caller.Name)
	var given []string
	for _, way := range ways {
		if fields[way].Present() {
			given = append(given, way)
			caller.Credentials = r.readCredentials(way, fields[way])
		}
	}
	if len(given) != 1 {
		value.Refuse("has %d ways to prove who it is, allowed is exactly one of %s", len(given), strings.Join(ways, ", "))
	}
	caller.Grants = r.readGrants(value, fields)
	r.file.Callers = append(r.file.Callers, caller)
}

func (r *reader) readCredentials(way string, value strictyaml.Value) []Credential {
	var all []Credential
	add := func(at strictyaml.Value, credential Credential) {
		credential.Position = positionOf(at)
		if line, again := r.credentials[credential.key()]; again {
			at.Refuse("is a credential for the second time; line %d has it, too", line)
			return
		}
		r.credentials[credential.key()] = at.Line()
		all = append(all, credential)
	}
	if way == "loopback" {
		if is, ok := value.Bool(); ok && !is {
			value.Refuse("is false, allowed is true")
		}
		add(value, Credential{Source: SourceLoopback})
		return all
	}
	elements := value.List()
	if elements != nil && len(elements) == 0 {
		value.Refuse("is an empty list, allowed is at least one")
	}
	if way == "tokens" && len(elements) > maxTokens {
		value.Refuse("has %d tokens, allowed are up to %d: the old one and the new one", len(elements), maxTokens)
		return nil
	}
	for _, each := range elements {
		if credential, ok := r.readCredential(way, each); ok {
			add(each, credential)
		}
	}
	return all
}

// readCredential reads an element of the list that a field has. ok is false if it has a mistake.
func (r *reader) readCredential(way string, value strictyaml.Value) (credential Credential, ok bool) {
	switch way {
	case "spiffe":
		id := r.text(value, checkSPIFFE)
		return Credential{Source: SourceSPIFFE, ID: id}, id != "" && r.knownTrustDomain(value, id)
	case "dns":
		if r.file.ClientCA == "" {
			value.Refuse("is a DNS name, and the file has no client_ca with the roots of its certificate")
			return Credential{}, false
		}
		name := r.text(value, checkDNS)
		return Credential{Source: SourceDNS, ID: strings.ToLower(name)}, name != ""
	case "uid":
		id, ok := r.readUser(value)
		return Credential{Source: SourceUnix, UserID: id}, ok
	case "oidc":
		fields := value.Mapping("issuer", "subject")
		if fields == nil {
			return Credential{}, false
		}
		issuer := r.needed(value, fields["issuer"], "issuer", r.checkIssuerName)
		subject := r.needed(value, fields["subject"], "subject", checkExact)
		return Credential{Source: SourceOIDC, Issuer: issuer, ID: subject}, issuer != "" && subject != ""
	case "tokens":
		return r.readToken(value)
	}
	return Credential{}, false
}

func (r *reader) readToken(value strictyaml.Value) (Credential, bool) {
	fields := value.Mapping("id", "hash", "not_after")
	if fields == nil {
		return Credential{}, false
	}
	credential := Credential{Source: SourceToken, ID: r.needed(value, fields["id"], "id", checkTokenID)}
	hash := r.needed(value, fields["hash"], "hash", func(text string) error {
		if _, ok := parseHash(text); !ok {
			return errors.New("allowed is sha256: and 64 lower-case hexadecimal digits, as keysvc callers token prints it")
		}
		return nil
	})
	credential.Hash, _ = parseHash(hash)
	if ends := fields["not_after"]; ends.Present() {
		text, ok := ends.TextOf(`a time in quotes, as in "2027-03-31T12:00:00Z"`)
		at, err := time.Parse(time.RFC3339, text)
		switch {
		case !ok:
			return Credential{}, false
		case err != nil || at.IsZero():
			ends.Refuse("is %s, allowed is a time as in 2027-03-31T12:00:00Z", strictyaml.Quote(text))
			return Credential{}, false
		}
		credential.NotAfter = at.UTC()
	}
	return credential, credential.ID != "" && hash != ""
}

// FormatHash returns the text that a callers file has for the hash of a caller token.
func FormatHash(hash [32]byte) string { return "sha256:" + hex.EncodeToString(hash[:]) }

func parseHash(text string) (hash [32]byte, ok bool) {
	digits, has := strings.CutPrefix(text, "sha256:")
	decoded, err := hex.DecodeString(digits)
	if !has || err != nil || len(decoded) != len(hash) || digits != strings.ToLower(digits) {
		return hash, false
	}
	copy(hash[:], decoded)
	return hash, true
}

// readUser reads a user id, or the name of a user.
func (r *reader) readUser(value strictyaml.Value) (uint32, bool) {
	const allowed = "the number of a user, or a name in quotes if it looks like something else"
	if value.IsText() {
		name := r.text(value, checkExact)
		if name == "" {
			return 0, false
		}
		id, err := r.lookup(name)
		if err != nil {
			value.Refuse("is %s, and the system knows no such user; allowed is %s", strictyaml.Quote(name), allowed)
			return 0, false
		}
		return r.mappedUser(value, id)
	}
	number, ok := value.Number()
	if !ok {
		return 0, false
	}
	if number < 0 || number >= math.MaxUint32 {
		value.Refuse("is %d, allowed are 0 to %d", number, uint32(math.MaxUint32-1))
		return 0, false
	}
	return r.mappedUser(value, uint32(number))
}

// mappedUser refuses the number that the kernel shows for users whom it cannot name.
func (r *reader) mappedUser(value strictyaml.Value, id uint32) (uint32, bool) {
	if id == unmappedUser() {
		value.Refuse("is the user %d, which stands for every user of other user namespaces; it may not call", id)
		return 0, false
	}
	return id, true
}

func (r *reader) readGrants(caller strictyaml.Value, fields map[string]strictyaml.Value) *access.Grants {
	grants := new(access.Grants)
	several := fields["grants"].Present()
	switch {
	case several && (fields["rights"].Present() || fields["workspaces"].Present()):
		caller.Refuse("has grants beside rights or workspaces, allowed is one of the two forms")
	case several:
		list := fields["grants"].List()
		if list != nil && len(list) == 0 {
			fields["grants"].Refuse("is an empty list, allowed is at least one")
		}
		for _, each := range list {
			if parts := each.Mapping("rights", "workspaces"); parts != nil {
				r.readGrant(each, parts, grants)
			}
		}
	default:
		r.readGrant(caller, fields, grants)
	}
	return grants
}

// readGrant adds rights, each for the same workspaces.
func (r *reader) readGrant(of strictyaml.Value, fields map[string]strictyaml.Value, grants *access.Grants) {
	workspaces := access.All()
	if some := fields["workspaces"]; some.Present() {
		var ids []string
		for _, each := range some.List() {
			ids = append(ids, r.text(each, checkWorkspace))
		}
		workspaces = access.Only(ids...)
		if len(ids) == 0 {
			some.Refuse("is an empty list; leave it out for all workspaces")
		}
	}
	rights := fields["rights"]
	if !rights.Present() {
		of.Refuse("has no rights, which are needed")
		return
	}
	elements := rights.List()
	if elements != nil && len(elements) == 0 {
		rights.Refuse("is an empty list, allowed are %s", rightNames())
	}
	for _, each := range elements {
		name := r.text(each, func(text string) error {
			if _, known := access.ParseRight(text); !known {
				return fmt.Errorf("allowed are %s", rightNames())
			}
			return nil
		})
		if right, known := access.ParseRight(name); known {
			grants.Add(right, workspaces)
		}
	}
}

func rightNames() string {
	var names []string
	for _, right := range access.Rights() {
		names = append(names, right.String())
	}
	return strings.Join(names, ", ")
}

func (r *reader) readDenials(value strictyaml.Value) {
	fields := value.Mapping("certificates", "spiffe", "dns", "tokens", "oidc")
	add := func(at strictyaml.Value, denial Denial) {
		denial.Position = positionOf(at)
		r.file.Deny = append(r.file.Deny, denial)
	}
	for _, each := range fields["certificates"].List() {
		parts := each.Mapping("serial", "issuer")
		if parts == nil {
			continue
		}
		serial := r.needed(each, parts["serial"], "serial", func(text string) error {
			if _, ok := parseSerial(text); !ok {
				return errors.New("allowed are hexadecimal digits, in pairs with colons or without, in quotes")
			}
			return nil
		})
		serial, _ = parseSerial(serial)
		add(each, Denial{Serial: serial, Issuer: r.text(parts["issuer"], checkExact)})
	}
	for _, each := range fields["spiffe"].List() {
		add(each, Denial{Source: SourceSPIFFE, ID: r.text(each, checkSPIFFE)})
	}
	for _, each := range fields["dns"].List() {
		add(each, Denial{Source: SourceDNS, ID: strings.ToLower(r.text(each, checkDNS))})
	}
	for _, each := range fields["tokens"].List() {
		add(each, Denial{Source: SourceToken, ID: r.text(each, checkTokenID)})
	}
	for _, each := range fields["oidc"].List() {
		parts := each.Mapping("issuer", "subject")
		if parts == nil {
			continue
		}
		add(each, Denial{
			Source: SourceOIDC,
			Issuer: r.needed(each, parts["issuer"], "issuer", r.checkIssuerName), ID: r.needed(each, parts["subject"], "subject", checkExact),
		})
	}
}

// parseSerial reads the serial number of a certificate, as openssl, Go and browsers print it. It
// returns lower-case hexadecimal digits without leading zeros.
func parseSerial(text string) (digits string, ok bool) {
	digits = strings.ToLower(strings.ReplaceAll(text, ":", ""))
	if !serialDigits.MatchString(digits) {
		return "", false
	}
	return strings.TrimLeft(digits, "0"), true
}

var serialDigits = regexp.MustCompile(`^[0-9a-f]{1,64}$`)

// knownTrustDomain records a mistake if the file does not have the trust domain of a SPIFFE id.
func (r *reader) knownTrustDomain(value strictyaml.Value, id string) bool {
	domain, _ := trustDomainOf(id)
	known := slices.ContainsFunc(r.file.TrustDomains, func(each TrustDomain) bool { return each.Name == domain })
	if !known {
		value.Refuse("is in the trust domain %s, which is not among trust_domains", domain)
	}
	return known
}

func (r *reader) checkIssuerName(text string) error {
	if !slices.ContainsFunc(r.file.Issuers, func(each Issuer) bool { return each.Name == text }) {
		return errors.New("allowed is the name of one of issuers")
	}
	return nil
}

var (
	namePattern      = regexp.MustCompile(`^[A-Za-z0-9._:@/-]{1,128}$`)
	workspacePattern = regexp.MustCompile(`^[A-Za-z0-9._:@-]{1,128}$`)
	dnsPattern       = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*$`)
)

var errWildcard = errors.New("has a wildcard; each is named exactly")

func checkName(text string) error {
	switch {
	case strings.Contains(text, "*"):
		return errWildcard
	case !namePattern.MatchString(text) || token.In(text) || token.CallerIn(text):
		return errors.New("allowed are 1 to 128 characters of A-Z, a-z, 0-9 and ._:@/-")
	}
	return nil
}

// reservedNames are the names of callers that are built in.
var reservedNames = []string{"local", "owner", "system"}

func checkCallerName(text string) error {
	if slices.Contains(reservedNames, text) {
		return fmt.Errorf("which is built in; allowed is any name but %s", strings.Join(reservedNames, ", "))
	}
	return checkName(text)
}

func checkWorkspace(text string) error {
	switch {
	case strings.Contains(text, "*"):
		return fmt.Errorf("%w; leave workspaces out for all", errWildcard)
	case !workspacePattern.MatchString(text):
		return errors.New("allowed are 1 to 128 characters of A-Z, a-z, 0-9 and ._:@-")
	}
	return nil
}

func checkExact(text string) error {
	switch {
	case strings.Contains(text, "*"):
		return errWildcard
	case text == "" || len(text) > 1024 || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return errors.New("allowed are 1 to 1024 bytes without control characters")
	case token.In(text) || token.CallerIn(text):
		return errors.New("which looks like a token")
	}
	return nil
}

func checkTokenID(text string) error {
	if !token.ValidID(text) {
		return errors.New("allowed is the id of a caller token, 16 characters of 0-9, A-Z and a-z")
	}
	return nil
}

func checkDNS(text string) error {
	switch {
	case strings.Contains(text, "*"):
		return errWildcard
	case len(text) > 253 || !dnsPattern.MatchString(text):
		return errors.New("allowed is a DNS name in ASCII, without a dot at its end")
	}
	return nil
}

func checkIssuerURL(text string) error {
	if err := checkExact(text); err != nil {
		return err
	}
	at, err := url.Parse(text)
	if err != nil || at.Scheme != "https" || at.Host == "" || at.User != nil || at.RawQuery != "" || at.ForceQuery || at.Fragment != "" {
		return errors.New("allowed is an https URL without user, query and fragment")
	}
	return nil
}
