package events_test

import (
	"reflect"
	"slices"
	"testing"

	"github.com/scribe-mail/keysvc/internal/events"
)

// listening returns hooks that each append a name to called.
func listening(called *[]string, name string) events.Hooks {
	var hooks events.Hooks
	fields := reflect.ValueOf(&hooks).Elem()
	for index := range fields.NumField() {
		text := name + "." + fields.Type().Field(index).Name
		fields.Field(index).Set(reflect.MakeFunc(fields.Field(index).Type(), func([]reflect.Value) []reflect.Value {
			*called = append(*called, text)
			return nil
		}))
	}
	return hooks
}

// TestJoinCallsEachListenerInOrder goes over the fields, so that a new one is covered.
func TestJoinCallsEachListenerInOrder(t *testing.T) {
	var called []string
	for name, joined := range map[string]events.Hooks{
		"first, second": events.Join(listening(&called, "first"), listening(&called, "second")),
		"with empty":    events.Join(events.Hooks{}, listening(&called, "first"), events.Hooks{}, listening(&called, "second")),
	} {
		fields := reflect.ValueOf(joined)
		for index := range fields.NumField() {
			called = nil
			field := fields.Type().Field(index)
			var arguments []reflect.Value
			for argument := range field.Type.NumIn() {
				arguments = append(arguments, reflect.Zero(field.Type.In(argument)))
			}
			fields.Field(index).Call(arguments)
			if want := []string{"first." + field.Name, "second." + field.Name}; !slices.Equal(called, want) {
				t.Errorf("%s: got %q, want %q", name, called, want)
			}
		}
	}
}

func TestJoinOfNothingCanBeCalled(t *testing.T) {
	for _, joined := range []events.Hooks{events.Join(), events.Join(events.Hooks{})} {
		fields := reflect.ValueOf(joined)
		for index := range fields.NumField() {
			name := fields.Type().Field(index).Name
			if isNil := fields.Field(index).IsNil(); isNil != (name == "ValidationFinished") {
				t.Errorf("%s is nil: %t", name, isNil)
			}
		}
	}
}

func TestSubjectIsWrittenAsAPath(t *testing.T) {
	for want, subject := range map[string]events.Subject{
		"":          {},
		"acme":      {WorkspaceID: "acme"},
		"acme/ann":  {WorkspaceID: "acme", MemberID: "ann"},
		"acme/0123": {WorkspaceID: "acme", KeyID: "0123", MemberID: "ann"},
		"/0123":     {KeyID: "0123"},
	} {
		if got := subject.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
