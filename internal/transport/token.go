package transport

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

const (
	maxTokenBytes = 16 << 10
	// tokenAge is how long a token is used before its file is read again.
	tokenAge = time.Second
)

// Bearer are credentials.PerRPCCredentials with a token from a file: a caller token, or the
// projected token of a Kubernetes service account. The file is read again a second after it was
// last read, on the next call, so that a new token takes effect without a restart. The token is
// sent over TLS, or over a unix socket whose owner was checked, and never otherwise.
type Bearer struct {
	file  string
	stale func(error)
	now   func() time.Time

	reading sync.Mutex // held while the file is read
	mu      sync.Mutex
	header  map[string]string // nil until the file was read
	read    time.Time
}

var _ credentials.PerRPCCredentials = (*Bearer)(nil)

// NewBearer reads the file. stale is called when the file cannot be used later on, so that the
// last good token stays in use; it may be nil. now is the clock; nil means the system's.
func NewBearer(file string, stale func(error), now func() time.Time) (*Bearer, error) {
	b := &Bearer{file: file, stale: stale, now: now}
	if b.stale == nil {
		b.stale = func(error) {}
	}
	if b.now == nil {
		b.now = time.Now
	}
	if err := b.load(); err != nil {
		return nil, err
	}
	return b, nil
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b *Bearer) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	info, has := credentials.RequestInfoFromContext(ctx)
	if !has || credentials.CheckSecurityLevel(info.AuthInfo, credentials.PrivacyAndIntegrity) != nil {
		return nil, status.Error(codes.Unavailable, "the caller token is not sent over this connection, because others could read it")
	}
	b.mu.Lock()
	header, fresh := b.header, b.now().Sub(b.read).Abs() < tokenAge
	b.mu.Unlock()
	if fresh || !b.reading.TryLock() {
		return header, nil
	}
	defer b.reading.Unlock()
	if err := b.load(); err != nil {
		b.stale(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.header, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (*Bearer) RequireTransportSecurity() bool { return true }

// load reads the file. If that fails, it does not try again within tokenAge.
func (b *Bearer) load() error {
	text, err := readFile(b.file)
	token := strings.TrimSpace(string(text))
	switch {
	case err != nil:
	case token == "":
		err = &fileError{b.file, errors.New("is empty; a token is required")}
	case len(token) > maxTokenBytes:
		err = &fileError{b.file, errors.New("is longer than any token")}
	case strings.ContainsFunc(token, func(char rune) bool { return char <= ' ' || char > '~' }):
		err = &fileError{b.file, errors.New("holds something else than one token: spaces, lines, or characters outside ASCII")}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.read = b.now()
	if err == nil {
		b.header = map[string]string{"authorization": "Bearer " + token}
	}
	return err
}
