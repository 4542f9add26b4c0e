package budget

import (
	"context"
	"testing"

	"google.golang.org/grpc/peer"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/giveway"
)

func TestLargeWorkGivesWayToValidations(t *testing.T) {
	tests := map[string]struct {
		work     callers.Work
		request  any
		givesWay bool
	}{
		"a large page":                  {callers.Read, &keysvcv1.ListKeysRequest{PageSize: 1000}, true},
		"a page of the default size":    {callers.Read, &keysvcv1.ListKeysRequest{}, true},
		"a small page of notices":       {callers.Read, &keysvcv1.ListNoticesRequest{PageSize: 1}, true},
		"a small page":                  {callers.Read, &keysvcv1.ListKeysRequest{PageSize: 10}, false},
		"one key":                       {callers.Read, &keysvcv1.GetKeyRequest{}, false},
		"a policy that is only checked": {callers.Change, &keysvcv1.ApplyPolicyRequest{ValidateOnly: true}, true},
		"a policy":                      {callers.Change, &keysvcv1.ApplyPolicyRequest{}, false},
		"a change":                      {callers.Change, &keysvcv1.RevokeKeyRequest{}, false},
		"a validation":                  {callers.Validation, &keysvcv1.ValidateKeyRequest{}, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			gate := &Gate{config: Config{Budget: New(64 << 20), Urgent: func() int64 { return 0 }}, turns: make(chan struct{}, 1)}
			c := &call{incoming: incoming{gate: gate, holder: Holder{Connection: &peer.Peer{}, Work: test.work}}}
			c.next = func(ctx context.Context, _ any) (any, error) {
				if work := giveway.From(ctx); (work != nil) != test.givesWay || work != c.work {
					t.Errorf("gives way: %t", work != nil)
				}
				return nil, nil
			}
			if _, err := c.handle(t.Context(), test.request); err != nil {
				t.Fatal(err)
			}
			c.endTurn()
		})
	}
}
