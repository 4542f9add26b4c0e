package metrics

import (
	"slices"
	"strconv"
	"time"
)

// Kind is what a metric is for Prometheus.
type Kind string

// The kinds.
const (
	// Counter only grows until the process ends.
	Counter Kind = "counter"
	// Gauge is a value as it is now.
	Gauge Kind = "gauge"
	// Histogram counts durations, in seconds, by their length.
	Histogram Kind = "histogram"
)

// Metric is a row of the list. Everything else about a metric is made from its row: what is served,
// and docs/metrics.md.
type Metric struct {
	// Name is the name by the rules of Prometheus: keysvc, what it is about, the unit, and "total" for
	// a counter.
	Name string
	Kind Kind
	// Labels are the names of the labels, and Values says which values they can have.
	Labels []string
	Values string
	// Help says in one sentence what the metric is.
	Help string
	// When says when the metric is served; "" if it always is.
	When string
	// Group is the heading in docs/metrics.md.
	Group string

	read func(*reading)
}

// The headings of docs/metrics.md, in its order.
const (
	groupCalls   = "Calls"
	groupCallers = "Callers and connections"
	groupKeys    = "Keys"
	groupCaches  = "Near-caches"
	groupStore   = "The store"
	groupProcess = "The process"
)

// The texts of When.
const (
	whenStore       = "The store is a file."
	whenCluster     = "The store is in etcd."
	whenNotices     = "The settings name a notice-webhook."
	whenCertificate = "The server has a certificate."
	whenBackup      = "The server has made a backup since its start, or found a scheduled one then."
	whenProblem     = "Something is wrong."
)

// List returns every metric, in the order of docs/metrics.md.
func List() []Metric { return slices.Clone(list) }

