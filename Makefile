# Each target is one or more plain commands, run from the root of the repository.
# The tools come from tools/go.mod, so nothing but Go has to be installed.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c

TOOL      := go tool -modfile=tools/go.mod
BASELINE  := proto/baseline.binpb
EXAMPLE   := examples/signatures
FUZZTIME  ?= 30s
SOAKTIME  ?= 1h
CRASHIMAGES ?= 100000
CRASHFLAGS  ?=
HOSTILETIME  ?= 60s
HOSTILEFLAGS ?=
TESTFLAGS ?=

# An older keysvc, for bench-quick to compare with.
BENCH_BEFORE ?=

# Which measurements `make bench` makes (a regular expression for their names; all, if empty), how long
# they take together, and where stores and figures are kept.
BENCH       ?=
BENCH_TIME  ?= 13m
BENCH_CACHE ?= .bench

.PHONY: run tools browser test test-race fuzz fuzz-package soak several mutants crash hostile hostile-mutants sink-faults sink-faults-mutants gameday cluster restores restores-mutants histories histories-mutants blind blind-mutants bench bench-cluster bench-full bench-page bench-parts bench-quick interop scanners vulnerabilities packages reproducible lint format generate fresh breaking baseline check

# Builds ./keysvc first: `go run` fails after Ctrl-C, whatever the server's exit status is. So
# does make, if the signal reaches it; hence the server gets a process group of its own (set -m)
# at a terminal. Ctrl-Z stops the server's group only; the loop stops make's group too, until fg.
run:
	go build -o keysvc ./cmd/keysvc
	@echo ./keysvc serve --dev; \
	if [[ "$$(ps -o stat= -p $$$$ 2>/dev/null)" == *+* ]]; then set -m; fi; \
	./keysvc serve --dev || status=$$?; \
	while [[ "$$(jobs -s)" ]]; do suspend -f; status=0; fg >/dev/null || status=$$?; done; \
	exit $${status:-0}

# Compiles what tests build or run, so that it does not count against the time limit of go
# test: with an empty build cache, buf alone takes minutes. Chromium is installed where that is
# possible (test/browser/README.md); without it the browser tests are skipped, and say so.
tools:
	test/browser/install.sh --try
	go build ./...
	go -C test build ./...
	$(TOOL) buf --version >/dev/null

# Gets Chromium and axe-core, and tests the settings screen in every way that members come
# (test/browser/README.md). BROWSERFLAGS="-pictures $PWD/docs/pictures" also makes the pictures of the docs.
BROWSERFLAGS ?=
browser:
	test/browser/install.sh
	go -C test test ./browser -count=1 -timeout 20m -v -every-way $(BROWSERFLAGS)

# Tests the root module and test/, which has the tests that need large libraries, above all an
# etcd, and runs a slice of the crash laboratory (test/crash/README.md). The two modules
# are tested side by side, because the tests on etcd mostly wait. These take longest, so they begin first. Then some hostile clients
# (test/hostile/README.md) have the machine for themselves, because time is measured there.
test: tools
	$(call both,go test $(TESTFLAGS) ./...,go -C test test $(TESTFLAGS) ./etcd ./... && go -C test run ./crash -time 25s -kinds plain)
	go -C clients/keymetrics test $(TESTFLAGS) ./...
	go -C test run ./hostile -slice -time 1s
	test/browser/install.sh --said

# Without bench, which measures, and without the packages whose tests drive programs that are built
# without the race detector: in the module test/ those are cluster, histories and trio. Without the browser tests: they
# would find no other races, and take long.
#
# The files of these tests are in memory where there is room: under the race detector nothing is
# learnt from waiting for a disk, and `make test` runs the same tests on one.
PROCESS_TESTS := bench|cmd/keysvc|docs|internal/keyscope
test-race: tools
	if [[ -z "$${TMPDIR:-}" && "$$(df --output=avail /dev/shm 2>/dev/null | tail -n 1)" -gt 4000000 ]]; then \
		export TMPDIR=/dev/shm; \
	fi; \
	$(call both,go test -race $(TESTFLAGS) $$(go list ./... | grep -vE '/($(PROCESS_TESTS))$$'),go -C test test -race $(TESTFLAGS) $$(go -C test list ./etcd ./... | grep -vE '/(browser|cluster|histories|trio)$$'))

