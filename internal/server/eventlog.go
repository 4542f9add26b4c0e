package server

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/scribe-mail/keysvc/internal/events"
	"github.com/scribe-mail/keysvc/internal/logging"
)

// callFinished is the message of the line about a call. The keys are those of the attributes that
// a line for people has in words.
const (
	callFinished    = "call finished"
	methodKey       = "method"
	workspaceKey    = "workspace_id"
	keyKey          = "key_id"
	memberKey       = "member_id"
	callerKey       = "caller"
	actorKey        = "actor"
	codeKey         = "code"
	durationKey     = "duration_ms"
	okCode          = "OK"
	millisecondUnit = float64(time.Millisecond)
)

// logEvents returns hooks that write the log. They do not repeat what packages below this one log
// themselves, such as what a store does with its file.
func logEvents(log *slog.Logger) events.Hooks {
	ctx := context.Background() // events carry their request id themselves
	return events.Hooks{
		CallFinished: func(call events.Call) {
			if log.Enabled(ctx, call.Severity) {
				log.LogAttrs(ctx, call.Severity, callFinished, callAttributes(call)...)
			}
		},
		CallsRefused: func(refused events.Refusals) {
			log.WarnContext(ctx, "calls are refused: as many are in flight as allowed",
				"kind", refused.Work, "allowed", refused.Limit, "refused", refused.Count)
		},
		CallersRefused: func(refused events.CallerRefusals) {
			log.WarnContext(ctx, "callers are refused: their tokens prove nothing",
				"peer", refused.Peer, "error", refused.Reason, "refused", refused.Count)
		},
		OwnerCalled: func(calls events.OwnerCalls) {
			log.WarnContext(ctx, "the owner of the process calls over the unix socket, past the callers file",
				"credential", calls.Credential, "calls", calls.Count)
		},
		BytesRefused: func(refused events.BytesRefused) {
			log.WarnContext(ctx, "calls are refused: there is no room for their bytes; the callers send much at a time, or do not read their answers",
				"allowed", refused.Limit, "held", refused.Held, "refused", refused.Count)
		},
		InvalidTokens: func(invalid events.InvalidTokens) {
			source := slog.String(callerKey, invalid.Caller)
			if invalid.Network != "" {
				source = slog.String("network", invalid.Network)
			}
			log.LogAttrs(ctx, slog.LevelWarn, "many tokens are not valid: somebody guesses, or uses a key that never was", source, slog.Int64("tokens", invalid.Count))
		},
		TokensPresented: func(forms events.TokensPresented) {
			attributes := []slog.Attr{slog.Int64("tokens", forms.Tokens), slog.Int64("digests", forms.Digests), slog.String(callerKey, forms.Caller)}
			if forms.Last {
				log.LogAttrs(ctx, slog.LevelInfo, "tokens came in these forms since the start", attributes...)
				return
			}
			log.LogAttrs(ctx, slog.LevelInfo, "callers send tokens, where they could send digests", attributes...)
		},
		HandlerPanicked: func(panicked events.Panic) {
			described := slog.String("type", panicked.Type)
			if panicked.Fault != "" {
				described = slog.String("panic", panicked.Fault)
			}
			attributes := []slog.Attr{described, slog.String("stack", panicked.Stack)}
			if panicked.RequestID != "" {
				attributes = append(attributes, slog.String("request_id", panicked.RequestID))
			}
			log.LogAttrs(ctx, slog.LevelError, "a handler panicked", attributes...)
		},
		ChangeCommitted: func(change events.Change) {
			if log.Enabled(ctx, slog.LevelDebug) {
				log.LogAttrs(ctx, slog.LevelDebug, "change committed", append([]slog.Attr{
					slog.Int64("revision", change.Revision), slog.String("kind", change.Kind),
				}, subjectAttributes(change.Subject)...)...)
			}
		},
		SessionReset: func() { log.DebugContext(ctx, "a near-cache was reset") },
		UsesFlushed: func(flush events.Flush) {
			switch {
			case flush.Error != nil && flush.Last:
				log.WarnContext(ctx, "the last last-used times could not be written", "error", flush.Error)
			case flush.Error != nil:
				log.WarnContext(ctx, "last-used times could not be written; trying again later", "error", flush.Error)
			}
		},
		SweepDone: func(sweep events.Sweep) {
			if sweep.Error != nil {
				log.WarnContext(ctx, "the sweep broke off; the next one goes on", "error", sweep.Error)
			}
			if sweep.Keys+sweep.Members > 0 {
				log.InfoContext(ctx, "records past their retention were purged", "keys", sweep.Keys, "members", sweep.Members)
			}
		},
		AuditPruned: func(prune events.Prune) {
			if prune.Error != nil {
				log.WarnContext(ctx, "deleting old audit events broke off; the next day's goes on", "error", prune.Error)
			}
			if len(prune.Files) > 0 {
				log.InfoContext(ctx, "old files of the audit sink were deleted", "files", prune.Files)
			}
			if prune.Events > 0 {
				log.InfoContext(ctx, "audit events past their retention were deleted; the audit sink has them", "events", prune.Events)
			}
		},
		BackupDone: func(backup events.Backup) { logBackup(ctx, log, backup) },
		BackupsDeleted: func(deleted events.BackupsDeleted) {
			if deleted.Error != nil {
				log.WarnContext(ctx, "old backups could not be deleted", "error", deleted.Error)
			}
			if len(deleted.Files) > 0 {
				log.InfoContext(ctx, "old backups were deleted", "files", deleted.Files)
			}
		},
		NoticeAttempted: func(attempt events.NoticeAttempt) { logNotice(ctx, log, attempt) },
		ClockJumped: func(jump events.ClockJump) {
			log.ErrorContext(ctx, "the wall clock was set forward, and nobody knows if it is right: until a restart no key is created or rotated with an overlap, and nothing is purged",
				"wall", jump.Wall, "by_time_passed", jump.ByTimePassed, "ahead", jump.Wall.Sub(jump.ByTimePassed).Round(time.Second).String())
		},
		ClockApart: func(apart events.ClockApart) {
			if apart.By == 0 {
				log.InfoContext(ctx, "the clock agrees with those of the other servers again")
				return
			}
			log.ErrorContext(ctx, "the clock differs from those of the other servers of the store, and nobody knows which is right: this server says NOT_SERVING, and makes only changes that take something away",
				"others_ahead", apart.By.Round(time.Second).String())
		},
		ChangeAhead: func(change events.ChangeAhead) {
			log.WarnContext(ctx, "another server has stamped a change far ahead of this server's clock, which does not follow",
				"revision", change.Revision, "time", change.Time, "ahead", change.By.Round(time.Second).String())
		},
		AcceptFailed: func(reason error) {
			log.WarnContext(ctx, "a connection cannot be accepted; those that are open go on, and new ones wait", "error", reason)
		},
		ConnectionsClosed: func(closed events.ConnectionsClosed) {
			attributes := []slog.Attr{slog.String("reason", closed.Reason)}
			if closed.Detail != "" {
				attributes = append(attributes, slog.String("detail", closed.Detail))
			}
			log.LogAttrs(ctx, slog.LevelWarn, "connections are refused or ended",
				append(attributes, slog.String("peer", closed.Peer), slog.Int64("count", closed.Count))...)
		},
	}
}

