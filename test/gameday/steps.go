//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
)

// begin makes a store with the member ann, and a server of it that runs.
func (d *day) begin(o options) error {
	o.arguments = append(o.arguments, "--init")
	if err := d.start(o); err != nil {
		return err
	}
	d.quiet = true
	defer func() { d.quiet = false }()
	d.member("ann")
	return nil
}

// pair returns a valid and a revoked key.
func (d *day) pair() (valid, revoked key, err error) {
	if valid, err = d.create("valid", "ann", "signatures:read"); err != nil {
		return valid, revoked, err
	}
	if revoked, err = d.create("revoked", "ann", "signatures:read"); err != nil {
		return valid, revoked, err
	}
	d.quiet = true
	d.must("key", "revoke", revoked.id, "--yes")
	d.quiet = false
	return valid, revoked, nil
}

const (
	read  = "signatures:read"
	mails = "emails:read"
)

// yesterday is what the step restore knows of the store that is lost.
type yesterday struct {
	kept, revoked, narrowed, removed, lost key
}

// prepare makes keys, a copy of the store, and then changes; and loses the machine.
func (y *yesterday) prepare(d *day) error {
	if err := d.begin(options{data: d.path("data"), arguments: []string{"--audit-sink", d.path("audit.jsonl")}}); err != nil {
		return err
	}
	d.member("ben")
	var errs [5]error
	y.kept, errs[0] = d.create("kept", "ann", read)
	y.revoked, errs[1] = d.create("revoked-since", "ann", read)
	y.narrowed, errs[2] = d.create("narrowed-since", "ann", read, mails)
	y.removed, errs[3] = d.create("member-removed-since", "ben", read)
	d.say("the copy of yesterday")
	d.must("backup", "yesterday.db")
	d.say("what happens today")
	d.must("key", "revoke", y.revoked.id, "--yes")
	d.must("key", "update", y.narrowed.id, "--workspace", "acme", "--scope", read)
	d.must("member", "remove", "ben", "--workspace", "acme", "--yes")
	y.lost, errs[4] = d.create("made-since", "ann", read)
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	d.say("the machine is lost; its audit sink is not")
	if err := d.server.kill(); err != nil {
		return err
	}
	d.sees([]string{"no answer, status 8"}, []string{"KeysvcDown"})
	return nil
}

// narrow checks that what was taken away since the copy stays taken away.
func (y *yesterday) narrow(d *day) {
	d.validate(y.revoked, read, 3, "")
	d.validate(y.removed, read, 3, "")
	d.validate(y.lost, read, 3, "")
}

func restore(d *day) error {
	var y yesterday
	if err := y.prepare(d); err != nil {
		return err
	}
	d.say("the copy in the place of the store, without keysvc restore, is refused")
	if err := errors.Join(
		os.Mkdir(d.path("naive"), 0o700),
		command("cp", d.path("yesterday.db"), d.path("naive/keysvc.db")),
		command("cp", d.path("audit.jsonl"), d.path("naive/audit.jsonl")),
	); err != nil {
		return err
	}
	d.refused(options{data: d.path("naive"), arguments: []string{"--audit-sink", d.path("naive/audit.jsonl")}}, "audit sink")

	d.say("restored with the audit sink")
	sink := []string{"--audit-sink", d.path("audit.jsonl")}
	plan := d.must(append([]string{"restore", "yesterday.db", "--data", "data2", "--sink-is-complete", "--dry-run"}, sink...)...)
	d.check(strings.Contains(plan.text(), "lost        1 key "), "the plan counts the key that is lost")
	d.must(append([]string{"restore", "yesterday.db", "--data", "data2", "--sink-is-complete"}, sink...)...)
	if err := d.start(options{data: d.path("data2"), arguments: sink}); err != nil {
		return err
	}
	d.validate(y.kept, read, 0, "ALLOWED")
	y.narrow(d)
	d.validate(y.narrowed, mails, 4, "")
	d.validate(y.narrowed, read, 0, "ALLOWED")
	d.well()
	if err := d.server.stop(); err != nil {
		return err
	}
	d.check(d.must("check", "data2/keysvc.db").status == 0, "keysvc check finds no fault")

	d.say("restored without an audit sink: nobody knows what was revoked, and all keys are held")
	d.must("restore", "yesterday.db", "--data", "data3")
	if err := d.start(options{data: d.path("data3")}); err != nil {
		return err
	}
	for _, k := range []key{y.kept, y.revoked, y.narrowed, y.removed} {
		d.validate(k, read, 3, "KEY_HELD")
	}
	d.sees([]string{"keys-held"}, []string{"KeysvcWarning"})
	d.keysvc("status")
	d.say("the product's own records say what was revoked, narrowed and removed: it is taken out of the list")
	return d.release(&y)
}

// release releases the held keys, as the section about restoring in docs/operations.md has it.
func (d *day) release(y *yesterday) error {
	held := d.must("key", "list", "--state", "held", "--all", "-o", "name").output
	for _, k := range []key{y.revoked, y.narrowed, y.removed} {
		held = strings.ReplaceAll(held, k.id+"\n", "")
	}
	if err := os.WriteFile(d.path("held.txt"), []byte(held), 0o600); err != nil {
		return err
	}
	d.must("key", "release", "held.txt", "--dry-run")
	d.must("key", "release", "held.txt", "--yes")
	d.validate(y.kept, read, 0, "ALLOWED")
	y.narrow(d)
	d.validate(y.narrowed, mails, 3, "KEY_HELD")
	for id := range strings.Lines(d.must("key", "list", "--state", "held", "--all", "-o", "name").output) {
		d.must("key", "revoke", strings.TrimSpace(id), "--yes")
	}
	d.sees([]string{}, nil)
	d.validate(y.kept, read, 0, "ALLOWED")
	d.validate(y.narrowed, mails, 3, "KEY_REVOKED")
	d.well()
	return nil
}

