package main_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// The model that the kill -9 test compares keysvc with. Each worker has members and keys of its
// own, so the answers that it got decide what the store must hold. Some workspaces are shared, so
// the store sees many changes of one workspace at the same time.

// model is what one worker knows. A change makes a new model and leaves the old one unchanged.
type model struct {
	// prefix begins all names that the worker gives.
	prefix     string
	workspaces []workspaceModel
	members    []memberModel
	keys       []keyModel
}

// workspaceModel is one workspace. Only workspaces that are not shared are removed.
type workspaceModel struct {
	id      string
	own     bool
	removed int // how often it was removed
}

// memberModel is one member.
type memberModel struct {
	workspace int // its index
	id        string
	role      string
	suspended bool
	// there is set while the member exists, ever once it has existed. since grows each time
	// that a member with this id is added, and tells those members apart.
	there, ever bool
	since       int
}

// keyModel is one key.
type keyModel struct {
	member int // its index
	since  int // its member's
	// name is unique, in this model and in all others.
	name    string
	id      string // empty until the answer is known
	scopes  []string
	revoked bool
	// live are the tokens that work, newest first; "" stands for a token whose answer was
	// lost. ended are the tokens that no longer work.
	live, ended []string
}

func (m *model) clone() *model {
	return &model{
		prefix:     m.prefix,
		workspaces: slices.Clone(m.workspaces),
		members:    slices.Clone(m.members),
		keys:       slices.Clone(m.keys),
	}
}

func (m *model) workspaceOf(key *keyModel) string {
	return m.workspaces[m.members[key.member].workspace].id
}

// dead reports whether a key is revoked, or counts as revoked.
func (m *model) dead(key *keyModel) bool {
	member := &m.members[key.member]
	return key.revoked || !member.there || member.since != key.since
}

// state returns the key's state as keysvc shows it.
func (m *model) state(key *keyModel) keysvcv1.KeyState {
	switch {
	case m.dead(key):
		return keysvcv1.KeyState_KEY_STATE_REVOKED
	case m.members[key.member].suspended:
		return keysvcv1.KeyState_KEY_STATE_SUSPENDED
	}
	return keysvcv1.KeyState_KEY_STATE_ACTIVE
}

// decision returns the decision on a token of the key, in words.
func (m *model) decision(key *keyModel, token, scope string) string {
	switch {
	case !slices.Contains(key.live, token):
		return "UNAUTHENTICATED KEY_INVALID"
	case m.dead(key):
		return "UNAUTHENTICATED KEY_REVOKED"
	case m.members[key.member].suspended:
		return "UNAUTHENTICATED MEMBER_INACTIVE"
	case !slices.Contains(key.scopes, scope):
		return "PERMISSION_DENIED SCOPE_NOT_GRANTED"
	case !may(m.members[key.member].role, scope):
		return "PERMISSION_DENIED SCOPE_BEYOND_ROLE"
	}
	return "ALLOWED"
}

// stored is everything that keysvc shows.
type stored struct {
	members map[string]*keysvcv1.Member // by workspace and id
	keys    map[string]*keysvcv1.Key    // by name
	owned   map[string]int              // how many keys each worker has, by the front of their names
}

// differs returns how the model differs from what is stored; "" if they are equal.
func (m *model) differs(from *stored) string {
	for _, member := range m.members {
		name := m.workspaces[member.workspace].id + "/" + member.id
		found := from.members[name]
		switch want := member.state(); {
		case found == nil && member.ever:
			return fmt.Sprintf("member %s is missing", name)
		case found == nil:
		case !member.ever:
			return fmt.Sprintf("member %s is there and was never added", name)
		case found.GetState() != want || member.there && found.GetRole() != member.role:
			return fmt.Sprintf("member %s is %s, %s; want %s, %s", name, found.GetState(), found.GetRole(), want, member.role)
		}
	}
	if owned := from.owned[m.prefix]; owned != len(m.keys) {
		return fmt.Sprintf("%d keys are stored, %d were created", owned, len(m.keys))
	}
	for index := range m.keys {
		key := &m.keys[index]
		found := from.keys[key.name]
		switch {
		case found == nil:
			return fmt.Sprintf("key %s %s is missing", key.name, key.id)
		case key.id != "" && found.GetKeyId() != key.id:
			return fmt.Sprintf("key %s has the id %s, want %s", key.name, found.GetKeyId(), key.id)
		case found.GetWorkspaceId() != m.workspaceOf(key), found.GetMemberId() != m.members[key.member].id,
			found.GetState() != m.state(key), !slices.Equal(found.GetScopes(), key.scopes), len(found.GetSecrets()) != len(key.live):
			return fmt.Sprintf("key %s is %v; want %s with %q and %d secrets", key.name, found, m.state(key), key.scopes, len(key.live))
		}
	}
	return ""
}

