// Command release makes everything that a release of keysvc consists of: an archive for each platform
// (binary, manual, completions, unit of systemd), a bill of materials for each binary, an image for
// containers, and checksums. Made twice from the same commit with the same version of Go, all of it is
// equal byte by byte. `make packages` runs it.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// platform is an operating system and an architecture, as Go names them.
type platform struct{ system, architecture string }

func (p platform) String() string { return p.system + "_" + p.architecture }

// platforms are those that a release has binaries for.
var platforms = []platform{{"linux", "amd64"}, {"linux", "arm64"}, {"darwin", "amd64"}, {"darwin", "arm64"}}

// release is what is made.
type release struct {
	// source is the root of the sources, and output the folder of what is made.
	source, output string
	// version is the name of the release, as in v1.2.3. commit is its commit, made at a time, which is
	// the time of every file.
	version, commit string
	at              time.Time
}

// name returns the name of a file of the release.
func (r *release) name(rest string) string {
	return "keysvc_" + strings.TrimPrefix(r.version, "v") + "_" + rest
}

func main() {
	var r release
	var seconds int64
	flag.StringVar(&r.source, "source", ".", "the root of the sources")
	flag.StringVar(&r.output, "output", "dist", "the folder for what is made; it is made, and must be empty")
	flag.StringVar(&r.version, "version", "", "the name of the release, as in v1.2.3")
	flag.StringVar(&r.commit, "commit", "", "the commit that the sources are of")
	flag.Int64Var(&seconds, "time", 0, "the time of the commit, in Unix seconds")
	flag.Parse()
	r.at = time.Unix(seconds, 0).UTC()
	if err := r.make(); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

// make makes the release.
func (r *release) make() error {
	if r.version == "" || r.commit == "" || r.at.Unix() == 0 {
		return fmt.Errorf("-version, -commit and -time are needed")
	}
	if err := os.MkdirAll(r.output, 0o755); err != nil {
		return err
	}
	if left, err := os.ReadDir(r.output); err != nil || len(left) > 0 {
		return fmt.Errorf("%s is not empty (%v)", r.output, err)
	}
	common, err := r.documents()
	if err != nil {
		return err
	}
	binaries := make(map[platform][]byte)
	for _, each := range platforms {
		if binaries[each], err = r.build(each); err != nil {
			return fmt.Errorf("%s: %w", each, err)
		}
		content := append([]file{{name: "keysvc", content: binaries[each], executable: true}}, common...)
		if each.system == "linux" {
			units, err := r.units()
			if err != nil {
				return err
			}
			content = append(content, units...)
		}
		if err := r.archive(r.name(each.String()), content); err != nil {
			return err
		}
		if err := r.bill(each, binaries[each]); err != nil {
			return err
		}
	}
	if err := r.image(binaries); err != nil {
		return fmt.Errorf("the image: %w", err)
	}
	return r.checksums()
}

// build returns the binary for a platform.
func (r *release) build(of platform) ([]byte, error) {
	folder, err := os.MkdirTemp("", "keysvc-release-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder)
	binary := filepath.Join(folder, "keysvc")
	const variables = "github.com/scribe-mail/keysvc/internal/version"
	command := exec.Command("go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags", fmt.Sprintf("-s -w -X %s.release=%s -X %s.commit=%s", variables, r.version, variables, r.commit),
		"-o", binary, "./cmd/keysvc")
	command.Dir = r.source
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+of.system, "GOARCH="+of.architecture, "GOFLAGS=")
	command.Stderr = os.Stderr
	if err := command.Run(); err != nil {
		return nil, err
	}
	return os.ReadFile(binary)
}