// logBackup logs a backup. What a caller breaks off is that caller's affair; a scheduled backup that
// fails is an operator's.
func logBackup(ctx context.Context, log *slog.Logger, backup events.Backup) {
	var attributes []slog.Attr
	for _, each := range []slog.Attr{
		slog.String("file", backup.Path), slog.String(callerKey, backup.Caller), slog.String("request_id", backup.RequestID), slog.String("sha256", backup.SHA256),
	} {
		if each.Value.String() != "" {
			attributes = append(attributes, each)
		}
	}
	switch {
	case backup.Error == nil:
		log.LogAttrs(ctx, slog.LevelInfo, "a backup was made", append(attributes,
			slog.Int64("revision", backup.Revision), slog.Int64("bytes", backup.Bytes),
			slog.Float64("copying_ms", float64(backup.Copying)/millisecondUnit), slog.Float64(durationKey, float64(backup.Duration)/millisecondUnit))...)
	case !backup.Scheduled:
		log.LogAttrs(ctx, slog.LevelWarn, "a backup broke off", append(attributes, slog.Any("error", backup.Error))...)
	default:
		log.LogAttrs(ctx, slog.LevelError, "a scheduled backup failed; trying again later", append(attributes,
			slog.Int("failures", backup.Failures), slog.Any("error", backup.Error))...)
	}
}

