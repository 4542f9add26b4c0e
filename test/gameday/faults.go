//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

func fill(d *day) error {
	m, err := d.mount(true)
	if err != nil {
		return err
	}
	data := options{data: filepath.Join(m.folder, "data")}
	if err := d.begin(data); err != nil {
		return err
	}
	valid, revoked, err := d.pair()
	if err != nil {
		return err
	}
	leaked, err := d.create("leaked", "ann", read)
	if err != nil {
		return err
	}
	l, err := d.load(valid, revoked, nil)
	if err != nil {
		return err
	}
	d.say("other files fill the disk")
	if err := m.fill(); err != nil {
		return err
	}
	d.say("the store has some room in its file; the disk is nearly full")
	d.sees([]string{"disk-nearly-full"}, []string{"KeysvcDiskNearlyFull", "KeysvcWarning"})
	d.say("changes go on, until one finds no room")
	err = nil
	for i := 0; err == nil && i < 100_000; i++ {
		_, err = l.clients[0].Members.PutMember(d.ctx, &keysvcv1.PutMemberRequest{WorkspaceId: "many", MemberId: fmt.Sprintf("member-%d", i), Role: "member", State: keysvcv1.MemberState_MEMBER_STATE_ACTIVE})
	}
	d.check(status.Code(err) == codes.ResourceExhausted, "a new member is refused: %v", err)
	d.sees([]string{"disk-full"}, []string{"KeysvcDiskFull", "KeysvcDiskNearlyFull", "KeysvcProblem"})
	d.keysvc("status")
	d.logs("the disk has no room: only changes that take something away are made")
	d.say("a leaked key can be revoked nevertheless")
	d.must("key", "revoke", leaked.id, "--yes")
	d.validate(leaked, read, 3, "KEY_REVOKED")
	d.check(l.more(200), "services are answered")
	d.say("room is made; nothing is restarted")
	if err := m.empty(); err != nil {
		return err
	}
	time.Sleep(2 * time.Second)
	d.known(len(d.problems()) == 0, "keysvc status is well again without a change")
	d.say("the server finds the room with the next change that does not only take something away")
	d.member("bea")
	d.sees([]string{}, nil)
	d.logs("the disk has room again: all changes are made")
	if _, err := d.create("again", "ann", read); err != nil {
		d.check(false, "keys can be created again: %v", err)
	}
	d.well()
	d.lenient(l)
	return d.server.stop()
}

func hang(d *day) error {
	m, err := d.mount(false)
	if err != nil {
		return err
	}
	if err := d.begin(options{data: filepath.Join(m.folder, "data")}); err != nil {
		return err
	}
	valid, revoked, err := d.pair()
	if err != nil {
		return err
	}
	leaked, err := d.create("leaked", "ann", read)
	if err != nil {
		return err
	}
	l, err := d.load(valid, revoked, nil)
	if err != nil {
		return err
	}
	d.say("the disk does not answer any more")
	if err := m.freeze(); err != nil {
		return err
	}
	d.say("a change waits until its deadline; nobody knows what became of it")
	a := d.keysvc("key", "revoke", leaked.id, "--yes", "--timeout", "2s")
	d.check(a.status == 1 || a.status == 8, "the command does not say that the key is revoked: %s", firstLine(a.text()))
	d.until("keysvc status names the problem disk-silent", func() bool { return slices.Equal(d.problems(), []string{"disk-silent"}) })
	firing, err := d.alerts()
	d.known(err == nil && len(firing) > 0, "an alert holds while the disk hangs: %v", firing)
	d.keysvc("status")
	d.check(l.more(200), "services are answered")
	d.say("the disk answers again")
	if err := m.thaw(); err != nil {
		return err
	}
	d.sees([]string{}, nil)
	d.must("key", "revoke", leaked.id, "--yes")
	d.validate(leaked, read, 3, "KEY_REVOKED")
	d.well()
	d.lenient(l)
	return d.server.stop()
}

// page is the size of a page of the store's file.
const page = 4096

func swallow(d *day) error {
	if err := d.begin(options{data: d.path("data")}); err != nil {
		return err
	}
	valid, err := d.create("valid", "ann", read)
	if err != nil {
		return err
	}
	leaked, err := d.create("leaked", "ann", read)
	if err != nil {
		return err
	}
	if err := d.server.stop(); err != nil {
		return err
	}
	if err := command("cp", "--sparse=always", "-r", d.path("data"), d.path("before")); err != nil {
		return err
	}
	if err := d.start(options{data: d.path("data")}); err != nil {
		return err
	}
	d.must("key", "revoke", leaked.id, "--yes")
	if err := d.server.stop(); err != nil {
		return err
	}
	changed, err := differing(d.path("before/keysvc.db"), d.path("data/keysvc.db"))
	if err != nil {
		return err
	}
	d.say("revoking changed %d pages; each of these writes is swallowed in turn, and at last all of them", len(changed))
	lost := [][]int64{changed}
	for _, each := range changed {
		lost = append([][]int64{{each}}, lost...)
	}
	for _, pages := range lost {
		if err := d.swallowed(pages, valid, leaked); err != nil {
			return err
		}
	}
	return nil
}

