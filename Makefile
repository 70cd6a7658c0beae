# sdc: `make help` explains itself.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
# Wheel index for torch alone; empty means whatever pip is configured for.
# A CPU-only box: TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
TORCH := torch==2.13.0
BIN := .venv/bin
READY := .venv/.ready
IMAGES ?=
# Of `make bench`; a short one: make bench IMAGES=folder SIZES="2500 5089" LIMIT=4 LOAD_SECONDS=8
SIZES ?=
LIMIT ?=
SHOWN ?= 10
LOAD_SECONDS ?= 60
OUT ?= out
# Test files run at once, each on one thread: most of their time is programs that start.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: help setup demo serve test test-system check format docs
.PHONY: bench bench-rd bench-code bench-scale bench-speed bench-load bench-origin bench-gpu bench-bulk bench-fleet clean

help: ## print this list
	@echo "sdc: photographs as a few kilobytes of latent, over HTTP."
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo
	@echo "Variables: PYTHON (3.11 or later), TORCH_INDEX (wheel index for torch; for a CPU-only box"
	@echo "           https://download.pytorch.org/whl/cpu), IMAGES (folder of photographs, for bench-*)"

setup: $(READY) ## prepare .venv: torch first, then the rest, pinned

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "sdc needs Python 3.11 or later; try: make setup PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/pip install --quiet --no-compile -e '.[dev]'
	@# on all cores, which pip does on one in two minutes; files that are no Python for this Python are passed over, as pip does
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	touch $(READY)

demo: setup ## start the service, compress and render real photographs, compare, write a picture, stop
	$(BIN)/python -m service.bench.demo

serve: setup ## leave a server up on http://127.0.0.1:8080
	$(BIN)/sdc serve

test: setup check ## lint, types, import contract and every test that needs pip only
	$(PYTEST) -m "not system"

test-system: setup ## tests that talk to Debian programs, which this installs (as root) and starts
	for each in chromium:chromium curl:curl nginx:nginx node:nodejs kubectl:kubernetes-client docker-compose:docker-compose prometheus:prometheus \
		swift-proxy-server:swift-proxy swift-account-server:swift-account swift-container-server:swift-container swift-object-server:swift-object; do \
		PATH=$$PATH:/usr/sbin command -v $${each%%:*} >/dev/null || missing="$${missing:-} $${each##*:}"; done; \
	test -z "$${missing:-}" || { apt-get update -qq && apt-get install -qq --no-install-recommends $$missing; }
	$(PYTEST) -m system

check: setup ## lint, types, import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup ## make the generated parts of the documents anew: the table of the settings in docs/OPERATIONS.md
	$(BIN)/sdc settings --into docs/OPERATIONS.md

bench: bench-rd bench-load ## both reports, as pages: make bench IMAGES=folder; see docs/BENCH.md

bench-rd: setup ## rate and distortion against JPEG, WebP, AVIF: make bench-rd IMAGES=folder
	$(BIN)/sdc bench rd --images "$(IMAGES)" $(SIZES:%=--max-bytes %) $(LIMIT:%=--limit %) $(if $(HANDICAP),--handicap) --shown $(SHOWN) --out "$(OUT)/rd"

bench-code: setup ## the entropy coder against its own ideal: make bench-code IMAGES=folder
	$(BIN)/sdc bench code --images "$(IMAGES)"

bench-scale: setup ## where few bytes show more of a smaller picture: make bench-scale IMAGES=folder
	$(BIN)/sdc bench scale --images "$(IMAGES)" $(LIMIT:%=--limit %)

bench-speed: setup ## one picture at a time against an AVIF encode: make bench-speed IMAGES=folder
	$(BIN)/sdc bench speed --images "$(IMAGES)"

bench-load: setup ## a server under load, against its own bare loop; about twenty-five minutes
	$(BIN)/sdc bench load --seconds $(LOAD_SECONDS) --out "$(OUT)/load"

bench-origin: setup ## 304 and kept renders a second, against a bare Starlette route
	$(BIN)/sdc bench origin

bench-gpu: setup ## Stable Diffusion at full size, random weights, on whatever device there is
	$(BIN)/sdc bench gpu

bench-bulk: setup ## a back-catalogue against its bare loop, and what a large one costs
	$(BIN)/sdc bench bulk

bench-fleet: setup ## a simulated day against the shipped autoscaling rules, and the simulator against real processes
	$(BIN)/sdc bench fleet --verify
	$(BIN)/sdc bench fleet --announced 12

clean: ## remove what make made
	rm -rf .venv out/demo.png out/rd out/load out/gpu build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
