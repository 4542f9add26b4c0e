package tracing

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/url"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// sendTimeout bounds the sending of one batch of spans, repetitions included.
const sendTimeout = 10 * time.Second

// retries has the client send a batch again that the collector could not take.
const retries = `{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 4,
	"initialBackoff": "0.5s", "maxBackoff": "4s", "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE"]}}]}`

// collector is the connection to a collector. OpenTelemetry's own clients would register gzip for every
// gRPC server and client of the process.
type collector struct{ conn *grpc.ClientConn }

var _ otlptrace.Client = (*collector)(nil)

// newCollector returns a client of the collector at a URL. It does not connect yet.
func newCollector(endpoint string) (*collector, error) {
	parsed, err := url.Parse(endpoint)
	if err != nil {
		return nil, err
	}
	var security credentials.TransportCredentials
	switch parsed.Scheme {
	case "http":
		security = insecure.NewCredentials()
	case "https":
		security = credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12})
	default:
		return nil, fmt.Errorf("the scheme is %q, allowed are http and https", parsed.Scheme)
	}
	conn, err := grpc.NewClient(parsed.Host, grpc.WithTransportCredentials(security), grpc.WithDefaultServiceConfig(retries))
	return &collector{conn}, err
}

// Start implements otlptrace.Client.
func (c *collector) Start(context.Context) error { return nil }

// Stop implements otlptrace.Client. It breaks off what is being sent.
func (c *collector) Stop(context.Context) error { return c.conn.Close() }

// UploadTraces implements otlptrace.Client.
func (c *collector) UploadTraces(ctx context.Context, spans []*tracev1.ResourceSpans) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	_, err := collectorv1.NewTraceServiceClient(c.conn).Export(ctx, &collectorv1.ExportTraceServiceRequest{ResourceSpans: spans})
	return err
}
