package keyscreen

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// ErrSignedOut is what Config.Session returns for a request without a session. The answer is then a page
// with status 401, which leads to Config.SignIn.
var ErrSignedOut = errors.New("keyscreen: nobody is signed in")

// Config says how a Screen is mounted, and what it looks like. Conn, Path and Session are required.
type Config struct {
	// Conn is a connection to keysvc, such as keyclient.Client.Conn. Its caller needs the rights read, issue
	// and revoke, and issue_local with IssueLocally.
	Conn grpc.ClientConnInterface
	// Path is where the Screen is mounted, as browsers see it: absolute, clean, without a slash at the
	// end, such as "/settings/api-keys". The Screen serves it and everything below. Do not strip it from
	// the requests: http.StripPrefix makes every answer 500, with the cause in the log.
	Path string
	// Session returns the workspace and the member that a request is made for, by the product's own
	// session. The Screen trusts it. It returns ErrSignedOut if nobody is signed in; any other error makes
	// the answer 503.
	Session func(*http.Request) (workspace, member string, err error)

	// AllKeysRoles are the roles whose members see all keys of their workspace, and may revoke them.
	// Members of every other role see their own keys only. Default: none. No role may replace the key of
	// another member, because the new token would act as that member.
	AllKeysRoles []string
	// IssueLocally draws the secrets of keys in this process, so that keysvc never sees a token. The
	// caller then needs the right issue_local.
	IssueLocally bool
	// MemberNames returns what people call members of a workspace, by their ids. A member that is not in
	// the map is shown by its id. Default: all are.
	MemberNames func(r *http.Request, workspace string, members []string) map[string]string

	// FormKey protects the forms against other sites. It has 32 bytes or more, is secret, and the same in
	// every process of the product. Default: random, so that a form that was open during a restart, or that
	// comes to another process, has to be sent twice.
	FormKey []byte
	// CrossOrigin decides which origins may send the forms. Default: only the one that serves them. Needed
	// if a proxy changes the Host header and browsers without Sec-Fetch-Site are served.
	CrossOrigin *http.CrossOriginProtection
	// SignIn is the address of the product's log-in, for members who are not signed in. Default: no link.
	SignIn string

	// Layout writes the page around the screen: the product's header and navigation. Default: a plain
	// page. What it writes is not to be kept: page.Body may have a token.
	Layout func(w io.Writer, r *http.Request, page Page) error
	// Stylesheets are addresses of style sheets that follow on the screen's own, to set its custom
	// properties. Default: none.
	Stylesheets []string
	// Theme is "light", "dark", or empty for what the browser prefers.
	Theme string
	// Languages are the languages of the screen. Default: English. Without Locale, the first one is used.
	Languages []*Language
	// Locale returns the tag of the language and the time zone of a request. An unknown tag means the first
	// language, and nil UTC. Default: the first language and UTC.
	Locale func(*http.Request) (tag string, zone *time.Location)
	// ExampleURL is an address of the product's API. The page with a new token shows a call to it.
	// Default: no example.
	ExampleURL string
	// PageSize is how many keys a page has, 1 to 100. Default: 25.
	PageSize int

	// Log receives what the operator should know. Tokens are never in it. Default: slog.Default().
	Log *slog.Logger
	// Now is the clock, for tests. Default: time.Now.
	Now func() time.Time
}

const (
	// minFormKey is how many bytes a FormKey has at least.
	minFormKey = 32
	// defaultPageSize and maxPageSize are numbers of keys in a page.
	defaultPageSize, maxPageSize = 25, 100
)

// Screen is the settings screen. It is safe for use by several goroutines.
type Screen struct {
	config    Config
	keys      keysvcv1.KeyServiceClient
	members   keysvcv1.MemberServiceClient
	policies  keysvcv1.PolicyServiceClient
	issuer    keyclient.Issuer
	policy    string // the Content-Security-Policy
	languages map[string]*Language
}

