package keys

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/token"
)

const (
	// MaxImports is how many keys one ImportKeys takes: a new key is three operations of a change.
	MaxImports = 32
	// maxImportBytes is how large the records of one ImportKeys may be together. The event lists their
	// fields as well.
	maxImportBytes = storage.MaxChangeBytes / 2
	// importTurn is the name of the turn that imports take, which is not the id of a workspace.
	importTurn = " imports"
)

// KeyImport is a key that ImportKeys makes for the token of another system.
type KeyImport struct {
	// Digest is SHA-256 of the token.
	Digest token.Digest
	// CreateTime is when the other system created the key, not in the future; nil is now.
	CreateTime *time.Time
	// The other fields are those of KeySpec.
	MemberID     string
	Name         string
	Scopes       []string
	AllowedCIDRs []string
	Labels       map[string]string
	ExpireTime   *time.Time
}

// ImportResult is what became of one key.
type ImportResult struct {
	// KeyID is the key that has the token; empty with an error, and if the key was only checked.
	KeyID string
	// Imported is set if the key was imported, or would be. Otherwise the workspace had it already.
	Imported bool
	// Err is why the key was not imported.
	Err *problem.Error
}

// ImportKeys makes a key for each token of another system, of which only the hash is known. A bad one does not
// affect the others. A token that a key of the same member has, or had, changes nothing. With validateOnly
// nothing is changed.
//
// Errors of the whole call: *problem.Error, the error of Config.ClockTrusted, and those of the store and the
// context.
func (m *Manager) ImportKeys(ctx context.Context, actor audit.Actor, workspaceID string, imports []KeyImport, validateOnly bool) ([]ImportResult, Position, error) {
	if err := mayChange(actor, "workspace_id", workspaceID); err != nil {
		return nil, Position{}, err
	}
	var fields problem.Fields
	checkID(&fields, "workspace_id", workspaceID)
	checkActor(&fields, actor)
	if len(imports) < 1 || len(imports) > MaxImports {
		fields.Add("keys", "has %d keys; 1 to %d are allowed", len(imports), MaxImports)
	}
	if err := fields.Err(); err != nil {
		return nil, Position{}, err
	}
	// 1. Take the turn of imports before that of the workspace: otherwise one token could be imported into
	// two workspaces at the same time, which do not wait for each other.
	release, err := m.locks.acquire(ctx, importTurn)
	if err != nil {
		return nil, Position{}, err
	}
	defer release()
	// 2. Check the keys, and import those that are right in one change.
	now := m.clock()
	var batch *importing
	build := func(view *attempt) (*storage.Change, error) {
		if err := m.trusted(); err != nil {
			return nil, err
		}
		batch = &importing{manager: m, view: view, actor: actor, now: now, dry: validateOnly, seen: make(map[[token.DigestLength]byte]int)}
		return batch.build(imports)
	}
	position, err := m.change(ctx, actor, workspaceID, build)
	if taken := (*storage.ExistsError)(nil); errors.As(err, &taken) {
		// An id of 95 random bits was drawn twice. Once more is enough.
		position, err = m.change(ctx, actor, workspaceID, build)
	}
	if err != nil {
		return nil, Position{}, err
	}
	return batch.results, position, nil
}

// importing is one attempt of ImportKeys.
type importing struct {
	manager *Manager
	view    *attempt
	active  *projection.Policy
	actor   audit.Actor
	now     time.Time
	dry     bool

	// live is how many live keys the workspace has, as far as that matters.
	live    int
	results []ImportResult
	records []*storagev1.KeyRecord
	bytes   int
	// seen has the index of each hash.
	seen map[[token.DigestLength]byte]int
}

// build judges the keys and returns the change; nil if nothing is to be changed.
func (i *importing) build(imports []KeyImport) (_ *storage.Change, err error) {
	if i.active, err = i.view.ActivePolicy(); err != nil {
		return nil, err
	}
	i.live = i.manager.projection.LiveKeys(i.view.workspaceID, i.now, i.active.Limits.LiveKeysPerWorkspace)
	for index := range imports {
		result, err := i.add(index, &imports[index])
		if refused := (*problem.Error)(nil); errors.As(err, &refused) {
			result = ImportResult{Err: refused}
		} else if err != nil {
			return nil, err
		}
		i.results = append(i.results, result)
	}
	if i.bytes > maxImportBytes {
		var fields problem.Fields
		fields.Add("keys", "take %d bytes together; at most %d are allowed: import fewer at a time", i.bytes, maxImportBytes)
		return nil, fields.Err()
	}
	i.view.unclaimed = i.dry
	if i.dry || len(i.records) == 0 {
		return nil, nil
	}
	first := i.records[0].GetKeyId()
	event := audit.NewEvent(i.actor, storagev1.AuditAction_AUDIT_ACTION_KEYS_IMPORTED, i.now, i.view.workspaceID)
	event.KeyId, event.Fields = first, audit.ImportedFields(i.records)
	event.Details = map[string]string{"keys": fmt.Sprint(len(i.records))}
	// No cache has any of the keys. Those that have kept a refusal drop it at any event.
	change := &storage.Change{Event: event, Kind: storagev1.FeedKind_FEED_KIND_KEY, Subject: first, PutKeys: i.records}
	for _, record := range i.records {
		change.AbsentKeyIDs = append(change.AbsentKeyIDs, record.GetKeyId())
	}
	return change, nil
}