func (m *memberModel) state() keysvcv1.MemberState {
	switch {
	case !m.there:
		return keysvcv1.MemberState_MEMBER_STATE_REMOVED
	case m.suspended:
		return keysvcv1.MemberState_MEMBER_STATE_SUSPENDED
	}
	return keysvcv1.MemberState_MEMBER_STATE_ACTIVE
}

// attempt is one call that a worker makes.
type attempt struct {
	what string
	// call makes the call. On success it returns a function that adds to the model what only
	// the answer tells; nil if there is nothing to add.
	call func(ctx context.Context, s *serving) (complete func(*model), err error)
	// effect changes a model as the call changes the store; nil for reads.
	effect func(*model)
}

// operation is a kind of change, or a validation.
type operation struct {
	name   string
	weight int
	// choose returns an attempt, or nil if the model has nothing that fits.
	choose func(w *worker, m *model) *attempt
}

// operations are all kinds, with how often each comes.
var operations = []operation{
	{"create", 30, (*worker).create},
	{"revoke", 10, (*worker).revoke},
	{"revoke by token", 3, (*worker).revokeToken},
	{"update", 8, (*worker).update},
	{"rotate", 12, (*worker).rotate},
	{"finish rotation", 6, (*worker).finishRotation},
	{"put member", 15, (*worker).putMember},
	{"remove member", 2, (*worker).removeMember},
	{"remove workspace", 1, (*worker).removeWorkspace},
	{"validate", 40, (*worker).validate},
}

// worker makes one call after the other.
type worker struct {
	number int
	random *rand.Rand
	names  int
	// models are the possible states of the store: one, or two after a call with an unknown
	// outcome.
	models []*model
	// counts are how many attempts of each operation were acknowledged.
	counts map[string]int
}

const (
	sharedWorkspaces = 2
	// mostLive bounds the live keys of a worker, so that no workspace reaches its limit.
	mostLive = 150
)

var crashScopes = []string{"assets:delete", "emails:write", "financial_documents:read", "signatures:read"}

func newWorker(number int, seed uint64) *worker {
	m := &model{
		prefix: fmt.Sprintf("w%d-", number),
		workspaces: []workspaceModel{
			{id: fmt.Sprintf("own-%d", number), own: true},
			{id: fmt.Sprintf("shared-%d", number%sharedWorkspaces)},
		},
	}
	for workspace := range m.workspaces {
		for member := range 3 {
			m.members = append(m.members, memberModel{workspace: workspace, id: fmt.Sprintf("m%d-%d", number, member)})
		}
	}
	return &worker{
		number: number,
		random: rand.New(rand.NewPCG(seed, uint64(number))),
		models: []*model{m},
		counts: make(map[string]int),
	}
}

// pick returns the index of a random element that is fit, or -1 if no element is.
func pick[T any](random *rand.Rand, list []T, fit func(*T) bool) int {
	if len(list) == 0 {
		return -1
	}
	first := random.IntN(len(list))
	for offset := range list {
		if index := (first + offset) % len(list); fit(&list[index]) {
			return index
		}
	}
	return -1
}

