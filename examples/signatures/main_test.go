package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestStoryRunsToItsEnd(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), nil, &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, want := range []string{"200 OK", "403 Forbidden", "401 Unauthorized", "WWW-Authenticate: Bearer", "SCOPE_NOT_GRANTED", "PermissionDenied", "Unauthenticated"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the story has no %q:\n%s", want, out.String())
		}
	}
}
