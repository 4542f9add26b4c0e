package server

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/service"
)

// TestMethodsThatAreNotInTheTableAreRefused calls the door directly, because gRPC answers
// methods that are not served before they come to it.
func TestMethodsThatAreNotInTheTableAreRefused(t *testing.T) {
	d := newTestDoor(t, config.Defaults())
	for _, method := range []string{"", "/keysvc.v1.KeyService/Nothing", "keysvc.v1.KeyService/GetKey", "/keysvc.v1.KeyService/getkey", "/keysvc.v1.KeyService/GetKey/"} {
		_, err := d.unary(localContext(t), nil, &grpc.UnaryServerInfo{FullMethod: method}, func(context.Context, any) (any, error) {
			t.Errorf("%q: the handler is called", method)
			return nil, nil
		})
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("%q: got %v, want PERMISSION_DENIED", method, err)
		}
	}
	_, err := d.unary(localContext(t), nil, &grpc.UnaryServerInfo{FullMethod: "/keysvc.v1.KeyService/GetKey"}, func(ctx context.Context, _ any) (any, error) {
		return nil, errors.New(callers.FromContext(ctx).CallerName())
	})
	if err == nil || err.Error() != "local" {
		t.Errorf("got %v, want the name of the caller", err)
	}
}

func newTestDoor(t testing.TB, settings config.Settings) *door {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	return newDoor(t.Context(), newSlotTable(settings), log, time.Now, service.Errors{Log: log}, (&service.ValidationService{}).Work, events.Join(logEvents(log)), subjects{}, callers.NewTableJudge(0, time.Now))
}

func TestDemoNamesTheProgramAsItWasStarted(t *testing.T) {
	for started, want := range map[string]string{
		"keysvc":                              "keysvc",
		"./keysvc":                            "./keysvc",
		"/opt/key svc/keysvc":                 "'/opt/key svc/keysvc'",
		"/tmp/go-build12/b001/exe/keysvc":     "go run ./cmd/keysvc",
		"/home/a/.cache/go-build/1a/x/keysvc": "go run ./cmd/keysvc",
	} {
		if got := command([]string{started}, config.DefaultAddress); got != want {
			t.Errorf("%s: got %s, want %s", started, got, want)
		}
		if got := command([]string{started}, "127.0.0.1:1"); got != want+" --addr 127.0.0.1:1" {
			t.Errorf("%s: got %s", started, got)
		}
	}
}