// step makes one call. It returns errLost if the outcome is not known, and another error if the
// answer does not fit the model.
func (w *worker) step(ctx context.Context, s *serving) error {
	m := w.models[0]
	total := 0
	for _, operation := range operations {
		total += operation.weight
	}
	var chosen *attempt
	var kind string
	for chosen == nil {
		number := w.random.IntN(total)
		for _, operation := range operations {
			if number -= operation.weight; number < 0 {
				kind, chosen = operation.name, operation.choose(w, m)
				break
			}
		}
	}
	complete, err := chosen.call(ctx, s)
	if err == nil {
		w.counts[kind]++
		if chosen.effect != nil {
			next := m.clone()
			chosen.effect(next)
			if complete != nil {
				complete(next)
			}
			w.models = []*model{next}
		}
		return nil
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.Unknown, codes.Canceled, codes.DeadlineExceeded:
	default:
		return fmt.Errorf("worker %d, %s: %w", w.number, chosen.what, err)
	}
	if wrong := (*wrongDecisionError)(nil); errors.As(err, &wrong) {
		return fmt.Errorf("worker %d, %s: %w", w.number, chosen.what, err)
	}
	if chosen.effect != nil {
		next := m.clone()
		chosen.effect(next)
		w.models = []*model{m, next}
	}
	return errLost
}

var errLost = errors.New("the connection was lost")

// wrongDecisionError is the error of a decision that contradicts an acknowledged change.
type wrongDecisionError struct{ got, want string }

func (e *wrongDecisionError) Error() string { return fmt.Sprintf("got %s, want %s", e.got, e.want) }

// resolve drops the models that differ from what is stored, and takes from it the ids of keys
// whose answers were lost. It fails if no model is left. decide asks about a token.
func (w *worker) resolve(found *stored, decide func(token, scope string) string) error {
	var differences []string
	for _, m := range w.models {
		difference := m.differs(found)
		if difference == "" && len(w.models) > 1 {
			difference = m.misjudges(w.models, decide)
		}
		if difference != "" {
			differences = append(differences, difference)
			continue
		}
		m = m.clone()
		for index := range m.keys {
			m.keys[index].id = found.keys[m.keys[index].name].GetKeyId()
		}
		w.models = []*model{m}
		return nil
	}
	return fmt.Errorf("worker %d: %s", w.number, strings.Join(differences, "; or, had the last call taken effect, "))
}

// misjudges returns a token that the models disagree on and for which keysvc decides differently
// from this model; "" if there is no such token. Nothing else shows a rotation without overlap.
func (m *model) misjudges(models []*model, decide func(token, scope string) string) string {
	const scope = "signatures:read"
	for index := range m.keys {
		key := &m.keys[index]
		for _, token := range key.tokens() {
			want, disputed := m.decision(key, token, scope), false
			for _, other := range models {
				disputed = disputed || index < len(other.keys) && other.decision(&other.keys[index], token, scope) != want
			}
			if !disputed {
				continue
			}
			if got := decide(token, scope); got != want {
				return fmt.Sprintf("a token of key %s got %s, want %s", key.name, got, want)
			}
		}
	}
	return ""
}

func (w *worker) create(m *model) *attempt {
	live := 0
	for index := range m.keys {
		if !m.dead(&m.keys[index]) {
			live++
		}
	}
	member := pick(w.random, m.members, func(member *memberModel) bool {
		return member.there && !member.suspended && member.role != "member"
	})
	if member < 0 || live >= mostLive {
		return nil
	}
	w.names++
	of := m.members[member]
	key := keyModel{
		member: member, since: of.since, live: []string{""},
		name: fmt.Sprint(m.prefix, w.names), scopes: w.someScopes(of.role),
	}
	return &attempt{
		what:   "create " + key.name,
		effect: func(m *model) { m.keys = append(m.keys, key) },
		call: func(ctx context.Context, s *serving) (func(*model), error) {
			response, err := s.keys.CreateKey(ctx, &keysvcv1.CreateKeyRequest{
				WorkspaceId: m.workspaces[of.workspace].id, MemberId: of.id, Name: key.name, Scopes: key.scopes, RequestId: new(key.name),
			})
			return func(m *model) {
				created := &m.keys[len(m.keys)-1]
				created.id, created.live = response.GetKey().GetKeyId(), []string{response.GetToken()}
			}, err
		},
	}
}

