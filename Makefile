# A fresh clone needs Python 3.11 or newer and make: "make demo" and "make test" do the rest.

VENV ?= .venv
# Further arguments for pip, for example another index with a CPU-only torch for Linux (200 MB instead of some 3 GB):
#   make demo PIP_FLAGS="--extra-index-url URL"
PIP_FLAGS ?=
# The interpreter to build the environment with; empty: the first suitable one.
PYTHON ?=
# Test processes; each of them computes with one thread.
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt $(PIP_FLAGS)
CANDIDATES := $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3 python
SUITABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))

.PHONY: help demo test test-slow lint types format clean
.DEFAULT_GOAL := help

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{ printf "  make %-10s %s\n", $$1, $$2 }'

demo: $(VENV)/installed ## The main job: federated training, secure averaging, privacy, private inference
	$(BIN)/encml run configs/mnist_federated.yaml

test: $(VENV)/installed-dev ## The fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

test-slow: $(VENV)/installed-dev ## The slow tests: whole data sets, whole runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m slow --timeout 1200

lint: $(VENV)/installed-dev ## Ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev ## Mypy, strict
	$(BIN)/mypy

format: $(VENV)/installed-dev ## Mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment and all caches; runs/ and keys/ stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp $(VENV)/made holds the folder the environment was built in. An environment that does not start, or that
# was moved (its scripts name the old folder), is built anew, whatever the stamps say.
ifneq ($(shell $(BIN)/python -c "import pip" 2>/dev/null && cat $(VENV)/made 2>/dev/null),$(CURDIR))
.PHONY: $(VENV)/made
endif

$(VENV)/made:
	@rm -rf $(VENV)
	@for python in $(CANDIDATES); do \
	  if $$python -c '$(SUITABLE)' >/dev/null 2>&1; then \
	    echo "Building $(VENV) with $$($$python --version) ($$(command -v $$python))"; \
	    $$python -m venv $(VENV) && printf '%s' '$(CURDIR)' > $@ && exit 0; \
	    exit 1; \
	  fi; \
	done; \
	echo "No Python 3.11 or newer with venv found (tried: $(CANDIDATES))." >&2; \
	echo "Install one (on Debian and Ubuntu also python3-venv), or say: make PYTHON=/path/to/python3" >&2; \
	exit 1

# torch comes first and alone: a torch that is there already (a CPU-only build, say) satisfies torchvision, which
# would otherwise choose one itself.
$(VENV)/installed: $(VENV)/made pyproject.toml constraints.txt
	@echo "Installing encml and what it needs (PyTorch is large: this takes minutes the first time)"
	@$(PIP) torch
	@$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "Installing the development tools"
	@$(PIP) --editable '.[dev]'
	@touch $@
