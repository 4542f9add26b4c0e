package keyclient

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// logEvery is the shortest time between two lines of one kind.
const logEvery = 10 * time.Second

// watch remembers why the last attempt to connect failed, tells callers, and logs it.
type watch struct {
	target string
	log    *slog.Logger // nil for none
	now    func() time.Time

	mu sync.Mutex
	// last is the error of the last attempt to connect; nil if the server answered.
	last error
	// warned is set from a warning until the server answers.
	warned           bool
	failures, stales repeated
}

// repeated bounds the lines of one kind.
type repeated struct {
	logged time.Time // of the last line
	// more counts what has happened since.
	more int
}

// due reports whether a line may be logged, and returns how many were left out since the last.
func (r *repeated) due(now time.Time) (more int, due bool) {
	if !r.logged.IsZero() && now.Sub(r.logged).Abs() < logEvery {
		r.more++
		return 0, false
	}
	more = r.more
	*r = repeated{logged: now}
	return more, true
}

// report is the function Report of a transport.Config.
func (w *watch) report(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = err
	if w.log == nil {
		return
	}
	ctx := context.Background() // a connection belongs to no call
	if err == nil {
		if w.warned {
			w.warned = false
			w.log.InfoContext(ctx, "keysvc is reached again", "target", w.target)
		}
		return
	}
	if more, due := w.failures.due(w.now()); due {
		w.warned = true
		w.log.WarnContext(ctx, "keysvc cannot be reached", "target", w.target, "error", err, "repeated", more)
	}
}

// stale is the function Stale of a transport.Config.
func (w *watch) stale(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.log == nil {
		return
	}
	if more, due := w.stales.due(w.now()); due {
		w.log.WarnContext(context.Background(), "a file cannot be used; its last good content stays in use", "error", err, "repeated", more)
	}
}

// explain puts the reason into the error of a call that found no connection. It leaves an answer
// of keysvc as it is.
func (w *watch) explain(err error) error {
	answer := status.Convert(err)
	if answer.Code() != codes.Unavailable {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.last == nil || !strings.Contains(answer.Message(), "connection error: desc") && !strings.Contains(answer.Message(), w.last.Error()) {
		return err
	}
	return status.Errorf(codes.Unavailable, "keyclient: no connection to keysvc at %s: %s", w.target, w.last)
}

func (w *watch) intercept(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	err := invoke(ctx, method, request, reply, conn, options...)
	if err == nil {
		return nil
	}
	return w.explain(err)
}

func (w *watch) interceptStream(ctx context.Context, description *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
	opened, err := open(ctx, description, conn, method, options...)
	if err != nil {
		return nil, w.explain(err)
	}
	return opened, nil
}
