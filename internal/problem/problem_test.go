package problem_test

import (
	"errors"
	"fmt"
	"testing"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/problem"
)

const (
	fieldInvalid = keysvcv1.ErrorReason_ERROR_REASON_FIELD_INVALID
	scopeUnknown = keysvcv1.ErrorReason_ERROR_REASON_SCOPE_UNKNOWN
)

func asProblem(t *testing.T, err error) *problem.Error {
	t.Helper()
	var found *problem.Error
	if !errors.As(err, &found) {
		t.Fatalf("got %v (%T), want a *problem.Error", err, err)
	}
	return found
}

func TestErrorHasMessageAndViolations(t *testing.T) {
	violation := problem.Violation{Field: "name", Description: "is missing"}
	for _, test := range []struct {
		name string
		err  problem.Error
		want string
	}{
		{"message", problem.Error{Message: "no such key"}, "no such key"},
		{"one field", problem.Error{Message: "invalid request", Violations: []problem.Violation{violation}}, "invalid request: name: is missing"},
		{
			"two fields",
			problem.Error{Message: "invalid request", Violations: []problem.Violation{violation, {Field: "scopes[3]", Description: "is twice there"}}},
			"invalid request: name: is missing; scopes[3]: is twice there",
		},
		{"field alone", problem.Error{Violations: []problem.Violation{violation}}, "name: is missing"},
		// The cause is for the log.
		{"cause", problem.Error{Message: "no such key", Cause: errors.New("secret of the house")}, "no such key"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.err.Error(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestCauseCanBeUnwrapped(t *testing.T) {
	cause := errors.New("cause")
	made := problem.New(scopeUnknown, "%d of %s", 7, "nine")
	if made.Reason != scopeUnknown || made.Message != "7 of nine" {
		t.Errorf("got %+v", made)
	}
	if errors.Is(made, cause) {
		t.Error("it has a cause from nowhere")
	}
	made.Cause = cause
	if !errors.Is(fmt.Errorf("wrapped: %w", made), cause) {
		t.Error("the cause is not found")
	}
}

func TestFieldsHaveOneReasonIfAllAgree(t *testing.T) {
	t.Run("none", func(t *testing.T) {
		var fields problem.Fields
		if err := fields.Err(); err != nil {
			t.Errorf("got %v", err)
		}
	})
	for _, test := range []struct {
		name string
		add  func(*problem.Fields)
		want keysvcv1.ErrorReason
	}{
		{"plain", func(f *problem.Fields) { f.Add("a", "is bad") }, fieldInvalid},
		{"all with one reason", func(f *problem.Fields) { f.AddAs(scopeUnknown, "a", "x"); f.AddAs(scopeUnknown, "b", "x") }, scopeUnknown},
		{"plain first", func(f *problem.Fields) { f.Add("a", "x"); f.AddAs(scopeUnknown, "b", "x") }, fieldInvalid},
		{"plain last", func(f *problem.Fields) { f.AddAs(scopeUnknown, "a", "x"); f.Add("b", "x") }, fieldInvalid},
		{"plain in the middle", func(f *problem.Fields) {
			f.AddAs(scopeUnknown, "a", "x")
			f.Add("b", "x")
			f.AddAs(scopeUnknown, "c", "x")
		}, fieldInvalid},
		{"two reasons", func(f *problem.Fields) {
			f.AddAs(scopeUnknown, "a", "x")
			f.AddAs(keysvcv1.ErrorReason_ERROR_REASON_ROLE_UNKNOWN, "b", "x")
		}, fieldInvalid},
		{"nested", func(f *problem.Fields) { f.Within("key").AddAs(scopeUnknown, "scopes[0]", "x") }, scopeUnknown},
	} {
		t.Run(test.name, func(t *testing.T) {
			var fields problem.Fields
			test.add(&fields)
			if got := asProblem(t, fields.Err()).Reason; got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func TestWithinPutsTheNameBeforeFields(t *testing.T) {
	var fields problem.Fields
	fields.Add("etag", "is bad")
	key := fields.Within("key")
	key.Add("name", "has %d characters", 7)
	key.Within("labels").Add("a", "is long")
	found := asProblem(t, fields.Err())
	want := []problem.Violation{
		{Field: "etag", Description: "is bad"},
		{Field: "key.name", Description: "has 7 characters"},
		{Field: "key.labels.a", Description: "is long"},
	}
	if len(found.Violations) != len(want) {
		t.Fatalf("got %+v", found.Violations)
	}
	for index := range want {
		if found.Violations[index] != want[index] {
			t.Errorf("got %+v, want %+v", found.Violations[index], want[index])
		}
	}
}

// TestFieldsAreBounded adds 10,000 bad scopes: the answer stays small, and the fields that
// are not shown still count for the reason.
func TestFieldsAreBounded(t *testing.T) {
	var fields problem.Fields
	for index := range 10_000 {
		fields.AddAs(scopeUnknown, fmt.Sprintf("scopes[%d]", index), "is not in the policy")
	}
	found := asProblem(t, fields.Err())
	if len(found.Violations) != 20 || found.Violations[19].Field != "scopes[19]" {
		t.Errorf("got %d violations", len(found.Violations))
	}
	if want := "invalid request (9980 more bad fields are not shown)"; found.Message != want {
		t.Errorf("got %q, want %q", found.Message, want)
	}
	if found.Reason != scopeUnknown {
		t.Errorf("got %s", found.Reason)
	}
	fields.Add("name", "is missing")
	if found := asProblem(t, fields.Err()); found.Reason != fieldInvalid {
		t.Errorf("with another bad field, which is not shown: got %s", found.Reason)
	}
}