// swallowed puts the earlier content of some pages back into a copy, and looks what becomes of it.
func (d *day) swallowed(pages []int64, valid, leaked key) error {
	if err := errors.Join(os.RemoveAll(d.path("copy")), command("cp", "--sparse=always", "-r", d.path("data"), d.path("copy"))); err != nil {
		return err
	}
	earlier, err := os.Open(d.path("before/keysvc.db"))
	if err != nil {
		return err
	}
	defer earlier.Close()
	file, err := os.OpenFile(d.path("copy/keysvc.db"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	for _, each := range pages {
		content := make([]byte, page)
		if _, err := earlier.ReadAt(content, each*page); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if _, err := file.WriteAt(content, each*page); err != nil {
			return err
		}
	}
	d.quiet = true
	defer func() { d.quiet = false }()
	checked := d.keysvc("check", "copy/keysvc.db")
	lines := strings.Split(strings.TrimSpace(checked.text()), "\n")
	fmt.Printf("$ keysvc check copy/keysvc.db    # without the writes of the pages %v\n  | %s\n  exit status %d\n", pages, strings.ReplaceAll(lines[len(lines)-1], d.folder+"/", ""), checked.status)
	s, err := d.launch(options{data: d.path("copy")})
	if err != nil {
		return err
	}
	if err := d.ready(s); err != nil {
		log := strings.Split(strings.TrimSpace(string(s.logged())), "\n")
		d.check(checked.status != 0, "the start is refused, and keysvc check names the fault: %s", strings.ReplaceAll(log[len(log)-1], d.folder+"/", ""))
		return nil
	}
	a := d.command(d.programs.now, leaked.token, "validate", "--scope", read)
	d.check(a.status == 3 || a.status == 1 && checked.status != 0, "the server starts, and the revoked key is not allowed: %s", firstLine(a.text()))
	a = d.command(d.programs.now, valid.token, "validate", "--scope", read)
	d.check(a.status == 0 || checked.status != 0, "the valid key: %s", firstLine(a.text()))
	return s.kill()
}

// differing returns the numbers of the pages that differ between two files.
func differing(one, other string) ([]int64, error) {
	a, err := os.ReadFile(one)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(other)
	if err != nil {
		return nil, err
	}
	var pages []int64
	for at := 0; at+page <= min(len(a), len(b)); at += page {
		if !bytes.Equal(a[at:at+page], b[at:at+page]) {
			pages = append(pages, int64(at/page))
		}
	}
	return pages, nil
}

func certificates(d *day) error {
	for _, folder := range []string{"certs", "new"} {
		if a := d.must("certs", "dev", folder); a.status != 0 {
			return errFault
		}
	}
	if err := command("cp", "-r", d.path("certs"), d.path("old")); err != nil {
		return err
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	address := free.Addr().String()
	_ = free.Close()
	d.environment = d.certificate("admin")
	if err := d.begin(options{data: d.path("data"), address: address, arguments: []string{"--config", d.path("certs/keysvc.yaml")}}); err != nil {
		return err
	}
	valid, revoked, err := d.pair()
	if err != nil {
		return err
	}
	tls := &keyclient.TLS{CAFile: d.path("certs/ca.crt"), CertFile: d.path("certs/validator.crt"), KeyFile: d.path("certs/validator.key")}
	l, err := d.load(valid, revoked, tls)
	if err != nil {
		return err
	}
	d.check(l.more(200), "services are answered over TLS")
	d.say("1. the new authority beside the old one, for server and clients")
	oldCA, err := os.ReadFile(d.path("old/ca.crt"))
	if err != nil {
		return err
	}
	newCA, err := os.ReadFile(d.path("new/ca.crt"))
	if err != nil {
		return err
	}
	d.check(!d.admits("new"), "a caller of the new authority is not known yet")
	if err := d.put("ca.crt", append(bytes.Clone(oldCA), newCA...)); err != nil {
		return err
	}
	d.until("callers of the new authority are known, too", func() bool { return d.admits("new") })
	d.check(d.admits("old"), "callers of the old authority are known")
	d.check(l.more(200), "services are answered")
	d.say("2. the server's certificate")
	if err := d.replace("server"); err != nil {
		return err
	}
	d.until("new connections get a certificate of the new authority", func() bool {
		_, err := d.served("new/ca.crt")
		return err == nil
	})
	d.check(l.more(200), "services are answered")
	d.say("3. the clients' certificates")
	if err := errors.Join(d.replace("validator"), d.replace("admin")); err != nil {
		return err
	}
	d.check(l.more(200), "services are answered")
	d.say("4. the old authority is taken out")
	if err := d.put("ca.crt", newCA); err != nil {
		return err
	}
	d.until("callers of the old authority are not known any more", func() bool { return !d.admits("old") })
	d.check(d.admits("new"), "callers of the new authority are known")
	d.check(l.more(2000), "services are answered")
	d.well()
	d.judge(l)
	return d.server.stop()
}
