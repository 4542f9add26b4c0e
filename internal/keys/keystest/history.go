package keystest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// question is a call of a validator.
type question struct{ token, scope, workspaceID string }

// call is one call of a manager or validator, with its answer.
type call struct {
	id      string
	seat    int
	request any
	at      time.Time // on the clock, when it was sent
	// workspaces are those that the caller has the right for.
	workspaces access.Workspaces
	// floor is the newest revision that callers knew when the call began: that of the changes that were
	// acknowledged before, and for every call but a validation also that of earlier reads.
	floor int64
	// begun and ended are moments of the history, which counts them.
	begun, ended int64

	err      error
	revision int64
	token    string
	keyID    string
	// answer is the answer in words; empty if it is not compared.
	answer string
	// late is set if the deadline of the call had passed when it ended.
	late bool
}

// validation reports whether the call asked a validator.
func (c *call) validation() bool { _, yes := c.request.(*question); return yes }

// mutation reports whether the call may change something.
func (c *call) mutation() bool {
	switch request := c.request.(type) {
	case *keysvcv1.ApplyPolicyRequest:
		return !request.GetValidateOnly()
	case *keysvcv1.GetKeyRequest, *keysvcv1.ListKeysRequest, *keysvcv1.GetMemberRequest, *keysvcv1.GetPolicyRequest, *question:
		return false
	}
	return true
}

func (c *call) String() string {
	said := fmt.Sprintf("OK at revision %d: %s", c.revision, c.answer)
	if c.err != nil {
		said = c.err.Error()
	}
	return fmt.Sprintf("%s on manager %d, %s, begun after revision %d: %s", c.id, c.seat, describeRequest(c.request), c.floor, said)
}

func describeRequest(request any) string {
	switch request := request.(type) {
	case *question:
		return fmt.Sprintf("validate for %s in %q", request.scope, request.workspaceID)
	case *keysvcv1.RevokeTokenRequest:
		return "RevokeToken"
	case *keysvcv1.ApplyPolicyRequest:
		return fmt.Sprintf("ApplyPolicy of %.8s in place of %.8s (validate only: %t)",
			policyOf(request.GetPolicy()).Digest(), request.GetReplacesDigest(), request.GetValidateOnly())
	case fmt.Stringer:
		name := fmt.Sprintf("%T", request)
		return strings.TrimSuffix(name[strings.LastIndex(name, ".")+1:], "Request") + " " + request.String()
	}
	return fmt.Sprintf("%T", request)
}

// history has every call of a run, and the revisions that callers knew.
type history struct {
	moment atomic.Int64
	// acknowledged is the newest revision of the answers to changes. seen is that of all answers
	// except validations.
	acknowledged, seen atomic.Int64

	mutex sync.Mutex
	calls []*call
	// commits has the moment of the last commit of each call.
	commits map[string]int64
	// tried are the heads that the commits of calls expected.
	tried map[attempted]bool
	// again are the calls that made two commits with the same expected heads.
	again map[string]bool
}

// attempted is a commit of a call, with the heads that it expected.
type attempted struct {
	id           string
	head, policy storage.Head
}

func newHistory() *history {
	return &history{commits: make(map[string]int64), tried: make(map[attempted]bool), again: make(map[string]bool)}
}

func raise(mark *atomic.Int64, to int64) {
	for {
		at := mark.Load()
		if at >= to || mark.CompareAndSwap(at, to) {
			return
		}
	}
}

// begin notes that a call begins.
func (h *history) begin(c *call) {
	c.begun = h.moment.Add(1)
	c.floor = h.acknowledged.Load()
	if !c.validation() {
		c.floor = max(c.floor, h.seen.Load())
	}
}

// end notes that a call has ended.
func (h *history) end(c *call) {
	c.ended = h.moment.Add(1)
	if c.err == nil && !c.validation() {
		raise(&h.seen, c.revision)
		if c.mutation() {
			raise(&h.acknowledged, c.revision)
		}
	}
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.calls = append(h.calls, c)
}

