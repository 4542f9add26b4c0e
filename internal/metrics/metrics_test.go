package metrics_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"go.uber.org/goleak"

	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/metrics"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newMetrics returns metrics of two methods, one of which is a stream.
func newMetrics(state func() metrics.State) *metrics.Metrics {
	if state == nil {
		state = func() metrics.State { return metrics.State{} }
	}
	return metrics.New(metrics.Config{
		Methods: []metrics.Method{{Name: "ValidateKey"}, {Name: "Sync", Stream: true}},
		Reasons: []metrics.Reason{{Decision: "ALLOWED", Name: "NONE"}, {Decision: "UNAUTHENTICATED", Name: "KEY_INVALID"}},
		Version: "v0", State: state,
	})
}

// serve serves metrics on loopback until the end of the test.
func serve(t *testing.T, m *metrics.Metrics) (address string) {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	endpoint := metrics.NewEndpoint(m, slog.New(slog.DiscardHandler))
	served := make(chan error, 1)
	go func() { served <- endpoint.Serve(listener) }()
	t.Cleanup(func() {
		endpoint.Close()
		if err := <-served; err != nil {
			t.Errorf("serving ended with: %v", err)
		}
	})
	return listener.Addr().String()
}

// ask sends a request on a connection of its own.
func ask(t *testing.T, method, url string) (status int, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(content)
}

func TestMetricsCountWhatHappens(t *testing.T) {
	m := newMetrics(nil)
	hooks := m.Hooks()
	hooks.CallFinished(events.Call{Method: "Sync", Code: "OK", Duration: time.Hour})
	hooks.CallFinished(events.Call{Method: "Unheard", Code: "UNAUTHENTICATED"})
	hooks.CallFinished(events.Call{Method: "ValidateKey", Code: "no code"})
	hooks.ValidationFinished(events.Validation{Method: "ValidateKey", Code: "OK", Duration: 3 * time.Millisecond})
	hooks.ValidationFinished(events.Validation{Method: "BatchValidateKeys", Code: "OK"}) // is not among the methods
	m.Decided(1)
	m.Decided(99) // no reason that anybody knows
	hooks.StoreDown(errors.New("the disk"))
	hooks.ConnectionsClosed(events.ConnectionsClosed{Reason: "a flood of frames", Count: 7})
	for number := range 100 {
		hooks.ChangeCommitted(events.Change{Kind: fmt.Sprint("kind", number)})
	}
	hooks.ChangeDelivered(20 * time.Millisecond)
	hooks.UsesFlushed(events.Flush{Keys: 3, Error: errors.New("the disk")})
	hooks.SessionEnded(events.SessionEnded{GaveUp: true})
	_, text := ask(t, http.MethodGet, "http://"+serve(t, m)+metrics.Path)
	for _, want := range []string{
		`keysvc_calls_total{code="OK",method="Sync"} 1`,
		`keysvc_calls_total{code="UNAUTHENTICATED",method="other"} 1`,
		`keysvc_calls_total{code="UNKNOWN",method="ValidateKey"} 1`,
		`keysvc_calls_total{code="OK",method="ValidateKey"} 1`,
		`keysvc_call_duration_seconds_bucket{method="ValidateKey",le="0.0025"} 1`,
		`keysvc_call_duration_seconds_bucket{method="ValidateKey",le="0.005"} 2`,
		`keysvc_call_duration_seconds_bucket{method="ValidateKey",le="+Inf"} 2`,
		`keysvc_call_duration_seconds_sum{method="ValidateKey"} 0.003`,
		`keysvc_decisions_total{decision="UNAUTHENTICATED",reason="KEY_INVALID"} 1`,
		`keysvc_store_up 0`, `keysvc_store_failures_total 1`,
		`keysvc_connections_closed_total{reason="a flood of frames"} 7`,
		`keysvc_changes_total{kind="kind63"} 1`, `keysvc_changes_total{kind="other"} 36`,
		`keysvc_change_delivery_seconds_bucket{le="0.025"} 1`,
		`keysvc_uses_written_total 3`, `keysvc_use_failures_total 1`,
		`keysvc_sessions_ended_total{lease="given-up"} 1`,
		`keysvc_build_info{`,
	} {
		if !strings.Contains(text, "\n"+want) {
			t.Errorf("%s is missing", want)
		}
	}
	for _, other := range []string{`keysvc_call_duration_seconds_count{method="Sync"}`, "keysvc_last_change_timestamp_seconds", "keysvc_certificate", "keysvc_disk_free_bytes"} {
		if strings.Contains(text, "\n"+other) {
			t.Errorf("%s is there", other)
		}
	}
}