// someScopes returns at least one scope of a role, sorted.
func (w *worker) someScopes(role string) []string {
	var scopes []string
	for _, scope := range crashScopes {
		if may(role, scope) && w.random.IntN(2) == 0 {
			scopes = append(scopes, scope)
		}
	}
	if len(scopes) == 0 {
		scopes = []string{"signatures:read"}
	}
	return scopes
}

// change returns an attempt that changes one key, if one is fit.
func (w *worker) change(m *model, what string, fit func(*keyModel) bool,
	effect func(*keyModel), call func(ctx context.Context, s *serving, workspaceID string, key *keyModel) (func(*keyModel), error),
) *attempt {
	index := pick(w.random, m.keys, fit)
	if index < 0 {
		return nil
	}
	key := &m.keys[index]
	return &attempt{
		what:   what + " " + key.name,
		effect: func(m *model) { effect(&m.keys[index]) },
		call: func(ctx context.Context, s *serving) (func(*model), error) {
			complete, err := call(ctx, s, m.workspaceOf(key), key)
			if complete == nil || err != nil {
				return nil, err
			}
			return func(m *model) { complete(&m.keys[index]) }, nil
		},
	}
}

func (w *worker) revoke(m *model) *attempt {
	return w.change(m, "revoke", func(key *keyModel) bool { return !key.revoked },
		func(key *keyModel) { key.revoked = true },
		func(ctx context.Context, s *serving, workspaceID string, key *keyModel) (func(*keyModel), error) {
			_, err := s.keys.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: workspaceID, KeyId: key.id})
			return nil, err
		})
}

func (w *worker) revokeToken(m *model) *attempt {
	return w.change(m, "revoke by token", func(key *keyModel) bool { return !key.revoked && key.live[len(key.live)-1] != "" },
		func(key *keyModel) { key.revoked = true },
		func(ctx context.Context, s *serving, _ string, key *keyModel) (func(*keyModel), error) {
			_, err := s.keys.RevokeToken(ctx, &keysvcv1.RevokeTokenRequest{Token: key.live[len(key.live)-1]})
			return nil, err
		})
}

func (w *worker) update(m *model) *attempt {
	w.names++
	name := fmt.Sprint(m.prefix, w.names)
	var scopes []string
	return w.change(m, "update to "+name+" of",
		func(key *keyModel) bool {
			role := m.members[key.member].role
			if m.dead(key) || role == "member" {
				return false
			}
			scopes = w.someScopes(role)
			return true
		},
		func(key *keyModel) { key.name, key.scopes = name, scopes },
		func(ctx context.Context, s *serving, workspaceID string, key *keyModel) (func(*keyModel), error) {
			_, err := s.keys.UpdateKey(ctx, &keysvcv1.UpdateKeyRequest{
				Key:        &keysvcv1.Key{WorkspaceId: workspaceID, KeyId: key.id, Name: name, Scopes: scopes},
				UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name", "scopes"}},
			})
			return nil, err
		})
}

func (w *worker) rotate(m *model) *attempt {
	w.names++
	requestID := fmt.Sprintf("r%d-%d", w.number, w.names)
	overlap := w.random.IntN(2) == 0
	return w.change(m, fmt.Sprintf("rotate, overlap %t,", overlap),
		func(key *keyModel) bool { return !m.dead(key) && (!overlap || len(key.live) == 1) },
		func(key *keyModel) {
			key.ended, key.live = slices.Clone(key.ended), slices.Clone(key.live)
			if !overlap {
				key.ended, key.live = append(key.ended, key.live...), nil
			}
			key.live = append([]string{""}, key.live...)
		},
		func(ctx context.Context, s *serving, workspaceID string, key *keyModel) (func(*keyModel), error) {
			request := &keysvcv1.RotateKeyRequest{WorkspaceId: workspaceID, KeyId: key.id, Overlap: durationpb.New(0), RequestId: &requestID}
			if overlap {
				request.Overlap = durationpb.New(24 * time.Hour)
			}
			response, err := s.keys.RotateKey(ctx, request)
			return func(key *keyModel) { key.live[0] = response.GetToken() }, err
		})
}