// tally counts the answers.
func (h *history) tally() map[string]int {
	counts := make(map[string]int)
	for _, each := range h.calls {
		outcome := "OK"
		switch _, made := h.commits[each.id]; {
		case errors.Is(each.err, storage.ErrOutcomeUnknown):
			outcome = "UNKNOWN"
		case errors.Is(each.err, storage.ErrUnavailable):
			outcome = "UNAVAILABLE"
		case isContext(each.err):
			outcome = "DEADLINE_EXCEEDED"
		case each.err != nil:
			outcome = strings.TrimPrefix(ReasonOf(each.err).String(), "ERROR_REASON_")
		case each.validation():
			outcome = strings.TrimPrefix(each.answer, "REASON_")
		case each.mutation() && !made:
			outcome = "nothing to change"
		}
		verb, _, _ := strings.Cut(describeRequest(each.request), " ")
		counts[verb+" "+outcome]++
	}
	return counts
}

// committing notes that the store is asked to commit the change of a call.
func (h *history) committing(change *storage.Change) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	id := change.Event.GetRequestId()
	h.commits[id] = h.moment.Add(1)
	this := attempted{id: id, head: change.Expect}
	if change.ExpectPolicy != nil {
		this.policy = *change.ExpectPolicy
	}
	h.again[id] = h.again[id] || h.tried[this]
	h.tried[this] = true
}

// Violation is a promise that was not kept.
type Violation struct {
	// Rule is the promise.
	Rule string
	// Text describes what happened.
	Text string
}

// committedChange is one change in the change log of the store.
type committedChange struct {
	revision    int64
	workspaceID string
	keyID       string
	call        *call // nil for the first policy
	begun       int64
}

// committed reports whether the store was asked to commit a change of a call.
func (h *history) committed(id string) bool {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	_, made := h.commits[id]
	return made
}

// readLog reads the committed changes from the store's change log, in their order.
func (h *history) readLog(ctx context.Context, store storage.Store) ([]*committedChange, error) {
	byID := make(map[string]*call, len(h.calls))
	for _, each := range h.calls {
		byID[each.id] = each
	}
	feed, err := store.ListFeed(ctx, 1<<22)
	if err != nil {
		return nil, err
	}
	if len(feed) == 0 {
		return nil, errors.New("the change log is empty")
	}
	type event struct{ requestID, keyID string }
	events := make(map[string]event)
	workspaces := make(map[string]bool)
	for _, record := range feed {
		workspaces[record.GetWorkspaceId()] = true
	}
	for workspaceID := range workspaces {
		query := storage.Query{WorkspaceID: workspaceID, Limit: storage.MaxPage}
		for more := true; more; more = query.Cursor != "" {
			page, err := store.ListAuditEvents(ctx, query)
			if err != nil {
				return nil, err
			}
			for _, each := range page.Events {
				hash := storage.HashAudit(each.Encoded)
				events[string(hash[:])] = event{each.Record.GetRequestId(), each.Record.GetKeyId()}
			}
			query.Cursor = page.Next
		}
	}
	var log []*committedChange
	for _, record := range feed {
		found, known := events[string(record.GetAuditHash())]
		if !known && record.GetKind() == storagev1.FeedKind_FEED_KIND_PURGE && record.GetSubject() == "" {
			continue // a fence, which has no event and changes nothing that is visible
		}
		if !known {
			return nil, fmt.Errorf("revision %d has no audit event", record.GetRevision())
		}
		log = append(log, &committedChange{
			revision: record.GetRevision(), workspaceID: record.GetWorkspaceId(), keyID: found.keyID,
			call: byID[found.requestID], begun: h.commits[found.requestID],
		})
	}
	return log, nil
}

// judgement is the state of a walk through the committed changes.
type judgement struct {
	truth      *truth
	log        []*committedChange
	made       map[*call]*committedChange
	violations []Violation
	// open are the claims that no revision has satisfied yet.
	open []*claim
	// current are the open claims whose interval has begun.
	current []*claim
}

// claim is an answer that made no change. It must be right at some revision from first to last.
type claim struct {
	*call
	first, last int64
	wanted      verdict // the newest verdict, for the report
}

func (j *judgement) broken(rule, format string, arguments ...any) {
	j.violations = append(j.violations, Violation{rule, fmt.Sprintf(format, arguments...)})
}

// The rules that a history can break.
const (
	ruleChange   = "a change is made once, checked against the state before it, after everything acknowledged"
	ruleRefusal  = "a refusal reflects what was acknowledged"
	ruleNothing  = `the answer "nothing to change" is right at a revision that validations reflect`
	ruleRead     = "a read reflects what was acknowledged, and holds at one revision"
	ruleValidate = "a validation reflects what was acknowledged"
	ruleConflict = "no caller is told of a conflict, and no attempt repeats the heads of the one before"
	ruleRetry    = "a retry is recognized before it is judged"
	ruleError    = "only faults cause errors"
	ruleEnd      = "when the faults are over, everything works"
)

