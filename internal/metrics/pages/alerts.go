package main

// severity says how soon somebody must look.
type severity string

const (
	// page wakes a person, and ticket waits for the morning.
	page   severity = "page"
	ticket severity = "ticket"
)

// alert is a row of the list of alerts. The rules for Prometheus and docs/alerts.md are made from it.
type alert struct {
	name string
	// expression is in PromQL, and holds for lasting before the alert fires.
	expression, lasting string
	severity            severity
	// summary is one line for who is called. means says what the alert means for users, and do what to
	// do, step by step, in Markdown.
	summary, means string
	do             []string
}

// alerts has every alert, the most urgent kinds first. It is not changed after the start.
var alerts = []alert{
	{
		name: "KeysvcDown", expression: `up{job="keysvc"} == 0`, lasting: "2m", severity: page,
		summary: "Prometheus cannot read the metrics of keysvc.",
		means: "The process is not there, still loads its store, or cannot be reached. Services with a near-cache answer 503 " +
			"once their leases have run out; others do so at once. Nobody is let in by mistake.",
		do: []string{
			"Look at the process and at its last log lines; a start that fails says why in one line.",
			"If it loads a large store, wait: a million keys take a few seconds.",
			"If it runs, look at the network between Prometheus and the listener for metrics.",
		},
	},
	{
		name: "KeysvcNotServing", expression: `keysvc_serving == 0`, lasting: "1m", severity: page,
		summary: "keysvc runs and does not serve.",
		means: "The server is stopping; or nothing can be read from etcd; or its clock is a minute from those of the other servers; or " +
			"its store can no longer be trusted and the process is about to end.",
		do: []string{
			"If nobody stops it: look for `the stop hangs` or an error about the store in the log.",
			"A stop that lasts longer than the drain timeout and 5 s hangs at the disk. See KeysvcStoreDown.",
			"With a store in etcd: `keysvc status` says `etcd-down` or `clock-apart`.",
		},
	},
	{
		name: "KeysvcStoreDown", expression: `keysvc_store_up == 0`, lasting: "1m", severity: page,
		summary: "keysvc cannot make changes: its store failed and was not opened again, or etcd does not answer.",
		means: "Creating, rotating and revoking keys is UNAVAILABLE, so a leaked key cannot be " +
			"revoked now. With a store in a file, validations go on from memory. With a store in etcd they are UNAVAILABLE too.",
		do: []string{
			"With a store in etcd: look at its members and at the network between. Two of three must see each other, and the server must reach one of them. It goes on by itself.",
			"Look at the log: `commit failed; the store will be reopened` has the error of the disk, `loading anew failed; trying again` why it is not back.",
			"Look at the disk: `dmesg`, free space, the mount.",
			"If the file is damaged, run `keysvc check` on a copy, and see [when it fails while running](operations.md#when-it-fails-while-running).",
		},
	},
	{
		name: "KeysvcDiskFull", expression: `keysvc_store_full == 1`, lasting: "1m", severity: page,
		summary: "The disk of keysvc has no room: only changes that take something away are made.",
		means:   "Keys cannot be created or rotated with an overlap. Revoking works: its room was reserved, for 10,000 changes at least.",
		do: []string{
			"Free or add space on the disk of the store. keysvc notices with the next change that it would have refused, at most a second later; until one is tried, status and this alert stay.",
			"Do not delete anything in the data folder, except an old `keysvc.db.schema1`.",
		},
	},
	{
		name: "KeysvcProblem", expression: `keysvc_problem{severity="error"} == 1`, lasting: "5m", severity: page,
		summary: "keysvc says that something is wrong: {{ $labels.problem }}.",
		means:   "Callers are refused, or a promise does not hold now. The label `problem` is the kind.",
		do: []string{
			"Run `keysvc status`: it says what is wrong, what follows from it, and what to do.",
			"Each kind of problem is in [operations](operations.md#is-it-healthy-how-many-how-fresh).",
		},
	},
	{
		name: "KeysvcWarning", expression: `keysvc_problem{severity="warning",problem!="backups-failing"} == 1`, lasting: "30m", severity: ticket,
		summary: "keysvc says that something needs a look: {{ $labels.problem }}.",
		means:   "Nobody is refused yet. The label `problem` is the kind.",
		do: []string{
			"Run `keysvc status`: it says what is wrong, what follows from it, and what to do.",
			"Each kind of problem is in [operations](operations.md#is-it-healthy-how-many-how-fresh).",
		},
	},
	{
		name: "KeysvcBackupsFail", expression: `keysvc_backup_failures > 0`, lasting: "1h", severity: ticket,
		summary: "Backups of keysvc fail.",
		means:   "Nobody is refused. A restore would go back to an older backup, and hold more keys.",
		do: []string{
			"Look at the log for `a scheduled backup failed`: it has the error. `there is no room for a backup` says how much is needed.",
			"Look at the folder `backup-dir`: its disk, its owner, its mode.",
			"Make one by hand meanwhile: `keysvc backup FILE`.",
		},
	},
	{
		name: "KeysvcReserveIncomplete", expression: `keysvc_store_reserve_bytes < keysvc_store_reserve_wanted_bytes`, lasting: "10m", severity: ticket,
		summary: "keysvc could not reserve all the room that revoking may need.",
		means:   "Changes are made, and soon the disk is full.",
		do:      []string{"Add space to the disk of the store."},
	},
	{
		name: "KeysvcDiskNearlyFull", expression: `keysvc_disk_size_bytes > 0 and keysvc_disk_free_bytes < 536870912 and keysvc_disk_free_bytes / keysvc_disk_size_bytes < 0.1`, lasting: "15m", severity: ticket,
		summary: "Less than 512 MiB and less than a tenth of the disk of keysvc are free.",
		means:   "Nothing is refused yet.",
		do: []string{
			"Find out what grows. `keysvc_store_file_bytes` is the store's own file, which never shrinks.",
			"Audit events are the most of an old store: see the settings `audit-sink` and `audit-retention-days`.",
		},
	},
	{
		name: "KeysvcSinkFailing", expression: `keysvc_sink_failing == 1`, lasting: "1m", severity: page,
		summary: "The audit sink of keysvc cannot be written.",
		means:   "Keys cannot be created or rotated with an overlap. Revoking works, and its lines follow later.",
		do: []string{
			"Look for `the audit sink cannot be written` in the log: it has the error.",
			"Free space on the disk of the sink, or put right its folder's mode. keysvc tries again by itself.",
		},
	},
	{
		name: "KeysvcAnchorFailing", expression: `keysvc_anchor_failing == 1`, lasting: "5m", severity: ticket,
		summary: "The anchor of keysvc cannot be written.",
		means:   "Changes are made without it. If the disk loses one of them now, nobody notices.",
		do:      []string{"Look for `the anchor cannot be written` in the log, and at the disk of the anchor."},
	},
	{
		name:       "KeysvcCommitsSlow",
		expression: `histogram_quantile(0.99, sum by (instance, le) (rate(keysvc_store_commit_seconds_bucket[10m]))) > 1`, lasting: "10m", severity: ticket,
		summary: "Changes take keysvc more than a second.",
		means:   "Validations are as fast as ever. Creating and revoking is slow.",
		do: []string{
			"Compare `keysvc_store_sync_seconds` with `keysvc_store_commit_seconds`: if they are alike, the disk is slow, or others use it.",
			"If `keysvc_store_queue_seconds` is much longer, there are more changes than the disk can take.",
		},
	},
	{
		name: "KeysvcErrors", lasting: "5m", severity: page,
		expression: `sum by (instance) (rate(keysvc_calls_total{code=~"INTERNAL|DATA_LOSS|UNKNOWN|UNAVAILABLE"}[5m])) > 0.1`,
		summary:    "keysvc answers calls with errors that are its own.",
		means:      "Callers cannot do what they should be able to do. They are never let in because of it.",
		do: []string{
			"Look at the log lines of level error. INTERNAL is a fault of keysvc: please report it.",
			"DATA_LOSS names a damaged record: run `keysvc check` on a copy, and restore.",
			"UNAVAILABLE comes with KeysvcStoreDown, or during a stop.",
		},
	},
	{
		name: "KeysvcDamagedKeys", expression: `keysvc_keys{state="damaged"} > 0`, lasting: "1m", severity: page,
		summary: "Stored keys of keysvc cannot be read.",
		means:   "Their tokens are answered with DATA_LOSS, and never allowed.",
		do:      []string{"Run `keysvc check` on a copy of the file. It names the records. Then restore a backup."},
	},
	{
		name: "KeysvcPanics", expression: `increase(keysvc_panics_total[15m]) > 0`, lasting: "0m", severity: ticket,
		summary: "A call met a fault of keysvc.",
		means:   "The call was answered with INTERNAL. The server goes on.",
		do:      []string{"Look for `a handler panicked` in the log, and report it with its stack."},
	},
	{
		name:       "KeysvcValidationsSlow",
		expression: `histogram_quantile(0.99, sum by (instance, le) (rate(keysvc_call_duration_seconds_bucket{method="ValidateKey"}[5m]))) > 0.05`, lasting: "10m", severity: ticket,
		summary: "Validations take keysvc more than 50 ms.",
		means:   "Requests of the product wait.",
		do: []string{
			"Look at the processor of the machine: a validation takes some microseconds of it.",
			"Look at `keysvc_decisions_total`: is there more to do than usual? Near-caches take most of it away.",
			"Validations that wait for a revision (`min_revision`) may take up to a second.",
		},
	},
	{
		name: "KeysvcCallsRefused", lasting: "5m", severity: ticket,
		expression: `sum by (instance) (rate(keysvc_calls_without_slot_total[5m])) + on (instance) rate(keysvc_calls_without_room_total[5m]) > 0`,
		summary:    "keysvc refuses calls because it has too many.",
		means:      "Callers get RESOURCE_EXHAUSTED. One caller alone cannot take all places.",
		do: []string{
			"`keysvc_calls_in_flight` tells which kind of work is full. The log names callers.",
			"If the load is right, raise `max-in-flight` or `max-buffered-bytes`, or give the machine more.",
		},
	},
	{
		name: "KeysvcCallersRefused", lasting: "10m", severity: ticket,
		expression: `rate(keysvc_callers_refused_total[10m]) + rate(keysvc_validations_refused_total[10m]) > 0.05`,
		summary:    "keysvc refuses callers that it does not know, or that may not do what they ask for.",
		means:      "A service is configured wrongly, its credential has ended, or somebody tries.",
		do: []string{
			"The log names peer, caller and reason.",
			"`keysvc callers check` tells what the callers file says about a credential.",
		},
	},
	{
		name: "KeysvcTokensGuessed", expression: `increase(keysvc_invalid_token_reports_total[15m]) > 0`, lasting: "0m", severity: ticket,
		summary: "A source sends many tokens that are not valid.",
		means:   "A service has a key that never was, or somebody guesses. Nobody can guess a token: it has 256 random bits.",
		do:      []string{"Look for `many tokens are not valid` in the log: it names the caller or the network."},
	},
	{
		name: "KeysvcKeysExpiring", expression: `keysvc_keys_expiring{within="7d"} > 0`, lasting: "1h", severity: ticket,
		summary: "Keys expire within 7 days.",
		means:   "Programs of customers that use these keys are refused once they have expired.",
		do: []string{
			"`keysvc key list --expiring-within 7d --all` lists them, with when they were last used.",
			"Tell the owners of those that are in use to rotate them.",
		},
	},
	{
		name: "KeysvcNoticesWait", expression: `keysvc_notice_failures > 0 and keysvc_notices_waiting > 0`, lasting: "1h", severity: ticket,
		summary: "The receiver of keysvc's notices that keys end does not take them.",
		means:   "Nobody is told that keys end. Nothing else waits for it, and no notice is lost: keysvc tries again, at least every 15 minutes.",
		do: []string{
			"Look for `notices that keys end could not be sent` in the log: it has the reason.",
			"Is the receiver at `notice-webhook` there, and does it have the secret of `notice-secret`?",
			"Each notice waits for the one before it. A receiver must answer with 200 what it does not want: see [notices](operations.md#notices-that-keys-end).",
		},
	},
	{
		name: "KeysvcNearCachesLag", lasting: "5m", severity: ticket,
		expression: `keysvc_session_unread_changes > 1000 or histogram_quantile(0.99, sum by (instance, le) (rate(keysvc_change_delivery_seconds_bucket[5m]))) > 1`,
		summary:    "A near-cache hears of changes late.",
		means: "It still never answers from before a change for longer than the staleness bound, because its lease runs out. " +
			"It asks the server more often instead.",
		do: []string{
			"Look for a service that is overloaded or whose network is slow. The log at level debug names sessions that are reset.",
			"If all lag, look at the processor of the server.",
		},
	},
	{
		name: "KeysvcRolledBack", expression: `increase(keysvc_sessions_ahead_total[15m]) > 0`, lasting: "0m", severity: page,
		summary: "A near-cache knows changes that the store of keysvc does not have.",
		means:   "An old copy of the store is served, and keys that were revoked since may be valid again. Or a caller that may validate lies.",
		do: []string{
			"Compare `keysvc_revision` with its history in Prometheus: did it go down?",
			"If it did, stop the server and restore the newest copy: see [backup and restore](operations.md#backup-and-restore).",
		},
	},
	{
		name: "KeysvcClockJumped", expression: `keysvc_clock_jumped == 1`, lasting: "0m", severity: page,
		summary: "The wall clock of the machine was set forward.",
		means:   "Keys cannot be created and nothing is purged until a person has looked. Revoking and validating goes on.",
		do: []string{
			"Is the time right now? Then restart keysvc.",
			"Otherwise set the clock right, and restart keysvc after that. See [the clock](operations.md#the-clock).",
		},
	},
	{
		name: "KeysvcCertificateEnds", lasting: "10m", severity: page,
		expression: `(keysvc_certificate_not_after_timestamp_seconds - time()) / ` +
			`(keysvc_certificate_not_after_timestamp_seconds - keysvc_certificate_not_before_timestamp_seconds) < 0.2`,
		summary: "The certificate of keysvc has less than a fifth of its life left.",
		means:   "When it has ended, no client can connect over TLS.",
		do: []string{
			"Put a new certificate in the place of the old one. keysvc uses it within a second: see [TLS](tls.md).",
			"If something renews it, find out why it did not.",
		},
	},
	{
		name: "KeysvcSweepFails", expression: `increase(keysvc_sweep_failures_total[6h]) > 3`, lasting: "0m", severity: ticket,
		summary: "keysvc cannot purge records past their retention.",
		means:   "The file grows. Nothing else.",
		do:      []string{"Look for `the sweep broke off` in the log: it has the error."},
	},
}
