// Package migrate copies a store into one of another backend, part by part, and compares the two
// afterwards. It knows no backend: the parts, and what reads and stores them, are those of package storage.
package migrate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/scribe-mail/keysvc/internal/storage"
)

// maxDifferences is how many differences a Report describes.
const maxDifferences = 20

// ErrDiffers is the error of a migration whose target is not what the source is. The Report says where.
// The target is not served.
var ErrDiffers = errors.New("the target is not what the source is")

// Stage is what a migration does at present.
type Stage string

// The stages, in their order.
const (
	// Copying copies the parts that are not stored yet.
	Copying Stage = "copying"
	// Comparing reads source and target, and compares them part by part.
	Comparing Stage = "comparing"
	// Checking looks for contradictions in the target, as keysvc check does.
	Checking Stage = "checking"
)

// Options are what Run works with.
type Options struct {
	// Source is what is copied. Nobody may change it meanwhile. Required.
	Source storage.Exporter
	// Target is what is filled. Required.
	Target storage.Importer
	// Progress, if not nil, is called for each part of a stage with how many of all parts are done.
	Progress func(stage Stage, done, total int64)
}

// Report is what a migration did.
type Report struct {
	// Origin is the source, Epoch the target's new epoch and Revision the target's revision.
	Origin   storage.Origin
	Epoch    string
	Revision int64
	// Resumed is how many parts an earlier run had stored; Finished is set if an earlier run had done
	// everything.
	Resumed  int64
	Finished bool
	// Counts are how many parts of each kind source and target have alike.
	Counts map[storage.PortableKind]int64
	// Left are how many parts of each kind the target does not keep.
	Left map[storage.PortableKind]int64
	// Problems say where the target differs from the source, or contradicts itself; the first ones.
	Problems []string
}

// Run migrates, or goes on with a migration that was interrupted. Errors: ErrDiffers,
// storage.ErrSourceChanged if the source changed meanwhile or since an interrupted run, and those of
// storage.Exporter and storage.Importer. After an error the target is not served, unless an earlier run
// had finished it.
func Run(ctx context.Context, options Options) (*Report, error) {
	m := &migration{Options: options, ctx: ctx, report: &Report{
		Counts: make(map[storage.PortableKind]int64), Left: make(map[storage.PortableKind]int64),
	}}
	if m.Progress == nil {
		m.Progress = func(Stage, int64, int64) {}
	}
	return m.report, m.run()
}

// migration is one Run.
type migration struct {
	Options
	ctx    context.Context //nolint:containedctx // that of one call
	report *Report
}

func (m *migration) run() error {
	// 1. What is copied, and how much of it is stored already.
	origin, err := m.Source.Origin(m.ctx)
	if err != nil {
		return fmt.Errorf("reading the source: %w", err)
	}
	m.report.Origin = origin
	begun, err := m.Target.Begin(m.ctx, origin)
	if err != nil {
		return fmt.Errorf("beginning: %w", err)
	}
	m.report.Resumed, m.report.Finished = begun.Copied, begun.Released
	// 2. Copy the rest.
	if !begun.Complete {
		if err := m.copy(); err != nil {
			return fmt.Errorf("copying: %w", err)
		}
	}
	// 3. Compare, also what earlier runs have copied, and only then let anybody serve the target.
	if err := m.compare(); err != nil {
		return fmt.Errorf("comparing: %w", err)
	}
	if err := m.isUnchanged(); err != nil {
		return err
	}
	if len(m.report.Problems) == 0 {
		m.Progress(Checking, 0, origin.Parts)
		if m.report.Problems, err = m.Target.Check(m.ctx); err != nil {
			return fmt.Errorf("checking the target: %w", err)
		}
		m.Progress(Checking, origin.Parts, origin.Parts)
	}
	if len(m.report.Problems) > 0 {
		return ErrDiffers
	}
	if m.report.Epoch, m.report.Revision, err = m.Target.Release(m.ctx); err != nil {
		return fmt.Errorf("finishing: %w", err)
	}
	return nil
}