func (w *worker) finishRotation(m *model) *attempt {
	return w.change(m, "finish rotation", func(key *keyModel) bool { return !m.dead(key) && len(key.live) == 2 },
		func(key *keyModel) {
			key.ended, key.live = append(slices.Clone(key.ended), key.live[1]), slices.Clone(key.live[:1])
		},
		func(ctx context.Context, s *serving, workspaceID string, key *keyModel) (func(*keyModel), error) {
			_, err := s.keys.FinishRotation(ctx, &keysvcv1.FinishRotationRequest{WorkspaceId: workspaceID, KeyId: key.id})
			return nil, err
		})
}

// putMember adds a member, or changes role or state of one.
func (w *worker) putMember(m *model) *attempt {
	index := w.random.IntN(len(m.members))
	member := m.members[index]
	member.role = roles[w.random.IntN(len(roles))]
	member.suspended = w.random.IntN(3) == 0
	if !member.there {
		member.there, member.ever = true, true
		member.since++
	}
	return &attempt{
		what:   fmt.Sprintf("put member %s as %s, suspended %t,", member.id, member.role, member.suspended),
		effect: func(m *model) { m.members[index] = member },
		call: func(ctx context.Context, s *serving) (func(*model), error) {
			_, err := s.members.PutMember(ctx, &keysvcv1.PutMemberRequest{
				WorkspaceId: m.workspaces[member.workspace].id, MemberId: member.id, Role: member.role, State: member.state(),
			})
			return nil, err
		},
	}
}

func (w *worker) removeMember(m *model) *attempt {
	index := pick(w.random, m.members, func(member *memberModel) bool { return member.there })
	if index < 0 {
		return nil
	}
	member := m.members[index]
	return &attempt{
		what:   "remove member " + member.id,
		effect: func(m *model) { m.members[index].there = false },
		call: func(ctx context.Context, s *serving) (func(*model), error) {
			_, err := s.members.RemoveMember(ctx, &keysvcv1.RemoveMemberRequest{
				WorkspaceId: m.workspaces[member.workspace].id, MemberId: member.id,
			})
			return nil, err
		},
	}
}

func (w *worker) removeWorkspace(m *model) *attempt {
	index := pick(w.random, m.workspaces, func(workspace *workspaceModel) bool { return workspace.own })
	return &attempt{
		what: "remove workspace " + m.workspaces[index].id,
		effect: func(m *model) {
			m.workspaces[index].removed++
			for member := range m.members {
				if m.members[member].workspace == index {
					m.members[member].there = false
				}
			}
		},
		call: func(ctx context.Context, s *serving) (func(*model), error) {
			_, err := s.members.RemoveWorkspace(ctx, &keysvcv1.RemoveWorkspaceRequest{WorkspaceId: m.workspaces[index].id})
			return nil, err
		},
	}
}

// validate asks about a token. The decision must reflect every change acknowledged before.
func (w *worker) validate(m *model) *attempt {
	index := pick(w.random, m.keys, func(key *keyModel) bool { return len(key.tokens()) > 0 })
	if index < 0 {
		return nil
	}
	key := &m.keys[index]
	tokens := key.tokens()
	token, scope := tokens[w.random.IntN(len(tokens))], crashScopes[w.random.IntN(len(crashScopes))]
	return &attempt{
		what: "validate " + key.name,
		call: func(ctx context.Context, s *serving) (func(*model), error) {
			response, err := s.validation.ValidateKey(ctx, &keysvcv1.ValidateKeyRequest{Token: token, RequiredScope: scope, WorkspaceId: m.workspaceOf(key)})
			if got, want := inWords(response), m.decision(key, token, scope); err == nil && got != want {
				return nil, &wrongDecisionError{got: got, want: want}
			}
			return nil, err
		},
	}
}

// tokens returns the tokens that are known.
func (k *keyModel) tokens() []string {
	return slices.DeleteFunc(slices.Concat(k.live, k.ended), func(token string) bool { return token == "" })
}