// New returns a Screen. The error names the field of the Config that is wrong.
func New(config Config) (*Screen, error) {
	switch {
	case config.Conn == nil:
		return nil, errors.New("keyscreen: Config.Conn is missing")
	case config.Session == nil:
		return nil, errors.New("keyscreen: Config.Session is missing")
	case !strings.HasPrefix(config.Path, "/") || config.Path == "/" || path.Clean(config.Path) != config.Path || strings.ContainsAny(config.Path, "?#%{} "):
		return nil, fmt.Errorf("keyscreen: Config.Path is %q; allowed is an absolute path without a slash at the end, such as /settings/api-keys", config.Path)
	case config.FormKey != nil && len(config.FormKey) < minFormKey:
		return nil, fmt.Errorf("keyscreen: Config.FormKey has %d bytes; %d or more are required", len(config.FormKey), minFormKey)
	case config.PageSize < 0 || config.PageSize > maxPageSize:
		return nil, fmt.Errorf("keyscreen: Config.PageSize is %d; 1 to %d are allowed", config.PageSize, maxPageSize)
	case !slices.Contains([]string{"", "light", "dark"}, config.Theme):
		return nil, fmt.Errorf("keyscreen: Config.Theme is %q; light, dark and nothing are allowed", config.Theme)
	}
	sources := []string{"'self'"}
	for _, address := range config.Stylesheets {
		source, err := sourceOf(address)
		if err != nil {
			return nil, err
		}
		if source != "" && !slices.Contains(sources, source) {
			sources = append(sources, source)
		}
	}
	if config.FormKey == nil {
		config.FormKey = make([]byte, minFormKey)
		rand.Read(config.FormKey)
	}
	if config.CrossOrigin == nil {
		config.CrossOrigin = http.NewCrossOriginProtection()
	}
	if config.PageSize == 0 {
		config.PageSize = defaultPageSize
	}
	if len(config.Languages) == 0 {
		config.Languages = []*Language{English()}
	}
	if config.Locale == nil {
		config.Locale = func(*http.Request) (string, *time.Location) { return "", nil }
	}
	if config.Log == nil {
		config.Log = slog.Default()
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Layout == nil {
		config.Layout = plainLayout(config.Theme)
	}
	s := &Screen{
		config:    config,
		keys:      keysvcv1.NewKeyServiceClient(config.Conn),
		members:   keysvcv1.NewMemberServiceClient(config.Conn),
		policies:  keysvcv1.NewPolicyServiceClient(config.Conn),
		policy:    contentSecurityPolicy(sources),
		languages: map[string]*Language{},
	}
	s.issuer = keyclient.Issuer{Keys: s.keys, Policies: s.policies}
	for index, language := range config.Languages {
		if language == nil {
			return nil, fmt.Errorf("keyscreen: Config.Languages[%d] is nil", index)
		}
		if err := language.check(); err != nil {
			return nil, fmt.Errorf("keyscreen: Config.Languages[%d]: %w", index, err)
		}
		if s.languages[language.Tag] != nil {
			return nil, fmt.Errorf("keyscreen: Config.Languages[%d] has the tag %q of an earlier one", index, language.Tag)
		}
		s.languages[language.Tag] = language
	}
	return s, nil
}

// sourceOf returns the source of a style sheet for the Content-Security-Policy; empty for one of the same
// origin.
func sourceOf(address string) (string, error) {
	parsed, err := url.Parse(address)
	switch {
	case err == nil && parsed.Scheme == "" && parsed.Host == "" && strings.HasPrefix(parsed.Path, "/"):
		return "", nil
	case err == nil && parsed.Scheme == "https" && parsed.Host != "" && !strings.ContainsAny(parsed.Host, ";, '"):
		return "https://" + parsed.Host, nil
	default:
		return "", fmt.Errorf("keyscreen: Config.Stylesheets has %q; paths that begin with / and https addresses are allowed", address)
	}
}
