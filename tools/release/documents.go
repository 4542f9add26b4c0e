package main

import (
	"bytes"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/scribe-mail/keysvc/internal/cli"
)

// documents returns what every archive has beside the binary: texts, the documentation, rules and dashboard
// for metrics, the manifests of Kubernetes, the manual, completions.
func (r *release) documents() ([]file, error) {
	var files []file
	for _, name := range []string{"README.md", "CHANGELOG.md", "LICENSE", "SECURITY.md"} {
		content, err := os.ReadFile(filepath.Join(r.source, name))
		if err != nil {
			return nil, err
		}
		files = append(files, file{name: name, content: content})
	}
	for _, folder := range []string{"docs", "deploy/prometheus", "deploy/grafana", "deploy/kubernetes", "proto/keysvc/v1"} {
		within, err := r.folder(folder, folder)
		if err != nil {
			return nil, err
		}
		files = append(files, slices.DeleteFunc(within, func(each file) bool { return strings.HasSuffix(each.name, ".go") })...)
	}
	root := cli.Root()
	root.DisableAutoGenTag = true
	pages, err := r.manual(root)
	if err != nil {
		return nil, err
	}
	completions, err := completions(root)
	return append(append(files, pages...), completions...), err
}

// manual returns a page for each command.
func (r *release) manual(command *cobra.Command) ([]file, error) {
	var page bytes.Buffer
	header := &doc.GenManHeader{Section: "1", Date: &r.at, Source: "keysvc " + r.version, Manual: "keysvc"}
	if err := doc.GenMan(command, header, &page); err != nil {
		return nil, err
	}
	pages := []file{{name: "man/man1/" + strings.ReplaceAll(command.CommandPath(), " ", "-") + ".1", content: page.Bytes()}}
	for _, child := range command.Commands() {
		if !child.IsAvailableCommand() || child.IsAdditionalHelpTopicCommand() {
			continue
		}
		more, err := r.manual(child)
		if err != nil {
			return nil, err
		}
		pages = append(pages, more...)
	}
	return pages, nil
}

// completions returns the scripts that complete commands, for three shells.
func completions(root *cobra.Command) ([]file, error) {
	var bash, zsh, fish bytes.Buffer
	if err := root.GenBashCompletionV2(&bash, true); err != nil {
		return nil, err
	}
	if err := root.GenZshCompletion(&zsh); err != nil {
		return nil, err
	}
	if err := root.GenFishCompletion(&fish, true); err != nil {
		return nil, err
	}
	return []file{
		{name: "completions/bash/keysvc", content: bash.Bytes()},
		{name: "completions/zsh/_keysvc", content: zsh.Bytes()},
		{name: "completions/fish/keysvc.fish", content: fish.Bytes()},
	}, nil
}

// units returns the files for systemd.
func (r *release) units() ([]file, error) { return r.folder("deploy/systemd", "systemd") }

// folder returns the files of a folder of the sources, with its folders, under another name.
func (r *release) folder(source, name string) (files []file, err error) {
	root := filepath.Join(r.source, filepath.FromSlash(source))
	err = filepath.WalkDir(root, func(found string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		within, err := filepath.Rel(root, found)
		if err != nil {
			return err
		}
		content, err := os.ReadFile(found)
		files = append(files, file{name: path.Join(name, filepath.ToSlash(within)), content: content})
		return err
	})
	return files, err
}
