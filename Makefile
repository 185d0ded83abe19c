# make run | test | check | bench | clean. All of it needs Python 3.8 or newer and nothing else; the rest is installed
# into $(VENV), once. Say PORT=9000, PYTHON=python3.12, VENV=.venv312, ARGS="-k cursor" to change it.
# `make test-gunicorns` runs the tests of gunicorn's gevent worker on other versions of it; GUNICORNS="22 25.3.0".
# `make test-oldest` needs a Python 3.8 as well, on the path or from pyenv or uv; OLDEST_PYTHON=/path/to/python3.8.

PYTHON ?= python3
VENV ?= .venv
PORT ?= 8000
ARGS ?=
BIN = $(VENV)/bin
PROJECT = setup.cfg pyproject.toml

OLDEST_VENV ?= .venv38
# The first of these that runs; each may be missing, and pyenv's shim may be there and refuse.
OLDEST_PYTHON ?= $(shell for python in python3.8 $(HOME)/.pyenv/versions/3.8.*/bin/python \
	"$${UV_PYTHON_INSTALL_DIR:-$(HOME)/.local/share/uv/python}"/cpython-3.8*/bin/python3.8; do \
	"$$python" -c 'import ensurepip, venv' 2>/dev/null && { echo "$$python"; break; }; done)

# Each is put beside the newest, which $(VENV) has, and in front of it on the path.
GUNICORNS ?= 20.1 21.2 22 23 24 25 26
OTHER_GUNICORNS = $(abspath $(VENV))/gunicorns

# The servers, the proxies, the browser and the script engines that the tests start, as Debian names them.
SYSTEM_PARTS = postgresql mariadb-server pgbouncer nginx haproxy apache2 varnish chromium sqlite3 curl openssl \
	nodejs npm node-acorn mujs duktape gcc libc6-dev

# Those that Debian has in its unstable release only; see tests/newer.sh.
NEWER_PARTS = mysql-server-core mysql-client-core postgresql

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test test-oldest test-gunicorns test-matrix check bench clean system-parts newer-parts

help:
	@echo "make run     the demo on http://127.0.0.1:$(PORT)/ (PORT=...)"
	@echo "make test    every test; what the machine lacks is installed (as root on Debian), else skipped (ARGS=...)"
	@echo "make test-oldest  the tests without servers, on Python 3.8 and the oldest versions of everything"
	@echo "make test-gunicorns  what parks polls, on each gunicorn since 20.1 (GUNICORNS=..., ARGS=...)"
	@echo "make test-matrix  what is not in make test: a Galera cluster whose nodes go, long locks (LOCK_SECONDS=90, ARGS=...)"
	@echo "make check   lint, format, types"
	@echo "make bench   what it costs, beside others too (ARGS=...)"
	@echo "make clean   removes what make made, the demo's database too"

# The demo makes its own tables, in demo.db here or in DEMO_DATABASE_URL; ARGS="-w 2" goes to gunicorn.
run: $(VENV)/.has-demo
	@echo
	@echo "    The demo is at http://127.0.0.1:$(PORT)/ (ctrl-c ends it)"
	@echo
	@exec $(BIN)/gunicorn -k gevent -b 127.0.0.1:$(PORT) $(ARGS) demo.app:app

# Compiled once, and not by each of the thousands of processes that the tests start, where Python may not write itself.
test:
	@$(MAKE) --no-print-directory -j 2 $(VENV)/.has-dev newer-parts
	@$(BIN)/python -m compileall -q legacy_poll tests
	$(BIN)/python -m pytest -n 3 --dist loadfile $(ARGS)

# Without servers: SQLite is enough to see what an old library lacks. No Python 3.8 is a failure in CI, else a skip.
test-oldest:
ifeq ($(strip $(OLDEST_PYTHON)),)
	@echo "skipped: no Python 3.8 on the path, from pyenv or from uv (OLDEST_PYTHON=...)"; test -z "$$CI"
else
	@$(MAKE) --no-print-directory PYTHON=$(OLDEST_PYTHON) VENV=$(OLDEST_VENV) .run-oldest
endif

