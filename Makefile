# RaftKV's commands. Each works on a clean clone with Python 3.11+, cargo, a C compiler and make.
#
#   make up      the playground with a sample cluster, until Ctrl-C
#   make test    all tests that fit in CI
#   make compiled
#                what a wheel and the image have, into build/compiled: the turn's modules compiled (docs/architecture.md)
#   make test-compiled
#                the tests of the node on it; benches, chaos and the demo run on it, too
#   make demo    the end-to-end scenario, unattended; the exit code tells
#   make lint    format, lint, types, import contracts, clippy
#   make conformance-k8s RECORDING=DIR
#                the playground's API against a recording of a real Kubernetes
#   make crash-states
#                every state that a power cut may leave of ring and disk, recovered and checked; CRASH_SECONDS=240
#   make test-dax [CUTS=N] [PLANT=NAME] [SEED=N]
#                power cuts in a virtual machine with a DAX file system (docs/real-dax.md)
#   make chaos [CHAOS_SECONDS=N] [CHAOS_SEED=N]
#                real members under load, killed, stopped, cut off, with bad disks, lost rings and wrong clocks (docs/chaos.md)
#   make fuzz    every parser under a fuzzer, and a live engine under hostile clients; SECONDS_EACH=20
#   make bench [ROWS=NAME,...]
#                RaftKV against etcd, row by row, with a verdict on each (tests/perf/bars.py --list); about half an hour
#   make bench-plots
#                curves over the number of clients, as SVG, into docs/images
#   make bench-operator [CLUSTERS=200] [MEMBERS=3] [REST=125] [STARTS=5]
#                what the operator itself costs with so many clusters, and from kubectl apply to Available
#   make bench-engine
#                the engine alone against grpcio
SHELL := /bin/bash
# The distribution's interpreter first: it is what the image has, and built with profile-guided optimisation, which one that
# was compiled on the spot often is not; then every turn takes a third longer.
# (One that can make no virtual environments has no ensurepip.)
PYTHON ?= $(firstword $(patsubst /usr/lib/%/ensurepip,/usr/bin/%,$(wildcard $(foreach minor,13 12 11,/usr/lib/python3.$(minor)/ensurepip))) python3)
VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(shell find node/native -name '*.rs' -not -path '*/target/*' 2>/dev/null) node/native/Cargo.toml node/native/Cargo.lock
CRASH_SECONDS ?= 240
SECONDS_EACH ?= 20
CRASH_SEED ?= 0
CUTS ?= 20
CHAOS_SECONDS ?= 720
CRASH_STATES ?= 512
COMPILED := $(CURDIR)/build/compiled
COMPILED_CORE := $(CURDIR)/build/compiled-core
WITH_COMPILED := PYTHONPATH=$(COMPILED)
CRATES := node/native $(dir $(wildcard tests/*/*/Cargo.toml))

.PHONY: venv compiled test test-compiled lint format up demo conformance-k8s crash-states fuzz chaos test-dax soak bench bench-plots bench-engine bench-operator packages clean protocol

venv: $(VENV)/.built

$(VENV)/.deps: requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	touch $@

$(VENV)/.built: $(VENV)/.deps pyproject.toml $(NATIVE)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# In place there are only sources, so that what is edited is what runs. Operator and playground are never compiled.
compiled: $(COMPILED)/.built

