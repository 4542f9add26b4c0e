package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
	"github.com/scribe-mail/keysvc/internal/storage/etcdstore"
	"github.com/scribe-mail/keysvc/internal/storage/sink"
	"github.com/scribe-mail/keysvc/internal/storage/sinkwriter"
)

// VerifyOptions say how VerifyAudit verifies a store.
type VerifyOptions struct {
	// Sink are the files of the audit sink, in any order, or patterns of their names. Without one,
	// the sink is used that the store had when it was served last. "off" stands for no sink.
	Sink []string
	// Copy reports whether the store is a copy that was made while the server went on.
	Copy bool
	// Progress, if not nil, is called with the number of lines of the sink that were read.
	Progress func(lines int64)
}

// EventPlace names an audit event.
type EventPlace = sink.EventPlace

// Verification is the result of VerifyAudit.
type Verification struct {
	// Epoch, Revision, Pruned and AuditEvents are those of the store. Up to the revision Pruned, old
	// events may have been deleted.
	Epoch                         string
	Revision, Pruned, AuditEvents int64
	// Comparison has the findings, also those without a sink. It has no Files if there was none.
	sink.Comparison
}

// VerifyAudit checks the audit events in a store's file, which no server may have open, and each
// record against its last event, as Check does. It compares the events with the audit sink. Nothing
// is changed. Errors: those of opening the file, and of reading the sink.
func VerifyAudit(ctx context.Context, file string, options VerifyOptions) (result Verification, err error) {
	report, err := boltstore.Check(ctx, file)
	if err != nil {
		return Verification{}, err
	}
	result = Verification{Epoch: report.Epoch, Revision: report.Position.Revision, AuditEvents: int64(report.AuditEvents)}
	compare := sink.CompareOptions{Problems: report.Located, Copy: options.Copy, Progress: options.Progress}
	store, err := boltstore.OpenAudit(ctx, file)
	if err != nil {
		if len(report.Located) == 0 {
			return Verification{}, err
		}
		// The pages are damaged: the report says so.
		for _, problem := range report.Located {
			result.Findings = append(result.Findings, sink.Finding{Kind: sink.KindStore, Text: problem.Text, Count: 1})
		}
		result.More = report.More
		result.Notes = append(result.Notes, "the store was not compared with an audit sink: it cannot be read")
		return result, nil
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	result.Pruned = store.Pruned()
	files, note, err := sinkFiles(store.SinkPath(), options.Sink)
	if err != nil {
		return Verification{}, err
	}
	result.Comparison, err = sink.Compare(ctx, store, files, compare)
	if err != nil {
		return Verification{}, fmt.Errorf("reading the audit sink: %w", err)
	}
	result.More += report.More
	if note != "" {
		result.Notes = append(result.Notes, note)
	}
	return result, nil
}

// VerifyAuditEtcd is VerifyAudit for the store in etcd that the settings name. Servers may go on meanwhile: the
// newest events, a minute old at most, may not be in the sink yet. Several files, also of several servers, are one sink.
// Without VerifyOptions.Sink, the sink is used that the settings name.
func VerifyAuditEtcd(ctx context.Context, settings config.Settings, options VerifyOptions) (result Verification, err error) {
	cluster, err := connectEtcd(ctx, settings, slog.New(slog.DiscardHandler))
	if err != nil {
		return Verification{}, err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	had := settings.AuditSink
	if had == boltstore.SinkOff {
		had = ""
	}
	files, note, err := sinkFiles(had, options.Sink)
	if err != nil {
		return Verification{}, err
	}
	if len(options.Sink) == 0 && had == "" {
		note = "the store was not compared with an audit sink: name its files with --sink. Whoever can write etcd can write its audit events anew"
	}
	compare := sink.SparseOptions{Fresh: time.Now().Add(-time.Minute), Progress: options.Progress}
	comparison, store, err := sink.CompareSparse(ctx, files, func() (sink.SparseStore, error) {
		report, store, err := etcdstore.ReadAudit(ctx, etcdstore.Config{Members: cluster.Members(), Connect: cluster.Dial, Prefix: settings.EtcdPrefix})
		if err != nil {
			return store, cluster.Explain(ctx, err)
		}
		result.AuditEvents = report.Events
		return store, nil
	}, compare)
	if err != nil {
		return Verification{}, err
	}
	result.Epoch, result.Revision, result.Pruned, result.Comparison = store.Epoch, store.Newest, store.Pruned, comparison
	if note != "" {
		result.Notes = append(result.Notes, note)
	}
	return result, nil
}

// sinkFiles returns the files of the audit sink that a person has given or, without them, those of
// the sink that the store had, and a note if there are none.
func sinkFiles(had string, given []string) (files []string, note string, err error) {
	switch {
	case len(given) == 1 && given[0] == boltstore.SinkOff:
		return nil, "the store was not compared with an audit sink", nil
	case len(given) == 0 && had == "":
		return nil, "the store has no audit sink: whoever can write its file can write its audit events anew", nil
	case len(given) == 0:
		files, err := sink.Files(had)
		if len(files) == 0 && err == nil {
			note = fmt.Sprintf("the store was not compared with its audit sink: %s is not here; name its files with --sink", had)
		}
		return files, note, err
	}
	for _, pattern := range given {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			found = []string{pattern} // opening it says what is wrong
		}
		for _, file := range found {
			// A pattern also fits the file that the writer of a sink in etcd locks.
			if isLock := file != pattern && strings.HasSuffix(file, sinkwriter.LockSuffix); !isLock && !slices.Contains(files, file) {
				files = append(files, file)
			}
		}
	}
	return files, "", nil
}