# Runs two commands side by side. The second one's output comes when both have ended.
define both
later=$$(mktemp); trap 'rm -f "$$later"' EXIT; \
( $(2) ) >"$$later" 2>&1 & second=$$!; \
status=0; { $(1); } || status=$$?; \
wait "$$second" || status=$$?; \
cat "$$later"; exit "$$status"
endef

# Every fuzz target of every package, FUZZTIME each: a time (30s) or a number of inputs (10000x).
# One binary for each package that has targets: `go test -fuzz` would link it once for each target,
# and `go test -list` those of all packages. New inputs are kept where `go test -fuzz` keeps them.
# There are as many packages at a time as processors, because linking and a short slice use one each.
fuzz:
	grep -rl '^func Fuzz' --include='*_test.go' . | xargs -n1 dirname | sort -u | \
		xargs -I {} -P "$$(getconf _NPROCESSORS_ONLN)" $(MAKE) -s --no-print-directory fuzz-package PACKAGE={}

# The targets of one package. Its output comes at the end.
fuzz-package:
	tmp=$$(mktemp -d); trap 'cat "$$tmp/output" >&3; rm -rf "$$tmp"' EXIT; cache=$$(go env GOCACHE)/fuzz; \
	exec 3>&1 >"$$tmp/output" 2>&1; \
	cd "$(PACKAGE)"; path=$$(go list); \
	go test -c -fuzz=. -o "$$tmp/fuzz.test"; \
	for target in $$(grep -ho '^func Fuzz[A-Za-z0-9_]*' *_test.go | cut -d' ' -f2); do \
		echo "$$path $$target"; \
		"$$tmp/fuzz.test" -test.run '^$$' -test.parallel 1 -test.fuzz "^$$target\$$" \
			-test.fuzztime $(FUZZTIME) -test.fuzzcachedir "$$cache/$$path" </dev/null; \
	done

# Near-caches on a bad network, and keys that change, for SOAKTIME. Memory and goroutines must
# not grow.
soak:
	go test ./bench -run '^TestNothingGrowsUnderLoad$$' -soak $(SOAKTIME) -timeout 0 -v

# Several managers over one store, with faults between them: more schedules than `make test`
# runs, and 64 callers with 100,000 calls.
several:
	go test ./internal/keys -run '^TestSeveralManagersReflectEachOthersChanges$$' -several.runs 5000 -timeout 0
	go test ./internal/storage/boltstore -run '^TestSeveralManagersOfFailingFile$$' -several.runs 1000 -timeout 0
	go test ./internal/keys -run '^TestManyCallersSeeOneHistory$$' -several.calls 100000 -timeout 0

# Takes one rule after the other out of the product. For each of them, a test with several
# managers or the model test must fail. MUTANTS is a regular expression for the rules' names.
MUTANTS ?= .
mutants:
	go test ./internal/keys -run '^TestEveryMutantIsNoticed$$' -mutants '$(MUTANTS)' -timeout 0 -v

# Compares the cost of a validation with an empty call and with the binary BENCH_BEFORE, in less
# than two minutes. Prints figures, and never fails because of a figure.
bench-quick:
	tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	go build -o "$$tmp/keysvc" ./cmd/keysvc; \
	BENCH_AFTER="$$tmp/keysvc" BENCH_BEFORE="$(abspath $(BENCH_BEFORE))" go test ./bench -run '^TestMeasureQuick$$' -count=1 -v

