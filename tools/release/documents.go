package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/scribe-mail/keysvc/internal/cli"
)

// documents returns what every archive has beside the binary: texts, the manual, completions.
func (r *release) documents() ([]file, error) {
	var files []file
	for _, name := range []string{"README.md", "CHANGELOG.md", "LICENSE"} {
		content, err := os.ReadFile(filepath.Join(r.source, name))
		if err != nil {
			return nil, err
		}
		files = append(files, file{name: name, content: content})
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
func (r *release) units() (files []file, err error) {
	folder := filepath.Join(r.source, "deploy", "systemd")
	err = filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		files = append(files, file{name: "systemd/" + entry.Name(), content: content})
		return err
	})
	return files, err
}