// refused checks that a start is refused, and that its last line names the reason.
func (d *day) refused(o options, reason string) {
	s, err := d.launch(o)
	if err != nil {
		d.check(false, "%v", err)
		return
	}
	err = s.gone()
	lines := strings.Split(strings.TrimSpace(string(s.logged())), "\n")
	last := lines[len(lines)-1]
	d.check(err == nil && s.ProcessState.ExitCode() == 1 && strings.Contains(last, reason), "the start is refused: %s", last)
}

func kill(d *day) error {
	if err := d.begin(options{data: d.path("data")}); err != nil {
		return err
	}
	valid, revoked, err := d.pair()
	if err != nil {
		return err
	}
	late, err := d.create("revoked-just-before", "ann", read)
	if err != nil {
		return err
	}
	l, err := d.load(valid, revoked, nil)
	if err != nil {
		return err
	}
	d.check(l.more(200), "services are answered")
	d.must("key", "revoke", late.id, "--yes")
	d.say("kill -9")
	if err := d.server.kill(); err != nil {
		return err
	}
	d.sees([]string{"no answer, status 8"}, []string{"KeysvcDown"})
	if err := d.start(options{data: d.path("data")}); err != nil {
		return err
	}
	d.check(l.more(200), "services are answered again, and need no restart")
	d.validate(late, read, 3, "KEY_REVOKED")
	d.well()
	l.stop()
	d.check(l.wrong == "", "no answer was wrong, while the server was away or later; %d right, %d without an answer meanwhile %s", l.answered, l.unanswered, l.wrong)
	if err := d.server.stop(); err != nil {
		return err
	}
	d.check(d.must("check", "data/keysvc.db").status == 0, "keysvc check finds no fault")
	return nil
}

func upgrade(d *day) error {
	if d.programs.before == "" {
		return fmt.Errorf("%w: no older program", errCannot)
	}
	// The socket listens all the time, as that of systemd does: callers wait instead of being refused.
	listener, err := net.Listen("unix", d.path("s"))
	if err != nil {
		return err
	}
	defer listener.Close()
	passed, err := listener.(*net.UnixListener).File()
	if err != nil {
		return err
	}
	defer passed.Close()
	older := options{program: d.programs.before, data: d.path("data"), passed: passed, arguments: []string{"--audit-sink", d.path("audit.jsonl")}}
	newer := older
	newer.program = d.programs.now
	if err := d.begin(older); err != nil {
		return err
	}
	valid, revoked, err := d.pair()
	if err != nil {
		return err
	}
	l, err := d.load(valid, revoked, nil)
	if err != nil {
		return err
	}
	d.say("new clients and the new command with the old server")
	d.check(l.more(200), "new services are answered by the old server")
	d.asks(d.programs.now, valid, revoked)
	d.must("backup", "before-upgrade.db")
	d.say("docs/upgrade.md: check the new program against the copy, then replace and restart")
	d.must("check", "before-upgrade.db")
	if err := d.server.stop(); err != nil {
		return err
	}
	if err := d.start(newer); err != nil {
		return err
	}
	d.check(l.more(200), "services go on with the new server")
	d.well()
	d.say("the old command with the new server")
	d.asks(d.programs.before, valid, revoked)
	d.command(d.programs.before, "", "status")
	d.must("key", "list", "--all")
	d.say("going back: both write the same schema")
	since, err := d.create("revoked-by-the-new-server", "ann", read)
	if err != nil {
		return err
	}
	d.must("key", "revoke", since.id, "--yes")
	if err := d.server.stop(); err != nil {
		return err
	}
	if err := d.start(older); err != nil {
		return err
	}
	d.check(l.more(200), "services go on with the old server")
	d.validate(since, read, 3, "KEY_REVOKED")
	d.say("and forward again")
	if err := d.server.stop(); err != nil {
		return err
	}
	if err := d.start(newer); err != nil {
		return err
	}
	d.check(l.more(200), "services go on with the new server")
	d.well()
	d.judge(l)
	return nil
}

// asks lets a program ask about both keys, and make and revoke another one.
func (d *day) asks(program string, valid, revoked key) {
	d.quiet = true
	defer func() { d.quiet = false }()
	for _, each := range []struct {
		key    key
		status int
	}{{valid, 0}, {revoked, 3}} {
		a := d.command(program, each.key.token, "validate", "--scope", read)
		d.check(a.status == each.status, "validate of %s: %s", each.key.name, firstLine(a.text()))
	}
	a := d.command(program, "", "key", "create", "--workspace", "acme", "--member", "ann", "--name", "another", "--scope", read)
	made := strings.TrimSpace(a.output)
	d.check(a.status == 0 && made != "", "key create")
	a = d.command(program, made, "key", "revoke", "--token-stdin", "--yes")
	d.check(a.status == 0, "key revoke --token-stdin: %s", firstLine(a.text()))
	a = d.command(program, made, "validate", "--scope", read)
	d.check(a.status == 3, "the key that was revoked is not valid: %s", firstLine(a.text()))
}
