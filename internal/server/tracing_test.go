package server_test

import (
	"context"
	"encoding/hex"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/prototext"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/config"
)

// collector keeps the traces that it receives.
type collector struct {
	collectorv1.UnimplementedTraceServiceServer
	mutex sync.Mutex
	spans []*tracev1.Span
	// text is everything that it has received.
	text strings.Builder
}

// startCollector starts a collector, and returns its URL.
func startCollector(t *testing.T) (*collector, string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, served := &collector{}, grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(served, c)
	var serving sync.WaitGroup
	serving.Go(func() { _ = served.Serve(listener) })
	t.Cleanup(func() { served.Stop(); serving.Wait() })
	return c, "http://" + listener.Addr().String()
}

// Export implements collectorv1.TraceServiceServer.
func (c *collector) Export(_ context.Context, request *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.text.WriteString(prototext.Format(request))
	for _, of := range request.GetResourceSpans() {
		for _, in := range of.GetScopeSpans() {
			c.spans = append(c.spans, in.GetSpans()...)
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

// named returns the spans of a name.
func (c *collector) named(name string) (found []*tracev1.Span) {
	for _, span := range c.spans {
		if span.GetName() == name {
			found = append(found, span)
		}
	}
	return found
}

func attributeOf(span *tracev1.Span, key string) string {
	for _, attribute := range span.GetAttributes() {
		if attribute.GetKey() == key {
			return attribute.GetValue().GetStringValue()
		}
	}
	return ""
}

// TestTracesShowCallsDownToTheStoreAndNoSecret: the span of a call continues the caller's trace, has the
// decision and a span of the commit below it, and neither a token nor an id is in anything that was sent.
func TestTracesShowCallsDownToTheStoreAndNoSecret(t *testing.T) {
	t.Parallel()
	got, url := startCollector(t)
	b := start(t, options{settings: func(s *config.Settings) { s.TraceEndpoint, s.TraceOneIn = url, 1_000_000_000 }})
	const trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-"+trace+"-"+parent+"-01")
	b.putMember(t, "acme", "ann", "admin") // is not traced
	created, err := keysvcv1.NewKeyServiceClient(b.conn).CreateKey(ctx, &keysvcv1.CreateKeyRequest{
		WorkspaceId: "acme", MemberId: "ann", Name: "the name", Scopes: []string{"emails:read"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{created.GetToken(), "acme_ksk1_nonsense"} {
		if _, err := keysvcv1.NewValidationServiceClient(b.conn).ValidateKey(ctx, &keysvcv1.ValidateKeyRequest{
			Token: token, RequiredScope: "emails:read", WorkspaceId: "acme",
		}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := grpc_health_v1.NewHealthClient(b.conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
	if lines := b.log.lines(trace); !slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line, "CreateKey") }) {
		t.Errorf("the log's line of the call has no trace id: %v", lines)
	}
	b.stop(t, 10*time.Second)

	got.mutex.Lock()
	defer got.mutex.Unlock()
	calls := got.named("keysvc.v1.KeyService/CreateKey")
	if len(calls) != 1 {
		t.Fatalf("%d spans of CreateKey in %s", len(calls), got.text.String())
	}
	commits := got.named("store.Commit")
	if len(commits) != 1 || string(commits[0].GetParentSpanId()) != string(calls[0].GetSpanId()) {
		t.Errorf("the spans of the commit are %v", commits)
	}
	validations := got.named("keysvc.v1.ValidationService/ValidateKey")
	var decisions []string
	for _, span := range validations {
		decisions = append(decisions, attributeOf(span, "keysvc.decision")+" "+attributeOf(span, "keysvc.reason"))
	}
	if slices.Sort(decisions); !slices.Equal(decisions, []string{"ALLOWED UNSPECIFIED", "UNAUTHENTICATED KEY_INVALID"}) {
		t.Errorf("the decisions are %q", decisions)
	}
	for _, span := range slices.Concat(calls, validations) {
		if hex.EncodeToString(span.GetTraceId()) != trace || hex.EncodeToString(span.GetParentSpanId()) != parent {
			t.Errorf("%s does not continue the caller's trace", span.GetName())
		}
	}
	if len(got.spans) != len(calls)+len(validations)+len(commits) {
		t.Errorf("further spans in %s", got.text.String())
	}
	for _, secret := range []string{created.GetToken(), "nonsense", created.GetKey().GetKeyId(), "acme", "ann", "the name"} {
		if strings.Contains(got.text.String(), secret) {
			t.Errorf("%q is in the traces", secret)
		}
	}
}

// TestTracesThatCannotBeSentAreDropped: without a collector calls are answered, those of
// optional behaviours of the store included, the log says it, and the server stops.
func TestTracesThatCannotBeSentAreDropped(t *testing.T) {
	t.Parallel()
	b := start(t, options{settings: func(s *config.Settings) {
		s.TraceEndpoint, s.TraceOneIn = "http://127.0.0.1:1", 1
	}})
	b.putMember(t, "acme", "ann", "admin")
	if _, err := keysvcv1.NewAuditServiceClient(b.conn).ListAuditEvents(testContext(t), &keysvcv1.ListAuditEventsRequest{Refused: true}); err != nil {
		t.Errorf("what was refused: %v", err)
	}
	b.stop(t, time.Second)
	if lines := b.log.lines("traces"); len(lines) == 0 {
		t.Error("the log does not say that traces were not sent")
	}
}