# Makes the measurements of docs/performance.md, each beside its baseline, in at most a quarter of an
# hour: BENCH='validate/tcp/.*' only some of them. The figures are written into .bench/figures.json,
# and those of other measurements are kept if they are of this commit. Nothing is judged.
bench:
	$(call bench,)

# The same with 10,000,000 keys as well. The first run makes their store (7 GB), which is kept.
bench-full: BENCH_TIME := 40m
bench-full:
	$(call bench,1)

define bench
tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
go build -o "$$tmp/keysvc" ./cmd/keysvc; \
BENCH_AFTER="$$tmp/keysvc" BENCH_FULL=$(1) BENCH_ONLY='$(BENCH)' BENCH_TIME=$(BENCH_TIME) BENCH_CACHE="$(abspath $(BENCH_CACHE))" \
	BENCH_OUT="$(abspath $(BENCH_CACHE))/figures.json" BENCH_COMMIT="$$(git describe --always --dirty --abbrev=12 --exclude '*')" \
	go test ./bench -run '^TestBench$$' -count=1 -timeout 0 -v
endef

# Makes the tables and plots of docs/performance.md from the last figures of `make bench`.
bench-page:
	go run ./bench/page $(BENCH_CACHE)/figures.json docs/performance.md

# Compares the parts with those of another checkout, BENCH_OLD: the Go benchmarks that match PARTS in
# the package BENCH_PACKAGE, in turn, by benchstat.
BENCH_OLD     ?= ../before
BENCH_PACKAGE ?= ./bench
PARTS         ?= Decision
bench-parts:
	tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	go -C "$(BENCH_OLD)" test -c -o "$$tmp/old.test" $(BENCH_PACKAGE); \
	go test -c -o "$$tmp/new.test" $(BENCH_PACKAGE); \
	for round in 1 2 3 4 5 6; do for side in old new; do \
		(cd $(BENCH_PACKAGE) && "$$tmp/$$side.test" -test.run '^$$' -test.bench '$(PARTS)' -test.benchmem -test.benchtime 300ms >>"$$tmp/$$side.txt"); \
	done; done; \
	$(TOOL) benchstat "$$tmp/old.txt" "$$tmp/new.txt"

# Runs this version and BEFORE, the last one whose clients sent tokens, against each other: old
# clients and new servers, and the other way round. It builds BEFORE in a folder of its own.
BEFORE ?= 567c7e79ab5a000823bc87a356538a63b2f850c2
interop:
	tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	git archive $(BEFORE) >"$$tmp/source.tar" || { echo "interop: the commit $(BEFORE) is not here; name another with BEFORE="; exit 1; }; \
	mkdir "$$tmp/source"; tar -xf "$$tmp/source.tar" -C "$$tmp/source"; \
	cp -r cmd/keysvc/testdata/ask "$$tmp/source/ask"; \
	go -C "$$tmp/source" build -o "$$tmp/keysvc" ./cmd/keysvc; \
	go -C "$$tmp/source" build -o "$$tmp/ask" ./ask; \
	KEYSVC_BEFORE="$$tmp" go test ./cmd/keysvc -run '^TestServersBeforeClients$$' -count=1 -v

# Runs the crash laboratory (test/crash/README.md) for CRASHIMAGES images, then the mutants, all
# of which it must catch. CRASHFLAGS="-seed 7" repeats a campaign.
crash:
	go -C test run ./crash -images $(CRASHIMAGES) $(CRASHFLAGS)
	go -C test run ./crash -mutants all -time 2m

# Attacks a built keysvc (test/hostile/README.md), HOSTILETIME for each attack, while a good caller
# must be served. HOSTILEFLAGS="-attacks pings -seed 7" repeats one.
hostile:
	go -C test run ./hostile -time $(HOSTILETIME) $(HOSTILEFLAGS)

# Searches all that a built keysvc had, memory and a core included, for the secrets of its keys
# (test/blind/README.md).
blind:
	go -C test test ./blind -count=1 -timeout 0 -v -validations 10000 -keys 1000