// list has every metric of keysvc itself. It is not changed after the start.
var list = []Metric{
	{
		Name: "keysvc_calls_total", Kind: Counter, Labels: []string{"method", "code"}, Group: groupCalls,
		Values: "the RPC; the code of gRPC",
		Help:   "Calls that have an answer. Calls that found no slot count only if they are validations.",
		read: func(r *reading) {
			r.eachMethod(func(of *method) {
				for index, code := range codes {
					if count := of.codes.Count(index); count > 0 || index == 0 {
						r.count(count, of.Name, code)
					}
				}
			})
		},
	},
	{
		Name: "keysvc_call_duration_seconds", Kind: Histogram, Labels: []string{"method"}, Group: groupCalls,
		Values: "the RPC",
		Help:   "How long answers took, from the end of the request to the answer. Streams are left out.",
		read: func(r *reading) {
			r.eachMethod(func(of *method) {
				if !of.Stream {
					r.durations(of.took.Durations(), of.Name)
				}
			})
		},
	},
	{
		Name: "keysvc_decisions_total", Kind: Counter, Labels: []string{"decision", "reason"}, Group: groupCalls,
		Values: "the decision and its reason; ALLOWED has the reason NONE",
		Help:   "Decisions on tokens that this server made. Items of a batch count one by one.",
		read: func(r *reading) {
			for index, reason := range r.config.Reasons {
				r.count(r.decisions.Count(index), reason.Decision, reason.Name)
			}
		},
	},
	{
		Name: "keysvc_near_cache_decisions_total", Kind: Counter, Labels: []string{"decision", "reason"}, Group: groupCalls,
		Values: "as those of keysvc_decisions_total",
		Help:   "Decisions that near-caches made from memory. They report these when they ask for a lease, so the last ones before a crash are missing.",
		read: func(r *reading) {
			for index, reason := range r.config.Reasons {
				r.count(r.near[index].Load(), reason.Decision, reason.Name)
			}
		},
	},
	{
		Name: "keysvc_calls_in_flight", Kind: Gauge, Labels: []string{"work"}, Group: groupCalls,
		Values: "the kind of work: validation, change, read, wait, session, watch, inspection or backup",
		Help:   "Calls that have a slot.",
		read:   func(r *reading) { r.eachWork(func(w *Work) { r.whole(w.InFlight, w.Name) }) },
	},
	{
		Name: "keysvc_call_slots", Kind: Gauge, Labels: []string{"work"}, Group: groupCalls,
		Values: "the kind of work",
		Help:   "How many calls may have a slot at a time.",
		read:   func(r *reading) { r.eachWork(func(w *Work) { r.whole(w.Limit, w.Name) }) },
	},
	{
		Name: "keysvc_calls_without_slot_total", Kind: Counter, Labels: []string{"work"}, Group: groupCalls,
		Values: "the kind of work",
		Help:   "Calls that were refused because they found no slot.",
		read:   func(r *reading) { r.eachWork(func(w *Work) { r.whole(w.Refused, w.Name) }) },
	},
	{
		Name: "keysvc_calls_without_room_total", Kind: Counter, Group: groupCalls,
		Help: "Calls that were refused because there was no room for the bytes of their request or answer.",
		read: func(r *reading) { r.whole(r.WithoutRoom) },
	},
	{
		Name: "keysvc_messages_held_bytes", Kind: Gauge, Group: groupCalls,
		Help: "Bytes of requests and answers that calls hold.",
		read: func(r *reading) { r.whole(r.HeldBytes) },
	},
	{
		Name: "keysvc_messages_limit_bytes", Kind: Gauge, Group: groupCalls,
		Help: "How many bytes of requests and answers calls may hold.",
		read: func(r *reading) { r.whole(r.BytesLimit) },
	},
	{
		Name: "keysvc_calls_half_open", Kind: Gauge, Group: groupCalls,
		Help: "Calls whose request has not come yet.",
		read: func(r *reading) { r.whole(r.HalfOpen) },
	},
	{
		Name: "keysvc_panics_total", Kind: Counter, Group: groupCalls,
		Help: "Calls that ended with INTERNAL because of a fault of keysvc.",
		read: func(r *reading) { r.count(r.panics.Load()) },
	},

	{
		Name: "keysvc_callers_refused_total", Kind: Counter, Group: groupCallers,
		Help: "Calls whose caller sent a token that proves nothing.",
		read: func(r *reading) { r.whole(r.CallersRefused) },
	},
	{
		Name: "keysvc_validations_refused_total", Kind: Counter, Group: groupCallers,
		Help: "Validations that were refused because of who called.",
		read: func(r *reading) { r.count(r.validationsRefused.Load()) },
	},
	{
		Name: "keysvc_owner_calls_total", Kind: Counter, Group: groupCallers,
		Help: "Calls of the owner of the process over the unix socket, past the callers file.",
		read: func(r *reading) { r.whole(r.OwnerCalls) },
	},
	{
		Name: "keysvc_tokens_presented_total", Kind: Counter, Labels: []string{"form"}, Group: groupCallers,
		Values: "token or digest",
		Help:   "Tokens that callers presented, or asked for, by the form that they sent.",
		read: func(r *reading) {
			r.whole(r.Tokens, "token")
			r.whole(r.Digests, "digest")
		},
	},
	{
		Name: "keysvc_invalid_token_reports_total", Kind: Counter, Group: groupCallers,
		Help: "Reports that one caller or network sent over 100 tokens that are not valid within about a minute. The log names the source.",
		read: func(r *reading) { r.count(r.invalidTokens.Load()) },
	},
	{
		Name: "keysvc_connections", Kind: Gauge, Group: groupCallers,
		Help: "Open connections.",
		read: func(r *reading) { r.whole(r.Connections) },
	},
	{
		Name: "keysvc_connections_young", Kind: Gauge, Group: groupCallers,
		Help: "Open connections whose client has not begun to speak HTTP/2 yet.",
		read: func(r *reading) { r.whole(r.Young) },
	},
	{
		Name: "keysvc_connections_largest_source", Kind: Gauge, Group: groupCallers,
		Help: "Open connections of the address or user that has the most.",
		read: func(r *reading) { r.whole(r.LargestSource) },
	},
	{
		Name: "keysvc_streams", Kind: Gauge, Group: groupCallers,
		Help: "Calls that are open on all connections, without those of near-caches.",
		read: func(r *reading) { r.whole(r.Streams) },
	},
	{
		Name: "keysvc_connections_closed_total", Kind: Counter, Labels: []string{"reason"}, Group: groupCallers,
		Values: "as in the log",
		Help:   "Connections that the server refused or ended by itself.",
		When:   "The server has closed one.",
		read:   func(r *reading) { r.closed.each(func(reason string, count uint64) { r.count(count, reason) }) },
	},
	{
		Name: "keysvc_accept_failures_total", Kind: Counter, Group: groupCallers,
		Help: "Connections that could not be accepted, usually for lack of file descriptors.",
		read: func(r *reading) { r.count(r.acceptFailures.Load()) },
	},

	{
		Name: "keysvc_keys", Kind: Gauge, Labels: []string{"state"}, Group: groupKeys,
		Values: "active, suspended (with its member), held (since a restore), expired, revoked (also with its member or workspace), damaged",
		Help:   "Keys that are not purged yet, each in one state. A key counts as expired from the end of the hour on in which it expires.",
		read: func(r *reading) {
			r.whole(r.Keys.Active, "active")
			r.whole(r.Keys.Suspended, "suspended")
			r.whole(r.Keys.Held, "held")
			r.whole(r.Keys.Expired, "expired")
			r.whole(r.Keys.Revoked, "revoked")
			r.whole(r.Keys.Damaged, "damaged")
		},
	},
	{
		Name: "keysvc_keys_expiring", Kind: Gauge, Labels: []string{"within"}, Group: groupKeys,
		Values: "7d or 30d",
		Help:   "Active keys that expire within the next 7 or 30 days, to the hour.",
		read: func(r *reading) {
			r.whole(r.Keys.Within7Days, "7d")
			r.whole(r.Keys.Within30Days, "30d")
		},
	},
	{
		Name: "keysvc_keys_ending", Kind: Gauge, Labels: []string{"within", "used"}, Group: groupKeys,
		Values: "1d, 7d or 30d; true if the key was used within the last 30 days",
		Help:   "Active keys that expire within the next 1, 7 or 30 days. They are counted at each notice-interval.",
		When:   "They were counted since the start.",
		read: func(r *reading) {
			for _, each := range r.Ending {
				within := strconv.FormatInt(int64(each.Within/(hoursOfDay*time.Hour)), 10) + "d"
				r.whole(each.InUse, within, "true")
				r.whole(each.Unused, within, "false")
			}
		},
	},
	{
		Name: "keysvc_notices_total", Kind: Counter, Labels: []string{"outcome"}, Group: groupKeys, When: whenNotices,
		Values: "sent, or failed: then it is tried again",
		Help:   "Attempts to send a notice that a key ends.",
		read: ofNotices(func(r *reading) {
			r.whole(r.Notices.Sent, "sent")
			r.whole(r.Notices.Failed, "failed")
		}),
	},
	{
		Name: "keysvc_notices_waiting", Kind: Gauge, Group: groupKeys, When: whenNotices,
		Help: "About how many notices have fallen due and were not taken yet.",
		read: ofNotices(func(r *reading) { r.whole(r.Notices.Waiting) }),
	},
	{
		Name: "keysvc_notice_failures", Kind: Gauge, Group: groupKeys, When: whenNotices,
		Help: "How many attempts to send a notice have failed since the last one that succeeded.",
		read: ofNotices(func(r *reading) { r.whole(r.Notices.Failures) }),
	},
	{
		Name: "keysvc_members", Kind: Gauge, Group: groupKeys,
		Help: "Members, removed ones included until they are purged.",
		read: func(r *reading) { r.whole(r.Members) },
	},
	{
		Name: "keysvc_workspaces", Kind: Gauge, Group: groupKeys,
		Help: "Workspaces that were ever changed.",
		read: func(r *reading) { r.whole(r.Workspaces) },
	},
	{
		Name: "keysvc_revision", Kind: Gauge, Group: groupKeys,
		Help: "The revision that validations are answered from.",
		read: func(r *reading) { r.whole(r.Revision) },
	},
	{
		Name: "keysvc_changes_total", Kind: Counter, Labels: []string{"kind"}, Group: groupKeys,
		Values: "key, member, workspace, policy or purge",
		Help:   "Changes that are durable.",
		When:   "There was a change since the start.",
		read:   func(r *reading) { r.changes.each(func(kind string, count uint64) { r.count(count, kind) }) },
	},
	{
		Name: "keysvc_last_change_timestamp_seconds", Kind: Gauge, Group: groupKeys,
		Help: "When the newest change was made, in seconds since 1970.",
		When: "There was a change since the start.",
		read: func(r *reading) {
			if at := r.lastChange.Load(); at != 0 {
				r.value(float64(at) / float64(time.Second))
			}
		},
	},
	{
		Name: "keysvc_purged_records_total", Kind: Counter, Labels: []string{"kind"}, Group: groupKeys,
		Values: "key, member or event",
		Help:   "Records past their retention that were deleted.",
		read: func(r *reading) {
			r.count(r.purgedKeys.Load(), "key")
			r.count(r.purgedMembers.Load(), "member")
			r.count(r.prunedEvents.Load(), "event")
		},
	},
	{
		Name: "keysvc_sweep_failures_total", Kind: Counter, Group: groupKeys,
		Help: "Searches for records past their retention that broke off.",
		read: func(r *reading) { r.count(r.sweepFailures.Load()) },
	},
	{
		Name: "keysvc_uses_written_total", Kind: Counter, Group: groupKeys,
		Help: "Last-used times that were written.",
		read: func(r *reading) { r.count(r.usesWritten.Load()) },
	},
	{
		Name: "keysvc_use_failures_total", Kind: Counter, Group: groupKeys,
		Help: "Writes of last-used times that failed. They are tried again.",
		read: func(r *reading) { r.count(r.flushFailures.Load()) },
	},

	{
		Name: "keysvc_sessions", Kind: Gauge, Group: groupCaches,
		Help: "Near-caches that are connected.",
		read: func(r *reading) { r.whole(r.Feed.Sessions) },
	},
	{
		Name: "keysvc_session_unread_changes", Kind: Gauge, Group: groupCaches,
		Help: "Changes that were not sent yet to the near-cache that is furthest behind.",
		read: func(r *reading) { r.whole(r.Feed.Unread) },
	},
	{
		Name: "keysvc_session_unapplied_revisions", Kind: Gauge, Group: groupCaches,
		Help: "How many revisions the near-cache is behind that has reported the lowest. A near-cache reports when it asks for a lease, and an idle one does not.",
		read: func(r *reading) { r.whole(r.Feed.Unapplied) },
	},
	{
		Name: "keysvc_lease_age_max_seconds", Kind: Gauge, Group: groupCaches,
		Help: "The age of the oldest lease that still holds: an answer from a near-cache may be as old. 0 if no near-cache has a lease.",
		read: func(r *reading) { r.value(r.Feed.OldestLease.Seconds()) },
	},
	{
		Name: "keysvc_staleness_seconds", Kind: Gauge, Group: groupCaches,
		Help: "The length of a lease: the setting staleness.",
		read: func(r *reading) { r.value(r.Feed.Staleness.Seconds()) },
	},
	{
		Name: "keysvc_change_delivery_seconds", Kind: Histogram, Group: groupCaches,
		Help: "From the commit of a change until the last near-cache was sent it. While one change is on its way, those after it are not measured.",
		read: func(r *reading) { r.durations(r.delivery.Durations()) },
	},
	{
		Name: "keysvc_sessions_begun_total", Kind: Counter, Labels: []string{"resumed"}, Group: groupCaches,
		Values: "true if the near-cache went on where it had been, false if it began empty",
		Help:   "Sessions of near-caches that began.",
		read: func(r *reading) {
			r.count(r.sessionsResumed.Load(), "true")
			r.count(r.sessionsNew.Load(), "false")
		},
	},
	{
		Name: "keysvc_sessions_ended_total", Kind: Counter, Labels: []string{"lease"}, Group: groupCaches,
		Values: "given-up if the near-cache closed in order, kept if its connection ended",
		Help:   "Sessions of near-caches that ended.",
		read: func(r *reading) {
			r.count(r.sessionsGaveUp.Load(), "given-up")
			r.count(r.sessionsLeft.Load(), "kept")
		},
	},
	{
		Name: "keysvc_session_resets_total", Kind: Counter, Group: groupCaches,
		Help: "How often a near-cache had to drop everything, because it was too far behind or may see other workspaces now.",
		read: func(r *reading) { r.count(r.sessionsReset.Load()) },
	},
	{
		Name: "keysvc_sessions_ahead_total", Kind: Counter, Group: groupCaches,
		Help: "Near-caches that knew a revision that the store does not have: the store was rolled back, or a caller lies.",
		read: func(r *reading) { r.whole(r.Feed.Ahead) },
	},

	{
		Name: "keysvc_store_up", Kind: Gauge, Group: groupStore,
		Help: "1 if changes are made; 0 while the store is opened again after a failure, or nothing can be read from etcd. With a store in a file, validations go on from memory.",
		read: func(r *reading) { r.whether(!r.storeDown.Load()) },
	},
	{
		Name: "keysvc_store_failures_total", Kind: Counter, Group: groupStore,
		Help: "How often the store failed and was opened again, or nothing could be read from etcd for some seconds.",
		read: func(r *reading) { r.count(r.storeFailures.Load()) },
	},
	{
		Name: "keysvc_store_loads_total", Kind: Counter, Group: groupStore,
		Help: "How often the whole store was read into memory: once at the start, and again when its changes could not be followed any further.",
		read: func(r *reading) { r.whole(r.Loads) },
	},
	{
		Name: "keysvc_store_commit_seconds", Kind: Histogram, Group: groupStore, When: whenStore,
		Help: "How long transactions took, each with one or more changes.",
		read: ofStore(func(r *reading) { r.durations(r.Store.Commit) }),
	},
	{
		Name: "keysvc_store_sync_seconds", Kind: Histogram, Group: groupStore, When: whenStore,
		Help: "How long the disk took to write and sync a transaction.",
		read: ofStore(func(r *reading) { r.durations(r.Store.Sync) }),
	},
	{
		Name: "keysvc_store_queue_seconds", Kind: Histogram, Group: groupStore, When: whenStore,
		Help: "How long changes waited until their transaction began.",
		read: ofStore(func(r *reading) { r.durations(r.Store.Queue) }),
	},
	{
		Name: "keysvc_store_file_bytes", Kind: Gauge, Group: groupStore, When: whenStore,
		Help: "The length of the file.",
		read: ofStore(func(r *reading) { r.whole(r.Store.FileBytes) }),
	},
	{
		Name: "keysvc_store_used_bytes", Kind: Gauge, Group: groupStore, When: whenStore,
		Help: "The part of the file that has pages, free ones included.",
		read: ofStore(func(r *reading) { r.whole(r.Store.UsedBytes) }),
	},
	{
		Name: "keysvc_store_free_bytes", Kind: Gauge, Group: groupStore, When: whenStore,
		Help: "The pages of the file that are free and are used again.",
		read: ofStore(func(r *reading) { r.whole(r.Store.FreeBytes) }),
	},
	{
		Name: "keysvc_store_reserve_bytes", Kind: Gauge, Group: groupStore, When: whenStore,
		Help: "The room behind the pages of the file.",
		read: ofStore(func(r *reading) { r.whole(r.Store.ReserveBytes) }),
	},
	{
		Name: "keysvc_store_reserve_wanted_bytes", Kind: Gauge, Group: groupStore, When: whenStore,
		Help: "The part of that room that is kept for changes that only take something away.",
		read: ofStore(func(r *reading) { r.whole(r.Store.ReserveWanted) }),
	},
	{
		Name: "keysvc_store_full", Kind: Gauge, Group: groupStore, When: whenStore,
		Help: "1 if the disk has no room, and only changes are made that take something away.",
		read: ofStore(func(r *reading) { r.whether(r.Store.Full) }),
	},
	{
		Name: "keysvc_etcd_full", Kind: Gauge, Group: groupStore, When: whenCluster,
		Help: "1 if a member of etcd has used nine tenths of its quota, and only changes are made that take something away.",
		read: ofMembers(func(r *reading) { r.whether(r.ClusterFull) }),
	},
	{
		Name: "keysvc_etcd_member_up", Kind: Gauge, Labels: []string{"member"}, Group: groupStore, When: whenCluster,
		Values: valuesMember,
		Help:   "1 if the member of etcd answers this server.",
		read:   ofMembers(func(r *reading) { r.eachMember(func(m StoreMember) int64 { return oneIf(m.Up) }) }),
	},
	{
		Name: "keysvc_etcd_database_bytes", Kind: Gauge, Labels: []string{"member"}, Group: groupStore, When: whenCluster,
		Values: valuesMember,
		Help:   "The size of the member's database. etcd counts it against the quota until it is defragmented.",
		read:   ofMembers(func(r *reading) { r.eachMember(func(m StoreMember) int64 { return m.DatabaseBytes }) }),
	},
	{
		Name: "keysvc_etcd_free_bytes", Kind: Gauge, Labels: []string{"member"}, Group: groupStore, When: whenCluster,
		Values: valuesMember,
		Help:   "The part of the member's database that is free: a defragmentation gives it back.",
		read:   ofMembers(func(r *reading) { r.eachMember(func(m StoreMember) int64 { return m.FreeBytes }) }),
	},
	{
		Name: "keysvc_etcd_quota_bytes", Kind: Gauge, Labels: []string{"member"}, Group: groupStore, When: whenCluster,
		Values: valuesMember,
		Help:   "The size that the member's database may have; 0 if etcd does not say.",
		read:   ofMembers(func(r *reading) { r.eachMember(func(m StoreMember) int64 { return m.QuotaBytes }) }),
	},
	{
		Name: "keysvc_disk_free_bytes", Kind: Gauge, Group: groupStore, When: whenStore,
		Help: "Bytes that are free on the disk of the file.",
		read: ofStore(func(r *reading) { r.whole(r.Store.DiskFree) }),
	},
	{
		Name: "keysvc_disk_size_bytes", Kind: Gauge, Group: groupStore, When: whenStore,
		Help: "The size of the disk of the file.",
		read: ofStore(func(r *reading) { r.whole(r.Store.DiskSize) }),
	},
	{
		Name: "keysvc_sink_failing", Kind: Gauge, Group: groupStore, When: whenStore,
		Help: "1 while the audit sink cannot be written. Then only changes are made that take something away.",
		read: ofStore(func(r *reading) { r.whether(r.Store.SinkFailing) }),
	},
	{
		Name: "keysvc_anchor_failing", Kind: Gauge, Group: groupStore, When: whenStore,
		Help: "1 while the anchor cannot be written. Then changes are made without it.",
		read: ofStore(func(r *reading) { r.whether(r.Store.AnchorFailing) }),
	},
	{
		Name: "keysvc_backup_timestamp_seconds", Kind: Gauge, Group: groupStore, When: whenBackup,
		Help: "When the newest complete backup was made, in seconds since 1970.",
		read: func(r *reading) {
			if !r.Backups.Last.IsZero() {
				r.whole(r.Backups.Last.Unix())
			}
		},
	},
	{
		Name: "keysvc_backup_failures", Kind: Gauge, Group: groupStore,
		Help: "How many backups have failed since the newest complete one.",
		read: func(r *reading) { r.whole(r.Backups.Failures) },
	},

	{
		Name: "keysvc_problem", Kind: Gauge, Labels: []string{"problem", "severity"}, Group: groupProcess, When: whenProblem,
		Values: "the kind of problem, as in `keysvc status`; error or warning",
		Help:   "1 for each thing that is wrong now. To see that the disk hangs, a reading waits for it for a second.",
		read: func(r *reading) {
			for _, wrong := range r.Problems {
				r.whole(1, wrong.ID, wrong.Severity)
			}
		},
	},
	{
		Name: "keysvc_serving", Kind: Gauge, Group: groupProcess,
		Help: "1 if health is SERVING.",
		read: func(r *reading) { r.whether(r.Serving) },
	},
	{
		Name: "keysvc_clock_jumped", Kind: Gauge, Group: groupProcess,
		Help: "1 after the wall clock was set forward, until a restart. Then no keys are created.",
		read: func(r *reading) { r.whether(r.clockJumped.Load()) },
	},
	{
		Name: "keysvc_certificate_not_before_timestamp_seconds", Kind: Gauge, Group: groupProcess, When: whenCertificate,
		Help: "When the server's certificate began, in seconds since 1970.",
		read: func(r *reading) {
			if r.Certificate != nil {
				r.whole(r.Certificate.NotBefore.Unix())
			}
		},
	},
	{
		Name: "keysvc_certificate_not_after_timestamp_seconds", Kind: Gauge, Group: groupProcess, When: whenCertificate,
		Help: "When the server's certificate ends, in seconds since 1970.",
		read: func(r *reading) {
			if r.Certificate != nil {
				r.whole(r.Certificate.NotAfter.Unix())
			}
		},
	},
	{
		Name: "keysvc_build_info", Kind: Gauge, Labels: []string{"version", "goversion"}, Group: groupProcess,
		Values: "the version of keysvc; that of Go",
		Help:   "1, with the version of the server.",
		read:   func(r *reading) { r.value(1, r.config.Version, goVersion()) },
	},
}

