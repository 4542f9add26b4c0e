package keymetrics_test

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	"github.com/scribe-mail/keysvc/clients/keymetrics"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/server/servertest"
)

// TestMetricsShowWhatTheNearCacheDoes asks about a token twice, and revokes its key: there is a miss, a
// hit, and a change that arrived.
func TestMetricsShowWhatTheNearCacheDoes(t *testing.T) {
	served := servertest.Start(t, servertest.Options{})
	ctx := t.Context()
	if _, err := served.Members.PutMember(ctx, &keysvcv1.PutMemberRequest{
		WorkspaceId: "acme", MemberId: "ann", Role: "admin", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE,
	}); err != nil {
		t.Fatal(err)
	}
	created, err := served.Keys.CreateKey(ctx, &keysvcv1.CreateKeyRequest{
		WorkspaceId: "acme", MemberId: "ann", Name: "key", Scopes: []string{"emails:read"},
	})
	if err != nil {
		t.Fatal(err)
	}
	metrics, registry := keymetrics.New(), prometheus.NewPedanticRegistry()
	registry.MustRegister(metrics)
	if count, err := testutil.GatherAndCount(registry); err != nil || count != 0 {
		t.Fatalf("%d metrics of no client, %v", count, err)
	}
	client, err := keyclient.New(served.Address, keyclient.Config{AllowPlaintext: true, NearCacheHooks: metrics.Hooks()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	metrics.Observe(client)
	question := keyauth.Question{Token: created.GetToken(), Requirement: keyauth.Scope("emails:read")}
	for client.NearCache().Hits == 0 && ctx.Err() == nil {
		if _, err := client.Validate(ctx, question); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := served.Keys.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: created.GetKey().GetKeyId()}); err != nil {
		t.Fatal(err)
	}
	for client.NearCache().Events == 0 && ctx.Err() == nil {
		if _, err := client.Validate(ctx, question); err != nil {
			t.Fatal(err)
		}
	}
	values := gather(t, registry)
	for _, name := range []string{
		"near_cache_hits_total", "near_cache_misses_total", "near_cache_changes_total", "sessions_total", "connected", "staleness_seconds", "revision", "change_lag_seconds",
	} {
		if values["keysvc_client_"+name] <= 0 {
			t.Errorf("%s is %v", name, values["keysvc_client_"+name])
		}
	}
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
}

// gather returns the values of a registry's metrics; of a histogram the count.
func gather(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, family := range families {
		for _, each := range family.GetMetric() {
			values[family.GetName()] = each.GetCounter().GetValue() + each.GetGauge().GetValue() + float64(each.GetHistogram().GetSampleCount())
		}
	}
	return values
}
