package restore_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/audit"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/race"
	"github.com/scribe-mail/keysvc/internal/server"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
	"github.com/scribe-mail/keysvc/internal/token"
)

var (
	restores = flag.Int("restores", 0, "how many random histories TestNothingNarrowedComesBack restores")
	seed     = flag.Uint64("restore-seed", 1, "the first seed of TestNothingNarrowedComesBack")
)

var anybody = audit.Actor{Caller: "test", Workspaces: access.All()}

const (
	members    = 3
	workspaces = 2
)

// served is a store that is being served, by a Manager and a projection.
type served struct {
	t       *testing.T
	store   *boltstore.Store
	records *projection.Projection
	manager *keys.Manager
	stop    func()
}

// world makes a random history.
type world struct {
	*served
	random *rand.Rand
	now    time.Time
	// clock is now in Unix nanoseconds, for the goroutines of the store.
	clock  atomic.Int64
	folder string
	sink   string
	tokens []token.Token
	// scopes and addresses are asked for with each token.
	scopes    []string
	addresses []netip.Addr
	// kept are the questions that were ALLOWED in the backup and after each change since; nil before
	// the backup.
	kept map[string]bool
	log  []string
}

func serve(t *testing.T, file string, config boltstore.Config, now func() time.Time) *served {
	t.Helper()
	config.Reserve, config.SinkReserve, config.Now, config.Create = -1, -1, now, boltstore.CreateIfAbsent
	store, err := boltstore.Open(file, config)
	if err != nil {
		t.Fatal(err)
	}
	records := projection.New(store, nil)
	if _, err := records.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var follower sync.WaitGroup
	follower.Go(func() { _ = records.Follow(ctx) })
	return &served{
		t: t, store: store, records: records, manager: keys.New(keys.Config{Store: store, Projection: records, Now: now}),
		stop: sync.OnceFunc(func() {
			cancel()
			follower.Wait()
			if err := store.Close(); err != nil {
				t.Error(err)
			}
		}),
	}
}

func newWorld(t *testing.T, seed uint64) *world {
	t.Helper()
	w := &world{
		random: rand.New(rand.NewPCG(seed, 0)), now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), folder: t.TempDir(),
		scopes:    append(policy.Default().Scopes(), ""),
		addresses: []netip.Addr{{}, netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("10.9.9.9"), netip.MustParseAddr("192.0.2.1")},
	}
	w.sink = filepath.Join(w.folder, "audit.jsonl")
	w.clock.Store(w.now.UnixNano())
	w.served = serve(t, filepath.Join(w.folder, "keysvc.db"), boltstore.Config{Sink: w.sink}, w.time)
	if _, err := w.manager.InstallPolicy(t.Context(), anybody, policy.Default()); err != nil {
		t.Fatal(err)
	}
	for _, workspace := range []string{"w0", "w1"} {
		for _, member := range []string{"m0", "m1", "m2"} {
			spec := keys.MemberSpec{WorkspaceID: workspace, MemberID: member, Role: "admin", State: keys.MemberActive}
			if _, _, err := w.manager.PutMember(t.Context(), anybody, spec); err != nil {
				t.Fatal(err)
			}
		}
	}
	return w
}

func (w *world) time() time.Time { return time.Unix(0, w.clock.Load()).UTC() }

// allowed returns the questions that are ALLOWED at a time.
func (s *served) allowed(w *world, at time.Time) map[string]bool {
	found := make(map[string]bool)
	for index, secret := range w.tokens {
		subject := s.records.Find(secret.ID())
		if subject.Damaged != nil {
			s.t.Errorf("damaged: %v", subject.Damaged)
		}
		grant, reason := decide.Authenticate(secret.Presented(), subject.Subject(), "", at)
		if reason != decide.NoReason {
			continue
		}
		for _, scope := range w.scopes {
			for _, address := range w.addresses {
				decision, _ := decide.Authorize(&grant, "", decide.Requirement{Scope: scope, IdentityOnly: scope == ""}, address, at)
				if decision == decide.Allowed {
					found[fmt.Sprintf("token %d, key %s, scope %q, address %v", index, secret.ID(), scope, address)] = true
				}
			}
		}
	}
	return found
}

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

