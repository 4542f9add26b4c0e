package version

import (
	"runtime"
	"strings"
	"testing"
)

// TestTextIsOneLineOfASCII: the text travels in a header of gRPC.
func TestTextIsOneLineOfASCII(t *testing.T) {
	got := Text()
	if strings.IndexFunc(got, func(r rune) bool { return r < ' ' || r > '~' }) >= 0 || !strings.Contains(got, runtime.Version()) {
		t.Errorf("got %q", got)
	}
}
