// Package events names what happens in a keysvc process. The server calls Hooks. The log is made
// from these calls, and metrics can be. Hooks has the shape of keyclient.NearCacheHooks: a struct
// of functions, each of which may be nil.
//
// No event holds a token, a secret or a hash. What a caller sent is in an event only if
// it names something that exists.
package events

import (
	"log/slog"
	"time"
)

// Hooks are called when something happens. Each may be nil. They are called from many goroutines.
// Calls wait while a hook runs, so a hook must return at once, and must not call the server.
type Hooks struct {
	// CallFinished is called for each call that has an answer, except for validations and for
	// calls that found no slot.
	CallFinished func(Call)
	// ValidationFinished is called for each validation that has an answer. If it is nil,
	// validations do not read the clock.
	ValidationFinished func(Validation)
	// ValidationRefused is called for each validation that is refused because of who called. It has
	// no subject and no request id.
	ValidationRefused func(Call)
	// CallsRefused is called when calls find no slot: at once for the first of them, then
	// once a second for those that followed.
	CallsRefused func(Refusals)
	// CallersRefused is called for tokens of callers that prove nothing: at once for the first, then
	// once a second for those that followed.
	CallersRefused func(CallerRefusals)
	// OwnerCalled is called when the owner of the process calls over the unix socket although a
	// callers file says who may call: at once, then once a second.
	OwnerCalled func(OwnerCalls)
	// BytesRefused is called when calls find no room for the bytes of their request or answer: at
	// once for the first of them, then once a second for those that followed.
	BytesRefused func(BytesRefused)
	// InvalidTokens is called when a source has sent many tokens that are not valid: at most once a
	// minute for one source, and once a second for all of them.
	InvalidTokens func(InvalidTokens)
	// TokensPresented is called once a minute if callers sent tokens since, where they could send
	// digests; and at the stop.
	TokensPresented func(TokensPresented)
	// HandlerPanicked is called for a panic of a handler, which is answered with INTERNAL.
	HandlerPanicked func(Panic)

	// ChangeCommitted is called for each change that is durable, in revision order, before
	// it is acknowledged.
	ChangeCommitted func(Change)
	// StoreDown is called when the store can no longer be followed, and StoreBack when it was
	// loaded again; and when a store in a cluster does not answer, and when it does again. With a store in a file, validations
	// go on from memory between the two.
	StoreDown func(reason error)
	StoreBack func(revision int64)

	// SessionBegan, SessionReset and SessionEnded are called for the sessions of near-caches.
	SessionBegan func(SessionBegan)
	SessionReset func()
	SessionEnded func(SessionEnded)
	// ChangeDelivered is called when a change was sent to the last near-cache, with the time since its
	// commit. It is not called for changes that are committed while another one is on its way.
	ChangeDelivered func(after time.Duration)

	// UsesFlushed is called when last-used times were written, or could not be.
	UsesFlushed func(Flush)
	// SweepDone is called at the end of each sweep.
	SweepDone func(Sweep)
	// AuditPruned is called after each search for old audit events.
	AuditPruned func(Prune)
	// BackupDone is called after each backup that was begun, and BackupsDeleted when old ones were
	// deleted.
	BackupDone     func(Backup)
	BackupsDeleted func(BackupsDeleted)
	// NoticeAttempted is called after each attempt to send a notice that a key ends.
	NoticeAttempted func(NoticeAttempt)
	// ClockJumped is called once, when the wall clock was set forward.
	ClockJumped func(ClockJump)
	// ClockApart is called when the server's clock differs by more than a minute from those of the other
	// servers of the store, and when it no longer does.
	ClockApart func(ClockApart)
	// ChangeAhead is called for a change that another server has stamped more than a minute ahead of this
	// server's clock, at most once a minute.
	ChangeAhead func(ChangeAhead)
	// AcceptFailed is called when a listener could not accept a connection.
	AcceptFailed func(reason error)
	// ConnectionsClosed is called when the server refuses or ends connections by itself: at once
	// for the first for a reason, then once a second for those that followed.
	ConnectionsClosed func(ConnectionsClosed)
}

