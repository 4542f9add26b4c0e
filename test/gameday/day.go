//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
)

// patience bounds every wait. What lasts longer hangs.
const patience = 20 * time.Second

// day is what the person on call has in hand during a step: programs, a folder, the server that runs now,
// and the transcript on standard output.
type day struct {
	ctx      context.Context
	folder   string
	programs programs
	server   *server
	// environment are variables for all commands, beside the address.
	environment []string
	// quiet leaves commands out of the transcript.
	quiet bool
	// mounted says that the store is on a disk of its own.
	mounted        bool
	checks, faults int
	ending         []func() error
}

// end ends what the step has left running.
func (d *day) end() error {
	var errs []error
	for _, each := range slices.Backward(d.ending) {
		errs = append(errs, each())
	}
	return errors.Join(errs...)
}

// path returns the path of a file or folder of the step.
func (d *day) path(name string) string { return filepath.Join(d.folder, name) }

// say prints a line of the transcript.
func (d *day) say(format string, values ...any) { fmt.Printf("# "+format+"\n", values...) }

// check records whether something is as promised.
func (d *day) check(holds bool, format string, values ...any) {
	d.checks++
	mark := "ok   "
	if !holds {
		d.faults++
		mark = "FAULT"
	}
	fmt.Printf("  %s %s\n", mark, fmt.Sprintf(format, values...))
}

// known notes whether something is as it should be that is known not to be. It is no fault.
func (d *day) known(holds bool, format string, values ...any) {
	mark := "KNOWN not so:"
	if holds {
		mark = "ok   "
	}
	fmt.Printf("  %s %s\n", mark, fmt.Sprintf(format, values...))
}

