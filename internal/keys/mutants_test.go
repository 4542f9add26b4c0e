package keys_test

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// `make mutants` takes out one rule of the product after the other.
var mutantsFlag = flag.String("mutants", "", "which rules to take out, a regular expression; empty skips the test")

// mutant takes one rule out of the product, by replacing text of a file. One of the tests with several
// managers, or the model test, must then fail.
type mutant struct {
	name     string
	file     string
	old, new string
}

var mutants = []mutant{
	{
		"a change is checked without a barrier", "internal/keys/manager.go",
		"\tif err := m.projection.Fresh(ctx); err != nil {\n\t\treturn Position{}, err\n\t}\n\t// 4. Try", "\t// 4. Try",
	},
	{
		"nothing to change and refusals do not wait for what they rest on", "internal/keys/attempt.go",
		"\tif again, err := a.outdated(ctx)", "\treturn a.manager.at(a.Revision), false, err\n\tif again, err := a.outdated(ctx)",
	},
	{
		"nothing to change does not wait for what was read", "internal/keys/attempt.go",
		"projection.WaitFor(ctx, max(a.Revision, a.read))", "projection.WaitFor(ctx, a.Revision)",
	},
	{
		"nothing to change and refusals rest on a view that is out of date", "internal/keys/attempt.go",
		"return now.Head != a.Head || now.PolicyHead != a.PolicyHead, nil", "return now.Revision < 0, nil",
	},
	{
		"a conflict waits for the store's next revision", "internal/keys/attempt.go",
		"a.manager.projection.WaitFor(ctx, conflict.Revision)", "a.manager.projection.WaitFor(ctx, a.Revision+1)",
	},
	{
		"a conflict is refused", "internal/keys/attempt.go",
		"return true, a.manager.projection.WaitFor(ctx, conflict.Revision)",
		"return false, problem.New(problem.ConcurrentChange, \"\")",
	},
	{
		"a change does not expect the policy", "internal/keys/manager.go",
		"if workspaceID != \"\" {\n\t\tchange.ExpectPolicy", "if workspaceID == \"?\" {\n\t\tchange.ExpectPolicy",
	},
	{
		"a change is acknowledged before the projection has it", "internal/keys/manager.go",
		"if err := m.projection.WaitFor(ctx, revision); err != nil {\n\t\treturn Position{}, fmt.Errorf(",
		"if err := ctx.Err(); err != nil {\n\t\treturn Position{}, fmt.Errorf(",
	},
	{
		"a retry of CreateKey is judged first", "internal/keys/create.go",
		"\t\tif err := view.requestUnused(ctx, spec.RequestID); err != nil {",
		"\t\tif active, err := view.ActivePolicy(); err == nil {\n\t\t\tif _, err := checkCreate(spec, actor, active, now); err != nil {\n\t\t\t\treturn nil, err\n\t\t\t}\n\t\t}\n" +
			"\t\tif err := view.requestUnused(ctx, spec.RequestID); err != nil {",
	},
	{
		"RevokeToken looks without a barrier", "internal/keys/revoke.go",
		"\tif err := m.projection.Fresh(ctx); err != nil {\n\t\treturn KeyName{}, Position{}, err\n\t}\n\tname, err :=", "\tname, err :=",
	},
	{
		"the policy is read without a barrier", "internal/keys/manager.go",
		"if err := m.projection.Fresh(ctx); err != nil {\n\t\treturn nil, 0, err", "if err := ctx.Err(); err != nil {\n\t\treturn nil, 0, err",
	},
	{
		"a read does not wait for the projection", "internal/keys/read.go",
		"return cmp.Or(m.projection.WaitFor(ctx, revision), err)", "return cmp.Or(ctx.Err(), err)",
	},
	{
		"a validation is made without a barrier", "internal/validation/validation.go",
		"if err := v.projection.Fresh(ctx); err != nil {", "if err := ctx.Err(); err != nil {",
	},
	{
		"a caller reads workspaces of others", "internal/keys/permission.go",
		"return visible.Has(workspaceID), nil", "return true, nil",
	},
	{
		"a caller reports tokens of others", "internal/keys/revoke.go",
		" || !workspaces.Has(subject.Key.Workspace)", "",
	},
	{
		"a caller validates in workspaces of others", "internal/validation/validation.go",
		"question.WorkspaceID != \"\" && question.Workspaces.Has(question.WorkspaceID)", "question.WorkspaceID != \"\"",
	},
	{
		"a barrier is not waited for", "internal/projection/fresh.go",
		"return p.WaitFor(ctx, read.Revision)", "return ctx.Err()",
	},
	{
		"a barrier is joined that has been sent", "internal/barrier/barrier.go",
		"\tq.waiting, q.sending = nil, next != nil\n",
		"\tif next != nil {\n\t\tselect {\n\t\tcase <-next.done:\n\t\t\tnext, q.waiting = nil, nil\n\t\tdefault:\n\t\t}\n\t}\n\tq.sending = next != nil\n",
	},
	{
		"the projection says that it has a change before it does", "internal/projection/projection.go",
		"\tp.mutex.Lock()\n\tdefer p.mutex.Unlock()\n\tp.state.apply(change)",
		"\tp.applied.Store(&storage.Barrier{Revision: change.Revision + 1})\n\tp.mutex.Lock()\n\tdefer p.mutex.Unlock()\n\tp.state.apply(change)",
	},
	{
		"a change is left out of what is published", "internal/storage/boltstore/watch.go",
		"\tr.changes = append(r.changes, change)\n", "\tif change.Revision%16 != 0 {\n\t\tr.changes = append(r.changes, change)\n\t}\n",
	},
	{
		"the barrier lies one behind", "internal/storage/boltstore/watch.go",
		"point := change.Barrier()", "point := storage.Barrier{Revision: change.Revision - 1}",
	},
	{
		"bbolt does not compare the policy's head", "internal/storage/boltstore/pending.go",
		"case p.change.ExpectPolicy == nil:", "case p.change.ExpectPolicy == nil || p != nil:",
	},
	{
		"bbolt lets the policy change before what was checked against it", "internal/storage/boltstore/commit.go",
		"return cmp.Compare(isPolicy(a), isPolicy(b))", "return cmp.Compare(isPolicy(b), isPolicy(a))",
	},
	{
		"bbolt does not compare the workspace's head", "internal/storage/boltstore/pending.go",
		"if head != p.change.Expect {", "if head.Sequence > p.change.Expect.Sequence+5 {",
	},
	{
		"bbolt commits two changes of a workspace at once", "internal/storage/boltstore/commit.go",
		"if workspaces[pending.change.WorkspaceID] || len(group)", "if len(group)",
	},
	{
		"a commit that failed counts as not made", "internal/storage/boltstore/commit.go",
		"finishAll(plan.accepted, fmt.Errorf(\"%w: %w\", storage.ErrOutcomeUnknown, err))", "finishAll(plan.accepted, fmt.Errorf(\"%w: %w\", storage.ErrUnavailable, err))",
	},
	{
		"a reopened store gives its watchers nothing to load", "internal/storage/boltstore/reopen.go",
		"s.ring.restart(s.position)", "s.ring.restart(storage.Position{Revision: s.position.Revision - 1})",
	},
}

