package cli

import (
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

const secondLayout = "2006-01-02 15:04:05"

// auditColumns returns the columns of a list of events. The workspace is left out if all events
// have the same. What was refused has columns of its own.
func auditColumns(withWorkspace, refused bool) []column {
	workspace, made, wrong, madeWide, wrongWide := always, always, never, wideOnly, never
	if !withWorkspace {
		workspace = never
	}
	if refused {
		made, wrong, madeWide, wrongWide = never, always, never, wideOnly
	}
	return []column{
		{title: "TIME (UTC)"},
		{title: "REVISION", in: made},
		{title: "NUMBER", in: wrong},
		{title: "WORKSPACE", cutTo: 6, in: workspace},
		{title: "ACTION", cutTo: 9},
		{title: "COUNT", in: wrong},
		{title: "CALL", cutTo: 9, in: wrong},
		{title: "REASON", cutTo: 12, in: wrong},
		{title: "SUBJECT", cutTo: 16, in: made},
		{title: "CALLER", cutTo: 6},
		{title: "FOR", cutTo: 4, in: made},
		{title: "PEER", in: wrongWide},
		{title: "CREDENTIAL", in: wideOnly},
		{title: "MEMBER", in: wideOnly},
		{title: "REQUEST", in: wideOnly},
		{title: "CHANGED", in: madeWide}, // last, because there may be much
	}
}

// auditRow returns the cells of an event for auditColumns.
func auditRow(event *keysvcv1.AuditEvent) []string {
	refusal := event.GetRefusal()
	number := strconv.FormatInt(event.GetRevision(), 10)
	return []string{
		second(event.GetTime()), number, number, orDash(event.GetWorkspaceId()), auditAction(event),
		strconv.FormatInt(refusal.GetCount(), 10), orDash(shortMethod(refusal.GetMethod())), orDash(refusal.GetReason()),
		auditSubject(event), orDash(event.GetCaller()), orDash(event.GetActorMemberId()), orDash(refusal.GetPeer()),
		orDash(event.GetCallerCredential()), orDash(event.GetMemberId()), orDash(event.GetRequestId()), orDash(auditChanges(event)),
	}
}

func second(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	return t.AsTime().Format(secondLayout)
}

// auditAction returns the action of an event in words.
func auditAction(event *keysvcv1.AuditEvent) string {
	return strings.ReplaceAll(enumWord(event.GetAction(), "AUDIT_ACTION_"), "_", " ")
}

// shortMethod returns the name of an RPC without its package.
func shortMethod(method string) string { return strings.TrimPrefix(method, "keysvc.v1.") }

// auditSubject returns the key, member or single record that an event is about, or how many records it lists.
func auditSubject(event *keysvcv1.AuditEvent) string {
	switch {
	case event.GetKeyId() != "":
		return event.GetKeyId()
	case event.GetMemberId() != "":
		return event.GetMemberId()
	case event.GetAction() == keysvcv1.AuditAction_AUDIT_ACTION_SETTINGS_CHANGED, event.GetAction() == keysvcv1.AuditAction_AUDIT_ACTION_UPGRADE_FINISHED:
		return "settings"
	case event.GetWorkspaceId() == "" && event.GetRefusal() == nil:
		return "policy"
	case len(event.GetRecords()) > 1:
		return count(int64(len(event.GetRecords())), "record")
	}
	return "-"
}

// auditChanges returns the changed fields of an event in one line.
func auditChanges(event *keysvcv1.AuditEvent) string {
	var words []string
	for _, field := range event.GetFields() {
		words = append(words, fmt.Sprintf("%s: %s → %s", field.GetField(), values(field.GetBefore()), values(field.GetAfter())))
	}
	if len(words) == 0 {
		for _, name := range slices.Sorted(maps.Keys(event.GetDetails())) {
			words = append(words, name+": "+event.GetDetails()[name])
		}
	}
	return strings.Join(words, "; ")
}

// valueOf returns the value of a line: "-" if there is no value at all, and "" if there is no
// other.
func valueOf(list []string, line int) string {
	switch {
	case line < len(list):
		return list[line]
	case line == 0:
		return "-"
	}
	return ""
}

const (
	// maxBriefFields and maxBriefValues bound what auditBrief tells.
	maxBriefFields = 3
	maxBriefValues = 60
)

// auditBrief returns what an event changed, in a few words: values only of fields that were set
// before and are short.
func auditBrief(event *keysvcv1.AuditEvent) string {
	var words []string
	for _, field := range event.GetFields() {
		word := fmt.Sprintf("%s: %s → %s", field.GetField(), values(field.GetBefore()), values(field.GetAfter()))
		switch {
		case len(field.GetBefore()) == 0 && len(event.GetFields()) > 1:
			continue
		case len(word) > maxBriefValues:
			word = field.GetField()
		}
		words = append(words, word)
	}
	if more := len(words) - maxBriefFields; more > 0 {
		words = append(words[:maxBriefFields], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(words, "; ")
}

func values(list []string) string { return orDash(strings.Join(list, ", ")) }

// asClaimed returns the member on whose behalf a caller said that it acted, with the warning that
// nobody has checked that; "" for none.
func asClaimed(member string) string {
	if member == "" {
		return ""
	}
	return member + ", as the caller said; keysvc has not checked it"
}

// auditEvent shows an event in full.
func (p *printer) auditEvent(event *keysvcv1.AuditEvent) error {
	caller := event.GetCaller()
	if credential := event.GetCallerCredential(); credential != "" {
		caller += " (" + credential + ")"
	}
	fields := []field{
		{"Action", auditAction(event)},
		{"Time", second(event.GetTime()) + " UTC, " + p.away(event.GetTime())},
		{"Revision", strconv.FormatInt(event.GetRevision(), 10)},
		{"Workspace", orDash(event.GetWorkspaceId())},
		{"Key", event.GetKeyId()},
		{"Member", event.GetMemberId()},
		{"Caller", orDash(strings.TrimSpace(caller))},
		{"For", asClaimed(event.GetActorMemberId())},
		{"Request", event.GetRequestId()},
	}
	if refusal := event.GetRefusal(); refusal != nil {
		fields[2].name = "Number"
		fields = append(
			fields,
			field{"Call", refusal.GetMethod()},
			field{"Answer", strings.TrimSpace(refusal.GetCode() + " " + refusal.GetReason())},
			field{"Peer", refusal.GetPeer()},
			field{"Count", strconv.FormatInt(refusal.GetCount(), 10)},
			field{"Last time", second(refusal.GetLastTime()) + " UTC"},
		)
		return p.record(fields...)
	}
	fields = append(
		fields,
		field{"Number", fmt.Sprintf("%d of the events of %s", event.GetSequence(), workspaceOrPolicy(event.GetWorkspaceId()))},
		field{"Hash", hex.EncodeToString(event.GetHash())},
		field{"Follows on", hex.EncodeToString(event.GetPreviousHash())},
	)
	if err := p.record(fields...); err != nil {
		return err
	}
	return p.write([]byte(p.auditTables(event)))
}

func workspaceOrPolicy(id string) string {
	if id == "" {
		return "the policy"
	}
	return "workspace " + id
}

// auditTables returns what an event changed: a table of fields and one of records.
func (p *printer) auditTables(event *keysvcv1.AuditEvent) string {
	var text strings.Builder
	if len(event.GetFields())+len(event.GetDetails()) > 0 {
		changed := newTable([]column{{title: "CHANGED"}, {title: "BEFORE"}, {title: "AFTER"}}, true, 0)
		for _, field := range event.GetFields() {
			// A value on each line, because there may be many.
			name, before, after := field.GetField(), field.GetBefore(), field.GetAfter()
			for line := range max(len(before), len(after), 1) {
				changed.add(name, valueOf(before, line), valueOf(after, line))
				name = ""
			}
		}
		if len(event.GetFields()) == 0 {
			for _, name := range slices.Sorted(maps.Keys(event.GetDetails())) {
				changed.add(name, "not known", event.GetDetails()[name])
			}
		}
		text.WriteString("\n" + changed.take())
	}
	if len(event.GetRecords()) > 0 {
		records := newTable([]column{{title: "RECORD"}, {title: "NAME"}, {title: "WAS"}}, true, 0)
		for _, record := range event.GetRecords() {
			was := "changed"
			switch {
			case event.GetAction() == keysvcv1.AuditAction_AUDIT_ACTION_UPGRADED:
				was = "there"
			case record.GetDeleted():
				was = "deleted"
			case record.GetAdded():
				was = "added"
			}
			records.add(enumWord(record.GetKind(), "AUDITED_RECORD_KIND_"), orDash(record.GetName()), was)
		}
		text.WriteString("\n" + records.take())
	}
	return text.String()
}