# Puts faults into clients and server. The search must notice each.
blind-mutants:
	go -C test test ./blind -count=1 -timeout 0 -v -run '^TestEveryMutantIsNoticed$$' -mutants '$(MUTANTS)'

# Takes one bound after another out of keysvc. An attack must break each of these.
hostile-mutants:
	go -C test run ./hostile -mutants all $(HOSTILEFLAGS)

# Breaks the audit sink of a built keysvc under load (test/sinkfaults/README.md), for SINKFAULTSTIME.
# As root it also fills and freezes file systems of its own. SINKFAULTSFLAGS="-seed 7" repeats a run.
sink-faults:
	go -C test run ./sinkfaults -time $(SINKFAULTSTIME) $(SINKFAULTSFLAGS)

# Takes one rule after another out of keysvc. The rounds must catch each of these.
sink-faults-mutants:
	go -C test run ./sinkfaults -mutants all $(SINKFAULTSFLAGS)

# Breaks a built keysvc in one way after another, and does what the documents tell the person on call
# (test/gameday/README.md). GAMEDAYFLAGS="-steps restore,kill" plays some of the steps.
GAMEDAYFLAGS ?=
gameday:
	go -C test run ./gameday $(GAMEDAYFLAGS)

# Runs three etcds and three keysvcs on loopback, kills one of each under load, and prints what callers saw
# (test/cluster/README.md). CLUSTERFLAGS=-full plays the long campaign.
CLUSTERFLAGS ?=
cluster:
	go -C test run ./cluster $(CLUSTERFLAGS)

# Measures keysvc over three etcds (test/figures/README.md), beside a program without the barrier, and the load
# of 1,000,000 keys. The filled etcd is kept in BENCH_CACHE: only the first run takes minutes more.
FIGURESFLAGS ?=
bench-cluster:
	go -C test run ./figures $(FIGURESFLAGS)
	go -C test test ./etcd -run '^TestMeasureLoad$$' -count=1 -v -timeout 1h -measure 1000000 -measure.folder "$(abspath $(BENCH_CACHE))/etcd"

# Restores old backups of RESTOREROUNDS random histories (test/restores/README.md): nothing that was taken
# away may come back. RESTORESFLAGS="-seed 7" repeats a run.
RESTOREROUNDS ?= 1000
restores:
	go -C test run ./restores -rounds $(RESTOREROUNDS) $(RESTORESFLAGS)

# Takes one rule after another out of the restore. The rounds must catch each of these.
restores-mutants:
	go -C test run ./restores -mutants all $(RESTORESFLAGS)

# Makes HISTORIES histories of calls to three keysvcs over three etcds under faults, and checks every answer
# against the promises (test/histories/README.md). HISTORIESFLAGS="-seed 7" repeats the choices of a run.
HISTORIES ?= 1000
histories:
	go -C test run ./histories -histories $(HISTORIES) $(HISTORIESFLAGS)

# Takes one rule after another out of keysvc and its client. The histories must show each of these.
histories-mutants:
	go -C test run ./histories -mutants all $(HISTORIESFLAGS)

# Runs gitleaks, with our rules, on our tokens in every text that they may stand in. gitleaks has a
# module of its own (tools/gitleaks), because it and the linters need different versions of a library.
scanners:
	tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	go -C tools/gitleaks build -o "$$tmp/gitleaks" github.com/zricethezav/gitleaks/v8; \
	go test ./docs -run '^TestGitleaks' -count=1 -v -gitleaks "$$tmp/gitleaks"

# Compares what is built in with the known vulnerabilities of Go modules. Without a network there
# is nothing to compare with, and a line says so.
vulnerabilities:
	output=$$($(TOOL) govulncheck ./... 2>&1) && status=0 || status=$$?; \
	if grep -q '^govulncheck: fetching vulnerabilities:' <<<"$$output"; then \
		echo "NOT CHECKED: the database of vulnerabilities cannot be reached from here"; \
	else echo "$$output"; exit "$$status"; fi