// change makes one random change.
func (w *world) change() {
	w.now = w.now.Add(time.Duration(w.random.IntN(int(3 * time.Hour))))
	w.clock.Store(w.now.UnixNano())
	ctx, r := w.t.Context(), w.random
	workspace, member := fmt.Sprintf("w%d", r.IntN(workspaces)), fmt.Sprintf("m%d", r.IntN(members))
	keyID, of := "", workspace
	if len(w.tokens) > 0 {
		keyID = pick(r, w.tokens).ID()
		found := w.records.Find(keyID)
		of = found.Subject().Key.Workspace
	}
	var err error
	what := ""
	switch choice := r.IntN(100); {
	case choice < 20 || keyID == "":
		what = "create"
		var issued *keys.IssuedKey
		spec := keys.KeySpec{WorkspaceID: workspace, MemberID: member, Name: "k", Scopes: w.someScopes(), AllowedCIDRs: w.someCIDRs()}
		if r.IntN(3) == 0 {
			spec.ExpireTime = new(w.now.Add(time.Duration(1+r.IntN(240)) * time.Hour))
		}
		if issued, err = w.manager.CreateKey(ctx, anybody, spec); err == nil {
			w.tokens = append(w.tokens, issued.Token)
			what += " " + issued.Key.ID
		}
	case choice < 45:
		what = "update " + keyID
		mask := []string{pick(r, []string{"scopes", "scopes", "allowed_cidrs", "allowed_cidrs", "name", "labels"})}
		_, _, err = w.manager.UpdateKey(ctx, anybody, keys.KeyUpdate{
			WorkspaceID: of, KeyID: keyID, Mask: mask, Name: fmt.Sprint("n", r.IntN(5)), Scopes: w.someScopes(), AllowedCIDRs: w.someCIDRs(),
			Labels: map[string]string{"l": fmt.Sprint(r.IntN(5))},
		})
		what += fmt.Sprint(" ", mask)
	case choice < 60:
		overlap := pick(r, []time.Duration{0, time.Hour, 24 * time.Hour, 20 * 24 * time.Hour})
		what = fmt.Sprintf("rotate %s %s", keyID, overlap)
		rotation := keys.Rotation{WorkspaceID: of, KeyID: keyID, Overlap: &overlap}
		if r.IntN(4) == 0 {
			rotation.ExpireTime = new(w.now.Add(time.Duration(1+r.IntN(100)) * time.Hour))
		}
		var issued *keys.IssuedKey
		if issued, err = w.manager.RotateKey(ctx, anybody, rotation); err == nil {
			w.tokens = append(w.tokens, issued.Token)
		}
	case choice < 65:
		what = "finish " + keyID
		_, _, err = w.manager.FinishRotation(ctx, anybody, of, keyID)
	case choice < 70:
		what = "revoke " + keyID
		_, _, err = w.manager.RevokeKey(ctx, anybody, of, keyID)
	case choice < 86:
		spec := keys.MemberSpec{WorkspaceID: workspace, MemberID: member, Role: pick(r, []string{"owner", "admin", "admin", "manager", "manager", "member"}), State: keys.MemberActive}
		if r.IntN(5) == 0 {
			spec.State = keys.MemberSuspended
		}
		what = fmt.Sprintf("put %s/%s %s %d", workspace, member, spec.Role, spec.State)
		_, _, err = w.manager.PutMember(ctx, anybody, spec)
	case choice < 91:
		what = "remove " + workspace + "/" + member
		_, err = w.manager.RemoveMember(ctx, anybody, workspace, member, nil)
	case choice < 92:
		what = "remove " + workspace
		_, err = w.manager.RemoveWorkspace(ctx, anybody, workspace, nil)
	case choice < 96:
		what, err = w.applyPolicy()
	default: // nothing but time passes
	}
	if refused := (*problem.Error)(nil); err != nil && !errors.As(err, &refused) {
		w.t.Fatalf("%s: %v", what, err)
	} else if err != nil {
		what += " (refused: " + err.Error() + ")"
	}
	w.log = append(w.log, what)
	if w.kept != nil {
		now := w.allowed(w, w.now)
		for question := range w.kept {
			if !now[question] {
				delete(w.kept, question)
			}
		}
	}
}

func (w *world) someScopes() []string {
	active, _, err := w.records.Policy()
	if err != nil {
		w.t.Fatal(err)
	}
	all := active.Scopes()
	if of, _ := active.RoleScopes("manager"); len(of) > 0 && w.random.IntN(4) > 0 {
		all = of // most members have these
	}
	w.random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:1+w.random.IntN(min(8, len(all)))]
}

