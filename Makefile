# run · test · check · bench · instructions · card · coverage · audit · backup · restore · to-postgres · soak · model · clean
# Needs Python 3.11 or newer with its venv module; everything else goes into .venv.

PORT = 8000
MINUTES = 30
# Tests wait more than they work, so there may be more of them at a time than processors. A file's tests stay together.
JOBS = 3

# The first of these that is there, runs, and is new enough. `make PYTHON=/path/to/python` chooses another.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3 python; do \
	if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$python; break; fi; done)

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# What is checked. The core runs without the folders, so they may be absent.
CHECKED := $(wildcard app.py simple_ws_client.py test_all_apis.py scaleout tests bench ops)
CARD := app.py simple_ws_client.py test_all_apis.py requirements.txt README.md

.PHONY: run test check bench instructions screenshots card coverage audit backup restore to-postgres soak model clean
.DEFAULT_GOAL := run

run: $(VENV)/.run  ## serve 127.0.0.1:8000; `make run PORT=8001` takes another port
	$(BIN)/python app.py --host 127.0.0.1 --port $(PORT)

# axe-core, which judges the screens; without npm its test is skipped and says so
# Over SQLite, then over PostgreSQL, if one answers; with ARGS nothing may be left to run there (5)
test: $(VENV)/.dev $(if $(shell command -v npm),tests/node_modules)  ## every test; `make test ARGS="-k feed"` some of them
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)
	@if $(BIN)/python -m tests.engines; then $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --engine postgresql --kill-rounds 5 $(ARGS) || [ $$? -eq 5 ]; fi

check: $(VENV)/.dev  ## style, types, and known vulnerabilities
	$(BIN)/ruff check .
	$(BIN)/mypy --strict $(CHECKED)
	$(BIN)/python -m tests.audit

screenshots: $(VENV)/.dev  ## the README's pictures; needs Debian's chromium
	$(BIN)/python -m tests.take_screenshots

bench: $(VENV)/.dev  ## measurements; the load generator is wrk
	$(BIN)/python -m bench $(ARGS)

instructions: $(VENV)/.dev  ## fails where a unit of work takes 10 % more instructions; needs valgrind and cc
	$(BIN)/python -m bench.instructions $(ARGS)

# The five files of the core, alone in an empty folder with nothing but requirements.txt installed, pass their tour.
card:
	@test -n "$(PYTHON)" || { echo "Bistro92 needs Python 3.11 or newer; none was found." >&2; exit 1; }
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && trap 'exit 1' INT TERM \
	&& cp $(CARD) "$$folder" \
	&& $(PYTHON) -m venv "$$folder/.venv" \
	&& cd "$$folder" \
	&& .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt \
	&& .venv/bin/python test_all_apis.py

coverage: $(VENV)/.dev  ## which lines the tests run, in the server's processes too
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

audit: $(VENV)/.dev  ## known vulnerabilities of what is installed to run
	$(BIN)/python -m tests.audit

backup: | $(BIN)/python  ## a verified copy, while the server runs; `make backup ARGS="--to FOLDER --keep N"`
	$(BIN)/python ops/backup.py $(ARGS)

restore: | $(BIN)/python  ## `make restore FILE=backups/…`, while the server is stopped; the old database is kept
	@test -n "$(FILE)" || { echo "Which backup? make restore FILE=backups/..." >&2; exit 1; }
	$(BIN)/python ops/restore.py "$(FILE)"

to-postgres: $(VENV)/.postgres  ## `make to-postgres URL=postgresql://…`, while the server is stopped; SQLite is only read
	@test -n "$(URL)" || { echo "Where to? make to-postgres URL=postgresql://USER@HOST/DATABASE" >&2; exit 1; }
	@$(BIN)/python ops/to_postgres.py "$(URL)"

soak: $(VENV)/.dev  ## mixed load with kills and reconnects; `make soak MINUTES=120`
	$(BIN)/python -m tests.soak --minutes $(MINUTES)

model: $(VENV)/.dev  ## scaleout/CAPACITY.md's tables, reckoned from scaleout/measured.json
	$(BIN)/python -m scaleout.model

clean:  ## everything that is made here; never a database
	rm -rf $(VENV) tests/node_modules .coverage .coverage.* htmlcov .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

tests/node_modules: tests/package-lock.json
	npm ci --prefix tests --no-audit --no-fund
	@touch $@

# A stamp is newer than the list that it installed, so that the next run installs nothing.
$(VENV)/.run: requirements.txt | $(BIN)/python
	$(PIP) -r requirements.txt
	@touch $@

$(VENV)/.postgres: requirements-postgres.txt requirements.txt | $(BIN)/python
	$(PIP) -r requirements-postgres.txt
	@touch $@ $(VENV)/.run

$(VENV)/.dev: requirements-dev.txt requirements-postgres.txt requirements.txt | $(BIN)/python
	$(PIP) -r requirements-dev.txt
	@touch $@ $(VENV)/.run

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Bistro92 needs Python 3.11 or newer; none was found." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
