// Package keycredentials attaches an API key to outgoing calls: for gRPC as
// credentials.PerRPCCredentials, for HTTP as an http.RoundTripper. It refuses to send a key
// where it could be read on the way, or to whom it is not meant for.
package keycredentials

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"
)

// maxTokenBytes is the longest token that is sent; keysvc's have less than a hundred.
const maxTokenBytes = 4096

// Source yields the token to send. It is asked before each call and must be safe for
// concurrent use; its errors must not contain the token.
type Source interface {
	// Token returns the token. A token that cannot stand in a header is refused later.
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
		token, ok := os.LookupEnv(name)
		if !ok {
			return "", fmt.Errorf("keycredentials: the environment variable %s is not set", name)
		}
		return token, nil
	})
}

// fileInterval is how long a file is taken not to have changed.
const fileInterval = time.Second

// File returns the Source of a file, one line feed at whose end does not count. It is
// looked at once a second at most, and read anew when it was replaced or written to; so
// a rotated token is in use a second later. While a file that was read once cannot be read,
// the token of before stays in use.
func File(path string) Source { return newFile(path, time.Now) }

func newFile(path string, now func() time.Time) *file { return &file{path: path, now: now} }

type file struct {
	path string
	now  func() time.Time

	mutex sync.Mutex
	token string
	read  bool
	// looked is when the file was looked at, and seen how it looked when it was read.
	looked time.Time
	seen   fs.FileInfo
}

// Token implements Source.
func (f *file) Token(context.Context) (string, error) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	now := f.now()
	if passed := now.Sub(f.looked); f.read && passed >= 0 && passed < fileInterval {
		return f.token, nil
	}
	err := f.refresh()
	if err != nil && !f.read {
		return "", fmt.Errorf("keycredentials: %w", err)
	}
	f.looked = now
	return f.token, nil
}

// refresh reads the file if it is another one than was read. What was written twice
// within the resolution of its time and with the same length is found the next time that
// one of them changes.
func (f *file) refresh() error {
	info, err := os.Stat(f.path)
	if err != nil {
		return err
	}
	if f.read && os.SameFile(info, f.seen) && info.ModTime().Equal(f.seen.ModTime()) && info.Size() == f.seen.Size() {
		return nil
	}
	if info.Size() > maxTokenBytes+2 {
		return fmt.Errorf("%s has %d bytes; a token has up to %d", f.path, info.Size(), maxTokenBytes)
	}
	text, err := os.ReadFile(f.path)
	if err != nil {
		return err
	}
	text = bytes.TrimSuffix(bytes.TrimSuffix(text, []byte("\n")), []byte("\r"))
	if len(text) == 0 {
		// Somebody is writing it.
		return fmt.Errorf("%s is empty", f.path)
	}
	f.token, f.seen, f.read = string(text), info, true
	return nil
}

// errToken is what is wrong with a token, without the token.
var errToken = errors.New("keycredentials: the token has a character that no token has, such as white space, or is empty or too long; nothing was sent")

// header returns the value of the authorization header (RFC 6750 section 2.1).
func header(ctx context.Context, source Source) (string, error) {
	token, err := source.Token(ctx)
	if err != nil {
		return "", err
	}
	if token == "" || len(token) > maxTokenBytes {
		return "", errToken
	}
	for _, char := range []byte(token) {
		// Visible ASCII: with anything else a header could be ended, and another begun.
		if char <= ' ' || char > '~' {
			return "", errToken
		}
	}
	return "Bearer " + token, nil
}
