# make demo: install, learn handwritten digits without a label, show what was learned.
# make test: install, run every test. The rest are the checks that CI runs; `make` alone lists them.
# Another Python: make demo PYTHON=/path/to/python3.12

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CANDIDATES := $(PYTHON) python3 python3.13 python3.12 python3.14 python3.11

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint types contract docs bench bench-small peers clean

help:
	@echo 'make demo      train on handwritten digits and evaluate, about five minutes on two cores'
	@echo 'make test      every test'
	@echo 'make test-fast those that take less than some ten seconds each'
	@echo 'make lint      ruff: rules and format'
	@echo 'make types     mypy'
	@echo 'make docs      the API reference, in build/api'
	@echo 'make contract  which room may import which (import-linter)'
	@echo 'make bench     every measurement under benchmarks/ and stress/, on this machine: a night'
	@echo 'make bench-small  the same in small, for errors and not for times'
	@echo 'make peers     beside lightly, torchvision, kornia, scikit-learn and FAISS: times as fast'
	@echo 'make clean     remove the environment and what the checks left'

demo: $(VENV)/.installed
	$(BIN)/instdisc demo

# A file stays in one process, and the longest begin (tests/conftest.py).
# Most tests wait for a browser or for a process of their own half the time: three workers keep two cores busy.
PYTEST := $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed-dev
	$(PYTEST)

test-fast: $(VENV)/.installed-dev
	$(PYTEST) -m 'not slow'

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

contract: $(VENV)/.installed-dev
	$(BIN)/lint-imports

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/api.py

bench: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/every.py

bench-small: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/every.py --small

peers: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/peers.py

clean:
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

# The first candidate that is new enough and can make environments (Debian keeps ensurepip in a package of its own).
$(BIN)/python:
	@for python in $(CANDIDATES); do \
		if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
			echo "making $(VENV) with $$("$$python" --version) ($$(command -v "$$python"))"; \
			exec "$$python" -m venv --clear $(VENV); \
		fi; \
	done; \
	echo "instdisc needs Python 3.11 or newer with its venv module, and found none among: $(strip $(CANDIDATES))." >&2; \
	echo "Install it (Debian, Ubuntu: apt install python3 python3-venv) or name it: make demo PYTHON=/path/to/python" >&2; \
	exit 1

# The stamp files mark what is installed: one is made again when the project or its pins change. The builder is pinned
# too: it is installed first and used without isolation, since pip does not apply constraints to an isolated build.
define install
	@echo "installing instdisc$(1) into $(VENV) (a first time downloads about 3 GB, mostly torch)"
	@$(PIP) install --quiet --constraint constraints.txt hatchling editables setuptools
	@$(PIP) install --constraint constraints.txt --no-build-isolation --editable ".$(1)"
	@touch $@
endef

BENCH_EXTRAS := dev,benchmarks
INPUTS := pyproject.toml constraints.txt | $(BIN)/python

$(VENV)/.installed: $(INPUTS)
	$(call install,)

$(VENV)/.installed-dev: $(INPUTS)
	$(call install,[dev])

$(VENV)/.installed-bench: $(INPUTS)
	$(call install,[$(BENCH_EXTRAS)])
