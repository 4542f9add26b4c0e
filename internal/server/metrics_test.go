package server_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/metrics"
)

// serveMetrics serves the metrics of a bench on loopback, and returns a function that reads them as a
// format.
func serveMetrics(t *testing.T, b *bench) (read func(accept string) string) {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- b.server.ServePurpose(listener, config.PurposeMetrics) }()
	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(func() {
		client.CloseIdleConnections()
		b.stop(t, patience)
		if err := waitFor(t, served, "the end of serving"); err != nil {
			t.Errorf("serving ended with: %v", err)
		}
	})
	return func(accept string) string {
		t.Helper()
		request, err := http.NewRequestWithContext(testContext(t), http.MethodGet, "http://"+listener.Addr().String()+metrics.Path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Accept", accept)
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode != http.StatusOK {
			t.Fatalf("status %d, %v: %s", response.StatusCode, err, body)
		}
		return string(body)
	}
}

func withMetrics(s *config.Settings) {
	s.Listeners = []config.Listener{{Address: "127.0.0.1:0", Purpose: config.PurposeMetrics}}
}

// series returns the value of a series; "" if it is not there.
func series(text, name string) string {
	for line := range strings.Lines(text) {
		if value, is := strings.CutPrefix(line, name+" "); is {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// TestMetricsServeTheListAndNameNobody makes calls of every kind, reads all metrics in both formats,
// and compares them with the list. No id, name or token of what was done is among them.
func TestMetricsServeTheListAndNameNobody(t *testing.T) {
	t.Parallel()
	b := start(t, options{settings: withMetrics})
	read := serveMetrics(t, b)
	const workspace, member = "workspace-seldom", "member-seldom"
	b.putMember(t, workspace, member, "owner")
	key, revoked := b.create(t, workspace, member, "emails:read"), b.create(t, workspace, member, "emails:read")
	b.expectAllowed(t, key.GetToken(), "emails:read")
	b.expectRefused(t, key.GetToken(), "emails:write", keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED)
	b.expectRefused(t, "no token at all", "emails:read", keysvcv1.Reason_REASON_KEY_INVALID)
	if _, err := b.keys.RevokeKey(testContext(t), &keysvcv1.RevokeKeyRequest{WorkspaceId: workspace, KeyId: revoked.GetKey().GetKeyId()}); err != nil {
		t.Fatal(err)
	}
	b.expectRefused(t, revoked.GetToken(), "emails:read", keysvcv1.Reason_REASON_KEY_REVOKED)
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	stream, err := b.sync.Sync(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Hello{Hello: &keysvcv1.SyncHello{}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}

	if err := stream.Send(&keysvcv1.SyncRequest{Kind: &keysvcv1.SyncRequest_Ping{Ping: &keysvcv1.SyncPing{
		Nonce: 1, Decisions: []*keysvcv1.DecisionCount{{Count: 5}, {Reason: keysvcv1.Reason_REASON_KEY_REVOKED, Count: 2}, {Reason: 99, Count: 1}},
	}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil { // the pong
		t.Fatal(err)
	}

	plain, open := read("text/plain"), read("application/openmetrics-text; version=1.0.0")
	if !strings.HasSuffix(open, "# EOF\n") {
		t.Errorf("OpenMetrics ends without # EOF: %q", open[max(0, len(open)-100):])
	}
	for name, want := range map[string]string{
		`keysvc_decisions_total{decision="ALLOWED",reason="NONE"}`:                           "1",
		`keysvc_decisions_total{decision="PERMISSION_DENIED",reason="SCOPE_NOT_GRANTED"}`:    "1",
		`keysvc_decisions_total{decision="UNAUTHENTICATED",reason="KEY_INVALID"}`:            "1",
		`keysvc_decisions_total{decision="UNAUTHENTICATED",reason="KEY_REVOKED"}`:            "1",
		`keysvc_near_cache_decisions_total{decision="ALLOWED",reason="NONE"}`:                "5",
		`keysvc_near_cache_decisions_total{decision="UNAUTHENTICATED",reason="KEY_REVOKED"}`: "2",
		`keysvc_calls_total{code="OK",method="CreateKey"}`:                                   "2",
		`keysvc_keys{state="active"}`:                                                        "1",
		`keysvc_keys{state="revoked"}`:                                                       "1",
		`keysvc_members`:                                                                     "1",
		`keysvc_workspaces`:                                                                  "1",
		`keysvc_sessions`:                                                                    "1",
		`keysvc_serving`:                                                                     "1",
		`keysvc_store_up`:                                                                    "1",
		`keysvc_changes_total{kind="key"}`:                                                   "3",
		`keysvc_calls_in_flight{work="session"}`:                                             "1",
		`keysvc_call_duration_seconds_count{method="CreateKey"}`:                             "2",
	} {
		if got := series(plain, name); got != want {
			t.Errorf("%s is %q, want %s", name, got, want)
		}
	}
	for _, name := range []string{"keysvc_store_commit_seconds_count", "keysvc_store_used_bytes", "keysvc_disk_free_bytes", "keysvc_store_file_bytes"} {
		if got := series(plain, name); got == "" || got == "0" {
			t.Errorf("%s is %q", name, got)
		}
	}
	expectList(t, plain)
	for _, text := range []string{plain, open} {
		if holdsToken(text, key.GetToken(), revoked.GetToken()) {
			t.Error("a token is among the metrics")
		}
		for _, name := range []string{"seldom", key.GetKey().GetKeyId(), revoked.GetKey().GetKeyId(), "a key", "local"} {
			if strings.Contains(text, name) {
				t.Errorf("%q is among the metrics", name)
			}
		}
	}
}

// expectList checks that what is served is the list.
func expectList(t *testing.T, text string) {
	t.Helper()
	var listed, served []string
	optional := make(map[string]bool)
	for _, each := range metrics.List() {
		listed = append(listed, each.Name)
		optional[each.Name] = each.When != ""
	}
	for _, found := range regexp.MustCompile(`(?m)^# TYPE (\S+) `).FindAllStringSubmatch(text, -1) {
		served = append(served, found[1])
		if !slices.Contains(listed, found[1]) && !strings.HasPrefix(found[1], "go_") && !strings.HasPrefix(found[1], "process_") {
			t.Errorf("%s is served, and not in the list", found[1])
		}
	}
	for _, name := range listed {
		if !slices.Contains(served, name) && !optional[name] {
			t.Errorf("%s is in the list, and not served", name)
		}
	}
}

// TestMetricsAreOffWithoutTheirListener: without a listener for metrics, none are counted.
func TestMetricsAreOffWithoutTheirListener(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := b.server.ServePurpose(listener, config.PurposeMetrics); err == nil {
		t.Error("metrics are served, although the settings have no listener for them")
	}
}
