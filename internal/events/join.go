package events

import "time"

// Join returns hooks that call those of each listener, in the order given. Every function of the
// result can be called, except ValidationFinished, which is nil if no listener has it.
func Join(listeners ...Hooks) Hooks {
	joined := Hooks{
		CallFinished: func(Call) {},
		CallsRefused: func(Refusals) {},

		ValidationRefused: func(Call) {},

		CallersRefused:  func(CallerRefusals) {},
		OwnerCalled:     func(OwnerCalls) {},
		BytesRefused:    func(BytesRefused) {},
		InvalidTokens:   func(InvalidTokens) {},
		TokensPresented: func(TokensPresented) {},
		HandlerPanicked: func(Panic) {},
		ChangeCommitted: func(Change) {},
		StoreDown:       func(error) {},
		StoreBack:       func(int64) {},
		SessionBegan:    func(SessionBegan) {},
		SessionReset:    func() {},
		SessionEnded:    func(SessionEnded) {},
		ChangeDelivered: func(time.Duration) {},
		UsesFlushed:     func(Flush) {},
		SweepDone:       func(Sweep) {},
		AuditPruned:     func(Prune) {},
		BackupDone:      func(Backup) {},
		BackupsDeleted:  func(BackupsDeleted) {},
		NoticeAttempted: func(NoticeAttempt) {},
		ClockJumped:     func(ClockJump) {},
		ClockApart:      func(ClockApart) {},
		ChangeAhead:     func(ChangeAhead) {},
		AcceptFailed:    func(error) {},

		ConnectionsClosed: func(ConnectionsClosed) {},
	}
	for index, each := range listeners {
		first := index == 0
		join(&joined.CallFinished, each.CallFinished, first)
		join(&joined.ValidationFinished, each.ValidationFinished, joined.ValidationFinished == nil)
		join(&joined.ValidationRefused, each.ValidationRefused, first)
		join(&joined.CallsRefused, each.CallsRefused, first)
		join(&joined.CallersRefused, each.CallersRefused, first)
		join(&joined.OwnerCalled, each.OwnerCalled, first)
		join(&joined.BytesRefused, each.BytesRefused, first)
		join(&joined.InvalidTokens, each.InvalidTokens, first)
		join(&joined.TokensPresented, each.TokensPresented, first)
		join(&joined.HandlerPanicked, each.HandlerPanicked, first)
		join(&joined.ChangeCommitted, each.ChangeCommitted, first)
		join(&joined.StoreDown, each.StoreDown, first)
		join(&joined.StoreBack, each.StoreBack, first)
		join(&joined.SessionBegan, each.SessionBegan, first)
		joinPlain(&joined.SessionReset, each.SessionReset, first)
		join(&joined.SessionEnded, each.SessionEnded, first)
		join(&joined.ChangeDelivered, each.ChangeDelivered, first)
		join(&joined.UsesFlushed, each.UsesFlushed, first)
		join(&joined.SweepDone, each.SweepDone, first)
		join(&joined.AuditPruned, each.AuditPruned, first)
		join(&joined.BackupDone, each.BackupDone, first)
		join(&joined.BackupsDeleted, each.BackupsDeleted, first)
		join(&joined.NoticeAttempted, each.NoticeAttempted, first)
		join(&joined.ClockJumped, each.ClockJumped, first)
		join(&joined.ClockApart, each.ClockApart, first)
		join(&joined.ChangeAhead, each.ChangeAhead, first)
		join(&joined.AcceptFailed, each.AcceptFailed, first)
		join(&joined.ConnectionsClosed, each.ConnectionsClosed, first)
	}
	return joined
}

// join makes *to call the function that it was, and then next. With alone, next takes the place of
// that function.
func join[Event any](to *func(Event), next func(Event), alone bool) {
	before := *to
	switch {
	case next == nil:
	case alone:
		*to = next
	default:
		*to = func(event Event) {
			before(event)
			next(event)
		}
	}
}

func joinPlain(to *func(), next func(), alone bool) {
	before := *to
	switch {
	case next == nil:
	case alone:
		*to = next
	default:
		*to = func() {
			before()
			next()
		}
	}
}
