package keyscreen_test

import (
	"bytes"
	"context"
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/scribe-mail/keysvc/clients/keyscreen"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/server/servertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testTime = time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC)

// mounted is where the screens of tests are.
const mounted = "/settings/api-keys"

// conn is a connection that a test can look into.
type conn struct {
	grpc.ClientConnInterface
	mutex sync.Mutex
	// before, if it is set, decides which calls fail; after may change an answer, or lose it.
	before func(method string) error
	after  func(method string, request, answer any) error
	// requests are those of changes.
	requests []any
}

func (c *conn) Invoke(ctx context.Context, method string, request, answer any, options ...grpc.CallOption) error {
	c.mutex.Lock()
	before, after := c.before, c.after
	c.requests = append(c.requests, request)
	c.mutex.Unlock()
	if before != nil {
		if err := before(method); err != nil {
			return err
		}
	}
	err := c.ClientConnInterface.Invoke(ctx, method, request, answer, options...)
	if err == nil && after != nil {
		return after(method, request, answer)
	}
	return err
}

// product is a product with the screen, and a keysvc behind it.
type product struct {
	t      *testing.T
	keysvc *servertest.Keysvc
	clock  *servertest.Clock
	conn   *conn
	screen *keyscreen.Screen
	log    *bytes.Buffer
	// served is everything that was answered, by method and address.
	served []answer
	// member is who is signed in, as "workspace/member"; empty for nobody.
	member string
}

// newProduct starts a product where acme has ann, an owner, bob, a manager, and carl, a member without
// scopes, and other has eve.
func newProduct(t *testing.T, change func(*keyscreen.Config)) *product {
	t.Helper()
	clock := servertest.NewClock(testTime)
	p := &product{t: t, clock: clock, keysvc: servertest.Start(t, servertest.Options{Now: clock.Now}), log: &bytes.Buffer{}, member: "acme/ann"}
	p.conn = &conn{ClientConnInterface: p.keysvc.Conn}
	p.keysvc.PutMember(t, "acme", "ann", "owner")
	p.keysvc.PutMember(t, "acme", "bob", "manager")
	p.keysvc.PutMember(t, "acme", "carl", "member")
	p.keysvc.PutMember(t, "other", "eve", "owner")
	config := keyscreen.Config{
		Conn: p.conn, Path: mounted, AllKeysRoles: []string{"owner"}, Now: clock.Now,
		FormKey: bytes.Repeat([]byte("k"), 32), Log: slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Session: func(*http.Request) (string, string, error) {
			workspace, member, is := strings.Cut(p.member, "/")
			if !is {
				return "", "", keyscreen.ErrSignedOut
			}
			return workspace, member, nil
		},
	}
	if change != nil {
		change(&config)
	}
	screen, err := keyscreen.New(config)
	if err != nil {
		t.Fatal(err)
	}
	p.screen = screen
	return p
}

// answer is a page as a browser gets it.
type answer struct {
	t       *testing.T
	address string
	status  int
	header  http.Header
	body    string
}

// ask sends a request. form is nil for GET.
func (p *product) ask(address string, form url.Values, change func(*http.Request)) answer {
	p.t.Helper()
	method, body := http.MethodGet, io.Reader(nil)
	if form != nil {
		method, body = http.MethodPost, strings.NewReader(form.Encode())
	}
	request := httptest.NewRequestWithContext(p.t.Context(), method, "https://app.example.com"+address, body)
	request.Header.Set("Sec-Fetch-Site", "same-origin")
	if form != nil {
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if change != nil {
		change(request)
	}
	recorder := httptest.NewRecorder()
	p.screen.ServeHTTP(recorder, request)
	got := answer{p.t, address, recorder.Code, recorder.Header(), recorder.Body.String()}
	p.served = append(p.served, got)
	return got
}

// get asks for a page below the screen's path.
func (p *product) get(path string) answer {
	p.t.Helper()
	return p.ask(mounted+path, nil, nil)
}

// post opens the page of a form, and sends the form with these values in addition.
func (p *product) post(path string, values url.Values) answer {
	p.t.Helper()
	return p.send(path, p.open(path), values)
}

// open returns the hidden fields of the form of a page.
func (p *product) open(path string) url.Values {
	p.t.Helper()
	page := p.get(path)
	if page.status != http.StatusOK {
		p.t.Fatalf("GET %s: %d\n%s", path, page.status, page.text())
	}
	return page.hidden()
}

// send sends a form with hidden fields and values.
func (p *product) send(path string, hidden, values url.Values) answer {
	p.t.Helper()
	form := url.Values{}
	for _, some := range []url.Values{hidden, values} {
		for name, list := range some {
			form[name] = list
		}
	}
	return p.ask(mounted+path, form, nil)
}

var (
	hiddenPattern  = regexp.MustCompile(`<input type="hidden" name="([a-z_]+)" value="([^"]*)">`)
	tagPattern     = regexp.MustCompile(`(?s)<[^>]*>`)
	spacePattern   = regexp.MustCompile(`\s+`)
	tokenPattern   = regexp.MustCompile(`data-keyscreen-token>([^<]*)<`)
	checkedPattern = regexp.MustCompile(`name="scope" value="([a-z_:]+)"[^>]* checked`)
	boxPattern     = regexp.MustCompile(`name="scope" value="([a-z_:]+)"`)
	rowPattern     = regexp.MustCompile(`(?s)<tr role="row" data-key="([0-9A-Za-z]{16})".*?</tr>`)
)

// hidden returns the hidden fields of a page.
func (a answer) hidden() url.Values {
	values := url.Values{}
	for _, field := range hiddenPattern.FindAllStringSubmatch(a.body, -1) {
		values.Set(field[1], html.UnescapeString(field[2]))
	}
	return values
}

// text returns what people read of a page.
func (a answer) text() string {
	return strings.TrimSpace(spacePattern.ReplaceAllString(html.UnescapeString(tagPattern.ReplaceAllString(a.body, " ")), " "))
}

// token returns the token on a page; empty for none.
func (a answer) token() string {
	if found := tokenPattern.FindStringSubmatch(a.body); found != nil {
		return html.UnescapeString(found[1])
	}
	return ""
}

// rows returns the texts of the keys of a table, by their ids.
func (a answer) rows() map[string]string {
	rows := map[string]string{}
	for _, found := range rowPattern.FindAllStringSubmatch(a.body, -1) {
		rows[found[1]] = answer{body: found[0]}.text()
	}
	return rows
}

// matches returns what a pattern's group finds, sorted.
func (a answer) matches(pattern *regexp.Regexp) []string {
	var found []string
	for _, match := range pattern.FindAllStringSubmatch(a.body, -1) {
		found = append(found, match[1])
	}
	slices.Sort(found)
	return found
}

// want checks the status, and that people read these texts.
func (a answer) want(status int, texts ...string) answer {
	a.t.Helper()
	if a.status != status {
		a.t.Fatalf("%s: status %d, want %d\n%s", a.address, a.status, status, a.text())
	}
	for _, text := range texts {
		if !strings.Contains(a.text(), text) {
			a.t.Errorf("%s: %q is not in\n%s", a.address, text, a.text())
		}
	}
	return a
}

// valid reports what keysvc says to a token.
func (p *product) valid(token string) bool {
	p.t.Helper()
	response, err := p.keysvc.Validation.ValidateKey(p.t.Context(), &keysvcv1.ValidateKeyRequest{Token: token, IdentityOnly: true})
	if err != nil {
		p.t.Fatal(err)
	}
	return response.GetDecision() == keysvcv1.Decision_DECISION_ALLOWED
}

// newKey makes a key by the form, and returns its id and token.
func (p *product) newKey(name string, scopes ...string) (id, token string) {
	p.t.Helper()
	page := p.post("/new", url.Values{"name": {name}, "scope": scopes, "expiry": {"year"}}).want(http.StatusOK)
	parts := strings.Split(page.token(), "_")
	if len(parts) != 4 {
		p.t.Fatalf("no token on the page\n%s", page.text())
	}
	return parts[2], page.token()
}
