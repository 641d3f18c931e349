# `make` alone lists the targets. Every target installs what it needs.

BASE_PYTHON ?= python3
PORT        ?= 8000
VENV        := .venv
PYTHON      := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint bench real starter reliability screenshots hashes clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.run-packages ## create .venv and install what the three scripts need

demo: $(VENV)/.run-packages ## simulate a fleet, train, serve live forecasts on 127.0.0.1:8000
	@$(PYTHON) demo.py --port $(PORT)

# Two files of tests at a time; the slow ones, of which some need the machine to themselves, one at a time.
test: $(VENV)/.dev-packages ## run the tests
	@$(PYTHON) -m pytest -q -n 2 --dist loadfile

test-all: test ## run the tests, slow ones included
	@$(PYTHON) -m pytest -q -m slow

lint: $(VENV)/.dev-packages ## ruff and mypy
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

bench: $(VENV)/.dev-packages ## measure speed and accuracy, with stock and LightGBM for comparison
	@set -e; for benchmark in $(sort $(wildcard benchmarks/*.py benchmarks/*/*.py)); do \
		case $$benchmark in */__init__.py|*/real_servers.py|*/longer.py|*/ablations.py|*/*starter*.py) continue;; esac; \
		echo "== $$benchmark" >&2; $(PYTHON) $$benchmark; done

real: $(VENV)/.dev-packages ## train on the real fleets in ../shared/data and print the tables of docs/results.md
	@$(PYTHON) benchmarks/real_servers.py

starter: $(VENV)/.dev-packages ## build models/starter again from the simulator and the real fleets in ../shared/data
	@$(PYTHON) benchmarks/life/make_starter.py

screenshots: $(VENV)/.dev-packages ## take pictures of the dashboard and the report from the demo's model into docs/images
	@$(PYTHON) docs/screenshots.py

reliability: $(VENV)/.dev-packages ## test every promise of the daemon and print the results (15 minutes)
	@$(PYTHON) -m tests.reliability

# Hashes of all files of each version, for every Linux; torch and what only training needs is not in the image.
hashes: $(VENV)/.dev-packages ## write requirements-deploy.txt, the image's packages with their hashes
	@$(VENV)/bin/uv pip compile --quiet --generate-hashes --no-annotate --python-version 3.12 --python-platform linux \
		--constraints requirements.txt --custom-compile-command "make hashes" -o requirements-deploy.txt deploy/requirements.in

clean: ## remove .venv, caches and the demo's folder (training/ and models/ stay)
	@rm -rf $(VENV) demo_files .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp per requirement file: packages are installed once per change of the pins.
$(VENV)/bin/python:
	@command -v $(BASE_PYTHON) > /dev/null || { echo "error: $(BASE_PYTHON) not found; install Python 3.11 or newer, or name one: make BASE_PYTHON=/path/to/python3" >&2; exit 1; }
	@$(BASE_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(BASE_PYTHON) is $$($(BASE_PYTHON) --version); Python 3.11 or newer is needed: make BASE_PYTHON=python3.12" >&2; exit 1; }
	@$(BASE_PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "error: could not create $(VENV); on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.run-packages: requirements.txt | $(VENV)/bin/python
	@echo "installing the packages of requirements.txt" >&2
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.dev-packages: requirements.txt requirements-scale.txt requirements-dev.txt | $(VENV)/bin/python
	@echo "installing the packages of requirements-dev.txt" >&2
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@ $(VENV)/.run-packages