func (w *world) someCIDRs() []string {
	if w.random.IntN(3) > 0 {
		return nil
	}
	return pick(w.random, [][]string{{"10.0.0.0/8"}, {"10.1.0.0/16"}, {"10.0.0.0/8", "192.0.2.0/24"}, {"192.0.2.1/32"}})
}

// applyPolicy changes the roles, and sometimes the catalogue.
func (w *world) applyPolicy() (string, error) {
	active, _, err := w.records.Policy()
	if err != nil {
		w.t.Fatal(err)
	}
	wanted, err := policy.Parse("test", active.Document())
	if err != nil {
		w.t.Fatal(err)
	}
	what := "policy "
	switch role := &wanted.Roles[w.random.IntN(len(wanted.Roles))]; w.random.IntN(4) {
	case 0:
		role.Scopes = nil
		what += role.Name + " none"
	case 1, 2:
		role.Scopes = w.someScopes()
		what += fmt.Sprint(role.Name, " ", role.Scopes)
	default:
		if len(wanted.Resources) < 2 {
			return what, nil
		}
		gone := wanted.Resources[w.random.IntN(len(wanted.Resources))].Name
		what += "without " + gone
		var left []policy.Resource
		for _, resource := range wanted.Resources {
			if resource.Name != gone {
				left = append(left, resource)
			}
		}
		wanted.Resources = left
		wanted.Actions = slices.DeleteFunc(wanted.Actions, func(action policy.Action) bool {
			return !slices.ContainsFunc(left, func(resource policy.Resource) bool { return slices.Contains(resource.Actions, action.Name) })
		})
		for index := range wanted.Roles {
			var scopes []string
			for _, scope := range wanted.Roles[index].Scopes {
				if !strings.HasPrefix(scope, gone+":") {
					scopes = append(scopes, scope)
				}
			}
			wanted.Roles[index].Scopes = scopes
		}
	}
	_, err = w.manager.ApplyPolicy(w.t.Context(), anybody, keys.PolicyReplacement{Policy: wanted, ReplacesDigest: active.Digest})
	return what, err
}

