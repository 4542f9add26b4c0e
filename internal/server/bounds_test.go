package server_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/race"
	"github.com/scribe-mail/keysvc/internal/service"
)

// TestManyInvalidTokensAreAnEvent: a caller and a network that send many are named, once each, and
// good keys from there go on.
func TestManyInvalidTokensAreAnEvent(t *testing.T) {
	t.Parallel()
	var mutex sync.Mutex
	var told []events.InvalidTokens
	b := start(t, options{hooks: events.Hooks{InvalidTokens: func(invalid events.InvalidTokens) {
		mutex.Lock()
		defer mutex.Unlock()
		told = append(told, invalid)
	}}})
	b.putMember(t, "acme", "ann", "owner")
	token := b.create(t, "acme", "ann", "emails:read").GetToken()
	for index := range 120 {
		response, err := b.validation.ValidateKey(testContext(t), &keysvcv1.ValidateKeyRequest{
			Token: fmt.Sprintf("guess-%d", index), RequiredScope: "emails:read", ClientAddress: "192.0.2.7",
		})
		if err != nil || response.GetReason() != keysvcv1.Reason_REASON_KEY_INVALID {
			t.Fatalf("got %v, %v", response.GetReason(), err)
		}
	}
	b.expectAllowed(t, token, "emails:read")
	mutex.Lock()
	defer mutex.Unlock()
	// At most one a second, so the other one comes a second later, if tokens still come.
	if len(told) == 0 || told[0].Caller == "" || told[0].Network != "" || told[0].Count != 100 {
		t.Errorf("got %+v, want the caller with 100", told)
	}
	if lines := len(b.log.lines("many tokens are not valid")); lines != len(told) {
		t.Errorf("%d lines for %d events", lines, len(told))
	}
	if strings.Contains(b.log.String(), "guess-") {
		t.Error("the log has text of a token")
	}
}

// TestTooManyItemsAreRefusedAtTheGate: a batch with too many items is refused by its field, and
// leaves no bytes behind.
func TestTooManyItemsAreRefusedAtTheGate(t *testing.T) {
	t.Parallel()
	b := start(t, options{})
	request := &keysvcv1.BatchValidateKeysRequest{}
	for range race.Rounds(400_000, 100_000) { // on a busy machine, the larger one would not come in time
		request.Requests = append(request.Requests, &keysvcv1.ValidateKeyRequest{})
	}
	_, err := b.validation.BatchValidateKeys(testContext(t), request)
	expectError(t, err, codes.InvalidArgument, "FIELD_INVALID")
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("requests: has more than %d items", service.MaxBatch)) {
		t.Errorf("got %v", err)
	}
	if held := b.server.Buffered(); held.Held != 0 || held.Limit != 64<<20 {
		t.Errorf("the budget stands at %+v", held)
	}
	if half := b.server.HalfOpen(); half != 0 {
		t.Errorf("%d calls are half-open", half)
	}
}
