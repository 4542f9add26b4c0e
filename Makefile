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
TESTFLAGS ?=

# An older keysvc, for bench-quick to compare with.
BENCH_BEFORE ?=

.PHONY: run tools test test-race fuzz soak several mutants crash bench-quick lint format generate fresh breaking baseline check

run:
	go run ./cmd/keysvc serve --dev

# What tests build or run, compiled before the clock of go test runs: with an empty build
# cache, buf alone takes minutes.
tools:
	go build ./...
	$(TOOL) buf --version >/dev/null

# Both modules: test/ has what needs heavy dependencies, an embedded etcd above all. And a
# slice of the crash laboratory (test/crash/README.md).
test: tools
	go test $(TESTFLAGS) ./...
	go -C test test $(TESTFLAGS) ./...
	go -C test run ./crash -time 25s -kinds plain

test-race: tools
	go test -race $(TESTFLAGS) ./...
	go -C test test -race $(TESTFLAGS) ./...

# Every fuzz target of every package, FUZZTIME each: a time (30s) or a number of
# inputs (10000x). The awk line turns `go test -list` into "package target" pairs.
fuzz:
	targets=$$(go test -list '^Fuzz' ./... | awk '/^Fuzz/ {t[n++] = $$1} /^ok/ {for (i = 0; i < n; i++) print $$2, t[i]; n = 0}'); \
	while read -r package target; do \
		echo "$$package $$target"; \
		go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$package" </dev/null; \
	done <<<"$$targets"

# Near-caches, a bad network and keys that change, for SOAKTIME: nothing may grow.
soak:
	go test ./bench -run '^TestSoak$$' -soak $(SOAKTIME) -timeout 0 -v

# Several managers over one store, with faults between them: more schedules than the
# tests play, and 64 callers with 100,000 calls.
several:
	go test ./internal/keys -run '^TestSeveralManagersReflectEachOthersChanges$$' -several.runs 5000 -timeout 0
	go test ./internal/storage/boltstore -run '^TestSeveralManagersOfFailingFile$$' -several.runs 1000 -timeout 0
	go test ./internal/keys -run '^TestManyCallersSeeOneHistory$$' -several.calls 100000 -timeout 0

# Takes one rule after the other out of the product. For each of them, a test with several
# managers or the model test must fail. MUTANTS is a regular expression of their names.
MUTANTS ?= .
mutants:
	go test ./internal/keys -run '^TestEveryMutantIsNoticed$$' -mutants '$(MUTANTS)' -timeout 0 -v

# What a validation costs beside an empty call, and beside the binary BENCH_BEFORE, in
# less than two minutes. It prints figures and judges none.
bench-quick:
	tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	go build -o "$$tmp/keysvc" ./cmd/keysvc; \
	BENCH_AFTER="$$tmp/keysvc" BENCH_BEFORE="$(abspath $(BENCH_BEFORE))" go test ./bench -run '^TestQuick$$' -count=1 -v

# The crash laboratory (test/crash/README.md), for CRASHIMAGES images, and the mutants that it
# must catch. CRASHFLAGS="-seed 7" repeats a campaign.
crash:
	go -C test run ./crash -images $(CRASHIMAGES) $(CRASHFLAGS)
	go -C test run ./crash -mutants all -time 2m

lint:
	$(TOOL) buf lint
	$(TOOL) buf format --diff --exit-code
	$(TOOL) gofumpt -d .
	go mod tidy -diff
	go -C tools mod tidy -diff
	go -C test mod tidy -diff
	go vet ./...
	go -C test vet ./...
	$(TOOL) golangci-lint run ./...
	cd test && go tool -modfile=../tools/go.mod golangci-lint run ./...

format:
	$(TOOL) buf format -w
	$(TOOL) gofumpt -w .

generate:
	$(TOOL) buf format -w
	$(TOOL) buf generate
	$(TOOL) buf generate --template $(EXAMPLE)/buf.gen.yaml

# Is gen/ what the proto files give? Generates beside it and compares, so that the
# answer does not depend on what is committed and the tree stays as it was.
fresh:
	tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	$(TOOL) buf generate -o "$$tmp"; \
	$(TOOL) buf generate -o "$$tmp" --template $(EXAMPLE)/buf.gen.yaml; \
	diff -r gen "$$tmp/gen"; \
	diff -r $(EXAMPLE)/gen "$$tmp/$(EXAMPLE)/gen"

# The baseline is an image of the released contract, committed because a fresh
# clone may lack tags. Move it with `make baseline` when a version is released.
# Without source info, so that a changed comment does not change it.
breaking:
	$(TOOL) buf breaking proto --against $(BASELINE)

baseline:
	$(TOOL) buf build proto --exclude-source-info -o $(BASELINE)

check:
	.ci/run