// backUp copies the store, and begins to note what stays allowed.
func (w *world) backUp(path string) {
	snapshot, err := w.store.Snapshot(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	content, err := io.ReadAll(snapshot.Content)
	if err = errors.Join(err, snapshot.Content.Close(), os.WriteFile(path, content, 0o600)); err != nil {
		w.t.Fatal(err)
	}
	w.kept = w.allowed(w, w.now)
	w.log = append(w.log, "-- backup --")
}

// restored restores a backup and returns what is allowed then.
func (w *world) restore(options server.RestoreOptions) (*server.Restored, *served) {
	w.t.Helper()
	options.Now = w.time
	before, err := os.ReadFile(options.Backup)
	if err != nil {
		w.t.Fatal(err)
	}
	result, err := server.Restore(w.t.Context(), options)
	if err != nil {
		w.t.Fatalf("restore: %v", err)
	}
	if after, _ := os.ReadFile(options.Backup); !bytes.Equal(before, after) {
		w.t.Error("the backup was changed")
	}
	report, err := boltstore.Check(w.t.Context(), result.File)
	if err != nil || len(report.Problems) > 0 {
		w.t.Fatalf("check of the restored store: %v %v", err, report.Problems)
	}
	return result, serve(w.t, result.File, boltstore.Config{}, options.Now)
}

// TestNothingNarrowedComesBack makes random histories, restores a copy from the middle of each, and
// compares what is allowed: with a whole sink exactly what was allowed all the time, and without one
// nothing. With -restores 1000 it makes as many histories.
func TestNothingNarrowedComesBack(t *testing.T) {
	rounds := race.Rounds(10, 2)
	if *restores > 0 {
		rounds = *restores
	}
	held, kept := int64(0), 0
	narrowed := make(map[string]int)
	for round := range rounds {
		t.Run(fmt.Sprint("seed ", *seed+uint64(round)), func(t *testing.T) {
			w := newWorld(t, *seed+uint64(round))
			defer w.stop()
			for range 25 + w.random.IntN(30) {
				w.change()
			}
			backup := filepath.Join(w.folder, "backup.db")
			w.backUp(backup)
			for range 1 + w.random.IntN(40) {
				w.change()
			}
			kept += len(w.kept)
			held += w.checkWhole(backup, narrowed)
			w.checkCut(backup)
			if t.Failed() {
				t.Log(strings.Join(w.log, "\n"))
			}
		})
	}
	t.Logf("%d questions stayed allowed; %d keys were held with a whole sink; narrowed: %v", kept, held, narrowed)
	if kept == 0 {
		t.Error("nothing was allowed all the time: the histories show nothing")
	}
}

// checkWhole restores with the whole sink.
func (w *world) checkWhole(backup string, narrowed map[string]int) (held int64) {
	result, again := w.restore(server.RestoreOptions{Backup: backup, Data: filepath.Join(w.folder, "whole"), Sink: w.sink, SinkIsComplete: true})
	defer again.stop()
	for _, line := range result.Narrowed {
		for _, what := range line.What {
			narrowed[what]++
		}
	}
	if !result.Complete {
		w.t.Errorf("the whole sink was doubted: %v", result.Doubts)
	}
	got := again.allowed(w, w.now)
	for question := range got {
		if !w.kept[question] {
			w.t.Errorf("came back: %s", question)
		}
	}
	if result.Held == 0 {
		for question := range w.kept {
			if !got[question] {
				w.t.Errorf("was lost: %s", question)
			}
		}
	}
	before, _, errBefore := w.records.Policy()
	after, _, errAfter := again.records.Policy()
	if errBefore != nil || errAfter != nil {
		w.t.Fatal(errBefore, errAfter)
	}
	if back := after.Catalogue.Without(before.Catalogue); len(back) > 0 {
		w.t.Errorf("scopes came back: %v", back)
	}
	if back := before.Retired.Without(after.Retired); len(back) > 0 {
		w.t.Errorf("scopes are not retired any more, so they can come back: %v", back)
	}
	for _, later := range []time.Duration{time.Hour, 25 * time.Hour, 30 * 24 * time.Hour} {
		want := w.allowed(w, w.now.Add(later))
		for question := range again.allowed(w, w.now.Add(later)) {
			if !want[question] {
				w.t.Errorf("%s later, came back: %s", later, question)
			}
		}
	}
	return result.Held
}

// checkCut restores without a sink, and with sinks that lack something.
func (w *world) checkCut(backup string) {
	whole, err := os.ReadFile(w.sink)
	if err != nil {
		w.t.Fatal(err)
	}
	lines := bytes.SplitAfter(bytes.TrimRight(whole, "\x00"), []byte("\n"))
	lines = lines[:len(lines)-1]
	cut := filepath.Join(w.folder, "cut.jsonl")
	since := 0
	for index, line := range lines {
		if bytes.Contains(line, []byte(fmt.Sprintf(`"revision":%d,`, w.backupRevision(backup)))) {
			since = index + 1
		}
	}
	cuts := map[string][]byte{
		"none":   nil,
		"end":    bytes.Join(lines[:since+w.random.IntN(len(lines)-since+1)], nil),
		"middle": nil,
		"begin":  bytes.Join(lines[min(since+1, len(lines)-1):], nil),
		"torn":   append(bytes.Join(lines, nil), `{"type":"ev`...),
	}
	names := slices.Sorted(maps.Keys(cuts))
	if *restores == 0 {
		names = []string{pick(w.random, names)} // one of them in each history
	}
	for _, name := range names {
		text := cuts[name]
		options := server.RestoreOptions{Backup: backup, Data: filepath.Join(w.folder, "cut "+name), Sink: cut, SinkIsComplete: name != "end"}
		if (name == "middle" || name == "begin") && len(lines)-since < 2 {
			continue
		}
		if name == "middle" {
			gone := since + w.random.IntN(len(lines)-since-1)
			text = bytes.Join(append(append([][]byte{}, lines[:gone]...), lines[gone+1:]...), nil)
		}
		if text == nil {
			options.Sink, options.SinkIsComplete = "", false
		} else if err := os.WriteFile(cut, text, 0o600); err != nil {
			w.t.Fatal(err)
		}
		result, again := w.restore(options)
		for question := range again.allowed(w, w.now) {
			w.t.Errorf("%s: came back: %s", name, question)
		}
		if result.Complete {
			w.t.Errorf("%s: nothing was doubted", name)
		}
		again.stop()
	}
}

func (w *world) backupRevision(backup string) int64 {
	position, err := boltstore.Verify(w.t.Context(), backup)
	if err != nil {
		w.t.Fatal(err)
	}
	return position.Revision
}
