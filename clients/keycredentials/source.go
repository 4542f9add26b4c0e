// Package keycredentials attaches an API key to outgoing calls: for gRPC as
// credentials.PerRPCCredentials, for HTTP as an http.RoundTripper. It refuses to send a key
// where it could be read on the way, or to whom it is not meant for.
package keycredentials

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/scribe-mail/keysvc/internal/token"
)

// maxTokenBytes is the longest token that is sent.
const maxTokenBytes = token.MaxTextBytes

// Source yields the token to send. It is asked before each call and must be safe for
// concurrent use; its errors must not contain the token.
type Source interface {
	// Token returns the token. One that cannot stand in a header, and one of keysvc's whose
	// checksum is wrong, is not sent.
	Token(ctx context.Context) (string, error)
}

// SourceFunc is a function as a Source, for tokens that come from elsewhere.
type SourceFunc func(ctx context.Context) (string, error)

// Token implements Source.
func (f SourceFunc) Token(ctx context.Context) (string, error) { return f(ctx) }

// Environment returns the Source of an environment variable, such as KEYSVC_TOKEN. It is
// read anew each time.
func Environment(name string) Source {
	return SourceFunc(func(context.Context) (string, error) {
		text, ok := os.LookupEnv(name)
		if !ok {
			return "", fmt.Errorf("keycredentials: the environment variable %s is not set", name)
		}
		return text, nil
	})
}

// fileInterval is how long what was read from a file is used without reading it again.
const fileInterval = time.Second

// File returns the Source of a regular file, one line break at whose end does not count. It
// is read once a second at most, so a rotated token is in use a second later. While a file
// that was read once cannot be read, or has no token in it because somebody is writing it,
// the token of before stays in use.
func File(path string) Source { return SourceFunc(newFile(path, time.Now).token) }

func newFile(path string, now func() time.Time) *file { return &file{path: path, now: now} }

// file is never a Source itself: printed, it would show what it keeps.
type file struct {
	path string
	now  func() time.Time

	mutex sync.Mutex
	// kept is the newest token, nil before the first. It is behind a pointer, as fmt prints
	// what a field holds that is not exported.
	kept *string
	// looked is when the file was read last.
	looked time.Time
}

func (f *file) token(context.Context) (string, error) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	now := f.now()
	if passed := now.Sub(f.looked); f.kept != nil && passed >= 0 && passed < fileInterval {
		return *f.kept, nil
	}
	text, err := readToken(f.path)
	switch {
	case err == nil:
		f.kept = &text
	case f.kept == nil:
		return "", fmt.Errorf("keycredentials: file %s: %w", f.path, err)
	}
	f.looked = now
	return *f.kept, nil
}

// readToken reads a file with nothing but a token in it.
func readToken(path string) (string, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return "", err
	case !info.Mode().IsRegular():
		// Opening a pipe would wait for somebody to write to it.
		return "", errors.New("is not a regular file")
	case info.Size() > maxTokenBytes+int64(len("\r\n")):
		return "", fmt.Errorf("has %d bytes; a token has up to %d", info.Size(), maxTokenBytes)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	text := string(bytes.TrimSuffix(bytes.TrimSuffix(content, []byte("\n")), []byte("\r")))
	return text, check(text)
}

// check says what keeps text from being sent as a token, without the text.
func check(text string) error {
	if text == "" {
		return errors.New("the token is empty")
	}
	if len(text) > maxTokenBytes {
		return fmt.Errorf("the token has %d bytes; allowed are up to %d", len(text), maxTokenBytes)
	}
	for index, char := range []byte(text) {
		// token68 of RFC 9110, section 11.2: with anything else a header could be ended, and
		// another begun.
		if !isToken68(char) {
			return fmt.Errorf("the token has at byte %d what no token has; allowed are letters, digits and _ - . ~ + / =", index)
		}
	}
	if token.In(text) {
		if _, err := token.Parse(text); err != nil {
			return errors.New("the token is damaged or cut off: its checksum is wrong")
		}
	}
	return nil
}

func isToken68(char byte) bool {
	return char >= 'a' && char <= 'z' || char >= 'A' && char <= 'Z' || char >= '0' && char <= '9' ||
		strings.IndexByte("_-.~+/=", char) >= 0
}

// authorization returns the value of the header of that name (RFC 6750 section 2.1).
func authorization(ctx context.Context, source Source) (string, error) {
	if source == nil {
		return "", errNoSource
	}
	text, err := source.Token(ctx)
	if err != nil {
		if token.In(err.Error()) {
			return "", errors.New("keycredentials: the source failed, with an error that holds a token and is not shown")
		}
		return "", err
	}
	if err := check(text); err != nil {
		return "", fmt.Errorf("keycredentials: %w; nothing was sent", err)
	}
	return "Bearer " + text, nil
}

var errNoSource = errors.New("keycredentials: source: is nil; File, Environment or a SourceFunc is required")
