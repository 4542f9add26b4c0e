package issuers

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/coreos/go-oidc/v3/oidc"
)

const (
	// maxAnswer is how large an answer of an issuer, or a file, may be.
	maxAnswer = 256 << 10
	// maxHeader is how large the headers of an answer may be.
	maxHeader = 64 << 10
)

// fetch returns the text of the issuer's keys: of its file, or from where its discovery document
// says (OpenID Connect Discovery 1.0, 4).
func (i Issuer) fetch(ctx context.Context) ([]byte, error) {
	if i.JWKS != "" {
		return readFile(i.JWKS)
	}
	client, err := i.client()
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, client), i.URL)
	if err != nil {
		return nil, err
	}
	var discovered struct {
		JWKS string `json:"jwks_uri"`
	}
	if err := provider.Claims(&discovered); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(discovered.JWKS, "https://") {
		return nil, fmt.Errorf("the issuer says that its keys are at %.200q, which must start with https://", discovered.JWKS)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, discovered.JWKS, http.NoBody)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", discovered.JWKS, response.Status)
	}
	return io.ReadAll(response.Body)
}

// client returns a client for one fetch. The files are read each time, because they change.
func (i Issuer) client() (*http.Client, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if i.CA != "" {
		text, err := readFile(i.CA)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s: has no certificate in PEM", i.CA)
		}
	}
	transport := &bounded{base: &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: config, MaxResponseHeaderBytes: maxHeader, ForceAttemptHTTP2: true,
	}}
	if i.TokenFile != "" {
		text, err := readFile(i.TokenFile)
		if err != nil {
			return nil, err
		}
		transport.token = strings.TrimSpace(string(text))
		if i.CA == "" {
			issuer, err := url.Parse(i.URL)
			if err != nil {
				return nil, errors.New("the issuer's URL cannot be parsed")
			}
			transport.tokenHost = issuer.Host
		}
	}
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return errors.New("the issuer redirects to another address, which is not followed")
	}}, nil
}

// bounded bounds the size of answers, and adds a token to requests.
type bounded struct {
	base *http.Transport
	// token is the token; "" for none.
	token string
	// tokenHost is the only host that gets the token; "" for any, because only servers that the
	// issuer's own authorities vouch for are connected to.
	tokenHost string
}

// RoundTrip implements http.RoundTripper.
func (b *bounded) RoundTrip(request *http.Request) (*http.Response, error) {
	if b.token != "" && (b.tokenHost == "" || b.tokenHost == request.URL.Host) {
		request = request.Clone(request.Context())
		request.Header.Set("Authorization", "Bearer "+b.token)
	}
	response, err := b.base.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	response.Body = &boundedBody{ReadCloser: response.Body, left: maxAnswer}
	return response, nil
}

// CloseIdleConnections lets http.Client close them.
func (b *bounded) CloseIdleConnections() { b.base.CloseIdleConnections() }

type boundedBody struct {
	io.ReadCloser
	left int
}

var errTooLarge = fmt.Errorf("the issuer's answer has more than %d bytes", maxAnswer)

// Read fails once more than maxAnswer bytes have come.
func (b *boundedBody) Read(into []byte) (int, error) {
	n, err := b.ReadCloser.Read(into)
	if b.left -= n; b.left < 0 {
		return 0, errTooLarge
	}
	return n, err
}

func readFile(name string) ([]byte, error) {
	file, err := os.Open(name) // #nosec G304 -- the operator names the file
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	text, err := io.ReadAll(io.LimitReader(file, maxAnswer+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxAnswer {
		return nil, fmt.Errorf("%s: has more than %d bytes", name, maxAnswer)
	}
	return text, nil
}
