package notices

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/scribe-mail/keysvc/internal/keys"
)

const (
	// attemptTimeout is how long a receiver may take for one message.
	attemptTimeout = 15 * time.Second
	// maxAnswer is how much of an answer is read. Nothing of it is used.
	maxAnswer = 4096
	// maxRetryAfter is how long a receiver may ask to be left alone.
	maxRetryAfter = time.Hour
)

// endpoint is a receiver of messages.
type endpoint struct {
	url        string
	secretFile string
	now        func() time.Time
	client     *http.Client
}

func newEndpoint(address, secretFile string, now func() time.Time) *endpoint {
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, MaxConnsPerHost: 1,
		TLSHandshakeTimeout: attemptTimeout, ResponseHeaderTimeout: attemptTimeout, IdleConnTimeout: time.Minute,
		MaxResponseHeaderBytes: 64 << 10,
	}
	return &endpoint{
		url: address, secretFile: secretFile, now: now,
		client: &http.Client{
			Transport: transport, Timeout: attemptTimeout,
			// A signed message goes to the receiver that the operator has named, and to no other.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// close closes connections that nobody uses.
func (e *endpoint) close() { e.client.CloseIdleConnections() }

// attemptError says why a receiver did not take a message. Its text has nothing that the receiver wrote,
// and not the URL, which may have a secret in its path.
type attemptError struct {
	problem error
	// after is how long the receiver wants to be left alone.
	after time.Duration
}

// Error implements error.
func (e *attemptError) Error() string { return e.problem.Error() }

// Unwrap returns the cause.
func (e *attemptError) Unwrap() error { return e.problem }

// send sends a notice once. It is taken if the receiver answers with a status of 2xx.
func (e *endpoint) send(ctx context.Context, notice *keys.Notice) error {
	body, err := bodyOf(notice)
	if err != nil {
		return err
	}
	// The file is read each time, so that a new secret needs no restart.
	signing, err := readSecrets(e.secretFile)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	at := e.now()
	for name, value := range map[string]string{
		"content-type": "application/json", "user-agent": "keysvc",
		"webhook-id": notice.ID, "webhook-timestamp": strconv.FormatInt(at.Unix(), 10), "webhook-signature": signing.sign(notice.ID, at, body),
	} {
		request.Header.Set(name, value)
	}
	response, err := e.client.Do(request)
	if err != nil {
		if asked := new(url.Error); errors.As(err, &asked) {
			err = asked.Err
		}
		return &attemptError{problem: err}
	}
	defer func() { _ = response.Body.Close() }()          // nothing of it is used
	_, _ = io.CopyN(io.Discard, response.Body, maxAnswer) // so that the connection can be used again
	if response.StatusCode < 200 || response.StatusCode > 299 {
		return &attemptError{problem: fmt.Errorf("the receiver answered with status %d", response.StatusCode), after: retryAfter(response.Header)}
	}
	return nil
}

// retryAfter returns the seconds of the header Retry-After, at most maxRetryAfter; 0 for none, and for
// a date.
func retryAfter(header http.Header) time.Duration {
	seconds, err := strconv.ParseUint(header.Get("Retry-After"), 10, 31)
	if err != nil {
		return 0
	}
	return min(maxRetryAfter, time.Duration(seconds)*time.Second)
}
