package main

import "encoding/json"

// panel is a graph of the dashboard.
type panel struct {
	title, unit string
	queries     []query
}

// query is a line, or several lines, of a panel. Legend is in Grafana's notation.
type query struct{ expression, legend string }

// section is a row of panels under a heading.
type section struct {
	title  string
	panels []panel
}

const chosen = `{instance=~"$instance"}`

// sections has every panel of the dashboard, in its order.
var sections = []section{
	{"Is it well?", []panel{
		{"Serving and store", "short", []query{{"keysvc_serving" + chosen, "{{instance}} serving"}, {"keysvc_store_up" + chosen, "{{instance}} store up"}}},
		{"Errors", "reqps", []query{{`sum by (code) (rate(keysvc_calls_total{instance=~"$instance", code=~"INTERNAL|DATA_LOSS|UNKNOWN|UNAVAILABLE"}[$__rate_interval]))`, "{{code}}"}}},
		{"Refused", "reqps", []query{
			{"sum by (work) (rate(keysvc_calls_without_slot_total" + chosen + "[$__rate_interval]))", "no slot: {{work}}"},
			{"sum (rate(keysvc_calls_without_room_total" + chosen + "[$__rate_interval]))", "no room for bytes"},
			{"sum (rate(keysvc_callers_refused_total" + chosen + "[$__rate_interval]))", "unknown callers"},
			{"sum (rate(keysvc_validations_refused_total" + chosen + "[$__rate_interval]))", "validations by who called"},
		}},
	}},
	{"Validations", []panel{
		{"Decisions", "reqps", []query{{"sum by (decision, reason) (rate(keysvc_decisions_total" + chosen + "[$__rate_interval]))", "{{decision}} {{reason}}"}}},
		{"How long validations take", "s", []query{
			{`histogram_quantile(0.5, sum by (le) (rate(keysvc_call_duration_seconds_bucket{instance=~"$instance", method="ValidateKey"}[$__rate_interval])))`, "half within"},
			{`histogram_quantile(0.99, sum by (le) (rate(keysvc_call_duration_seconds_bucket{instance=~"$instance", method="ValidateKey"}[$__rate_interval])))`, "99 % within"},
		}},
		{"Calls by method", "reqps", []query{{"sum by (method) (rate(keysvc_calls_total" + chosen + "[$__rate_interval])) > 0", "{{method}}"}}},
	}},
	{"Keys", []panel{
		{"Keys by state", "short", []query{{"keysvc_keys" + chosen, "{{state}}"}}},
		{"Keys that expire soon", "short", []query{{"keysvc_keys_expiring" + chosen, "within {{within}}"}}},
		{"Changes", "ops", []query{{"sum by (kind) (rate(keysvc_changes_total" + chosen + "[$__rate_interval]))", "{{kind}}"}}},
	}},
	{"Near-caches", []panel{
		{"Sessions", "short", []query{{"keysvc_sessions" + chosen, "{{instance}}"}}},
		{"Behind", "short", []query{
			{"keysvc_session_unread_changes" + chosen, "changes not sent yet, slowest"},
			{"keysvc_session_unapplied_revisions" + chosen, "revisions not applied yet, slowest"},
		}},
		{"How old an answer may be", "s", []query{
			{"keysvc_lease_age_max_seconds" + chosen, "oldest lease"},
			{"keysvc_staleness_seconds" + chosen, "bound"},
			{"histogram_quantile(0.99, sum by (le) (rate(keysvc_change_delivery_seconds_bucket" + chosen + "[$__rate_interval])))", "commit to last near-cache, 99 %"},
		}},
	}},
	{"Store", []panel{
		{"How long changes take", "s", []query{
			{"histogram_quantile(0.99, sum by (le) (rate(keysvc_store_queue_seconds_bucket" + chosen + "[$__rate_interval])))", "queue, 99 %"},
			{"histogram_quantile(0.99, sum by (le) (rate(keysvc_store_commit_seconds_bucket" + chosen + "[$__rate_interval])))", "commit, 99 %"},
			{"histogram_quantile(0.99, sum by (le) (rate(keysvc_store_sync_seconds_bucket" + chosen + "[$__rate_interval])))", "disk, 99 %"},
		}},
		{"File", "bytes", []query{
			{"keysvc_store_file_bytes" + chosen, "length"},
			{"keysvc_store_used_bytes" + chosen, "pages"},
			{"keysvc_store_free_bytes" + chosen, "free pages"},
		}},
		{"Disk", "bytes", []query{
			{"keysvc_disk_free_bytes" + chosen, "free"},
			{"keysvc_store_reserve_bytes" + chosen, "reserve"},
			{"keysvc_store_reserve_wanted_bytes" + chosen, "reserve wanted"},
		}},
	}},
	{"Process", []panel{
		{"Processor", "short", []query{{"rate(process_cpu_seconds_total" + chosen + "[$__rate_interval])", "{{instance}}"}}},
		{"Memory", "bytes", []query{{"process_resident_memory_bytes" + chosen, "resident"}, {"go_memstats_heap_inuse_bytes" + chosen, "heap"}, {"keysvc_messages_held_bytes" + chosen, "messages"}}},
		{"Connections and calls", "short", []query{{"keysvc_connections" + chosen, "connections"}, {"sum by (work) (keysvc_calls_in_flight" + chosen + ")", "{{work}}"}}},
	}},
}

// The grid of Grafana has 24 columns.
const (
	columns, headingHeight, panelHeight = 24, 1, 8
	schemaVersion                       = 39
)

// object is an object of JSON, whose fields are written in the order of their names.
type object = map[string]any

// dashboard returns the dashboard for Grafana.
func dashboard() ([]byte, error) {
	source := object{"type": "prometheus", "uid": "${datasource}"}
	var panels []object
	y, id := 0, 1
	add := func(more object, x, width, height int) {
		more["id"], more["gridPos"] = id, object{"x": x, "y": y, "w": width, "h": height}
		panels = append(panels, more)
		id++
	}
	for _, row := range sections {
		add(object{"type": "row", "title": row.title, "collapsed": false, "panels": []object{}}, 0, columns, headingHeight)
		y += headingHeight
		width := columns / len(row.panels)
		for index, each := range row.panels {
			var targets []object
			for number, line := range each.queries {
				targets = append(targets, object{
					"refId": string(rune('A' + number)), "expr": line.expression, "legendFormat": line.legend, "datasource": source,
				})
			}
			add(object{
				"type": "timeseries", "title": each.title, "datasource": source, "targets": targets,
				"fieldConfig": object{"defaults": object{"unit": each.unit, "min": 0}, "overrides": []object{}},
			}, index*width, width, panelHeight)
		}
		y += panelHeight
	}
	return json.MarshalIndent(object{
		"title": "keysvc", "uid": "keysvc", "tags": []string{"keysvc"}, "schemaVersion": schemaVersion, "editable": true,
		"refresh": "30s", "time": object{"from": "now-6h", "to": "now"}, "timezone": "", "panels": panels,
		"templating": object{"list": []object{
			{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
			{
				"name": "instance", "type": "query", "datasource": source, "label": "Instance", "includeAll": true, "multi": true, "refresh": 2,
				"query": "label_values(keysvc_build_info, instance)", "current": object{"text": "All", "value": "$__all"},
			},
		}},
	}, "", "  ")
}
