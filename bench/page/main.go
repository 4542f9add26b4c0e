// Command page makes the tables and plots of a Markdown page from figures of `make bench`.
//
//	go run ./bench/page FIGURES.json PAGE.md
//
// The figures and the plots are written into the folder that is named as the page.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/scribe-mail/keysvc/bench/figures"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: page FIGURES.json PAGE.md")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "page:", err)
		os.Exit(1)
	}
}

func run(source, page string) error {
	report, err := figures.Read(source)
	if err != nil {
		return err
	}
	if len(report.Figures) == 0 {
		return fmt.Errorf("%s: no figures; make bench measures them", source)
	}
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	filled, err := figures.Fill(string(text), report)
	if err != nil {
		return err
	}
	folder := strings.TrimSuffix(page, filepath.Ext(page))
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for name, plot := range figures.Plots(report) {
		drawn, err := plot.SVG()
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(folder, name+".svg"), []byte(drawn), 0o644); err != nil {
			return err
		}
	}
	if err := report.Write(filepath.Join(folder, "figures.json")); err != nil {
		return err
	}
	return os.WriteFile(page, []byte(filled), 0o644)
}
