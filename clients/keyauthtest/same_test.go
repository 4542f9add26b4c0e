package keyauthtest_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/internal/validatortest"
	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	"github.com/scribe-mail/keysvc/internal/race"
	"github.com/scribe-mail/keysvc/internal/server/servertest"
)

var (
	operations = flag.Int("operations", race.Rounds(1500, 300), "how many changes TestValidatorAnswersAsKeysvcDoes makes")
	seed       = flag.Uint64("seed", 1, "what its chance begins with")
)

// both is a keysvc and the Validator in memory. Each change is made to both.
type both struct {
	t       *testing.T
	random  *rand.Rand
	now     time.Time
	real    *validatortest.Keysvc
	memory  backend
	members map[[2]string]*bothMember
	keys    []*bothKey
	tokens  [][2]string // of the keysvc, and in memory
}

type bothMember struct {
	role            string
	active, removed bool
}

type bothKey struct {
	workspace string
	member    *bothMember
	ids       [2]string
	revoked   bool
	// expires is when the key ends, and overlap when its overlap ends.
	expires, overlap time.Time
}

// TestValidatorAnswersAsKeysvcDoes makes the same random changes to a real keysvc and to the
// Validator in memory, and asks both the same questions.
func TestValidatorAnswersAsKeysvcDoes(t *testing.T) {
	clock := servertest.NewClock(time.Date(2027, time.March, 1, 12, 0, 0, 0, time.UTC))
	keysvc := servertest.Start(t, servertest.Options{Now: clock.Now})
	client, err := keyclient.New(keysvc.Address, keyclient.Config{WithoutNearCache: true, AllowPlaintext: true, ValidationTimeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	b := &both{
		t: t, random: rand.New(rand.NewPCG(*seed, 0)), now: clock.Now(), memory: newBackend(t), members: make(map[[2]string]*bothMember),
		real: &validatortest.Keysvc{Under: client, Keys: keysvc.Keys, Members: keysvc.Members, Clock: clock},
	}
	answers := make(map[string]int)
	for range *operations {
		b.change()
		for range 3 {
			answers[b.ask()]++
		}
	}
	t.Logf("seed %d: %d keys, answers: %v", *seed, len(b.keys), answers)
	if len(answers) < 10 {
		t.Errorf("only %d kinds of answers", len(answers))
	}
}

func pick[T any](random *rand.Rand, from ...T) T { return from[random.IntN(len(from))] }

// change makes one change.
func (b *both) change() {
	workspace, id := pick(b.random, "w1", "w2"), pick(b.random, "ann", "bob", "cy")
	member := b.members[[2]string{workspace, id}]
	switch b.random.IntN(10) {
	case 0, 1:
		role := pick(b.random, "owner", "owner", "manager", "member")
		b.real.PutMember(b.t, workspace, id, role)
		b.memory.PutMember(b.t, workspace, id, role)
		if member == nil || member.removed {
			member = &bothMember{}
			b.members[[2]string{workspace, id}] = member
		}
		member.role, member.active = role, true
	case 2:
		if member == nil || member.removed {
			return
		}
		if b.random.IntN(4) == 0 {
			b.real.RemoveMember(b.t, workspace, id)
			b.memory.RemoveMember(b.t, workspace, id)
			member.removed, member.active = true, false
			return
		}
		b.real.SuspendMember(b.t, workspace, id, member.role)
		b.memory.SuspendMember(b.t, workspace, id, member.role)
		member.active = false
	case 3, 4, 5:
		b.create(workspace, id, member)
	case 6:
		passed := time.Duration(b.random.Int64N(int64(48 * time.Hour)))
		b.now = b.now.Add(passed)
		b.real.Advance(passed)
		b.memory.Advance(passed)
	default:
		b.changeKey()
	}
}

// create creates a key of a member who may have one.
func (b *both) create(workspace, id string, member *bothMember) {
	if member == nil || !member.active || len(validatortest.Roles[member.role]) == 0 {
		return
	}
	scopes := append([]string(nil), validatortest.Roles[member.role]...)
	b.random.Shuffle(len(scopes), func(i, j int) { scopes[i], scopes[j] = scopes[j], scopes[i] })
	lifetime := 24*time.Hour + time.Duration(b.random.Int64N(int64(30*24*time.Hour)))
	key := validatortest.Key{WorkspaceID: workspace, MemberID: id, Scopes: scopes[:1+b.random.IntN(len(scopes))], Lifetime: lifetime}
	if b.random.IntN(3) == 0 {
		key.AllowedCIDRs = []string{"192.0.2.0/24", "2001:db8::/32"}
	}
	realID, realToken := b.real.CreateKey(b.t, key)
	memoryID, memoryToken := b.memory.CreateKey(b.t, key)
	b.keys = append(b.keys, &bothKey{workspace: workspace, member: member, ids: [2]string{realID, memoryID}, expires: b.now.Add(lifetime)})
	b.tokens = append(b.tokens, [2]string{realToken, memoryToken})
}

// changeKey revokes or rotates a random live key.
func (b *both) changeKey() {
	if len(b.keys) == 0 {
		return
	}
	key := b.keys[b.random.IntN(len(b.keys))]
	if key.revoked || key.member.removed || !b.now.Before(key.expires) {
		return
	}
	if b.random.IntN(3) == 0 {
		b.real.RevokeKey(b.t, key.workspace, key.ids[0])
		b.memory.RevokeKey(b.t, key.workspace, key.ids[1])
		key.revoked = true
		return
	}
	overlap := time.Duration(0)
	if !b.now.Before(key.overlap) {
		overlap = time.Duration(b.random.IntN(3)) * time.Hour
	}
	b.tokens = append(b.tokens, [2]string{
		b.real.RotateKey(b.t, key.workspace, key.ids[0], overlap), b.memory.RotateKey(b.t, key.workspace, key.ids[1], overlap),
	})
	key.overlap = b.now.Add(overlap)
}

// ask asks both a question, and returns the answers.
func (b *both) ask() string {
	tokens := [2]string{"nonsense", "nonsense"}
	if len(b.tokens) > 0 && b.random.IntN(20) > 0 {
		// The newest tokens are the ones that may work.
		tokens = b.tokens[max(0, len(b.tokens)-1-b.random.IntN(1+b.random.IntN(len(b.tokens))))]
	}
	question := keyauth.Question{
		Requirement: pick(b.random, keyauth.Scope("signatures:read"), keyauth.Scope("signatures:write"), keyauth.Scope("financial_documents:read"),
			keyauth.IdentityOnly(), keyauth.Scope(validatortest.UnknownScope), keyauth.Public()),
		WorkspaceID:   pick(b.random, "", "", "", "w1", "w2"),
		ClientAddress: pick(b.random, netip.Addr{}, netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("::ffff:192.0.2.7"), netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")),
	}
	var said [2]string
	for index, validator := range []keyauth.Validator{b.real.Validator(), b.memory.Validator()} {
		question.Token = tokens[index]
		answer, err := validator.Validate(b.t.Context(), question)
		said[index] = fmt.Sprintf("%s %s", answer.Decision, answer.Reason)
		if answer.Principal != nil {
			said[index] += fmt.Sprintf(" %s/%s as %s", answer.Principal.WorkspaceID, answer.Principal.MemberID, answer.Principal.Role)
		}
		if err != nil {
			said[index] = status.Code(err).String()
		}
	}
	if said[0] != said[1] {
		b.t.Fatalf("seed %d: %s in %q from %s: keysvc says %s, memory %s",
			*seed, question.Requirement, question.WorkspaceID, question.ClientAddress, said[0], said[1])
	}
	return said[0]
}
