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

.PHONY: run test test-race fuzz soak crash lint format generate fresh breaking baseline check

run:
	go run ./cmd/keysvc serve --dev

# Both modules: test/ has what needs heavy dependencies, an embedded etcd above all. And a
# slice of the crash laboratory (test/crash/README.md).
test:
	go test $(TESTFLAGS) ./...
	go -C test test $(TESTFLAGS) ./...
	go -C test run ./crash -time 25s -kinds plain

test-race:
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
