package keystest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// fieldsOf are the fields of one record, as audit events name them.
type fieldsOf map[string][]string

// replayEvents makes every record anew from the fields of the audit events, and compares it with the
// record that is stored. So each event must say what there was before it and what there is after it.
// It also looks for secrets in the events.
func (r *run) replayEvents() {
	stored, secrets := r.storedFields()
	for _, workspaceID := range append(r.Projection.Workspaces(), "") {
		replayed := r.replayWorkspace(workspaceID, secrets)
		for subject, want := range stored[workspaceID] {
			if got := replayed[subject]; fmt.Sprint(got) != fmt.Sprint(want) {
				r.t.Errorf("%q, %s: the events say %v, and the record is %v", workspaceID, subject, got, want)
			}
			delete(replayed, subject)
		}
		for subject, left := range replayed {
			r.t.Errorf("%q, %s: the events say %v, and there is no record", workspaceID, subject, left)
		}
	}
}

// storedFields returns the fields of all records, by workspace and subject, and what no event may
// contain.
func (r *run) storedFields() (map[string]map[string]fieldsOf, [][]byte) {
	stored := make(map[string]map[string]fieldsOf)
	var secrets [][]byte
	add := func(workspaceID, subject string, fields fieldsOf) {
		if stored[workspaceID] == nil {
			stored[workspaceID] = make(map[string]fieldsOf)
		}
		stored[workspaceID][subject] = fields
	}
	_, err := r.Store.Load(context.Background(), func(item storage.Item) error {
		switch {
		case item.Policy != nil:
			add("", "policy", policyFields(item.Policy))
		case item.Workspace != nil:
			add(item.Workspace.GetWorkspaceId(), "workspace", flatten("workspace.", item.Workspace))
		case item.Member != nil:
			add(item.Member.GetWorkspaceId(), "member "+item.Member.GetMemberId(), flatten("member.", item.Member))
		case item.Key != nil:
			add(item.Key.GetWorkspaceId(), "key "+item.Key.GetKeyId(), flatten("", item.Key))
			stored[item.Key.GetWorkspaceId()]["key "+item.Key.GetKeyId()]["member_id"] = []string{item.Key.GetMemberId()}
			for _, secret := range item.Key.GetSecrets() {
				secrets = append(secrets, secret.GetHash())
			}
		}
		return nil
	})
	if err != nil {
		r.t.Errorf("load: %v", err)
	}
	for _, token := range r.tokens {
		digest := sha256.Sum256([]byte("keysvc token v1\x00" + token[:len(token)-6]))
		secrets = append(secrets, []byte(token[len(token)-49:]), []byte(token[len(token)-49:len(token)-6]), digest[:])
	}
	for _, secret := range secrets {
		secrets = append(secrets, []byte(hex.EncodeToString(secret)), []byte(base64.StdEncoding.EncodeToString(secret)))
	}
	return stored, secrets
}

// unlisted are fields of records that no event lists: the event itself says them, or they only tell
// one life of a member from another.
var unlisted = []protoreflect.Name{
	"key_id", "workspace_id", "member_id", "workspace_incarnation", "member_incarnation", "incarnation", "sequence",
	"change_sequence", "created_by", "revoked_by", "update_time", "state_time", "ended", "hash", "scheme", "imported",
}

// flatten returns all fields of a record that are set, found by reflection. A new field of a record
// is found as well, and has to be listed by events, or above.
func flatten(prefix string, record proto.Message) fieldsOf {
	fields := make(fieldsOf)
	message := record.ProtoReflect()
	for field, value := range message.Range {
		name := prefix + string(field.Name())
		switch {
		case slices.Contains(unlisted, field.Name()):
		case field.IsMap():
			for key, each := range value.Map().Range {
				fields[name+"."+key.String()] = []string{each.String()}
			}
		case field.IsList() && field.Message() != nil:
			list := value.List()
			for index := range list.Len() {
				for inner, of := range flatten(name+".", list.Get(index).Message().Interface()) {
					if fields[inner] == nil {
						fields[inner] = make([]string, list.Len())
					}
					fields[inner][index] = of[0]
				}
			}
		case field.IsList():
			for index := range value.List().Len() {
				fields[name] = append(fields[name], value.List().Get(index).String())
			}
		case field.Message() != nil:
			fields[name] = []string{value.Message().Interface().(*timestamppb.Timestamp).AsTime().Format(time.RFC3339Nano)}
		case field.Enum() != nil:
			fields[name] = []string{strings.Replace(string(field.Enum().Values().ByNumber(value.Enum()).Name()), "MEMBER_RECORD_STATE", "MEMBER_STATE", 1)}
		default:
			fields[name] = []string{value.String()}
		}
	}
	return fields
}