# Makes what a release consists of, in the folder DIST: archives with binary, documentation, manual,
# completions, alert rules and units of systemd, bills of materials, an image for containers, and checksums. tools/release is a
# module of its own, because it brings the libraries for images.
VERSION ?= $(shell git describe --tags --always --dirty)
DIST    ?= dist
packages:
	go -C tools/release test .
	go -C tools/release run . -source "$(CURDIR)" -output "$(abspath $(DIST))" -version "$(VERSION)" \
		-commit "$$(git rev-parse HEAD)" -time "$$(git log -1 --format=%ct)"

# Makes the packages of the last commit twice, in two folders and from nothing, and compares them byte
# by byte.
reproducible:
	tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	for folder in one another/folder; do \
		git clone -q . "$$tmp/$$folder"; \
		GOCACHE="$$tmp/cache/$$folder" $(MAKE) -s -C "$$tmp/$$folder" packages VERSION="$(VERSION)" DIST=dist; \
	done; \
	cat "$$tmp/one/dist/SHA256SUMS"; diff -r "$$tmp/one/dist" "$$tmp/another/folder/dist"

lint:
	$(TOOL) buf lint
	$(TOOL) buf format --diff --exit-code
	$(TOOL) gofumpt -d .
	go mod tidy -diff
	go -C tools mod tidy -diff
	go -C tools/gitleaks mod tidy -diff
	go -C tools/release mod tidy -diff
	go -C test mod tidy -diff
	go -C clients/keymetrics mod tidy -diff
	go vet ./...
	go -C test vet ./...
	go -C clients/keymetrics vet ./...
	go -C tools/release vet ./...
	$(TOOL) golangci-lint run ./...
	cd test && go tool -modfile=../tools/go.mod golangci-lint run ./...

format:
	$(TOOL) buf format -w
	$(TOOL) gofumpt -w .

generate:
	$(TOOL) buf format -w
	$(TOOL) buf generate
	$(TOOL) buf generate --template $(EXAMPLE)/buf.gen.yaml
	page=$$(go run ./cmd/keysvc config page); printf '%s\n' "$$page" >docs/settings.md
	page=$$(go run ./cmd/keysvc context page); printf '%s\n' "$$page" >docs/client-settings.md
	go run ./internal/metrics/pages
	tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; $(API_SET); go run ./internal/apipage "$$tmp/api.binpb" >"$$tmp/api.md"; cp "$$tmp/api.md" docs/api.md

# The proto files with their comments, from which docs/api.md is made.
API_SET := $(TOOL) buf build proto --as-file-descriptor-set -o "$$tmp/api.binpb"

# Checks that gen/ and docs/api.md are what the proto files give, and docs/settings.md what the table of
# settings gives. Generates into another folder and compares, so that the result does not depend on what is
# committed, and the tree stays as it was.
fresh:
	tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	$(TOOL) buf generate -o "$$tmp"; \
	$(TOOL) buf generate -o "$$tmp" --template $(EXAMPLE)/buf.gen.yaml; \
	diff -r gen "$$tmp/gen"; \
	diff -r $(EXAMPLE)/gen "$$tmp/$(EXAMPLE)/gen"; \
	$(API_SET); go run ./internal/apipage "$$tmp/api.binpb" | diff docs/api.md -; \
	go run ./cmd/keysvc config page | diff docs/settings.md -
	go run ./cmd/keysvc context page | diff docs/client-settings.md -

# The baseline is an image of the released contract. It is committed because a fresh clone may
# lack tags, and has no source info, so that a changed comment does not change it. Move it with
# `make baseline` when a version is released.
breaking:
	$(TOOL) buf breaking proto --against $(BASELINE)

baseline:
	$(TOOL) buf build proto --exclude-source-info -o $(BASELINE)

check:
	.ci/run
