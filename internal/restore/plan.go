package restore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/storage"
)

// maxListed is how many lines each list of a Plan has. The counts are complete.
const maxListed = 1000

// Records is what a plan is made from: the records of a backup.
type Records interface {
	// Load visits all records, as storage.Source does.
	Load(ctx context.Context, visit func(storage.Item) error) (storage.Position, error)
}

// Options are what a person says about a restore.
type Options struct {
	// SinkIsComplete is the person's word that the sink's last line is the last that there was. The
	// sink cannot say that about itself.
	SinkIsComplete bool
	// Now is the time of the restore.
	Now time.Time
	// Random draws hashes that belong to no token. Default: the system's CSPRNG.
	Random io.Reader
}

// Plan is what a restore does.
type Plan struct {
	// Complete reports whether everything that was taken away since the backup is known. Otherwise all
	// keys that were not revoked are held, and Doubts say why.
	Complete bool     `json:"complete"`
	Doubts   []string `json:"doubts"`
	// Keys, Members and Workspaces are how many the backup has.
	Keys       int64 `json:"keys"`
	Members    int64 `json:"members"`
	Workspaces int64 `json:"workspaces"`
	// NarrowedKeys and the others are how many records lose something again. Held is how many keys are
	// held.
	NarrowedKeys       int64 `json:"narrowed_keys"`
	NarrowedMembers    int64 `json:"narrowed_members"`
	NarrowedWorkspaces int64 `json:"narrowed_workspaces"`
	PolicyNarrowed     bool  `json:"policy_narrowed"`
	Held               int64 `json:"held_keys"`
	// Events is how many events the sink has since the backup, and CreatedKeys how many of them have
	// created a key, which is lost.
	Events      int64 `json:"events_since"`
	CreatedKeys int64 `json:"created_keys_lost"`
	// Narrowed are the records that lose something again, and Lost what was added to them since, which
	// is not made again. Each has at most 1,000 lines, and counts say how many more there are.
	Narrowed     []Line `json:"narrowed"`
	NarrowedMore int64  `json:"narrowed_more"`
	Lost         []Line `json:"lost"`
	LostMore     int64  `json:"lost_more"`

	options       Options
	active        *policy.Policy
	policyUnclear bool
	holds         bool // a key is held for another reason than this restore
	policy        *storage.Change
	workspaces    map[string]*workspacePlan
	heads         map[string]storage.Head
	position      storage.Position
}

// Line is one record of a list.
type Line struct {
	// WorkspaceID is empty for the policy. KeyID and MemberID are set for keys and members.
	WorkspaceID string `json:"workspace_id,omitempty"`
	KeyID       string `json:"key_id,omitempty"`
	MemberID    string `json:"member_id,omitempty"`
	// What are the things that were taken away or added.
	What []string `json:"what"`
}

// workspacePlan is what happens in one workspace.
type workspacePlan struct {
	own     *altered[*storagev1.WorkspaceRecord]
	members []altered[*storagev1.MemberRecord]
	keys    []altered[*storagev1.KeyRecord]
	// held are the ids of keys that are held and lose nothing else.
	held []string
	// workspace and standings are the workspace and its members as they will be.
	workspace *storagev1.WorkspaceRecord
	standings map[string]standing
	// unclear is set if all keys of the workspace are held.
	unclear bool
}

// altered is a record before and after.
type altered[T any] struct{ before, after T }

// standing is what the keys of a member depend on.
type standing struct {
	incarnation string
	removed     bool
	// unclear is set if the keys of the member are held.
	unclear bool
}

// ErrNewerTime is returned if the backup or the sink is of a time that has not come: the clock is wrong.
var ErrNewerTime = errors.New("the clock is behind the newest change: set it right first")

