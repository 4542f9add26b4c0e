package etcd_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/race"
	keysvc "github.com/scribe-mail/keysvc/internal/server"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// rolledBack is an etcd whose data folder was put back to an earlier state, with an audit sink of keysvc's that goes on after it.
type rolledBack struct {
	t     *testing.T
	etcd  *server
	lines []string // of the settings of a server
	flags []string // of commands
	sink  string
	// kept was there in the earlier state, and revoked too, but was revoked since. later was created since.
	kept, revoked, later *keysvcv1.CreateKeyResponse
}

func newRolledBack(t *testing.T) *rolledBack {
	t.Helper()
	if race.Enabled() {
		t.Skip("its servers are programs that are built without the race detector")
	}
	r := &rolledBack{t: t, etcd: ownServer(t, 0), sink: filepath.Join(t.TempDir(), "audit.jsonl")}
	r.flags = []string{"--store", "etcd", "--etcd-endpoints", r.etcd.endpoint()}
	r.lines = []string{"store: etcd", "etcd-endpoints: [" + r.etcd.endpoint() + "]", "data: " + t.TempDir(), "audit-sink: " + r.sink}
	one := startKeysvc(t, false, r.lines, "--init")
	if _, err := one.members().PutMember(one.context(), owner("acme", "ann")); err != nil {
		t.Fatal(err)
	}
	r.kept, r.revoked = one.create("kept"), one.create("revoked")
	one.stop()
	// 1. The earlier state. Meanwhile nobody uses etcd.
	data, earlier := filepath.Join(r.etcd.folder, "data"), filepath.Join(t.TempDir(), "earlier")
	r.restart(func() {
		if err := os.CopyFS(earlier, os.DirFS(data)); err != nil {
			t.Fatal(err)
		}
	})
	// 2. What happens since.
	two := startKeysvc(t, false, r.lines)
	two.revoke(r.revoked.GetKey().GetKeyId())
	r.later = two.create("later")
	two.stop()
	// 3. The earlier state is put back.
	r.restart(func() {
		if err := errors.Join(os.RemoveAll(data), os.CopyFS(data, os.DirFS(earlier))); err != nil {
			t.Fatal(err)
		}
	})
	return r
}

// restart calls do while etcd is stopped.
func (r *rolledBack) restart(do func()) {
	r.t.Helper()
	r.etcd.stop()
	do()
	again, err := startServer(r.etcd.folder, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(again.stop)
	r.etcd = again
}

// mustHaveSchema fails the test if the store has another schema: programs that do not know held keys refuse a store that has some.
func (r *rolledBack) mustHaveSchema(want int32) {
	r.t.Helper()
	export, err := etcdstore.OpenExport(r.t.Context(), etcdstore.Config{Members: []*clientv3.Client{clientOf(r.t, r.etcd.endpoint())}})
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = export.Close() }()
	if origin, err := export.Origin(r.t.Context()); err != nil || origin.Schema != want {
		r.t.Errorf("the schema is %d, %v; want %d", origin.Schema, err, want)
	}
}

