package server

import (
	"bytes"
	"context"
	"log/slog"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/service"
)

var validateKey = &grpc.UnaryServerInfo{FullMethod: keysvcv1.ValidationService_ValidateKey_FullMethodName}

// TestDoorAllocatesNothingForValidations: every request of the product makes one.
func TestDoorAllocatesNothingForValidations(t *testing.T) {
	d := newTestDoor(t, config.Defaults())
	ctx, request, handler := localContext(t), any(&keysvcv1.ValidateKeyRequest{}), answerNothing
	pass := func() { _, _ = d.unary(ctx, request, validateKey, handler) }
	if allocations := testing.AllocsPerRun(1000, pass); allocations != 0 {
		t.Errorf("%v allocations", allocations)
	}
	finished := 0
	d.hooks.ValidationFinished = func(validation events.Validation) {
		if validation.Method != "ValidateKey" || validation.Code != "OK" || validation.Duration <= 0 {
			t.Errorf("got %+v", validation)
		}
		finished++
	}
	if allocations := testing.AllocsPerRun(1000, pass); allocations != 0 || finished != 1001 {
		t.Errorf("with a hook %v allocations, and %d calls of it; want 0 and 1001", allocations, finished)
	}
}

// localContext returns the context of a call of callers.Local.
func localContext(t testing.TB) context.Context {
	t.Helper()
	return callers.NewContext(t.Context(), callers.Local())
}

func answerNothing(context.Context, any) (any, error) { return nil, nil }

// BenchmarkDoor measures a validation with the door and without. The difference is what the
// door costs.
func BenchmarkDoor(b *testing.B) {
	d := newTestDoor(b, config.Defaults())
	ctx, request, handler := localContext(b), any(&keysvcv1.ValidateKeyRequest{}), grpc.UnaryHandler(answerNothing)
	b.Run("handler", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = handler(ctx, request)
		}
	})
	b.Run("door", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = d.unary(ctx, request, validateKey, handler)
		}
	})
}

// TestEveryKindOfWorkHasSlots: calls of a kind without slots would all be refused.
func TestEveryKindOfWorkHasSlots(t *testing.T) {
	d := newTestDoor(t, config.Defaults())
	if free := d.slots.of(callers.NoWork); free == nil || free.acquire("local") != nil {
		t.Error("NoWork has slots")
	}
	if free := d.slots.of(callers.Backup + 1); free == nil || free.acquire("local") != nil {
		t.Error("unknown work has slots")
	}
	for _, work := range []callers.Work{callers.Validation, callers.Change, callers.Read, callers.Wait, callers.Session, callers.Watch, callers.Inspection, callers.Backup} {
		if free := d.slots.of(work); free == nil || free.work != work || free.acquire("local") == nil {
			t.Errorf("work of kind %s has no slots", work)
		}
	}
	if d.slots.of(callers.Probe) != nil {
		t.Error("probes have a bound")
	}
}

// TestOneCallerLeavesAQuarterToOthers: whatever one caller does, another gets slots.
func TestOneCallerLeavesAQuarterToOthers(t *testing.T) {
	settings := config.Defaults()
	settings.MaxInFlight, settings.MaxSessions = 64, 1024
	d := newTestDoor(t, settings)
	for _, work := range []callers.Work{callers.Validation, callers.Change, callers.Read, callers.Wait, callers.Session, callers.Watch, callers.Inspection, callers.Backup} {
		free := d.slots.of(work)
		limit := int(free.limit.Load())
		take := func(caller string) (taken []*atomic.Int64) {
			for share := free.acquire(caller); share != nil; share = free.acquire(caller) {
				taken = append(taken, share)
			}
			return taken
		}
		first := take("first")
		if len(first) != limit*3/4 {
			t.Errorf("%s: alone, one caller gets %d of %d slots, want three quarters", work, len(first), limit)
		}
		second := take("second")
		if len(second) != limit/4 {
			t.Errorf("%s: the second caller gets %d of %d slots, want a quarter", work, len(second), limit)
		}
		for _, share := range append(first, second...) {
			free.release(share)
		}
		if again := take("first"); len(again) != limit*3/4 {
			t.Errorf("%s: after the release, one caller gets %d of %d slots", work, len(again), limit)
		}
	}
}

// TestSharesOfManyCallersAreForgotten: names that come and go do not fill the memory.
func TestSharesOfManyCallersAreForgotten(t *testing.T) {
	free := newTestDoor(t, config.Defaults()).slots.of(callers.Validation)
	held := free.acquire("held")
	for index := range 3 * maxShares {
		free.release(free.acquire(strconv.Itoa(index)))
	}
	if known := len(*free.shares.Load()); known > maxShares {
		t.Errorf("%d callers have a share", known)
	}
	if free.share("held") != held {
		t.Error("a share of which a slot is taken was forgotten")
	}
}

// TestTooManyValidationsAreRefused: validations have a bound, too. Refusals beyond it are
// logged once a second.
func TestTooManyValidationsAreRefused(t *testing.T) {
	settings := config.Defaults()
	settings.MaxInFlight = 2
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, nil))
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	d := newDoor(t.Context(), newSlotTable(settings), log, func() time.Time { return now }, service.Errors{Log: log}, (&service.ValidationService{}).Work, events.Join(logEvents(log)), subjects{}, callers.NewTableJudge(0, time.Now))
	request := &keysvcv1.ValidateKeyRequest{}
	ask := func() error {
		_, err := d.unary(localContext(t), request, validateKey, answerNothing)
		return err
	}
	within := func(_ context.Context, _ any) (any, error) {
		_, err := d.unary(localContext(t), request, validateKey, func(context.Context, any) (any, error) {
			for range 10 {
				if err := ask(); status.Code(err) != codes.ResourceExhausted {
					t.Errorf("the third: %v", err)
				}
			}
			now = now.Add(reportInterval)
			_ = ask()
			return nil, nil
		})
		return nil, err
	}
	if _, err := d.unary(localContext(t), request, validateKey, within); err != nil {
		t.Error(err)
	}
	if err := ask(); err != nil {
		t.Errorf("when there are free slots again: %v", err)
	}
	if lines := bytes.Count(text.Bytes(), []byte("\n")); lines != 2 || !bytes.Contains(text.Bytes(), []byte("refused=10")) {
		t.Errorf("the log has %d lines, want 2:\n%s", lines, text.String())
	}
}

// TestPanickingHandlersReleaseTheirSlots: otherwise a few panics would take every slot.
func TestPanickingHandlersReleaseTheirSlots(t *testing.T) {
	d := newTestDoor(t, config.Defaults())
	for _, method := range []string{keysvcv1.ValidationService_ValidateKey_FullMethodName, keysvcv1.KeyService_GetKey_FullMethodName} {
		_, err := d.unary(localContext(t), &keysvcv1.ValidateKeyRequest{}, &grpc.UnaryServerInfo{FullMethod: method},
			func(context.Context, any) (any, error) { panic("a fault") })
		if status.Code(err) != codes.Internal {
			t.Errorf("%s: %v, want INTERNAL", method, err)
		}
	}
	for _, calls := range d.slots.snapshot() {
		if calls.InFlight != 0 {
			t.Errorf("%d slots of kind %s are taken", calls.InFlight, calls.Work)
		}
	}
}