// judge walks through the committed changes in their order, and compares every answer with what was true
// at its revision.
func (h *history) judge(first *truth, log []*committedChange, faulty bool) []Violation {
	j := &judgement{truth: first, log: log, made: make(map[*call]*committedChange)}
	// 1. Find the change that each call made.
	for _, each := range log {
		if each.call == nil {
			continue
		}
		if before := j.made[each.call]; before != nil {
			j.broken(ruleChange, "made twice, at revisions %d and %d: %s", before.revision, each.revision, each.call)
		}
		j.made[each.call] = each
	}
	// 2. Check each call alone. An answer without a change becomes a claim.
	ceiling := ceilings(log)
	base := log[0].revision
	for _, each := range h.calls {
		if h.again[each.id] {
			j.broken(ruleConflict, "tried twice against the same head: %s", each)
		}
		j.classify(each, base, ceiling(each.ended), faulty)
	}
	slices.SortFunc(j.open, func(a, b *claim) int { return cmp.Compare(a.first, b.first) })
	// 3. Make one change after another. After each change, compare the claims whose interval has begun,
	// and report those whose interval ends before the next change.
	waiting := j.open
	for index, each := range log {
		if each.call != nil {
			j.commit(each, ceiling(each.call.ended))
		}
		next := int64(1<<63 - 1)
		if index+1 < len(log) {
			next = log[index+1].revision
		}
		for len(waiting) > 0 && waiting[0].first < next {
			if !j.holds(waiting[0]) {
				j.current = append(j.current, waiting[0])
			}
			waiting = waiting[1:]
		}
		j.current = slices.DeleteFunc(j.current, func(claimed *claim) bool {
			if claimed.first < each.revision && j.concerns(each, claimed.request) && j.holds(claimed) {
				return true
			}
			if claimed.last < next {
				j.unfounded(claimed)
				return true
			}
			return false
		})
	}
	return j.violations
}

// ceilings returns a function that maps a moment to the newest revision that can have been committed
// by then.
func ceilings(log []*committedChange) func(moment int64) int64 {
	sorted := slices.Clone(log)
	slices.SortFunc(sorted, func(a, b *committedChange) int { return cmp.Compare(a.begun, b.begun) })
	newest := make([]int64, len(sorted))
	for index, each := range sorted {
		newest[index] = each.revision
		if index > 0 {
			newest[index] = max(newest[index], newest[index-1])
		}
	}
	return func(moment int64) int64 {
		index, _ := slices.BinarySearchFunc(sorted, moment, func(each *committedChange, moment int64) int { return cmp.Compare(each.begun, moment) })
		if index == 0 {
			return 0
		}
		return newest[index-1]
	}
}

// concerns reports whether a change may change the right answer to a message.
func (j *judgement) concerns(each *committedChange, request any) bool {
	switch request := request.(type) {
	case interface{ GetWorkspaceId() string }:
		return each.workspaceID == "" || each.workspaceID == request.GetWorkspaceId()
	case *keysvcv1.UpdateKeyRequest:
		return each.workspaceID == "" || each.workspaceID == request.GetKey().GetWorkspaceId()
	}
	return true
}

// classify checks what can be checked about a call alone, and adds its claim.
func (j *judgement) classify(c *call, base, ceiling int64, faulty bool) {
	made := j.made[c]
	var told *problem.Error
	switch {
	case c.err == nil && made != nil:
		if c.revision != made.revision {
			j.broken(ruleChange, "made at revision %d: %s", made.revision, c)
		}
	case c.err == nil && c.revision < c.floor:
		j.broken(j.ruleOf(c), "an older revision than was known before: %s", c)
	case c.err == nil && c.revision > ceiling:
		j.broken(j.ruleOf(c), "a revision that is not there yet, the newest is %d: %s", ceiling, c)
	case c.err == nil && c.validation():
		j.claim(c, c.revision, c.revision)
	case c.err == nil && c.mutation():
		// The answer must be true at a revision that validations reflect.
		j.claim(c, max(c.floor, base), c.revision)
	case c.err == nil:
		j.claim(c, max(c.floor, base), ceiling)
	case errors.Is(c.err, storage.ErrOutcomeUnknown):
		if !faulty && !c.late {
			j.broken(ruleError, "%s", c)
		}
	case c.late && isContext(c.err): // the log tells whether the change was made
	case made != nil:
		j.broken(ruleChange, "made at revision %d, and yet refused: %s", made.revision, c)
	case errors.Is(c.err, storage.ErrUnavailable), isContext(c.err):
		if !faulty {
			j.broken(ruleError, "%s", c)
		}
	case !errors.As(c.err, &told):
		j.broken(ruleError, "%s", c)
	case told.Reason == keysvcv1.ErrorReason_ERROR_REASON_CONCURRENT_CHANGE:
		if !c.late {
			j.broken(ruleConflict, "%s", c)
		}
	case told.Reason == keysvcv1.ErrorReason_ERROR_REASON_LIMIT_REACHED && inBrief(c.request):
		// The truth does not know which keys of this workspace have expired.
	default:
		j.claim(c, max(c.floor, base), max(ceiling, base))
	}
}