// TestBackupsAndProblemsAreServedIfThereAreAny: without a backup or a problem their series are not there.
func TestBackupsAndProblemsAreServedIfThereAreAny(t *testing.T) {
	var state metrics.State
	address := serve(t, newMetrics(func() metrics.State { return state }))
	_, text := ask(t, http.MethodGet, "http://"+address+metrics.Path)
	if strings.Contains(text, "\nkeysvc_problem") || strings.Contains(text, "\nkeysvc_backup_timestamp_seconds") {
		t.Errorf("a problem or a backup is served:\n%s", text)
	}
	state = metrics.State{
		Backups:  metrics.Backups{Last: time.Unix(1_700_000_000, 0), Failures: 3},
		Problems: []metrics.Problem{{ID: "backups-failing", Severity: "warning"}, {ID: "policy-damaged", Severity: "error"}},
	}
	_, text = ask(t, http.MethodGet, "http://"+address+metrics.Path)
	for _, want := range []string{
		"keysvc_backup_timestamp_seconds 1.7e+09", "keysvc_backup_failures 3",
		`keysvc_problem{problem="backups-failing",severity="warning"} 1`, `keysvc_problem{problem="policy-damaged",severity="error"} 1`,
	} {
		if !strings.Contains(text, "\n"+want) {
			t.Errorf("%s is missing", want)
		}
	}
}

// TestPrometheusFindsNoFaultInTheNames lints what is served as promtool does.
func TestPrometheusFindsNoFaultInTheNames(t *testing.T) {
	_, text := ask(t, http.MethodGet, "http://"+serve(t, newMetrics(func() metrics.State {
		return metrics.State{
			Store: &metrics.Store{}, StoreMembers: []metrics.StoreMember{{Up: true}, {QuotaBytes: 1}}, Certificate: &metrics.Certificate{},
			Backups: metrics.Backups{Last: time.Unix(1, 0)}, Problems: []metrics.Problem{{ID: "one", Severity: "error"}},
		}
	}))+metrics.Path)
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range problems {
		t.Errorf("%s: %s", problem.Metric, problem.Text)
	}
}

func TestCountingAValidationAllocatesNothing(t *testing.T) {
	m := newMetrics(nil)
	finished := m.Hooks().ValidationFinished
	if allocated := testing.AllocsPerRun(100, func() {
		m.Decided(0)
		finished(events.Validation{Method: "ValidateKey", Code: "OK", Duration: time.Microsecond})
	}); allocated != 0 {
		t.Errorf("counting a validation allocates %v times", allocated)
	}
}

func TestEndpointServesMetricsAndNothingElse(t *testing.T) {
	address := "http://" + serve(t, newMetrics(nil))
	for request, want := range map[string]int{
		"GET " + metrics.Path: http.StatusOK, "POST " + metrics.Path: http.StatusMethodNotAllowed,
		"GET /": http.StatusNotFound, "GET /debug/pprof/": http.StatusNotFound, "GET /metrics/more": http.StatusNotFound,
	} {
		method, path, _ := strings.Cut(request, " ")
		if status, _ := ask(t, method, address+path); status != want {
			t.Errorf("%s: got %d, want %d", request, status, want)
		}
	}
}

// TestEndpointBoundsReads: a read is refused while as many wait as may.
func TestEndpointBoundsReads(t *testing.T) {
	reading, goOn := make(chan struct{}), make(chan struct{})
	address := serve(t, newMetrics(func() metrics.State {
		reading <- struct{}{}
		<-goOn
		return metrics.State{}
	}))
	open := func() net.Conn {
		t.Helper()
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if _, err := io.WriteString(conn, "GET "+metrics.Path+" HTTP/1.1\r\nHost: keysvc\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	status := func(conn net.Conn) int {
		t.Helper()
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		_, _ = io.Copy(io.Discard, response.Body)
		return response.StatusCode
	}
	const reads = 4
	var waiting []net.Conn
	for range reads {
		waiting = append(waiting, open())
		<-reading
	}
	if got := status(open()); got != http.StatusServiceUnavailable {
		t.Errorf("one read more: got %d, want 503", got)
	}
	close(goOn)
	for _, conn := range waiting {
		if got := status(conn); got != http.StatusOK {
			t.Errorf("got %d, want 200", got)
		}
	}
}

// BenchmarkCount measures what metrics add to a validation, the clock aside.
func BenchmarkCount(b *testing.B) {
	m := newMetrics(nil)
	finished := m.Hooks().ValidationFinished
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			m.Decided(0)
			finished(events.Validation{Method: "ValidateKey", Code: "OK", Duration: 20 * time.Microsecond})
		}
	})
}
