//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// told is what a replica says of itself to Prometheus.
type told struct {
	// up reports whether its store answers.
	up bool
	// loads is how often it has read the whole store, and resets how often it has told a near-cache to drop everything.
	loads, resets float64
	// closed is how many connections it has refused or ended by itself.
	closed float64
}

// told returns what each replica says of itself.
func (w *world) told(ctx context.Context) ([]told, error) {
	var all []told
	for _, replica := range w.cluster.Replicas {
		each, err := ask(ctx, "http://"+replica.Metrics()+"/metrics")
		if err != nil {
			return nil, fmt.Errorf("the metrics of %s: %w", replica.Name(), err)
		}
		all = append(all, each)
	}
	return all, nil
}

func ask(ctx context.Context, url string) (told, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return told{}, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return told{}, err
	}
	defer response.Body.Close()
	return read(response.Body)
}

// read reads metrics. The error says which one is missing.
func read(text io.Reader) (told, error) {
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(text)
	if err != nil {
		return told{}, err
	}
	sum := func(name string) (sum float64) {
		for _, each := range families[name].GetMetric() {
			sum += each.GetCounter().GetValue() + each.GetGauge().GetValue()
		}
		return sum
	}
	value := func(name string) float64 {
		if len(families[name].GetMetric()) == 0 {
			err = fmt.Errorf("there is no %s", name)
		}
		return sum(name)
	}
	found := told{
		up: value("keysvc_store_up") == 1, loads: value("keysvc_store_loads_total"), resets: value("keysvc_session_resets_total"),
		closed: sum("keysvc_connections_closed_total"), // not served before there is one
	}
	return found, err
}

// untilUp returns how long after a moment all replicas said that the store answers, or that it does not. It waits no longer than
// patienceOfCache.
func (w *world) untilUp(ctx context.Context, up bool, from time.Time) (time.Duration, error) {
	for time.Since(from) < patienceOfCache {
		all, err := w.told(ctx)
		if err != nil {
			return 0, err
		}
		agreed := true
		for _, each := range all {
			agreed = agreed && each.up == up
		}
		if agreed {
			return time.Since(from), nil
		}
		sleep(ctx, 100*time.Millisecond)
	}
	return patienceOfCache, nil
}

// sumLoads returns how often all replicas have loaded the store.
func sumLoads(all []told) (sum float64) {
	for _, each := range all {
		sum += each.loads
	}
	return sum
}

// judgeTold checks that no replica has read the store again, reset a near-cache, or ended a connection.
func (w *world) judgeTold(before, after []told) {
	for index := range before {
		name := fmt.Sprint("replica ", index)
		w.promise(after[index].loads == before[index].loads, "no majority: %s has loaded the store %v times", name, after[index].loads-before[index].loads)
		w.promise(after[index].resets == before[index].resets, "no majority: %s has reset %v near-caches", name, after[index].resets-before[index].resets)
		w.promise(after[index].closed == before[index].closed, "no majority: %s has ended %v connections", name, after[index].closed-before[index].closed)
	}
}
