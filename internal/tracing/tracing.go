// Package tracing sends traces of calls to a collector, over OTLP. It is off by default, and then
// nothing of it runs in a call.
//
// A call has a span of the RPC, as OpenTelemetry's semantic conventions have it, and below it a span for
// each time that the call asked the store. If the caller sent a trace context (W3C Trace Context), the
// spans belong to that trace. No span has a token, or an id of a key, member or workspace.
package tracing

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	metric "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/stats"
)

// Config says where traces go.
type Config struct {
	// Endpoint is the URL of the collector: http://host:port is plaintext, and https://host:port is TLS.
	Endpoint string
	// OneIn is of how many calls one is traced, at least 1. A call whose caller sent a trace context is
	// traced if the caller traces it.
	OneIn int
	// Version is the version of keysvc.
	Version string
	// Log gets a line, at most one a minute, when traces cannot be sent. They are then dropped.
	Log *slog.Logger
}

// Tracing makes spans. A nil Tracing makes none.
type Tracing struct {
	provider *sdktrace.TracerProvider
	exporter sdktrace.SpanExporter
	tracer   trace.Tracer
	handler  stats.Handler
}

// New returns a Tracing. It does not wait for the collector, so errors are those of the settings.
func New(ctx context.Context, config Config) (*Tracing, error) {
	collector, err := newCollector(config.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	exporter, err := otlptrace.New(ctx, collector)
	if err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	t := &Tracing{exporter: exporter, provider: sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(&reported{SpanExporter: exporter, log: config.Log}),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(1/float64(config.OneIn)))),
		sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "keysvc"), attribute.String("service.version", config.Version),
		)),
	)}
	t.tracer = t.provider.Tracer("github.com/scribe-mail/keysvc")
	t.handler = otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(t.provider), otelgrpc.WithMeterProvider(metric.NewMeterProvider()),
		otelgrpc.WithPropagators(propagation.TraceContext{}), otelgrpc.WithFilter(isTraced),
	)
	return t, nil
}

// isTraced reports whether calls of a method are traced. Probes of health are not: they come from
// anybody, and all the time.
func isTraced(info *stats.RPCTagInfo) bool {
	switch info.FullMethodName {
	case grpc_health_v1.Health_Check_FullMethodName, grpc_health_v1.Health_List_FullMethodName, grpc_health_v1.Health_Watch_FullMethodName:
		return false
	}
	return true
}

// ServerOption returns what makes a gRPC server trace its calls.
func (t *Tracing) ServerOption() grpc.ServerOption {
	if t == nil {
		return grpc.EmptyServerOption{}
	}
	return grpc.StatsHandler(t.handler)
}

// Stop sends what is left, until ctx ends.
func (t *Tracing) Stop(ctx context.Context) error {
	if t == nil {
		return nil
	}
	err := t.provider.Shutdown(ctx)
	if err != nil {
		// A call may still wait in a goroutine. This ends it.
		_ = t.exporter.Shutdown(ctx)
	}
	return err
}

// Decided notes a decision in the span of its call.
func (t *Tracing) Decided(ctx context.Context, decision, reason string) {
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		span.SetAttributes(attribute.String("keysvc.decision", decision), attribute.String("keysvc.reason", reason))
	}
}

// IDOf returns the id of the trace that a call belongs to, as 32 hexadecimal digits; "" if the call is
// not traced.
func (t *Tracing) IDOf(ctx context.Context) string {
	if t == nil {
		return ""
	}
	if span := trace.SpanContextFromContext(ctx); span.IsSampled() {
		return span.TraceID().String()
	}
	return ""
}

// reportInterval is the shortest time between two lines about traces that could not be sent.
const reportInterval = time.Minute

// reported is an exporter that logs its errors.
type reported struct {
	sdktrace.SpanExporter
	log  *slog.Logger
	last atomic.Int64 // when it logged last, in Unix nanoseconds
}

// ExportSpans implements sdktrace.SpanExporter.
func (r *reported) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := r.SpanExporter.ExportSpans(ctx, spans)
	if err == nil {
		return nil
	}
	now, last := time.Now().UnixNano(), r.last.Load()
	if (last == 0 || now-last >= int64(reportInterval)) && r.last.CompareAndSwap(last, now) {
		r.log.WarnContext(ctx, "traces cannot be sent to the collector, and are dropped", "spans", len(spans), "error", err)
	}
	return nil // otherwise the library would write it to standard error
}
