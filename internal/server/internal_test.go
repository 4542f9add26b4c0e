package server

import (
	"io"
	"log/slog"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/service"
)

// TestMethodsWithoutAnEntryAreRefused asks the choke point itself: grpc does not let a
// method that is not served come this far.
func TestMethodsWithoutAnEntryAreRefused(t *testing.T) {
	errors := service.Errors{Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	for _, method := range []string{"", "/keysvc.v1.KeyService/Nothing", "keysvc.v1.KeyService/GetKey", "/keysvc.v1.KeyService/getkey", "/keysvc.v1.KeyService/GetKey/"} {
		if _, err := admit(t.Context(), method, errors); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%q: got %v, want PERMISSION_DENIED", method, err)
		}
	}
	ctx, err := admit(t.Context(), "/keysvc.v1.KeyService/GetKey", errors)
	if err != nil || callers.FromContext(ctx).Name != "local" {
		t.Errorf("got %q, %v", callers.FromContext(ctx).Name, err)
	}
}
