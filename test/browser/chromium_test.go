// Package browser_test drives the settings screen, and the example with it, in a real Chromium. See README.md.
package browser_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/chromedp/chromedp"
)

var (
	pictures = flag.String("pictures", "", "write the pictures of the docs into this folder")
	everyWay = flag.Bool("every-way", false, "walk in all sixteen ways, not in four")
)

// axeFile and axeChecksum are those of install.sh: the file in the cache, and the SHA-256 of its content.
const (
	axeFile     = "axe-core-4.14.1.js"
	axeChecksum = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
)

var (
	// chromium is the running Chromium; nil where Chromium is missing.
	chromium context.Context
	// axe is the source of axe-core.
	axe string
	// missing says why there is no browser to test with.
	missing string
)

func TestMain(m *testing.M) {
	// Tests mostly wait for Chromium, so more of them go on at a time than there are processors.
	flag.Set("test.parallel", "6")
	flag.Parse()
	os.Exit(run(m))
}

// run starts Chromium once for all tests, and ends it.
func run(m *testing.M) int {
	path, err := findChromium()
	if err == nil {
		axe, err = readAxe()
	}
	if err != nil {
		missing = err.Error()
		fmt.Fprintf(os.Stderr, "\n%[1]s\nTHE SETTINGS SCREEN WAS NOT TESTED IN A BROWSER: %[2]s.\nRun `make browser` to get what is missing.\n%[1]s\n\n",
			"********************************************************************************", missing)
		return m.Run()
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		// Chromium refuses to run as root with its sandbox. It sees our own pages only.
		chromedp.NoSandbox,
		// Nothing but this machine: a page that needs the internet must fail.
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
		chromedp.Flag("font-render-hinting", "none"),
		chromedp.Flag("lang", "en-GB"),
	)
	allocator, free := chromedp.NewExecAllocator(context.Background(), options...)
	defer free()
	var end context.CancelFunc
	chromium, end = chromedp.NewContext(allocator)
	defer end()
	if err := chromedp.Do(chromium); err != nil {
		fmt.Fprintln(os.Stderr, "starting", path+":", err)
		return 1
	}
	return m.Run()
}

// findChromium returns the path of Chromium.
func findChromium() (string, error) {
	if path := os.Getenv("KEYSVC_BROWSER"); path != "" {
		return path, nil
	}
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("Chromium is not installed")
}

// readAxe returns the source of axe-core.
func readAxe() (string, error) {
	cache := os.Getenv("XDG_CACHE_HOME")
	if cache == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		cache = filepath.Join(home, ".cache")
	}
	source, err := os.ReadFile(filepath.Join(cache, "keysvc-browser", axeFile))
	if err != nil {
		return "", fmt.Errorf("axe-core was not fetched")
	}
	if sum := sha256.Sum256(source); hex.EncodeToString(sum[:]) != axeChecksum {
		return "", fmt.Errorf("%s in the cache is not the one that was fetched; remove it", axeFile)
	}
	return string(source), nil
}

// needsBrowser skips a test if there is no browser.
func needsBrowser(t *testing.T) {
	t.Helper()
	if missing != "" {
		t.Skip("NOT TESTED IN A BROWSER: " + missing)
	}
}
