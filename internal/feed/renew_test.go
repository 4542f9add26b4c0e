package feed_test

import (
	"testing"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
)

// TestRenewEndsSessionsBeforeAnotherChange: after Renew a session is sent nothing but Goodbye (S8), not even the answer to
// a ping, and its client resumes with another Hello.
func TestRenewEndsSessionsBeforeAnotherChange(t *testing.T) {
	w := newWorld(t, nil)
	session := w.join()
	w.ping(session, 1, 100)
	w.Renew()
	w.publish(101)
	if step := session.Next(); step.Response.GetGoodbye() == nil || !step.Last {
		t.Errorf("got %q, want goodbye", show(step))
	}
	again, err := w.Open(&keysvcv1.SyncHello{Epoch: "epoch", Revision: 100, AuditHash: hash(100), HashRevision: 100}, access.All())
	if err != nil {
		t.Fatal(err)
	}
	if welcome := again.Next().Response.GetWelcome(); welcome == nil || welcome.GetReset_() || welcome.GetRevision() != 100 {
		t.Errorf("the welcome is %v, want one that resumes at 100", welcome)
	}
	if step := again.Next(); step.Response.GetEvents() == nil || step.Last {
		t.Errorf("got %q, want the change", show(step))
	}
}