// Call is a call that has an answer.
type Call struct {
	// Method is the RPC, as in "RevokeKey", and Service its service, as in
	// "keysvc.v1.KeyService".
	Method, Service string
	// Subject is what the call was about.
	Subject Subject
	// Caller is the identity of the caller, and Actor the member on whose behalf it called; "" if
	// the call named no member.
	Caller, Actor string
	// Credential is what the caller has proved its identity with. It is no secret.
	Credential string
	// Peer is the address of the connection, and RequestID the id that audit events have.
	Peer, RequestID string
	// TraceID is the id of the trace that the call belongs to; "" if it is not traced.
	TraceID string
	// Code is the answer's, as in "NOT_FOUND", and Reason that of the error, as in
	// "KEY_NOT_FOUND"; "" if it has none. Error is the message of the error.
	Code, Reason, Error string
	// Duration is how long the answer took.
	Duration time.Duration
	// Severity is how much the answer matters to operators.
	Severity slog.Level
}

// Subject names what a call or a change is about, as far as it exists. The zero Subject names
// nothing.
type Subject struct {
	WorkspaceID, KeyID, MemberID string
}

// String returns "workspace/key", "workspace/member" or "workspace"; a key without a
// workspace is "/key".
func (s Subject) String() string {
	switch {
	case s.KeyID != "":
		return s.WorkspaceID + "/" + s.KeyID
	case s.MemberID != "":
		return s.WorkspaceID + "/" + s.MemberID
	}
	return s.WorkspaceID
}

// Validation is a validation that has an answer. Most are not logged.
type Validation struct {
	// Method is ValidateKey or BatchValidateKeys.
	Method string
	// Code is the answer's, as in "UNAVAILABLE". A decision is not an error: its code is "OK".
	Code string
	// Duration is how long the answer took.
	Duration time.Duration
}

// Refusals are calls of one kind of work that found no slot.
type Refusals struct {
	// Work is the kind of work, and Limit how many calls of it may be in flight.
	Work  string
	Limit int64
	// Count is how many were refused since CallsRefused was last called for this kind.
	Count int64
}

// CallerRefusals are calls whose token proves nothing.
type CallerRefusals struct {
	// Peer is the address that one of them came from, and Reason says why it was refused. Reason
	// never contains a token.
	Peer, Reason string
	// Count is how many were refused since CallersRefused was last called.
	Count int64
}

// OwnerCalls are calls of the owner of the process, who may do everything.
type OwnerCalls struct {
	// Credential is what the owner has proved that with.
	Credential string
	// Count is how many calls there were since OwnerCalled was last called.
	Count int64
}

// BytesRefused are calls that found no room for their bytes.
type BytesRefused struct {
	// Limit is how many bytes of requests and answers may be held, and Held how many were.
	Limit, Held int64
	// Count is how many calls were refused since BytesRefused was last called.
	Count int64
}

// InvalidTokens are tokens from one source that were no keys' tokens. Either Caller or Network is set.
type InvalidTokens struct {
	// Caller is the name of the caller that asked about them, and Network where their presenters
	// are, as the callers say: "192.0.2.1/32", or a network of IPv6 with 64 bits.
	Caller, Network string
	// Count is how many there were, at least: those of the last minute, half of those of the minute
	// before, and so on.
	Count int64
}

// TokensPresented are the forms in which callers have presented tokens, or asked for new ones.
type TokensPresented struct {
	// Tokens and Digests are how many came in each form: since the last report, or since the start
	// if Last is set. Items of a batch count one by one, and refused ones count too.
	Tokens, Digests int64
	// Caller is the name of the caller that sent a token last; "" for none.
	Caller string
	// Last is set for the report at the stop.
	Last bool
}

// Panic is a panic of a handler.
type Panic struct {
	// RequestID is the call's; "" for validations.
	RequestID string
	// Type is the type of the panic's value, and Fault its text if the runtime raised it. Other
	// values may contain text of a caller, so their text is left out.
	Type, Fault string
	// Stack is where it happened.
	Stack string
}