// mustNotServe fails the test unless a server refuses the store, with all of some texts in its error.
func (r *rolledBack) mustNotServe(want ...string) {
	r.t.Helper()
	folder := r.t.TempDir()
	settings := filepath.Join(folder, "keysvc.yaml")
	text := strings.Join(append([]string{"listen: unix://" + filepath.Join(r.etcd.folder, "k")}, r.lines...), "\n")
	if err := os.WriteFile(settings, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	run, output := command(r.t, "serve", "--config", settings)
	if err := run.Run(); err == nil {
		r.t.Error("it serves")
	}
	for _, each := range want {
		if !strings.Contains(output.String(), each) {
			r.t.Errorf("it says %q, want %q in it", output, each)
		}
	}
}

// TestRestoreOverEtcdRevivesNothing: promise 9 over etcd. After a restore nobody serves the store before a person has spoken. Then what
// was revoked since is revoked again, and the sink goes on.
func TestRestoreOverEtcdRevivesNothing(t *testing.T) {
	t.Parallel()
	r := newRolledBack(t)
	r.mustNotServe("an older copy of the store may have been put back", "keysvc restore --store etcd")
	restore := append([]string{"restore", "--audit-sink", r.sink, "--sink-is-complete"}, r.flags...)
	if said := must(t, append(restore, "--dry-run")...); !strings.Contains(said, "narrowed    1 key,") || !strings.Contains(said, "Nothing was made.") {
		t.Errorf("a dry run says:\n%s", said)
	}
	r.mustNotServe("an older copy of the store may have been put back")
	said := must(t, restore...)
	if !strings.Contains(said, "narrowed    1 key,") || !strings.Contains(said, "held        0 keys") || !strings.Contains(said, "lost        1 key created since") {
		t.Errorf("it says:\n%s", said)
	}
	must(t, append([]string{"check"}, r.flags...)...)
	r.mustHaveSchema(storage.Schema)
	// The restore's own events have no lines yet. Lines that were given up have the same sequences, and higher ones.
	must(t, append([]string{"audit", "verify", "--sink", r.sink}, r.flags...)...)
	server := startKeysvc(t, false, r.lines)
	server.expect(r.kept.GetToken(), keysvcv1.Reason_REASON_UNSPECIFIED)
	server.expect(r.revoked.GetToken(), keysvcv1.Reason_REASON_KEY_REVOKED)
	server.expect(r.later.GetToken(), keysvcv1.Reason_REASON_KEY_INVALID)
	server.revoke(r.kept.GetKey().GetKeyId())
	server.stop()
	must(t, append([]string{"audit", "verify", "--sink", r.sink}, r.flags...)...)
}

// TestRestoreOverEtcdHoldsWhatIsNotKnown: without a sink every key is held.
func TestRestoreOverEtcdHoldsWhatIsNotKnown(t *testing.T) {
	t.Parallel()
	r := newRolledBack(t)
	if said := must(t, append([]string{"restore"}, r.flags...)...); !strings.Contains(said, "held        2 keys") {
		t.Errorf("it says:\n%s", said)
	}
	r.mustHaveSchema(storage.SchemaHeld)
	server := startKeysvc(t, false, r.lines)
	server.expect(r.kept.GetToken(), keysvcv1.Reason_REASON_KEY_HELD)
	server.expect(r.revoked.GetToken(), keysvcv1.Reason_REASON_KEY_HELD)
	server.stop()
	must(t, append([]string{"check"}, r.flags...)...)
}

// TestAcceptOverEtcdServesWhatThereIs: with a person's word the store is served as it is.
func TestAcceptOverEtcdServesWhatThereIs(t *testing.T) {
	t.Parallel()
	r := newRolledBack(t)
	accept := append([]string{"anchor", "accept", "--audit-sink", r.sink}, r.flags...)
	run, output := command(t, accept...)
	if err := run.Run(); err == nil || !strings.Contains(output.String(), "nothing was changed") {
		t.Errorf("without an answer: %v\n%s", err, output)
	}
	if said := must(t, append(accept, "--dry-run", "--yes")...); !strings.Contains(said, "which the store does not have") || !strings.Contains(said, "Nothing was changed.") {
		t.Errorf("a dry run says:\n%s", said)
	}
	r.mustNotServe("an older copy of the store may have been put back")
	if said := must(t, append(accept, "--yes")...); !strings.Contains(said, "which the store does not have") || !strings.Contains(said, "with the new epoch") {
		t.Errorf("it says:\n%s", said)
	}
	server := startKeysvc(t, false, r.lines)
	server.expect(r.revoked.GetToken(), keysvcv1.Reason_REASON_UNSPECIFIED)
	server.revoke(r.revoked.GetKey().GetKeyId())
	server.stop()
	must(t, append([]string{"audit", "verify", "--sink", r.sink + "*"}, r.flags...)...)
}

// TestSinkGoesOnAfterANewEpoch: events that the sink did not have when the new epoch began follow in it.
func TestSinkGoesOnAfterANewEpoch(t *testing.T) {
	t.Parallel()
	s := newSunk(t)
	path := s.written()
	s.create(3)
	settings := settingsFor(t, s.prefix, endpoints...)
	if err := keysvc.AcceptEtcd(t.Context(), settings, path, io.Discard, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	s.store = s.open()
	newest := s.create(2)
	writer, stop := s.run(path)
	s.has(writer, newest)
	stop()
	s.wantChain(path)
}

// TestRenewalGoesOn interrupts a renewal: nobody opens the store before its end, whoever had it open changes nothing any more, and
// damage does not become valid.
func TestRenewalGoesOn(t *testing.T) {
	sequential(t)
	t.Parallel()
	prefix, client := newPrefix(), newClient(t)
	config := etcdConfig(t, prefix)
	before := open(t, config)
	fillStore(t, before, 150)
	var several []*storagetest.Workspace
	for number := range 130 { // more than one transaction
		workspace := storagetest.NewWorkspace("many-" + storagetest.KeyID(number+9000))
		mustCommit(t, before, workspace.PutMember("m", "admin"))
		several = append(several, workspace)
	}
	// An older record that was put back is damage.
	damaged := prefix + "data/members/" + several[7].ID + "\x00m"
	old, err := client.Get(t.Context(), damaged)
	if err != nil {
		t.Fatal(err)
	}
	head := headIn(t, before, several[7].ID)
	several[7].Head = head
	mustCommit(t, before, several[7].PutMember("m", "member"))
	mustPut(t, client, damaged, string(old.Kvs[0].Value))
	// Of another workspace only the tag of its head shows damage: the event that made its newest record is gone, too.
	unknown := several[8]
	damaged = prefix + "data/members/" + unknown.ID + "\x00m"
	if old, err = client.Get(t.Context(), damaged); err != nil {
		t.Fatal(err)
	}
	for _, member := range []string{"m", "n"} {
		unknown.Head = headIn(t, before, unknown.ID)
		mustCommit(t, before, unknown.PutMember(member, "member"))
	}
	mustPut(t, client, damaged, string(old.Kvs[0].Value))
	mustDelete(t, client, prefix+"data/audit/"+unknown.ID+"\x00"+complementOf(unknown.Head.Sequence))
	// The head of a third one was put back.
	lagging := several[9]
	lag, err := client.Get(t.Context(), prefix+"data/heads/"+lagging.ID)
	if err != nil {
		t.Fatal(err)
	}
	lagging.Head = headIn(t, before, lagging.ID)
	mustCommit(t, before, lagging.PutMember("m", "member"))
	mustPut(t, client, prefix+"data/heads/"+lagging.ID, string(lag.Kvs[0].Value))
	heads, err := client.Get(t.Context(), prefix+"data/heads/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	epoch := before.Epoch()
	if err := before.PutSinkPosition(t.Context(), storage.Barrier{Revision: 5}); err != nil {
		t.Fatal(err)
	}
	headerNow := func() *storagev1.HeaderRecord {
		t.Helper()
		stored, err := client.Get(t.Context(), prefix+"data/header")
		header := &storagev1.HeaderRecord{}
		if err := errors.Join(err, storage.Decode("header", "data/header", stored.Kvs[0].Value, header)); err != nil {
			t.Fatal(err)
		}
		return header
	}
	for attempt := range 3 {
		r, err := etcdstore.OpenRenewal(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		if r.Begun() != (attempt > 0) {
			t.Errorf("attempt %d: begun %v", attempt, r.Begun())
		}
		if former, _, err := r.Origin(t.Context()); err != nil || former != epoch {
			t.Errorf("attempt %d: of epoch %s, %v", attempt, former, err)
		}
		if _, err := r.Begin(t.Context(), attempt == 1); err != nil {
			t.Fatal(err)
		}
		want := int32(storage.Schema)
		if attempt > 0 {
			want = storage.SchemaHeld
		}
		if header := headerNow(); header.GetSchema() != want || header.GetRestored().GetEpoch() != epoch {
			t.Errorf("attempt %d: the header is %v, want schema %d and epoch %s before", attempt, header, want, epoch)
		}
		if _, err := etcdstore.New(t.Context(), config); !errors.Is(err, storage.ErrUnfinished) {
			t.Errorf("attempt %d: it can be opened: %v", attempt, err)
		}
		if attempt == 2 {
			err = r.Finish(t.Context())
		} else { // as if it had ended before most heads were put
			for index, each := range heads.Kvs {
				if index%3 > 0 {
					mustPut(t, client, string(each.Key), string(each.Value))
				}
			}
		}
		if err := errors.Join(err, r.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := before.Commit(t.Context(), several[1].PutMember("m", "member")); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("who had it open changes it: %v", err)
	}
	if position, err := before.SinkPosition(t.Context()); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("who had it open knows of the sink: %+v, %v", position, err)
	}
	if now, err := client.Get(t.Context(), prefix+"data/heads/"+lagging.ID); err != nil || string(now.Kvs[0].Value) != string(lag.Kvs[0].Value) {
		t.Errorf("the head that was put back became another one: %v", err)
	}
	report, err := etcdstore.Check(t.Context(), config)
	if err != nil || report.Epoch == epoch {
		t.Fatal(report, err)
	}
	for _, problem := range report.Problems {
		if !strings.Contains(problem, several[7].ID) && !strings.Contains(problem, unknown.ID) && !strings.Contains(problem, lagging.ID) && !strings.Contains(problem, `member "m"`) {
			t.Errorf("Check: %s", problem)
		}
	}
	if len(report.Problems) == 0 {
		t.Error("the damage became valid")
	}
	after := open(t, config)
	if position, err := after.SinkPosition(t.Context()); err != nil || position.Revision != 0 {
		t.Errorf("the sink of the former epoch counts: %+v, %v", position, err)
	}
	// One attempt held keys: programs that do not know that refuse the store.
	export, err := etcdstore.OpenExport(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = export.Close() }()
	if origin, err := export.Origin(t.Context()); err != nil || origin.Schema != storage.SchemaHeld {
		t.Errorf("the schema is %d, %v; want %d", origin.Schema, err, storage.SchemaHeld)
	}
	var wrong []error
	if _, err := after.Load(t.Context(), func(item storage.Item) error {
		if item.Damaged != nil {
			wrong = append(wrong, item.Damaged.Err)
		}
		return nil
	}); err != nil || len(wrong) != 3 {
		t.Errorf("damaged are %q, %v", wrong, err)
	}
	for _, workspace := range []*storagetest.Workspace{several[0], several[129]} {
		workspace.Head = headIn(t, after, workspace.ID)
		mustCommit(t, after, workspace.PutMember("m", "member"))
	}
}

// TestRenewalsAndChangesDoNotMeet: a renewal begins only at what it has read, and does not go on once another process has ended it.
func TestRenewalsAndChangesDoNotMeet(t *testing.T) {
	t.Parallel()
	n, prefix, workspace := &network{}, newPrefix(), storagetest.NewWorkspace("w")
	config := etcdstore.Config{Members: n.clients(t), Prefix: prefix}
	store := open(t, etcdConfig(t, prefix))
	change := func(store storage.Store) {
		mustFollow(t, store, workspace, workspace.PutMember("m", "admin"))
	}
	renewal := func() *etcdstore.Renewal {
		r, err := etcdstore.OpenRenewal(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		return r
	}
	change(store)
	n.next(func(s *sent) (*clientv3.TxnResponse, error) {
		change(store)
		return s.deliver()
	})
	if _, err := renewal().Begin(t.Context(), false); !errors.Is(err, storage.ErrLocked) {
		t.Errorf("a change was made meanwhile: %v, want ErrLocked", err)
	}
	client, head := newClient(t), prefix+"data/heads/w"
	before, err := client.Get(t.Context(), head)
	if err != nil {
		t.Fatal(err)
	}
	first := renewal()
	if _, err := first.Begin(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	// Another process goes on with it, and is overtaken when it puts the head.
	renewed, err := client.Get(t.Context(), head)
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, client, head, string(before.Kvs[0].Value))
	second := renewal()
	n.next((*sent).deliver, func(s *sent) (*clientv3.TxnResponse, error) {
		mustPut(t, client, head, string(renewed.Kvs[0].Value))
		change(first)
		return s.deliver()
	})
	if _, err := second.Begin(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if err := first.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Begin(t.Context(), false); !errors.Is(err, storage.ErrLocked) {
		t.Errorf("another process has ended the renewal: %v, want ErrLocked", err)
	}
	mustBeSound(t, prefix)
}
