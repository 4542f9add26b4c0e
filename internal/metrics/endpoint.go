package metrics

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
)

// Path is where the metrics are read.
const Path = "/metrics"

// The bounds of an Endpoint. A reader asks once every few seconds.
const (
	// maxConnections is the largest number of connections of one listener; others wait until one of
	// them has ended. maxReads is how many reads there may be at a time; others get 503.
	maxConnections, maxReads = 32, 4
	// headerTimeout bounds the time in which a request must come, writeTimeout that of the answer, and
	// idleTimeout that between two requests of a connection.
	headerTimeout, writeTimeout, idleTimeout = 5 * time.Second, 30 * time.Second, 30 * time.Second
	// maxHeaderBytes bounds the header of a request.
	maxHeaderBytes = 16 << 10
)

// Endpoint serves metrics over HTTP, in plaintext: GET /metrics, in the text format of Prometheus or
// in OpenMetrics, as the reader asks.
type Endpoint struct {
	server *http.Server
}

// NewEndpoint returns an Endpoint that serves nothing yet.
func NewEndpoint(m *Metrics, log *slog.Logger) *Endpoint {
	mux := http.NewServeMux()
	mux.Handle("GET "+Path, promhttp.HandlerFor(m.registry(), promhttp.HandlerOpts{
		EnableOpenMetrics: true, MaxRequestsInFlight: maxReads, Timeout: writeTimeout,
	}))
	return &Endpoint{
		server: &http.Server{
			Handler: mux, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
			ReadTimeout: headerTimeout, ReadHeaderTimeout: headerTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
			MaxHeaderBytes: maxHeaderBytes,
		},
	}
}

// Serve serves a listener until Shutdown or Close, and closes it. Then it returns nil.
func (e *Endpoint) Serve(listener net.Listener) error {
	err := e.server.Serve(netutil.LimitListener(listener, maxConnections))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Shutdown closes the listeners, and waits for the reads until the context ends; then it cuts them
// off.
func (e *Endpoint) Shutdown(ctx context.Context) {
	if e.server.Shutdown(ctx) != nil {
		e.Close()
	}
}

// Close closes listeners and connections.
func (e *Endpoint) Close() { _ = e.server.Close() }
