// Package keycredentials attaches an API key to outgoing calls: for gRPC as
// credentials.PerRPCCredentials, for HTTP as an http.RoundTripper. It refuses to send the key
// over a connection on which it could be read, and to a host that the key is not meant for.
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

// maxTokenBytes is the length of the longest token that is sent.
const maxTokenBytes = token.MaxTextBytes

// Source returns the token to send. It is asked before each call, from many goroutines. Its
// errors must not contain the token.
type Source interface {
	// Token returns the token. A token that cannot stand in a header is not sent, and neither
	// is a token of keysvc with a wrong checksum.
	Token(ctx context.Context) (string, error)
}

// SourceFunc is a function as a Source, for tokens from elsewhere.
type SourceFunc func(ctx context.Context) (string, error)

// Token implements Source.
func (f SourceFunc) Token(ctx context.Context) (string, error) { return f(ctx) }

// Environment returns the Source of an environment variable, such as KEYSVC_TOKEN. The variable
// is read for each call.
func Environment(name string) Source {
	return SourceFunc(func(context.Context) (string, error) {
		text, ok := os.LookupEnv(name)
		if !ok {
			return "", fmt.Errorf("keycredentials: the environment variable %s is not set", name)
		}
		return text, nil
	})
}

// fileInterval is how long the content of a file is used before the file is read again.
const fileInterval = time.Second

// File returns the Source of a regular file that holds a token and at most one line break at
// its end. The file is read at most once a second, so a rotated token is in use a second later.
// If the file was read once, and then cannot be read or holds no token because somebody is
// writing it, the earlier token stays in use.
func File(path string) Source { return SourceFunc(newFile(path, time.Now).token) }

func newFile(path string, now func() time.Time) *file { return &file{path: path, now: now} }

// file is not a Source itself, because printing it would show the token that it keeps.
type file struct {
	path string
	now  func() time.Time

	mutex sync.Mutex
	// kept is the newest token that was read; nil before the first read. It is a pointer, because
	// fmt would print the text of an unexported string field.
	kept *string
	// looked is when the file was last read.
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

// readToken reads a file that holds nothing but a token.
func readToken(path string) (string, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return "", err
	case !info.Mode().IsRegular():
		// Opening a pipe would wait for a writer.
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

// check returns why text cannot be sent as a token, without the text; nil if it can.
func check(text string) error {
	if text == "" {
		return errors.New("the token is empty")
	}
	if len(text) > maxTokenBytes {
		return fmt.Errorf("the token has %d bytes; allowed are up to %d", len(text), maxTokenBytes)
	}
	for index, char := range []byte(text) {
		// token68 of RFC 9110, section 11.2. Another character could end the header and begin
		// another one.
		if !isToken68(char) {
			return fmt.Errorf("the token has a character at byte %d that no token has; allowed are letters, digits and _ - . ~ + / =", index)
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

// authorization returns the value of the Authorization header (RFC 6750 section 2.1).
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
