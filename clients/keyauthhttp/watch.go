package keyauthhttp

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/scribe-mail/keysvc/clients/keyauth"
)

// past is a deadline that has passed.
var past = time.Unix(1, 0)

// watched returns a context that ends when the request would not be admitted any more. Reading
// from and writing to the presenter fail from then on. Call stop when the handler has returned.
func watched(ctx context.Context, guard *keyauth.Guard, w http.ResponseWriter, request keyauth.Request) (kept context.Context, stop func()) {
	kept, cancel := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		err := guard.Watch(kept, request)
		var refusal *keyauth.RefusalError
		if kept.Err() != nil || !errors.As(err, &refusal) {
			return
		}
		// 1. Cancel with the refusal, because the deadlines make the server cancel the context
		//    without a cause.
		cancel(refusal)
		// 2. End a handler that waits for the presenter or does not look at its context. If
		//    deadlines are not supported, the context alone must do.
		controller := http.NewResponseController(w)
		_ = controller.SetWriteDeadline(past)
		_ = controller.SetReadDeadline(past)
	})
	return kept, func() {
		cancel(context.Canceled)
		// Wait, because nothing may touch the ResponseWriter after the handler has returned.
		watching.Wait()
	}
}
