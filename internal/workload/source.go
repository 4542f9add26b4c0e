// Package workload gets the server's certificate and the bundles of trust domains from the SPIFFE
// Workload API, as a SPIRE agent serves it. Nothing else of keysvc knows go-spiffe.
package workload

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/scribe-mail/keysvc/internal/backoff"
	"github.com/scribe-mail/keysvc/internal/certificates"
)

// Options are what a Source needs besides the address. The zero value works.
type Options struct {
	// Log gets what goes wrong, each error once until an update has come; nil means nobody.
	Log *slog.Logger
	// Changed is called after each update but the first, from one goroutine; it may be nil.
	Changed func()
}

// Source is a certificates.Source that follows the Workload API. If the API fails, what it said
// last stays in use.
type Source struct {
	options Options
	client  *workloadapi.Client
	current atomic.Pointer[update]
	first   chan struct{} // closed by the first update
	cancel  context.CancelFunc
	done    chan struct{} // closed when follow has returned
	// lastError is the text of the error that was logged last. follow's goroutine owns it.
	lastError string
}

// update is what the Workload API said at one time. It is not changed once it is made.
type update struct {
	own   *tls.Certificate
	trust *certificates.Trust
}

var _ certificates.Source = (*Source)(nil)

// CheckAddress returns an error if an address is not one of a Workload API that this package
// connects to: a unix socket, as in "unix:///run/spire/agent.sock". The API has no encryption, so
// it is never reached over a network.
func CheckAddress(address string) error {
	if len(address) < len("unix:///x") || address[:len("unix:///")] != "unix:///" {
		return errors.New("must be a unix socket, as in unix:///run/spire/agent.sock")
	}
	return workloadapi.ValidateAddress(address)
}

// Open connects to the Workload API and waits until it has said who this process is, or until ctx
// ends. A workload that has no entry in SPIRE waits in vain, so give ctx a deadline. Close the
// source when it is no longer used.
func Open(ctx context.Context, address string, options Options) (*Source, error) {
	if err := CheckAddress(address); err != nil {
		return nil, fmt.Errorf("the SPIFFE Workload API at %q: %w", address, err)
	}
	if options.Log == nil {
		options.Log = slog.New(slog.DiscardHandler)
	}
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(address), workloadapi.WithBackoffStrategy(strategy{}))
	if err != nil {
		return nil, fmt.Errorf("the SPIFFE Workload API at %q: %w", address, err)
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s := &Source{options: options, client: client, first: make(chan struct{}), cancel: cancel, done: make(chan struct{})}
	go s.follow(life)
	select {
	case <-s.first:
		return s, nil
	case <-ctx.Done():
		s.Close()
		return nil, fmt.Errorf("the SPIFFE Workload API at %q has not said who this process is (%w); the last error: %s", address, ctx.Err(), s.lastError)
	}
}

// Close stops following. Own and Trust go on to return what was said last.
func (s *Source) Close() {
	s.cancel()
	<-s.done
	_ = s.client.Close()
}

// Own returns the server's X.509-SVID, the first that the API gives.
func (s *Source) Own() *tls.Certificate { return s.current.Load().own }

// Trust returns the bundles: that of the server's trust domain, and those of the domains that it
// federates with.
func (s *Source) Trust() *certificates.Trust { return s.current.Load().trust }

// follow watches until ctx ends. A watch ends early if the API says CANCELLED or INVALID_ARGUMENT,
// which may pass as well.
func (s *Source) follow(ctx context.Context) {
	defer close(s.done)
	for wait := backoff.New(shortestWait, longestWait); wait.Wait(ctx); {
		// The watcher has been told of the error.
		_ = s.client.WatchX509Context(ctx, watcher{s, ctx.Done()})
	}
}

// strategy waits as the rest of keysvc does between attempts.
type strategy struct{}

// NewBackoff implements workloadapi.BackoffStrategy.
func (strategy) NewBackoff() workloadapi.Backoff {
	return backoff.New(shortestWait, longestWait)
}

// The API is on this machine, so there is no crowd to spread.
const (
	shortestWait = 100 * time.Millisecond
	longestWait  = 5 * time.Second
)

// watcher hands what the API says to a Source. Its methods are called by follow's goroutine.
type watcher struct {
	source *Source
	closed <-chan struct{} // closed when the Source is
}

// OnX509ContextUpdate takes what the API says in the place of what it said before.
func (w watcher) OnX509ContextUpdate(said *workloadapi.X509Context) {
	s := w.source
	svid := said.DefaultSVID()
	own := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, certificate := range svid.Certificates {
		own.Certificate = append(own.Certificate, certificate.Raw)
	}
	trust := &certificates.Trust{Domains: map[string]*x509.CertPool{}}
	for _, bundle := range said.Bundles.Bundles() {
		pool := x509.NewCertPool()
		for _, authority := range bundle.X509Authorities() {
			// A certificate that is no authority would be trusted as itself.
			if authority.BasicConstraintsValid && authority.IsCA {
				pool.AddCert(authority)
			}
		}
		trust.Domains[bundle.TrustDomain().Name()] = pool
	}
	isFirst := s.current.Swap(&update{own: own, trust: trust}) == nil
	s.lastError = ""
	s.options.Log.Info("the SPIFFE Workload API has said who this process is",
		"spiffe_id", svid.ID.String(), "not_after", own.Leaf.NotAfter.UTC(), "trust_domains", len(trust.Domains))
	if isFirst {
		close(s.first)
		return
	}
	if s.options.Changed != nil {
		s.options.Changed()
	}
}

// OnX509ContextWatchError logs an error, once until the next update. What fails because the Source
// is closed says nothing about the API.
func (w watcher) OnX509ContextWatchError(err error) {
	select {
	case <-w.closed:
		return
	default:
	}
	text := err.Error()
	if text == w.source.lastError {
		return
	}
	w.source.lastError = text
	w.source.options.Log.Warn("the SPIFFE Workload API does not answer; what it said last stays in use", "error", text)
}