// Change is a change that is durable.
type Change struct {
	// Revision is the change's.
	Revision int64
	// Kind is what kind of thing changed: "key", "member", "workspace", "policy" or "purge".
	Kind string
	// Subject is what changed; zero for the policy.
	Subject Subject
	// Time is when the change was made; zero if it has none.
	Time time.Time
}

// SessionBegan is the beginning of a near-cache's session.
type SessionBegan struct {
	// Resumed is set if the session goes on where an earlier one ended.
	Resumed bool
}

// SessionEnded is the end of a near-cache's session.
type SessionEnded struct {
	// GaveUp is set if the client gave up its lease, as one does that closes in order.
	GaveUp bool
}

// Flush is one write of last-used times.
type Flush struct {
	// Keys is how many keys' times were written.
	Keys int
	// Last is set for the flush at the stop: what it could not write is lost.
	Last bool
	// Error says why not all were written; nil if they were.
	Error error
}

// Sweep is one search for records past their retention.
type Sweep struct {
	// Keys and Members are how many records were purged.
	Keys, Members int
	// Error says why the sweep broke off; nil if it did not.
	Error error
}

// Prune is one search for old audit events, and for old files of the audit sink.
type Prune struct {
	// Events is how many were deleted.
	Events int64
	// Files are the files of the audit sink that were deleted.
	Files []string
	// Error says why the search broke off; nil if it did not.
	Error error
}

// Backup is a copy of the store that was made, or broke off.
type Backup struct {
	// Scheduled is set for a backup that no caller has asked for. Path is its file, once it is complete.
	Scheduled bool
	Path      string
	// Caller read it, and RequestID is the call's; "" for a scheduled backup.
	Caller, RequestID string
	// Revision is the newest in the copy, Bytes its size, and SHA256 that of all its bytes in
	// hexadecimal.
	Revision, Bytes int64
	SHA256          string
	// Copying is how long the store itself was copied, and Duration how long all of it took.
	Copying, Duration time.Duration
	// Failures is how many have failed since the last that was complete.
	Failures int
	// Error says why it broke off; nil if it is complete, and checked if it is scheduled.
	Error error
}

// BackupsDeleted are old scheduled backups.
type BackupsDeleted struct {
	// Files are the names of those that were deleted.
	Files []string
	// Error says why others were not; nil if all were.
	Error error
}

// NoticeAttempt is an attempt to send a notice that a key ends.
type NoticeAttempt struct {
	// NoticeID, WorkspaceID, KeyID and Days are the notice's; empty if the notices could not be read, or the
	// place in them could not be read or written.
	NoticeID, WorkspaceID, KeyID string
	Days                         int
	// Failures is how many attempts have failed since the last one that succeeded.
	Failures int
	// Error is nil if the receiver has taken the notice.
	Error error
}

// ClockJump is a step forward of the wall clock in which no time passed.
type ClockJump struct {
	// Wall is what the wall clock showed, and ByTimePassed the time without the step.
	Wall, ByTimePassed time.Time
}

// ClockApart is a difference between the clocks of the servers of a store.
type ClockApart struct {
	// By is how far the others are ahead of this server's clock, negative if they are behind it; 0 if the
	// clock is no longer apart.
	By time.Duration
}

// ChangeAhead is a change with a time that this server's clock does not follow.
type ChangeAhead struct {
	// Revision is that of the change, and Time what it was stamped with.
	Revision int64
	Time     time.Time
	// By is how far that is ahead of this server's clock.
	By time.Duration
}

// ConnectionsClosed are connections that the server has refused or ended for one reason.
type ConnectionsClosed struct {
	// Reason is why, and Detail says more; "" if there is no more.
	Reason, Detail string
	// Peer names the client of one of the connections: its address, or "uid" and its user id.
	Peer string
	// Count is how many were closed since ConnectionsClosed was last called for this reason.
	Count int64
}
