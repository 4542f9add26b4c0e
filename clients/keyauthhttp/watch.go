package keyauthhttp

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/scribe-mail/keysvc/clients/keyauth"
)

// past is a deadline that is over.
var past = time.Unix(1, 0)

// watched returns a context that ends, and with it all traffic with the presenter, when
// the request would not be admitted any more. Call stop when the handler has returned.
func (m *Mux) watched(ctx context.Context, w http.ResponseWriter, request keyauth.Request) (kept context.Context, stop func()) {
	kept, cancel := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		err := m.guard.Watch(kept, request)
		var refusal *keyauth.RefusalError
		if kept.Err() != nil || !errors.As(err, &refusal) {
			return
		}
		// First the cause: the deadlines make the server cancel the context without one.
		cancel(refusal)
		// A handler that waits for the presenter or does not look at its context ends too.
		// Where deadlines are not supported, the context must do.
		controller := http.NewResponseController(w)
		_ = controller.SetWriteDeadline(past)
		_ = controller.SetReadDeadline(past)
	})
	return kept, func() {
		cancel(context.Canceled)
		// Nobody may touch the ResponseWriter once the server has it back.
		watching.Wait()
	}
}
