# The two commands: `make quickstart` and `make test`. Both use the environment .venv, which they set up themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Debian packages with what the tests read, lay cables with and show pages in, what FFCV is built with, and what
# `python3 -m venv` needs.
FFCV_PACKAGES := g++ python3-dev pkg-config libopencv-dev libturbojpeg0-dev
TEST_PACKAGES := chromium dataset-fashion-mnist iproute2 $(FFCV_PACKAGES)
VENV_PACKAGES := python3-venv

# pip names a newer self otherwise; a user did not ask for that.
export PIP_DISABLE_PIP_VERSION_CHECK := 1

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help quickstart test rehearse lint aot clean test-packages

help:
	@echo "make quickstart   set up $(VENV), install fastlocal, train on the data that ships with it"
	@echo "make test         set up what the tests need, then run lint and the whole suite; with FASTLOCAL_TEST_ALL=1"
	@echo "                  a test that is skipped because an optional package is missing fails"
	@echo "make rehearse     walk what only a GPU would run, without one, and print the lines that were not walked"
	@echo "make lint         ruff and mypy"
	@echo "make aot          compile every GPU kernel for A100, H100 and B200, which needs none of them, and look for spills"
	@echo "make clean        remove $(VENV), builds and caches (not runs/)"
	@echo "PYTHON=python3.12 before or after the goal chooses another interpreter for $(VENV)"

quickstart: $(VENV)/installed
	$(BIN)/fastlocal train quickstart

# The tests run even where lint fails, which then still fails the goal.
test: test-packages $(VENV)/installed-test
	@$(MAKE) lint; lint=$$?; \
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations=15 || exit; \
	if [ $$lint != 0 ]; then echo "The tests passed; ruff or mypy did not: see above"; exit $$lint; fi

# Ten minutes of which `make test` has the short half.
rehearse: $(VENV)/installed-test
	$(BIN)/python -m coverage erase
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest tests/rehearsal -m "slow or not slow" -n 2 --dist worksteal --durations=10
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m tests.rehearsal.walked

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy

aot: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.aot

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What is installed is younger than the files that say what to install.
$(VENV)/installed: setup.py pyproject.toml | $(VENV)/created
	$(BIN)/python -m pip install --editable .
	@touch $@

# Where FFCV cannot be built, everything but FFCV is installed, and the next `make test` tries again. FFCV names no build
# system, for which older versions of pip want a package `wheel` unless told to build it as all others.
$(VENV)/installed-test: setup.py pyproject.toml | $(VENV)/created
	@if pkg-config --exists opencv4 libturbojpeg 2>/dev/null; then \
		$(BIN)/python -m pip install --use-pep517 --editable ".[test]" && touch $@; \
	else \
		echo "FFCV is not built and its tests are skipped. On Debian: apt-get install $(FFCV_PACKAGES)"; \
		$(BIN)/python -m pip install --editable ".[dev,dali]"; \
	fi
	@touch $(VENV)/installed

$(VENV)/created:
	@command -v $(PYTHON) >/dev/null || { \
		echo "fastlocal needs Python 3.10 or newer, and there is no $(PYTHON) here. On Debian: apt-get install python3 python3-venv"; \
		exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "fastlocal needs Python 3.10 or newer, and $(PYTHON) is `$(PYTHON) --version`. Name a newer one: make PYTHON=python3.12 ..."; \
		exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { $(call debian_install,$(VENV_PACKAGES)); }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make environments: its module venv or ensurepip is missing. On Debian: apt-get install $(VENV_PACKAGES)"; \
		exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# Without these packages the tests that need them are skipped, so a machine where they cannot be installed goes on.
test-packages:
	@$(call debian_install,$(TEST_PACKAGES))

# $(call debian_install,PACKAGES): installs those that are missing where this is root on Debian, else says what to install.
# It never fails: whoever needs the packages tells what is missing.
define debian_install
missing=; \
for package in $(1); do \
	dpkg-query --show --showformat='$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"; \
done; \
if [ -z "$$missing" ]; then \
	:; \
elif ! command -v apt-get >/dev/null; then \
	echo "Not on Debian: install what its packages$$missing hold by other means"; \
elif [ "$$(id -u)" != 0 ]; then \
	echo "Missing system packages, to be installed by an administrator: apt-get install$$missing"; \
else \
	echo "Installing system packages:$$missing"; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update --quiet || echo "apt-get update failed; trying with the package lists that are here"; \
	apt-get install --quiet --yes --no-install-recommends -o DPkg::Lock::Timeout=120 $$missing \
		|| echo "apt-get could not install$$missing (locked by another process, or no network; see above); going on without"; \
fi
endef
