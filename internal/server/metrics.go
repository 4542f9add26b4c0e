package server

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc/health/grpc_health_v1"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/condition"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/metrics"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/version"
)

// newMetrics returns the metrics of a server. They are read after the calls have started.
func newMetrics(s *Server) *metrics.Metrics {
	config := metrics.Config{State: s.metricsState}
	config.Version, _, _ = strings.Cut(version.Text(), ",")
	for _, full := range callers.Methods() {
		_, name := methodOf(full)
		work := callers.Of(full).Work
		config.Methods = append(config.Methods, metrics.Method{
			Name: name, Stream: work == callers.Session || work == callers.Watch || work == callers.Inspection,
		})
	}
	for reason := range decide.ScopeBeyondRole + 1 {
		of := metrics.Reason{Decision: "ALLOWED", Name: "NONE"}
		if reason != decide.NoReason {
			of.Decision = strings.TrimPrefix(keysvcv1.Decision(reason.Decision()).String(), "DECISION_")
			of.Name = strings.TrimPrefix(keysvcv1.Reason(reason).String(), "REASON_")
		}
		config.Reasons = append(config.Reasons, of)
	}
	return metrics.New(config)
}

// serveMetrics answers readers of metrics on a listener until stop or cutOff, and closes it.
func (c *calls) serveMetrics(listener servedListener) error {
	if c.metrics == nil { // only a test serves a listener that the settings do not have
		return errNoMetrics
	}
	return c.metrics.Serve(listener.Listener)
}

var errNoMetrics = errors.New("the settings have no listener for metrics")

// isServing reports whether health is SERVING.
func (c *calls) isServing() bool {
	answer, err := c.health.Check(context.Background(), &grpc_health_v1.HealthCheckRequest{})
	return err == nil && answer.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING
}

// metricsState returns how the server is now. It waits for nothing but short locks,
// and for the disk for at most diskPatience.
func (s *Server) metricsState() metrics.State {
	bytes, connections, sessions := s.budget.Snapshot(), s.connections.Counts(), s.hub.Snapshot()
	state := metrics.State{
		Serving: s.calls.isServing(), Revision: s.projection.Revision(),
		HalfOpen:  int64(s.calls.gate.HalfOpen()),
		HeldBytes: bytes.Held, BytesLimit: bytes.Limit, WithoutRoom: bytes.Refused,
		CallersRefused: s.calls.door.unknown.total.Load(), OwnerCalls: s.calls.door.owner.total.Load(),
		Connections: int64(connections.Open), Young: int64(connections.Young), LargestSource: int64(connections.Largest),
		Streams: s.connections.Streams(), Loads: s.loads.Load(),
		Feed: metrics.Feed{
			Sessions: int64(sessions.Sessions), Unread: int64(sessions.Unread), Unapplied: sessions.Revision - sessions.Unapplied,
			OldestLease: s.hub.OldestLease(), Staleness: s.hub.Staleness(), Ahead: sessions.Ahead,
		},
	}
	state.Tokens, state.Digests, _ = s.forms.counted.Counted()
	for _, each := range s.slots.snapshot() {
		state.Work = append(state.Work, metrics.Work{Name: each.Work.String(), InFlight: each.InFlight, Limit: each.Limit, Refused: each.Refused})
	}
	census := s.projection.Census(s.clock.Now())
	state.Members, state.Workspaces = census.Members, census.Workspaces
	state.Keys = metrics.Keys{
		Active: census.Active, Suspended: census.Suspended, Held: census.Held, Expired: census.Expired, Revoked: census.Revoked, Damaged: census.Damaged,
		Within7Days: census.Within7Days, Within30Days: census.Within30Days,
	}
	leads := keys.NoticeLeads()
	for index, each := range s.endingCounts() {
		state.Ending = append(state.Ending, metrics.Ending{Within: leads[index], InUse: each.InUse, Unused: each.Unused})
	}
	if s.sender != nil {
		sending := metrics.Notices(s.sender.State())
		state.Notices = &sending
	}
	if reader, has := storage.StatsOf(s.config.Store); has {
		stats := metrics.Store(reader.Stats())
		state.Store = &stats
	}
	backups := s.backups.State()
	state.Backups = metrics.Backups{Last: backups.Last.Time, Failures: int64(backups.Failures)}
	now := s.condition(context.Background())
	if now.Store != nil {
		state.ClusterFull = now.Store.Full
		for _, member := range now.Store.Members {
			state.StoreMembers = append(state.StoreMembers, metrics.StoreMember{
				Up: !member.Silent, DatabaseBytes: member.DatabaseBytes, FreeBytes: member.FreeBytes, QuotaBytes: member.QuotaBytes,
			})
		}
	}
	for _, wrong := range now.Problems() {
		severity := "warning"
		if wrong.Severity == condition.Error {
			severity = "error"
		}
		state.Problems = append(state.Problems, metrics.Problem{ID: wrong.ID, Severity: severity})
	}
	if own := s.proofs.Own(); own != nil && own.Leaf != nil {
		state.Certificate = &metrics.Certificate{NotBefore: own.Leaf.NotBefore, NotAfter: own.Leaf.NotAfter}
	}
	return state
}