// TestEveryMutantIsNoticed takes out one rule after the other. For each of them a test must fail.
func TestEveryMutantIsNoticed(t *testing.T) {
	if *mutantsFlag == "" {
		t.Skip("run by make mutants")
	}
	chosen := regexp.MustCompile(*mutantsFlag)
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, each := range mutants {
		if !chosen.MatchString(each.name) {
			continue
		}
		t.Run(each.name, func(t *testing.T) {
			output, err := runMutant(t, root, each)
			var exit *exec.ExitError
			switch {
			case err == nil:
				t.Error("no test has failed without the rule")
			case !errors.As(err, &exit) || strings.Contains(output, " failed]"), strings.Contains(output, "panic: "):
				t.Errorf("%v\n%s", err, output)
			default:
				t.Log(firstLines(output, 6))
			}
		})
	}
}

// TestEveryMutantAppliesOnce: the text that a mutant replaces stands in its file exactly once. It
// runs always, so that a change of the product that breaks a mutant is noticed with the change.
func TestEveryMutantAppliesOnce(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, each := range mutants {
		t.Run(each.name, func(t *testing.T) { each.apply(t, root) })
	}
}

// apply returns the text of the mutant's file with the rule taken out.
func (m mutant) apply(t *testing.T, root string) string {
	t.Helper()
	source, err := os.ReadFile(filepath.Join(root, m.file))
	if err != nil {
		t.Fatal(err)
	}
	if count := strings.Count(string(source), m.old); count != 1 {
		t.Fatalf("%s has the rule's text %d times, want once: the mutant must follow the product", m.file, count)
	}
	return strings.Replace(string(source), m.old, m.new, 1)
}

// runMutant runs the tests with the rule taken out. err is nil if all of them pass.
func runMutant(t *testing.T, root string, taken mutant) (output string, err error) {
	t.Helper()
	path := filepath.Join(root, taken.file)
	folder := t.TempDir()
	mutated, overlay := filepath.Join(folder, "mutated.go"), filepath.Join(folder, "overlay.json")
	text := taken.apply(t, root)
	if strings.Contains(taken.new, "problem.New") && !strings.Contains(text, "internal/problem\"") {
		const module = "github.com/scribe-mail/keysvc/"
		text = strings.Replace(text, "import (", "import (\n\t\""+module+"internal/problem\"\n", 1)
	}
	written, err := json.Marshal(map[string]map[string]string{"Replace": {path: mutated}})
	if err == nil {
		err = errors.Join(os.WriteFile(mutated, []byte(text), 0o600), os.WriteFile(overlay, written, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	// The first two are quicker, and notice most mutants.
	for _, tests := range [][]string{
		{"./internal/keys", "^(TestSeveralManagersReflectEachOthersChanges|TestRandomOperationsMatchTheModel|TestRefusalsRestOnOneState|TestReadsAreOfOneRevision)$"},
		{"./internal/storage/boltstore", "^TestSeveralManagersOfFailingFile$"},
		{"./internal/keys", "^TestManyCallersSeeOneHistory$"},
	} {
		command := exec.CommandContext(t.Context(), "go", "test", "-vet=off", "-overlay", overlay, "-failfast", "-timeout", "120s",
			"-run", tests[1], tests[0], "-several.runs", "60")
		command.Dir = root
		combined, err := command.CombinedOutput()
		if output += string(combined); err != nil {
			return output, err
		}
	}
	return output, nil
}

func firstLines(text string, limit int) string {
	lines := strings.Split(text, "\n")
	return strings.Join(lines[:min(limit, len(lines))], "\n")
}