// until waits until a condition holds, and checks that it does in time.
func (d *day) until(what string, holds func() bool) {
	began, most := time.Now(), patience
	if d.faults > 0 {
		most = time.Second // the step is spoilt
	}
	for !holds() {
		if time.Since(began) > most || d.ctx.Err() != nil {
			d.check(false, "%s: not within %v", what, most)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	d.check(true, "%s (after %.1f s)", what, time.Since(began).Seconds())
}

// answer is what a command has said.
type answer struct {
	status      int
	output, err string
}

// text returns everything that the command has said.
func (a answer) text() string { return a.output + a.err }

// keysvc runs the command of this version.
func (d *day) keysvc(arguments ...string) answer {
	return d.command(d.programs.now, "", arguments...)
}

// command runs a command of keysvc, and shows what the person on call sees of it.
func (d *day) command(program, input string, arguments ...string) answer {
	command := exec.CommandContext(d.ctx, program, arguments...)
	command.Env = clean()
	if d.server != nil {
		command.Env = append(command.Env, "KEYSVC_ADDR="+d.server.address)
	}
	command.Env = append(command.Env, d.environment...)
	command.Dir = d.folder
	command.Stdin = strings.NewReader(input)
	var output, errs strings.Builder
	command.Stdout, command.Stderr = &output, &errs
	a := answer{}
	if err := command.Run(); err != nil {
		a.status = -1
		if ended := (*exec.ExitError)(nil); errors.As(err, &ended) {
			a.status = ended.ExitCode()
		}
	}
	a.output, a.err = output.String(), errs.String()
	if d.quiet {
		return a
	}
	fmt.Printf("$ %s %s\n", filepath.Base(program), strings.Join(arguments, " "))
	if !slices.Contains(arguments, "json") {
		lines := slices.Collect(strings.Lines(strings.TrimSpace(a.text())))
		if most := 12; len(lines) > most {
			lines = append(lines[:most-1], fmt.Sprintf("… %d more lines", len(lines)-most+1))
		}
		for _, line := range lines {
			if strings.HasPrefix(line, "scribe_") {
				line = "(a token)\n"
			}
			fmt.Printf("  | %s", strings.ReplaceAll(line, d.folder+"/", ""))
		}
		fmt.Println()
	}
	if a.status != 0 {
		fmt.Printf("  exit status %d\n", a.status)
	}
	return a
}

// must runs a command that must succeed.
func (d *day) must(arguments ...string) answer {
	a := d.keysvc(arguments...)
	if a.status != 0 {
		d.check(false, "it succeeds")
	}
	return a
}

// key is a key and its token.
type key struct{ name, id, token, scope string }

// create creates a key of a member of the workspace acme.
func (d *day) create(name, member string, scopes ...string) (key, error) {
	quiet := d.quiet
	d.quiet = true
	defer func() { d.quiet = quiet }()
	a := d.keysvc("key", "create", "--workspace", "acme", "--member", member, "--name", name, "--scope", strings.Join(scopes, ","), "-o", "json")
	var made struct {
		Token string
		Key   struct {
			ID string `json:"key_id"`
		}
	}
	if err := json.Unmarshal([]byte(a.output), &made); err != nil || made.Key.ID == "" {
		return key{}, fmt.Errorf("creating the key %s: %w: status %d: %s", name, err, a.status, a.err)
	}
	return key{name: name, id: made.Key.ID, token: made.Token, scope: scopes[0]}, nil
}

// member adds a member to the workspace acme.
func (d *day) member(name string) {
	d.must("member", "put", name, "--workspace", "acme", "--role", "manager")
}

// validate checks what keysvc validate says of a key: an exit status, and a text in its answer.
func (d *day) validate(k key, scope string, status int, text string) {
	quiet := d.quiet
	d.quiet = true
	a := d.command(d.programs.now, k.token, "validate", "--scope", scope)
	d.quiet = quiet
	d.check(a.status == status && strings.Contains(a.text(), text), "%s may use %s: status %d, wanted %d %s; %s",
		k.name, scope, a.status, status, text, firstLine(a.text()))
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return line
}

// problems returns the ids of keysvc status, sorted.
func (d *day) problems() []string {
	quiet := d.quiet
	d.quiet = true
	a := d.keysvc("status", "-o", "json")
	d.quiet = quiet
	var status struct {
		Problems []struct {
			ID string `json:"problem_id"`
		}
	}
	if err := json.Unmarshal([]byte(a.output), &status); err != nil {
		return []string{fmt.Sprintf("no answer, status %d", a.status)}
	}
	ids := make([]string, 0, len(status.Problems))
	for _, each := range status.Problems {
		ids = append(ids, each.ID)
	}
	slices.Sort(ids)
	return ids
}

// sees waits until keysvc status names exactly these problems, and checks the alerts that then hold.
func (d *day) sees(problems, alerts []string) {
	slices.Sort(problems)
	d.until(fmt.Sprintf("keysvc status names the problems %v", problems), func() bool { return slices.Equal(d.problems(), problems) })
	alerts = slices.Clone(alerts)
	slices.Sort(alerts)
	var firing []string
	d.until(fmt.Sprintf("the expressions of the alerts %v hold, and no other", alerts), func() bool {
		var err error
		firing, err = d.alerts()
		return err == nil && slices.Equal(firing, alerts)
	})
	if !slices.Equal(firing, alerts) {
		fmt.Printf("        these hold: %v\n", firing)
	}
}

// well checks that nothing is wrong.
func (d *day) well() {
	a := d.keysvc("status")
	d.check(a.status == 0 && strings.HasPrefix(a.output, "All is well."), "keysvc status ends with 0: all is well")
	firing, err := d.alerts()
	d.check(err == nil && len(firing) == 0, "no alert holds: %v %v", firing, err)
}

// scrape returns what Prometheus would read.
func (d *day) scrape() (string, error) {
	response, err := (&http.Client{Timeout: 10 * time.Second}).Get("http://" + d.server.metrics + "/metrics")
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return string(text), err
}

// logs checks that the log of the server has a text since it started.
func (d *day) logs(text string) {
	d.until(fmt.Sprintf("the log says %q", text), func() bool {
		content, _ := os.ReadFile(d.server.log)
		return strings.Contains(string(content), text)
	})
}

// clean returns the environment of this process without the variables of keysvc.
func clean() []string {
	return slices.DeleteFunc(os.Environ(), func(variable string) bool { return strings.HasPrefix(variable, "KEYSVC_") })
}

// unanswered reports whether a call got no answer, because the server was not there.
func unanswered(code codes.Code) bool {
	return code == codes.Unavailable || code == codes.DeadlineExceeded
}