// add judges one key, and adds its record if it is to be imported. An error that is not a *problem.Error is
// about the whole call.
func (i *importing) add(index int, wanted *KeyImport) (ImportResult, error) {
	// 1. Check the fields.
	spec := KeySpec{
		WorkspaceID: i.view.workspaceID, MemberID: wanted.MemberID, Name: wanted.Name, Scopes: wanted.Scopes,
		AllowedCIDRs: wanted.AllowedCIDRs, Labels: wanted.Labels, ExpireTime: wanted.ExpireTime,
	}
	created, err := checkImport(wanted, i.now)
	if err != nil {
		return ImportResult{}, err
	}
	checked, err := checkCreate(spec, i.actor, i.active, i.now)
	if err != nil {
		return ImportResult{}, err
	}
	// 2. Look for the token. It is known for as long as the key that had it is kept, so that a repeated import
	// does not bring back a token that was revoked or rotated away.
	hash := wanted.Digest.ForeignHash()
	if other, twice := i.seen[hash.Sum]; twice {
		return ImportResult{}, problem.New(problem.TokenKnown, "the hash is that of keys[%d] as well; each token is one key's", other)
	}
	i.seen[hash.Sum] = index
	if known, is := i.manager.projection.Imported(hash); is {
		return i.known(known, checked)
	}
	// 3. Check the member and the limits.
	member, err := i.manager.activeMember(i.view, checked.WorkspaceID, checked.MemberID)
	if err != nil {
		return ImportResult{}, err
	}
	if err := checkWithinRole(checked.Scopes, member, i.active); err != nil {
		return ImportResult{}, err
	}
	if allowed := i.active.Limits.LiveKeysPerWorkspace; i.live >= allowed {
		return ImportResult{}, problem.New(problem.LimitReached,
			"the workspace would have more than %d live keys, as many as the policy allows; revoke one first", allowed)
	}
	// 4. Make the record. It takes the same steps if it is only checked, and then has an id that is not used.
	record := checked.record(i.view, member, i.actor, i.now)
	if record.KeyId, err = token.NewKeyID(record.GetWorkspaceId(), i.manager.random); err != nil {
		return ImportResult{}, err
	}
	record.CreateTime = timestamppb.New(created)
	record.Imported = &storagev1.ImportRecord{ImportTime: timestamppb.New(i.now), Hash: hash.Sum[:]}
	addSecret(record, hash, false, i.now, *checked.ExpireTime)
	i.records, i.live, i.bytes = append(i.records, record), i.live+1, i.bytes+proto.Size(record)
	if i.dry {
		return ImportResult{Imported: true}, nil
	}
	return ImportResult{KeyID: record.GetKeyId(), Imported: true}, nil
}

// known returns the result for a token that a key has, or had. It does not tell of which workspace another key is.
func (i *importing) known(key projection.ImportedKey, wanted *KeySpec) (ImportResult, error) {
	switch {
	case key.WorkspaceID != wanted.WorkspaceID:
		return ImportResult{}, problem.New(problem.TokenKnown, "another key has the token, or had it; each token is one key's")
	case key.MemberID != wanted.MemberID:
		return ImportResult{}, problem.New(problem.TokenKnown, "key %s of another member has the token, or had it; each token is one key's", key.KeyID)
	case i.dry:
		return ImportResult{}, nil
	}
	return ImportResult{KeyID: key.KeyID}, nil
}

// checkImport checks the fields that only an imported key has, and returns when the key was created.
func checkImport(wanted *KeyImport, now time.Time) (created time.Time, err error) {
	var fields problem.Fields
	switch {
	case wanted.Digest.Len() != token.DigestLength:
		fields.Add("token_sha256", "has %d bytes; the %d bytes of SHA-256 are required", wanted.Digest.Len(), token.DigestLength)
	case !wanted.Digest.IsValid():
		fields.Add("token_sha256", "has only zeros; the hash of a token is required")
	}
	asked := checkTime(&fields, "create_time", wanted.CreateTime)
	switch {
	case asked == nil:
		created = now
	case asked.After(now.Add(clockTolerance)):
		fields.Add("create_time", "is in the future; a time in the past is allowed")
	case asked.Unix() < 0:
		fields.Add("create_time", "is before 1970; a later time is allowed")
	case asked.After(now):
		created = now
	default:
		created = asked.Truncate(time.Microsecond)
	}
	return created, fields.Err()
}
