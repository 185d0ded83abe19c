# make run | test | check | bench | clean. All of it needs Python 3.8 or newer and nothing else; the rest is installed
# into $(VENV), once. Say PORT=9000, PYTHON=python3.12, VENV=.venv312, ARGS="-k cursor" to change it.

PYTHON ?= python3
VENV ?= .venv
PORT ?= 8000
ARGS ?=
BIN = $(VENV)/bin
PROJECT = setup.cfg pyproject.toml

# The servers and the browser that the tests start, as Debian names them.
SYSTEM_PARTS = postgresql mariadb-server chromium sqlite3 curl

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test check bench clean system-parts

help:
	@echo "make run     the demo on http://127.0.0.1:$(PORT)/ (PORT=...)"
	@echo "make test    every test; what the machine lacks is installed (as root on Debian), else skipped (ARGS=...)"
	@echo "make check   lint, format, types"
	@echo "make bench   latency and throughput (ARGS=...)"
	@echo "make clean   removes what make made, the demo's database too"

# The demo makes its own tables, in demo.db here or in DEMO_DATABASE_URL; ARGS="-w 2" goes to gunicorn.
run: $(VENV)/.has-demo
	@echo
	@echo "    The demo is at http://127.0.0.1:$(PORT)/ (ctrl-c ends it)"
	@echo
	@exec $(BIN)/gunicorn -k gevent -b 127.0.0.1:$(PORT) $(ARGS) demo.app:app

test: $(VENV)/.has-dev system-parts
	$(BIN)/python -m pytest -n 3 --dist loadfile $(ARGS)

check: $(VENV)/.has-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.has-dev system-parts
	$(BIN)/python -m bench $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info instance .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f demo.db demo.db-journal demo.db-shm demo.db-wal
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each set of extras, newer than setup.cfg once that set is installed.
$(VENV)/.has-demo: $(VENV)/.made $(PROJECT)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(VENV)/.has-dev: $(VENV)/.made $(PROJECT)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.has-demo

# Debian's bare python3 has no ensurepip, and says so only half-way through making the venv.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 8))' \
		|| { echo "legacy_poll needs Python 3.8 or newer: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { $(call apt_install,python3-venv); } \
		|| { echo "Python has no venv module: install it (Debian: apt-get install python3-venv)"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@touch $@

# Installed by root on Debian only. Elsewhere the tests take what is there, and skip with a reason what is not.
system-parts:
	@missing=; \
	for part in $(SYSTEM_PARTS); do \
		case $$part in \
			postgresql) set -- postgres /usr/lib/postgresql/*/bin/postgres ;; \
			mariadb-server) set -- mariadbd /usr/sbin/mariadbd ;; \
			chromium) set -- chromium chromium-browser google-chrome ;; \
			*) set -- $$part ;; \
		esac; \
		found=; \
		for program; do command -v "$$program" >/dev/null && found=1; done; \
		test -n "$$found" || missing="$$missing $$part"; \
	done; \
	test -z "$$missing" || { $(call apt_install,$$missing); } || echo "not installed, so skipped:$$missing"

# RUNLEVEL=1 keeps the packages from starting servers of their own: the tests start theirs.
apt_install = test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 && \
	{ apt-get install -qq --no-install-recommends $(1) >/dev/null || \
		{ apt-get update -qq && apt-get install -qq --no-install-recommends $(1) >/dev/null; }; }