// policyFields returns the fields of a policy.
func policyFields(record *storagev1.PolicyRecord) fieldsOf {
	active, err := policy.Parse("stored", record.GetDocument())
	if err != nil {
		return fieldsOf{"error": {err.Error()}}
	}
	fields := fieldsOf{
		"token_prefix": {active.TokenPrefix}, "catalogue": active.Scopes(),
		"limits.live_keys_per_workspace": {fmt.Sprint(active.Limits.LiveKeysPerWorkspace)},
		"limits.scopes_per_key":          {fmt.Sprint(active.Limits.ScopesPerKey)},
		"limits.key_name_characters":     {fmt.Sprint(active.Limits.KeyNameCharacters)},
		"retention_days":                 {fmt.Sprint(int(active.Retention.Hours() / 24))},
	}
	if titles := active.TitlesDigest(); titles != "" {
		fields["titles"] = []string{titles}
	}
	if retired := record.GetRetiredScopes(); len(retired) > 0 {
		fields["retired_scopes"] = retired
	}
	for _, role := range active.Roles {
		fields["roles."+role.Name] = []string{"exists"}
		if scopes, _ := active.RoleScopes(role.Name); len(scopes) > 0 {
			fields["roles."+role.Name+".scopes"] = scopes
		}
	}
	return fields
}

// replayWorkspace makes the records of a workspace from its events.
func (r *run) replayWorkspace(workspaceID string, secrets [][]byte) map[string]fieldsOf {
	var events []storage.AuditEvent
	query := storage.Query{WorkspaceID: workspaceID, Limit: storage.MaxPage}
	for {
		page, err := r.Store.ListAuditEvents(context.Background(), query)
		if err != nil {
			r.t.Errorf("events of %q: %v", workspaceID, err)
			return nil
		}
		events = append(events, page.Events...)
		if query.Cursor = page.Next; query.Cursor == "" {
			break
		}
	}
	replayed := make(map[string]fieldsOf)
	for _, event := range slices.Backward(events) {
		for _, secret := range secrets {
			if bytes.Contains(event.Encoded, secret) {
				r.t.Errorf("event %d of %q has a secret or a hash of one", event.Record.GetSequence(), workspaceID)
			}
		}
		purged := make(map[string]bool)
		for _, field := range event.Record.GetFields() {
			r.replayField(replayed, event.Record, field)
			if subject, _ := subjectOf(event.Record, field.GetField()); event.Record.GetAction() == storagev1.AuditAction_AUDIT_ACTION_PURGED {
				purged[subject] = true
			}
		}
		for subject := range purged {
			delete(replayed, subject)
		}
		if event.Record.GetAction() == storagev1.AuditAction_AUDIT_ACTION_KEY_CREATED {
			replayed["key "+event.Record.GetKeyId()]["member_id"] = []string{event.Record.GetMemberId()} // as the event says
		}
	}
	return replayed
}

// replayField applies one field of an event to the record that it belongs to.
func (r *run) replayField(replayed map[string]fieldsOf, event *storagev1.AuditRecord, field *storagev1.FieldChange) {
	subject, name := subjectOf(event, field.GetField())
	record := replayed[subject]
	if record == nil {
		record = make(fieldsOf)
		replayed[subject] = record
	}
	want := record[name]
	if name == "request_ids" { // only what was dropped and added
		kept := slices.DeleteFunc(slices.Clone(want), func(id string) bool { return slices.Contains(field.GetBefore(), id) })
		if len(kept)+len(field.GetBefore()) != len(want) {
			r.t.Errorf("event %d: %s had %v, the event says %v", event.GetSequence(), subject, want, field)
		}
		record[name] = append(kept, field.GetAfter()...)
		return
	}
	if !slices.Equal(field.GetBefore(), want) || slices.Equal(field.GetBefore(), field.GetAfter()) || field.GetBeforeOmitted()+field.GetAfterOmitted() > 0 {
		r.t.Errorf("event %d: %s of %s was %v, the event says %v", event.GetSequence(), name, subject, want, field)
	}
	if record[name] = field.GetAfter(); len(field.GetAfter()) == 0 {
		delete(record, name)
	}
}

// subjectOf returns the record that a field of an event belongs to, and the name of the field there.
func subjectOf(event *storagev1.AuditRecord, field string) (subject, name string) {
	switch parts := strings.SplitN(field, ".", 3); {
	case event.GetWorkspaceId() == "":
		return "policy", field
	case event.GetAction() == storagev1.AuditAction_AUDIT_ACTION_PURGED && parts[0] == "keys":
		return "key " + parts[1], parts[2]
	case event.GetAction() == storagev1.AuditAction_AUDIT_ACTION_PURGED:
		return "member " + parts[1], "member." + parts[2] // the members of these tests have no dot
	case parts[0] == "keys": // of a restore, or a release
		return "key " + parts[1], parts[2]
	case parts[0] == "member":
		return "member " + event.GetMemberId(), field
	case parts[0] == "workspace":
		return "workspace", field
	}
	return "key " + event.GetKeyId(), field
}