$(COMPILED)/.built: $(VENV)/.built setup.py $(shell find node operator playground -name '*.py' -o -name '*.pyi')
	rm -rf $(COMPILED) $(COMPILED_CORE) build/lib* build/bdist*
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target $(COMPILED) .
	rm -rf $(COMPILED)/raftkv_operator $(COMPILED)/raftkv_playground
	cp -r $(COMPILED) $(COMPILED_CORE)
	rm -f $(COMPILED_CORE)/raftkv_node/{api,server,store}/*.so
	$(WITH_COMPILED) $(BIN)/raftkv --version | grep compiled
	touch $@

test: venv
	$(BIN)/python -m pytest -n 2 --dist loadfile
	cargo test --quiet --locked --no-default-features --manifest-path node/native/Cargo.toml
	cargo test --quiet --locked --release --manifest-path tests/tools/slowfs/Cargo.toml

# The simulation puts pieces of its own into the places of the server's: there only the consensus core is compiled.
test-compiled: compiled
	TEST_COMPILED=all $(WITH_COMPILED) $(BIN)/python -m pytest -n 2 --dist loadfile tests/raft tests/store tests/server tests/histories tests/chaos \
	  tests/perf/test_instructions.py
	TEST_COMPILED=core PYTHONPATH=$(COMPILED_CORE) $(BIN)/python -m pytest -n 2 --dist loadfile tests/simulation

lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_house_rules.py
	for crate in $(CRATES); do cargo fmt --manifest-path $$crate/Cargo.toml --check || exit 1; done
	cargo clippy --quiet --locked --manifest-path node/native/Cargo.toml --all-targets -- -D warnings

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	for crate in $(CRATES); do cargo fmt --manifest-path $$crate/Cargo.toml; done

# The playground with a sample cluster; Ctrl-C ends both.
up: venv
	$(BIN)/raftkv playground up --sample deploy/samples/three-nodes.yaml

# Whole clusters from seeds: SEEDS=N or A:B, or SOAK_SECONDS=; INTO=FILE adds figures up (of
# other commits or of the same seeds only with MIX=1); GOAL=1000: fail below; REPLAY='...' shows a failure. CORE=compiled: with
# the compiled consensus core.
soak: $(if $(CORE),compiled,venv)
	PYTHONPATH=$(if $(CORE),$(COMPILED_CORE):)tests/adr:tests/store:tests/histories $(BIN)/python tests/simulation/soak.py $(if $(SEEDS),--seeds $(SEEDS)) $(if $(SOAK_SECONDS),--seconds $(SOAK_SECONDS)) \
	  $(if $(INTO),--into $(INTO)) $(if $(MIX),--mix) $(if $(GOAL),--goal $(GOAL)) $(if $(REPLAY),--replay '$(REPLAY)')

demo: compiled
	$(WITH_COMPILED) $(BIN)/python tests/e2e/demo.py

# The playground's API server against a recording of a real one: make conformance-k8s RECORDING=DIR
conformance-k8s: venv
	@if [ -z "$(RECORDING)" ]; then echo "conformance-k8s: skipped, no RECORDING=DIR given"; \
	else $(BIN)/python tests/conformance/kubernetes/recorded_replay.py "$(RECORDING)"; fi

# Its bounds and seeds: tests/adr/crash_table.py.
crash-states: venv
	CRASH_SECONDS=$(CRASH_SECONDS) CRASH_SEED=$(CRASH_SEED) CRASH_STATES=$(CRASH_STATES) CRASH_ONLY="$(CRASH_ONLY)" $(BIN)/python tests/adr/crash_table.py

fuzz: venv
	SECONDS_EACH=$(SECONDS_EACH) FUZZ_ONLY="$(FUZZ_ONLY)" $(BIN)/python tests/fuzz/fuzz_table.py

# Real members under overlapping faults, their clients' histories checked. With PLANT=NAME, 0 means that it was found.
chaos: compiled
	$(WITH_COMPILED) $(BIN)/python tests/chaos/chaos_run.py --seconds $(CHAOS_SECONDS) $(if $(CHAOS_SEED),--seed $(CHAOS_SEED)) $(if $(PLANT),--plant $(PLANT))

# Power cuts on a real DAX file system. Exit code 77 says that this machine cannot run it, and why.
test-dax: venv
	$(BIN)/python -m compileall -q node/raftkv_node
	$(BIN)/python tests/dax/dax_cuts.py --cuts $(CUTS) $(if $(PLANT),--plant $(PLANT)) $(if $(SEED),--seed $(SEED)) \
	  || { code=$$?; [ $$code -eq 77 ] || exit $$code; }

bench: compiled
	$(WITH_COMPILED) $(BIN)/python tests/perf/bars.py $(if $(ROWS),--rows $(ROWS)) $(if $(ROUNDS),--rounds $(ROUNDS))

bench-plots: compiled
	$(WITH_COMPILED) $(BIN)/python tests/perf/plots.py $(if $(ROUNDS),--rounds $(ROUNDS))

bench-operator: compiled
	$(WITH_COMPILED) $(BIN)/python tests/perf/operator_cost.py $(if $(CLUSTERS),--clusters $(CLUSTERS)) $(if $(MEMBERS),--members $(MEMBERS)) \
	  $(if $(REST),--rest $(REST)) $(if $(STARTS),--starts $(STARTS))

bench-engine: venv
	$(BIN)/python tests/perf/engine_bench.py

# Debian's packages that the tests drive: etcdctl, h2load, Prometheus, Helm's template libraries, QEMU and what a virtual
# machine with persistent memory needs, valgrind to count instructions, kubectl where there is none.
PACKAGES := busybox-static debootstrap e2fsprogs etcd-client fuse3 golang-github-ghodss-yaml-dev \
  golang-github-masterminds-sprig-dev golang-go libpython3-dev ndctl nghttp2-client python3-dev python3-venv \
  qemu-system-x86 valgrind
packages:
	command -v apt-get >/dev/null || { echo "no apt-get here: install $(PACKAGES) and kubectl by hand"; exit 1; }
	apt-get -qq update
	DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends $(PACKAGES) \
	  $$(command -v kubectl >/dev/null || echo kubernetes-client) >/dev/null

clean:
	rm -rf $(VENV) build dist node/native/target

# Regenerates the committed protocol code from node/raftkv_node/pb/*.proto.
protocol: venv
	cd node && ../$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. raftkv_node/pb/*.proto
	rm -f node/raftkv_node/pb/{kv,auth}_pb2_grpc.py
