package etcd_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// TestDamagedOrMissingValuesAreFoundByCheckAndNeverRead changes each value of a store, and
// deletes each. Check reports it, and no read returns anything that was never stored.
func TestDamagedOrMissingValuesAreFoundByCheckAndNeverRead(t *testing.T) {
	sequential(t)
	client, prefix, _ := filled(t)
	all, err := client.Get(t.Context(), prefix, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	truth := readAll(t, client, prefix)
	for _, entry := range all.Kvs {
		name := strings.TrimPrefix(string(entry.Key), prefix)
		flipped := bytes.Clone(entry.Value)
		flipped[len(flipped)-1] ^= 1
		for kind, damage := range map[string]func(){
			"flipped": func() { mustPut(t, client, string(entry.Key), string(flipped)) },
			"gone": func() {
				mustDelete(t, client, string(entry.Key))
			},
			"other": func() {
				mustPut(t, client, string(entry.Key), string(all.Kvs[0].Value)+string(all.Kvs[1].Value))
			},
		} {
			damage()
			// A key with a lost use counts as never used. A lost member counts as purged, and the
			// member's keys are refused. Everything else must be detected.
			harmless := strings.HasPrefix(name, "usage/") || kind == "gone" && strings.HasPrefix(name, "data/members/")
			report, err := etcdstore.Check(t.Context(), etcdstore.Config{Members: []*clientv3.Client{client}, Prefix: prefix})
			if err != nil || len(report.Problems) == 0 && !harmless {
				t.Errorf("%q, %s: the check finds %q, %v", name, kind, report.Problems, err)
			}
			for what, answer := range readAll(t, client, prefix) {
				if answer != truth[what] && !strings.HasPrefix(answer, "error") {
					t.Errorf("%q, %s: %s is %q, was %q", name, kind, what, answer, truth[what])
				}
			}
			mustPut(t, client, string(entry.Key), string(entry.Value))
		}
	}
	mustBeSound(t, prefix)
}

// TestCheckNamesWhatDoesNotFit puts into a sound store, one after the other, values that do not fit the rest of it.
func TestCheckNamesWhatDoesNotFit(t *testing.T) {
	sequential(t)
	client, prefix, _ := filled(t)
	read := func(name string) string {
		response, err := client.Get(t.Context(), prefix+name)
		if err != nil || len(response.Kvs) != 1 {
			t.Fatalf("%q: %v, %v", name, response, err)
		}
		return string(response.Kvs[0].Value)
	}
	framed := func(name, payload string) string { return string(storage.Frame(name, []byte(payload))) }
	one, two, none := storagetest.KeyID(1), storagetest.KeyID(2), storagetest.KeyID(9)
	entry := string(storage.Payload([]byte(read("data/ids/" + one))))
	rank, record := entry[:16], entry[16:]
	other := string(storage.Payload([]byte(read("data/ids/" + two))))
	for _, test := range []struct {
		name, value string // an empty value deletes the name
		want        string // in one of the problems
		problems    int
	}{
		{"data/ids/" + one, "garbage", "damaged key \"" + one + "\": index entry: ", 4},
		{"data/ids/" + one, framed("data/ids/"+one, rank+other[16:]), "key " + one + ": the index entry of its id points to", 4},
		{"data/ids/" + one, "", "key " + one + ": its id has no index entry", 3},
		{"data/ids/" + none, framed("data/ids/"+none, entry), "key " + none + ": its id has an index entry, but there is no record", 1},
		{"data/order/" + rank + one, "garbage", "damaged key \"" + one + "\": index entry of the order: ", 2},
		{"data/order/" + rank + one, framed("data/order/"+rank+one, other[16:]), "key " + one + ": its index entries of the order and of the id differ", 2},
		{"data/order/" + rank + one, "", "key " + one + ": the order of all keys has no index entry", 1},
		{"data/order/" + rank + none, framed("data/order/"+rank+none, record), "order: key " + none + " has an index entry, but no record", 1},
		{"data/order/" + other[:16] + one, framed("data/order/"+other[:16]+one, record), "key " + one + ": its index entries of the order and of the id differ", 1},
		{"data/order/x", "", "not the name of an index entry", 1},
		{"data/requests/w\x00request", "garbage", "request \"data/requests/w\\x00request\"", 2},
		{"data/requests/w\x00request", framed("data/requests/w\x00request", two), "its index entry points to key " + two + ", whose record does not have it", 2},
		{"data/requests/w\x00request", "", "of key " + one + ": it has no index entry", 1},
		{"data/requests/w\x00other", framed("data/requests/w\x00other", one), "its index entry points to key " + one + ", whose record does not have it", 1},
		{"data/audit/w\x00x", "x", "audit: an event under the name", 1},
		{"data/audit/w\x00" + complementOf(3), "garbage", "audit event \"w 3\": ", 4},
		{"data/feed/head", "garbage", "feed entry \"data/feed/head\"", 1},
		{"data/feed/head", "", "position: revision 0, though there are records", 1},
		{"data/heads/w", "garbage", "head \"w\"", 1},
		{"data/x", "x", "an unknown name \"data/x\"", 1},
		{"data/keys/x", "x", "not the name of a key", 1},
	} {
		before, err := client.Get(t.Context(), prefix+test.name)
		if err != nil {
			t.Fatal(err)
		}
		if mustPut(t, client, prefix+test.name, test.value); test.value == "" && len(before.Kvs) > 0 {
			_, err = client.Delete(t.Context(), prefix+test.name)
		}
		report, checkErr := etcdstore.Check(t.Context(), etcdConfig(t, prefix))
		if err := errors.Join(err, checkErr); err != nil {
			t.Fatal(err)
		}
		isNamed := slices.ContainsFunc(report.Problems, func(problem string) bool { return strings.Contains(problem, test.want) })
		if !isNamed || len(report.Problems) != test.problems {
			t.Errorf("%q is %q: the problems are %q, want %d and %q", test.name, test.value, report.Problems, test.problems, test.want)
		}
		if len(before.Kvs) > 0 {
			mustPut(t, client, prefix+test.name, string(before.Kvs[0].Value))
		} else if _, err := client.Delete(t.Context(), prefix+test.name); err != nil {
			t.Fatal(err)
		}
	}
	config := etcdConfig(t, prefix)
	position, err := open(t, config).Load(t.Context(), func(storage.Item) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if report, err := etcdstore.Check(t.Context(), config); err != nil || len(report.Problems) > 0 || report.Position != position || report.Events != 5 {
		t.Errorf("sound: %+v, %v; want position %+v and 5 events", report, err, position)
	}
	// A name that ends the check does not hide what was found before.
	mustPut(t, client, prefix+"data/policy", "garbage")
	mustPut(t, client, prefix+"data/keys/x", "x")
	if report, err := etcdstore.Check(t.Context(), config); err != nil || len(report.Problems) < 2 {
		t.Errorf("two values are wrong: %q, %v", report.Problems, err)
	}
}

// readAll reads a store in every way. Errors are returned as texts that begin with "error".
func readAll(t *testing.T, client *clientv3.Client, prefix string) map[string]string {
	t.Helper()
	answers := make(map[string]string)
	store, err := etcdstore.New(t.Context(), etcdstore.Config{Members: []*clientv3.Client{client}, Prefix: prefix})
	if err != nil {
		return answers
	}
	defer store.Close()
	ctx := t.Context()
	note := func(what string, answer any, err error) {
		answers[what] = fmt.Sprint(answer)
		if err != nil {
			answers[what] = "error: " + err.Error()
			if !errors.Is(err, storage.ErrDamaged) && !errors.Is(err, storage.ErrNotFound) && !errors.Is(err, storage.ErrHistoryChanged) {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	for _, keyID := range []string{storagetest.KeyID(1), storagetest.KeyID(2)} {
		key, _, err := store.GetKey(ctx, "w", keyID)
		note("key "+keyID, key, err)
	}
	member, _, err := store.GetMember(ctx, "w", "member")
	note("member", member, err)
	request, _, err := store.FindRequest(ctx, "w", "request")
	note("request", request, err)
	for _, id := range []string{"w", ""} {
		query := storage.Query{WorkspaceID: id, Limit: 10}
		audit, err := store.ListAuditEvents(ctx, query)
		if err != nil || len(audit.Events) > 0 {
			note("audit "+id, audit.Events, err)
		}
	}
	return answers
}