// Make plans a restore.
func Make(ctx context.Context, backup Records, since *Since, options Options) (*Plan, error) {
	options.Now = options.Now.UTC().Truncate(time.Microsecond)
	if options.Random == nil {
		options.Random = rand.Reader
	}
	p := &Plan{
		Events: since.Lines, CreatedKeys: since.created, options: options, active: &policy.Policy{},
		Narrowed: []Line{}, Lost: []Line{},
		workspaces: make(map[string]*workspacePlan), heads: make(map[string]storage.Head),
	}
	for _, line := range since.lost {
		p.note(line, outcome{widened: []string{"created"}})
	}
	p.LostMore += since.created - int64(len(since.lost))
	// The heads come before the keys: only then is it known whether the events follow on the backup.
	judge := sync.OnceFunc(func() { p.judge(since) })
	position, err := backup.Load(ctx, func(item storage.Item) error {
		switch {
		case item.Damaged != nil:
			return item.Damaged.Err
		case item.Policy != nil:
			return p.takePolicy(item.Policy, since)
		case item.Workspace != nil:
			p.takeWorkspace(item.Workspace, since)
		case item.Member != nil:
			p.takeMember(item.Member, since)
		case item.Head != nil:
			p.heads[item.Head.WorkspaceID] = item.Head.Head
		case item.Key != nil:
			judge()
			return p.takeKey(item.Key, since)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	judge()
	if position.Time.After(options.Now) || since.LastTime.After(options.Now) {
		return nil, ErrNewerTime
	}
	p.position = position
	return p, nil
}

// judge decides whether everything is known that was taken away.
func (p *Plan) judge(since *Since) {
	since.checkFirst(p.heads)
	if since.IsWhole() && !p.options.SinkIsComplete {
		since.doubt("the last lines of the sink may be missing: nobody has said that it is complete")
	}
	if p.policyUnclear {
		since.doubt("the policy after the backup is not known in full")
	}
	p.Complete, p.Doubts = since.IsWhole(), append([]string{}, since.Doubts...)
	if since.More > 0 {
		p.Doubts = append(p.Doubts, fmt.Sprintf("%d more", since.More))
	}
}

// Holds reports whether the restored store may have keys that are held.
func (p *Plan) Holds() bool { return p.Held > 0 || p.holds }

// Position returns how far the backup had come.
func (p *Plan) Position() storage.Position { return p.position }

// note lists what became of a record.
func (p *Plan) note(line Line, o outcome) {
	add := func(list *[]Line, more *int64, what []string) {
		switch {
		case len(what) == 0:
		case len(*list) < maxListed:
			line.What = what
			*list = append(*list, line)
		default:
			*more++
		}
	}
	add(&p.Narrowed, &p.NarrowedMore, o.narrowed)
	add(&p.Lost, &p.LostMore, o.widened)
}

// workspace returns the plan of a workspace.
func (p *Plan) workspace(id string) *workspacePlan {
	found := p.workspaces[id]
	if found == nil {
		found = &workspacePlan{standings: make(map[string]standing)}
		p.workspaces[id] = found
	}
	return found
}

func (p *Plan) takePolicy(stored *storagev1.PolicyRecord, since *Since) error {
	wanted, retired, o, err := narrowPolicy(stored, since.policy)
	if err != nil {
		return err
	}
	p.active, p.policyUnclear, p.PolicyNarrowed = wanted, o.unclear, len(o.narrowed) > 0
	p.note(Line{}, o)
	if !p.PolicyNarrowed && slices.Equal(retired, stored.GetRetiredScopes()) {
		return nil
	}
	had, err := policy.Parse("the policy of the backup", stored.GetDocument())
	if err != nil {
		return err
	}
	event := p.event("")
	event.Fields = audit.PolicyFields(had, wanted, stored.GetRetiredScopes(), retired)
	p.policy = &storage.Change{
		Event: event, Kind: storagev1.FeedKind_FEED_KIND_POLICY, Narrows: true,
		PutPolicy: &storagev1.PolicyRecord{Document: wanted.Document(), RetiredScopes: retired, ApplyTime: timestamppb.New(p.options.Now)},
	}
	return nil
}

func (p *Plan) takeWorkspace(stored *storagev1.WorkspaceRecord, since *Since) {
	p.Workspaces++
	plan := p.workspace(stored.GetWorkspaceId())
	plan.workspace = stored
	known := since.workspaces[stored.GetWorkspaceId()]
	if known == nil {
		return
	}
	record, o := narrowWorkspace(stored, known.own)
	plan.workspace, plan.unclear = record, o.unclear
	p.note(Line{WorkspaceID: stored.GetWorkspaceId()}, o)
	if !proto.Equal(record, stored) {
		p.NarrowedWorkspaces++
		plan.own = &altered[*storagev1.WorkspaceRecord]{stored, record}
	}
}

func (p *Plan) takeMember(stored *storagev1.MemberRecord, since *Since) {
	p.Members++
	var events []*alteration
	if known := since.workspaces[stored.GetWorkspaceId()]; known != nil {
		events = known.members[stored.GetMemberId()]
	}
	plan := p.workspace(stored.GetWorkspaceId())
	record, o := narrowMember(stored, events, p.active)
	plan.standings[stored.GetMemberId()] = standing{
		incarnation: stored.GetIncarnation(), unclear: o.unclear,
		removed: record.GetState() == storagev1.MemberRecordState_MEMBER_RECORD_STATE_REMOVED,
	}
	p.note(Line{WorkspaceID: stored.GetWorkspaceId(), MemberID: stored.GetMemberId()}, o)
	if !proto.Equal(record, stored) {
		p.NarrowedMembers++
		plan.members = append(plan.members, altered[*storagev1.MemberRecord]{stored, record})
	}
}

func (p *Plan) takeKey(stored *storagev1.KeyRecord, since *Since) error {
	p.Keys++
	plan := p.workspace(stored.GetWorkspaceId())
	record, unclear := stored, false
	if known := since.workspaces[stored.GetWorkspaceId()]; known != nil && len(known.keys[stored.GetKeyId()]) > 0 {
		narrowed, err := narrowKey(stored, known.keys[stored.GetKeyId()], func() ([]byte, error) {
			hash := make([]byte, 32)
			_, err := io.ReadFull(p.options.Random, hash)
			return hash, err
		})
		if err != nil {
			return err
		}
		record, unclear = narrowed.record, narrowed.unclear
		p.note(Line{WorkspaceID: stored.GetWorkspaceId(), KeyID: stored.GetKeyId()}, narrowed.outcome)
	}
	p.holds = p.holds || record.GetHoldTime() != nil
	changed := !proto.Equal(record, stored)
	if changed {
		p.NarrowedKeys++
	}
	if record.GetHoldTime() == nil && p.mustHold(plan, record, unclear) {
		p.Held++
		if !changed {
			plan.held = append(plan.held, record.GetKeyId())
			return nil
		}
		record.HoldTime = timestamppb.New(p.options.Now)
	}
	if changed {
		plan.keys = append(plan.keys, altered[*storagev1.KeyRecord]{stored, record})
	}
	return nil
}

// mustHold reports whether a key is held. A key that can never work again need not be. An expired key
// is held as others are: the clock may be wrong.
func (p *Plan) mustHold(plan *workspacePlan, key *storagev1.KeyRecord, unclear bool) bool {
	member, known := plan.standings[key.GetMemberId()]
	workspace := plan.workspace
	if key.GetRevokeTime() != nil || workspace.GetRemoveTime() != nil || workspace.GetIncarnation() != key.GetWorkspaceIncarnation() ||
		!known || member.removed || member.incarnation != key.GetMemberIncarnation() {
		return false
	}
	return !p.Complete || unclear || member.unclear || plan.unclear
}