// logNotice logs an attempt to send a notice.
func logNotice(ctx context.Context, log *slog.Logger, attempt events.NoticeAttempt) {
	var attributes []slog.Attr
	if attempt.NoticeID != "" {
		attributes = append(attributes,
			slog.String("notice", attempt.NoticeID), slog.String("workspace", attempt.WorkspaceID), slog.String("key", attempt.KeyID), slog.Int("days", attempt.Days))
	}
	switch {
	case attempt.Error == nil:
		log.LogAttrs(ctx, slog.LevelInfo, "a notice that a key ends was sent", attributes...)
	case attempt.Failures == 0:
		log.LogAttrs(ctx, slog.LevelWarn, "the place in the notices is not known: all present ones are sent, with the same ids as before", slog.Any("error", attempt.Error))
	default:
		log.LogAttrs(ctx, slog.LevelWarn, "notices that keys end could not be sent; trying again",
			append(attributes, slog.Int("failures", attempt.Failures), slog.Any("error", attempt.Error))...)
	}
}

// callAttributes returns what the log has of a call.
func callAttributes(call events.Call) []slog.Attr {
	attributes := append([]slog.Attr{slog.String(methodKey, call.Method)}, subjectAttributes(call.Subject)...)
	for _, each := range []slog.Attr{
		slog.String(callerKey, call.Caller), slog.String(actorKey, call.Actor), slog.String(codeKey, call.Code),
		slog.String("reason", call.Reason), slog.String("error", call.Error),
		slog.String("service", call.Service), slog.String("peer", call.Peer), slog.String("request_id", call.RequestID), slog.String("trace_id", call.TraceID),
	} {
		if each.Value.String() != "" {
			attributes = append(attributes, each)
		}
	}
	return append(attributes, slog.Float64(durationKey, float64(call.Duration)/millisecondUnit))
}

// subjectAttributes returns what the log has of a subject: the ids that the subject has.
func subjectAttributes(subject events.Subject) []slog.Attr {
	var attributes []slog.Attr
	for _, each := range []slog.Attr{
		slog.String(workspaceKey, subject.WorkspaceID), slog.String(keyKey, subject.KeyID), slog.String(memberKey, subject.MemberID),
	} {
		if each.Value.String() != "" {
			attributes = append(attributes, each)
		}
	}
	return attributes
}

// sentences has the function that puts the attributes of a line into words, by the message of the
// line.
func sentences() map[string]logging.Sentence {
	return map[string]logging.Sentence{callFinished: callSentence}
}

// callSentence returns, for example, "RevokeKey acme/YlND2DdvCnSKc46I by local OK 1.0ms".
func callSentence(attributes map[string]slog.Value) (text string, said []string) {
	of := func(key string) string {
		if value, has := attributes[key]; has {
			return value.String()
		}
		return ""
	}
	text = of(methodKey)
	subject := events.Subject{WorkspaceID: of(workspaceKey), KeyID: of(keyKey), MemberID: of(memberKey)}
	if path := subject.String(); path != "" {
		text += " " + path
	}
	if caller := of(callerKey); caller != "" {
		text += " by " + caller
	}
	if actor := of(actorKey); actor != "" {
		text += " for " + actor
	}
	text += " " + of(codeKey)
	if duration, has := attributes[durationKey]; has && duration.Kind() == slog.KindFloat64 {
		text += fmt.Sprintf(" %.1fms", duration.Float64())
	}
	said = []string{methodKey, workspaceKey, keyKey, callerKey, actorKey, codeKey, durationKey, "service"}
	if subject.KeyID == "" {
		said = append(said, memberKey)
	}
	return text, said
}

// refusedCall reports whether a record is about a call that was answered with an error.
// Repetitions of such lines are counted.
func refusedCall(record slog.Record) (refused bool) {
	if record.Message != callFinished {
		return false
	}
	record.Attrs(func(attribute slog.Attr) bool {
		if attribute.Key != codeKey {
			return true
		}
		refused = attribute.Value.String() != okCode
		return false
	})
	return refused
}