.PHONY: .run-oldest
.run-oldest: $(VENV)/.has-oldest
	$(BIN)/python -m pytest -n 2 --dist loadfile -p no:cacheprovider \
		-k "not postgresql and not mariadb and not mysql" $(ARGS) \
		tests/unit tests/contract tests/http tests/process/test_migrations.py

# Some two minutes for each; all of them run, so that one failure does not hide another. The tests start the gunicorn of
# $(BIN), whose modules PYTHONPATH replaces; the first line says by what.
test-gunicorns: $(VENV)/.has-dev system-parts
	@failed=; for version in $(GUNICORNS); do \
		folder=$(OTHER_GUNICORNS)/$$version; \
		test -d $$folder || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
			--target $$folder "gunicorn==$$version.*" || { failed="$$failed $$version"; continue; }; \
		PYTHONPATH=$$folder $(BIN)/python $(BIN)/gunicorn --version; \
		PYTHONPATH=$$folder $(BIN)/python -m pytest -q -p no:cacheprovider -k "parked and not postgres and not mariadb and not mysql" \
			$(ARGS) $(SEAM_TESTS) || failed="$$failed $$version"; \
	done; \
	test -z "$$failed" || { echo "failed on gunicorn$$failed"; exit 1; }

# Some three minutes, and a minute and a half for each of 23 locks, or LOCK_SECONDS. The cluster's networks take root.
test-matrix: SYSTEM_PARTS += galera-4 rsync iproute2
test-matrix: $(VENV)/.has-dev system-parts
	$(BIN)/python -m pytest -rP $(ARGS) tests/matrix

SEAM_TESTS = $(addprefix tests/process/test_,parked.py one_connection.py bad_connections.py listeners.py endings.py \
	parked_rights.py parked_proxies.py wire_over_workers.py slow_readers.py)

check: $(VENV)/.has-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: SYSTEM_PARTS += libnginx-mod-nchan
bench: $(VENV)/.has-bench system-parts
	$(BIN)/python -m bench $(ARGS)

clean:
	rm -rf $(VENV) $(OLDEST_VENV) build dist *.egg-info instance .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f demo.db demo.db-journal demo.db-shm demo.db-wal
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each set of extras, newer than setup.cfg once that set is installed.
$(VENV)/.has-demo: $(VENV)/.made $(PROJECT)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(VENV)/.has-dev: $(VENV)/.made $(PROJECT)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.has-demo

$(VENV)/.has-bench: $(VENV)/.made $(PROJECT)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@ $(VENV)/.has-dev $(VENV)/.has-demo

$(VENV)/.has-oldest: $(VENV)/.made $(PROJECT) tests/oldest.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c tests/oldest.txt --editable '.[test]'
	@touch $@

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
			pgbouncer | nginx | haproxy | apache2) set -- $$part /usr/sbin/$$part ;; \
			varnish) set -- varnishd /usr/sbin/varnishd ;; \
			chromium) set -- chromium chromium-browser google-chrome ;; \
			nodejs) set -- node nodejs ;; \
			duktape) set -- duk ;; \
			gcc) set -- cc gcc ;; \
			libc6-dev) set -- /usr/include/stdio.h ;; \
			galera-4) set -- /usr/lib/galera/libgalera_smm.so ;; \
			iproute2) set -- ip ;; \
			libnginx-mod-nchan) set -- /usr/lib/nginx/modules/ngx_nchan_module.so ;; \
			node-acorn) set -- /usr/share/nodejs/acorn/bin/acorn ;; \
			*) set -- $$part ;; \
		esac; \
		found=; \
		for program; do \
			command -v "$$program" >/dev/null || test -e "$$program" && found=1; \
		done; \
		test -n "$$found" || missing="$$missing $$part"; \
	done; \
	test -z "$$missing" || { $(call apt_install,$$missing); } || echo "not installed, so skipped:$$missing"

# One after the other: both ask apt-get, which lets one in at a time.
newer-parts: system-parts
	@sh tests/newer.sh $(NEWER_PARTS)

# RUNLEVEL=1 keeps the packages from starting servers of their own: the tests start theirs.
apt_install = test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 && \
	{ apt-get install -qq --no-install-recommends $(1) >/dev/null || \
		{ apt-get update -qq && apt-get install -qq --no-install-recommends $(1) >/dev/null; }; }
