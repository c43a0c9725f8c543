# RaftKV's commands. Each works on a clean clone with Python 3.11+, cargo, a C compiler and make.
#
#   make up      the playground with a sample cluster, until Ctrl-C
#   make test    all tests that fit in CI
#   make demo    the end-to-end scenario, unattended; the exit code tells
#   make lint    format, lint, types, import contracts, clippy
#   make conformance-k8s RECORDING=DIR
#                the playground's API against a recording of a real Kubernetes
#   make bench   the engine against grpcio, five members against five of etcd
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(shell find node/native -name '*.rs' -not -path '*/target/*' 2>/dev/null) node/native/Cargo.toml node/native/Cargo.lock
CRATES := node/native $(dir $(wildcard tests/*/*/Cargo.toml))

.PHONY: venv test lint format up demo conformance-k8s bench packages clean protocol

venv: $(VENV)/.built

$(VENV)/.deps: requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	touch $@

$(VENV)/.built: $(VENV)/.deps pyproject.toml $(NATIVE)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

test: venv
	$(BIN)/python -m pytest -n 2 --dist loadfile
	cargo test --quiet --locked --no-default-features --manifest-path node/native/Cargo.toml

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

demo: venv
	$(BIN)/python tests/e2e/demo.py

# The playground's API server against a recording of a real one: make conformance-k8s RECORDING=DIR
conformance-k8s: venv
	@if [ -z "$(RECORDING)" ]; then echo "conformance-k8s: skipped, no RECORDING=DIR given"; \
	else $(BIN)/python tests/conformance/kubernetes/recorded_replay.py "$(RECORDING)"; fi

bench: venv
	$(BIN)/python tests/perf/engine_bench.py
	$(BIN)/python tests/perf/compare.py

# Debian's packages that the tests drive: etcdctl, h2load, Prometheus, Helm's template libraries, kubectl where there is none.
PACKAGES := debootstrap etcd-client golang-github-ghodss-yaml-dev golang-github-masterminds-sprig-dev golang-go \
  libpython3-dev nghttp2-client
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