// isUnchanged returns ErrSourceChanged if the source is not as it was at the beginning.
func (m *migration) isUnchanged() error {
	now, err := m.Source.Origin(m.ctx)
	if err != nil {
		return fmt.Errorf("reading the source: %w", err)
	}
	if before := m.report.Origin; now.Epoch != before.Epoch || now.Position != before.Position || now.Pruned != before.Pruned {
		return fmt.Errorf("%w: it went from revision %d to %d; make the servers over it read-only first",
			storage.ErrSourceChanged, before.Position.Revision, now.Position.Revision)
	}
	return nil
}

// copy puts what the source has into the target.
func (m *migration) copy() error {
	done := int64(0)
	for part, err := range m.wanted() {
		if err != nil {
			return err
		}
		if err := m.Target.Put(m.ctx, part); err != nil {
			return err
		}
		done++
		m.Progress(Copying, done, max(done, m.report.Origin.Parts))
	}
	if err := m.isUnchanged(); err != nil {
		return err
	}
	return m.Target.Complete(m.ctx)
}

// wanted yields what the target is to have. The first error is the last that it yields.
func (m *migration) wanted() iter.Seq2[storage.Portable, error] {
	parts := all(m.ctx, m.Source)
	if !m.Target.Keeps(storage.PortableSettings) {
		parts = withoutSettings(parts, m.report.Origin.Position.Time)
	}
	return func(yield func(storage.Portable, error) bool) {
		clear(m.report.Left)
		for part, err := range parts {
			if err == nil && !m.Target.Keeps(part.Kind) {
				m.report.Left[part.Kind]++
				continue
			}
			if !yield(part, err) || err != nil {
				return
			}
		}
	}
}

// all yields what an Exporter exports, and an error at the end.
func all(ctx context.Context, from storage.Exporter) iter.Seq2[storage.Portable, error] {
	return func(yield func(storage.Portable, error) bool) {
		left := errors.New("left")
		err := from.Export(ctx, func(part storage.Portable) error {
			if !yield(part, nil) {
				return left
			}
			return nil
		})
		if err != nil && !errors.Is(err, left) {
			yield(storage.Portable{}, err)
		}
	}
}

// compare compares the source with the target.
func (m *migration) compare() error {
	target, err := m.Target.Exporter(m.ctx)
	if err != nil {
		return err
	}
	defer target.Close() //nolint:errcheck // it was only read
	found, stop := iter.Pull2(all(m.ctx, target))
	defer stop()
	done, total := int64(0), max(1, m.report.Origin.Parts)
	for want, err := range m.wanted() {
		if err != nil {
			return err
		}
		got, err, more := found()
		switch {
		case err != nil:
			return fmt.Errorf("reading the target: %w", err)
		case !more:
			m.differ("%v: it is missing, and so is all that follows", want)
			return nil
		case !same(want, got):
			if want.String() == got.String() {
				m.differ("%v: it is another one than the source's", want)
			} else {
				m.differ("%v is in the place of %v", got, want)
			}
		default:
			m.report.Counts[want.Kind]++
		}
		if len(m.report.Problems) >= maxDifferences {
			return nil
		}
		done++
		m.Progress(Comparing, min(done, total), total)
	}
	if got, err, more := found(); err != nil {
		return fmt.Errorf("reading the target: %w", err)
	} else if more {
		m.differ("%v: the source does not have it", got)
	}
	return nil
}

func (m *migration) differ(format string, arguments ...any) {
	m.report.Problems = append(m.report.Problems, fmt.Sprintf(format, arguments...))
}

// same reports whether two parts are equal in all that decides, byte by byte.
func same(a, b storage.Portable) bool {
	return a.Kind == b.Kind && a.WorkspaceID == b.WorkspaceID && a.Name == b.Name && a.Sequence == b.Sequence &&
		bytes.Equal(a.Payload, b.Payload) && a.Head == b.Head && sameUse(a.Usage, b.Usage)
}

func sameUse(a, b storage.Usage) bool {
	if !a.Time.Equal(b.Time) {
		return false
	}
	for index := range a.Secrets {
		if a.Secrets[index].Tag != b.Secrets[index].Tag || !a.Secrets[index].Time.Equal(b.Secrets[index].Time) {
			return false
		}
	}
	return true
}