// eachMethod calls a function with each method, in the order of the names.
func (r *reading) eachMethod(call func(*method)) {
	for _, name := range sortedKeys(r.methods) {
		call(r.methods[name])
	}
	call(r.other)
}

// eachWork calls a function with each kind of work.
func (r *reading) eachWork(call func(*Work)) {
	for index := range r.Work {
		call(&r.Work[index])
	}
}

// hoursOfDay is how many hours the days of labels have.
const hoursOfDay = 24

// ofNotices returns read for a server that sends notices.
func ofNotices(read func(*reading)) func(*reading) {
	return func(r *reading) {
		if r.Notices != nil {
			read(r)
		}
	}
}

// valuesMember describes the label member.
const valuesMember = "the place in etcd-endpoints, from 1"

// eachMember adds a number of each member of the cluster.
func (r *reading) eachMember(number func(StoreMember) int64) {
	for index, member := range r.StoreMembers {
		r.whole(number(member), strconv.Itoa(index+1))
	}
}

// oneIf returns 1 or 0.
func oneIf(is bool) int64 {
	if is {
		return 1
	}
	return 0
}

// ofMembers returns a function that reads a metric of the cluster, if the store is in one.
func ofMembers(read func(*reading)) func(*reading) {
	return func(r *reading) {
		if len(r.StoreMembers) > 0 {
			read(r)
		}
	}
}

// ofStore returns a function that reads a metric of the store, if the store tells anything.
func ofStore(read func(*reading)) func(*reading) {
	return func(r *reading) {
		if r.Store != nil {
			read(r)
		}
	}
}
