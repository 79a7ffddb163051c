# `make demo` and `make test` are all that a newcomer needs; `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 4
# What a user needs, and what work on the project needs beyond that.
INSTALLED := $(VENV)/.installed
BENCHES := broadcast collate index clients loops startup inotify
READY := $(VENV)/.installed-for-work
# In an environment of their own: structlog imports rich where it is installed, so each daemon of a test would, too.
TOOLS_BIN := .venv-tools/bin
TOOLS := .venv-tools/.installed

.PHONY: help install demo picture test programs fresh fresh-short check lint types faults faults-short soak bench bench-short $(BENCHES:%=bench-%) man dist verify-types clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# The stamps name the Python and the folder that the environment was made for; with others it is made again.
ifneq ($(file < $(INSTALLED)),$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) $(CURDIR))
.PHONY: $(INSTALLED)
endif

$(INSTALLED): pyproject.toml client/pyproject.toml constraints.txt
	@./make-venv.sh $(VENV) $(PYTHON) $@ .

$(READY): $(INSTALLED)
	@./make-venv.sh $(VENV) $(PYTHON) $@ '.[dev,bench]'

ifneq ($(file < $(TOOLS)),$(file < $(INSTALLED)))
.PHONY: $(TOOLS)
endif

$(TOOLS): $(INSTALLED)
	@./make-venv.sh .venv-tools $(PYTHON) $@ '.[tools]'

install: $(INSTALLED) ## make the virtual environment

demo: $(INSTALLED) ## a stream that you can watch and play with; DEMO_SECONDS=5 ends by itself
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m compose.demo

test: $(READY) $(TOOLS) ## the test suite; it installs the programs that it needs first, where you may
	@$(BIN)/python -m tests.install
	@$(BIN)/python -m pytest -n $(WORKERS)

programs: ## install the programs that the tests need (as root); services are unpacked, not started
	@$(PYTHON) -B -m tests.install --must

fresh: ## prove both on a bare Debian, as root and as an ordinary user (as root, ten minutes)
	@$(PYTHON) -B -m tests.fresh

fresh-short: ## print the commands that `make fresh` runs
	@$(PYTHON) -B -m tests.fresh --show

picture: $(READY) $(TOOLS) ## draw docs/picture/demo.svg: `make demo` in a terminal
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(TOOLS_BIN)/python -m tools.picture

lint: $(READY) ## ruff, mypy --strict
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

faults: $(READY) ## the proof of the collator's promises: kills, power cuts, full and failing disks (an hour)
	$(BIN)/python -m tests.faults --long
	$(BIN)/python -m tests.client.kill_loop --kills 300

faults-short: $(READY) ## the same in its short form, a minute and a half; it is part of the tests as well
	$(BIN)/python -m tests.faults

soak: $(READY) ## ten minutes of clients that come, go, stall and lie: nothing is left behind
	$(BIN)/python -m tests.soak

bench: $(BENCHES:%=bench-%) ## measure everything (an hour; the machine should have nothing else to do)

bench-broadcast: $(READY) ## tailsrv beside a C loop, tailsrv 0.9.3 and nginx: docs/benchmarks/broadcast.md

bench-collate: $(READY) ## tailsrv-collate beside a C loop and a bare fdatasync: docs/benchmarks/collate.md

bench-index: $(READY) ## tailsrv-index beside wc -l: docs/benchmarks/index.md

bench-clients: $(READY) ## Consumer, Producer and tailsrv-cat beside nc: docs/benchmarks/clients.md

bench-loops: $(READY) ## plain epoll, asyncio and uvloop: docs/benchmarks/loops.md

bench-startup: $(READY) ## what a daemon costs before it has done anything

bench-inotify: $(READY) ## what a wake-up costs with each inotify binding

$(BENCHES:%=bench-%): bench-%:
	$(BIN)/python -m bench.$*

bench-short: $(READY) ## a smoke form of all benches, within a minute; its figures mean nothing
	status=0; for bench in $(BENCHES); do $(BIN)/python -m bench.$$bench --short || status=1; done; exit $$status

man: $(READY) ## build the manual pages: man/man1, man/man8; read one with man -l
	$(BIN)/python -m tools.manpages man

dist: $(READY) $(TOOLS) ## build a wheel and a source archive of both distributions into dist/, and check them
	rm -rf dist build client/build
	$(BIN)/python -m build --outdir dist client
	$(BIN)/python -m build --outdir dist .
	$(TOOLS_BIN)/python -m twine check --strict dist/*

verify-types: $(READY) ## prove that every symbol of the client has a complete type, as pyright sees it
	$(BIN)/python -m pytest tests/package -k complete_type

check: lint test ## all of it, as CI runs it

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .venv-tools build client/build dist man client/man *.egg-info client/*.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache bench/out