func inBrief(request any) bool {
	named, is := request.(interface{ GetWorkspaceId() string })
	return is && named.GetWorkspaceId() == brief
}

func isContext(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

func (j *judgement) claim(c *call, first, last int64) {
	j.open = append(j.open, &claim{call: c, first: first, last: last})
}

// holds reports whether the answer of a claim is right at the current revision.
func (j *judgement) holds(claimed *claim) bool {
	claimed.wanted = j.truth.judge(claimed.request, claimed.at)
	wanted := claimed.wanted
	var told *problem.Error
	switch {
	case errors.As(claimed.err, &told):
		return told.Reason == wanted.reason && (wanted.keyID == "" || told.Metadata["key_id"] == wanted.keyID)
	case claimed.err != nil:
		return false
	}
	return wanted.reason == none && !wanted.changes && (claimed.answer == "" || wanted.answer == "" || claimed.answer == wanted.answer)
}

// unfounded reports an answer that was right at no revision of its interval.
func (j *judgement) unfounded(claimed *claim) {
	rule := j.ruleOf(claimed.call)
	if ReasonOf(claimed.err) == keysvcv1.ErrorReason_ERROR_REASON_FIELD_INVALID {
		rule = ruleRetry
	}
	j.broken(rule, "not right at any revision from %d to %d; at the last one, %s is right: %s",
		claimed.first, claimed.last, describeVerdict(claimed.wanted), claimed.call)
}

func describeVerdict(wanted verdict) string {
	switch {
	case wanted.reason != none:
		return wanted.reason.String()
	case wanted.changes:
		return "something to change"
	}
	return fmt.Sprintf("OK, %q", wanted.answer)
}

// ruleOf returns the rule that an answer without a change must keep.
func (j *judgement) ruleOf(c *call) string {
	switch {
	case c.validation():
		return ruleValidate
	case c.err != nil:
		return ruleRefusal
	case c.mutation():
		return ruleNothing
	}
	return ruleRead
}

// commit compares a committed change with the state before it, and makes the change in the truth.
func (j *judgement) commit(each *committedChange, ceiling int64) {
	c := each.call
	if each.revision <= c.floor {
		j.broken(ruleChange, "made at revision %d, not after what was known before: %s", each.revision, c)
	}
	wanted := j.truth.judge(c.request, c.at)
	if wanted.reason != none || !wanted.changes {
		j.broken(ruleChange, "made at revision %d, where %s is right: %s", each.revision, describeVerdict(wanted), c)
		if wanted.reason == none || wanted.reason == keysvcv1.ErrorReason_ERROR_REASON_KEY_NOT_FOUND {
			return // the key does not exist, so it cannot be changed
		}
	}
	token := c.token
	if token == "" {
		token = "not told to anybody: " + c.id
	}
	shown := j.truth.apply(c.request, each.keyID, token)
	if c.err != nil || shown == "" || c.answer == shown {
		return
	}
	if put, is := c.request.(*keysvcv1.PutMemberRequest); is {
		// The answer may show a later state of the workspace.
		later := *c
		later.request = &keysvcv1.GetMemberRequest{WorkspaceId: put.GetWorkspaceId(), MemberId: put.GetMemberId()}
		j.current = append(j.current, &claim{call: &later, first: each.revision, last: ceiling, wanted: verdict{answer: shown}})
	} else {
		j.broken(ruleChange, "made at revision %d, %q is right: %s", each.revision, shown, c)
	}
}
