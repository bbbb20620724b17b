# `make demo` and `make test` need python3 (>= 3.11) with venv, and nothing else: they keep a
# virtual environment of their own in .venv, and set it up again only when pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# One process a core, up to eight. A module's tests stay together, because they share what is costly
# to make: a fit, a campaign, a cluster. tests/conftest.py says in which order modules are taken.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadscope --no-loadscope-reorder

.PHONY: help demo test quick check docs fuzz torture compiled clean

help:
	@echo "make demo   a capacity plan with the shipped profiles; pictures in demo-out/"
	@echo "make test   all tests"
	@echo "make quick  all tests but the slow ones"
	@echo "make check  ruff, mypy and all tests, as .ci/run does"
	@echo "make docs   the documentation as a site, in build/docs"
	@echo "make torture  kill commands at random moments; they must go on as if undisturbed"
	@echo "make fuzz   mutated inputs and options: N=100000 SEED=7 for more and others"
	@echo "make compiled   compiles the simulator's inner loop in place (needs a C compiler)"
	@echo "make clean  remove .venv, caches and demo-out/"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "qsim needs Python >= 3.11; choose one with  make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# what a user needs
$(VENV)/.stamp-report: pyproject.toml | $(BIN)/python
	@echo "installing qsim and what it needs into $(VENV), once; a minute or more, by the network"
	$(PIP) install --quiet --editable '.[report]'
	@touch $@

# and what a developer needs
$(VENV)/.stamp-dev: pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.stamp-report

# The conversation workload of Azure 2023 at 15 times its rate: how many H200s, by which method,
# if no more than 2 points of quality may be lost?
demo: $(VENV)/.stamp-report
	@mkdir -p demo-out
	$(BIN)/qsim plan azure-conv-2023:duration=180,rate=80 --model llama-3.1-8b \
	  --slo ttft:p99:500 --slo tpot:p99:25 --min-quality 98 --progress \
	  --picture demo-out/plan.png --report demo-out/plan.html --json demo-out/plan.json
	@echo
	@echo "picture demo-out/plan.png, report demo-out/plan.html, figures demo-out/plan.json"

test: $(VENV)/.stamp-dev
	$(PYTEST)

quick: $(VENV)/.stamp-dev
	$(PYTEST) -m 'not slow'

check:
	.ci/run

$(VENV)/.stamp-docs: pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --editable '.[docs]'
	@touch $@

# Any warning, such as a link that leads nowhere, is an error.
docs: $(VENV)/.stamp-docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

# Mutated inputs and options; what fails is kept in fuzz-failures/.
N ?= 10000
SEED ?= 0
fuzz: $(VENV)/.stamp-dev
	$(BIN)/python -m tests.fuzz $(N) $(SEED)

# Kills commands at random moments (KILLS of them), fills their disk, and compares what they do then.
KILLS ?= 200
torture: $(VENV)/.stamp-dev
	$(BIN)/python -m tests.torture --kills $(KILLS)

# The simulator's inner loop as machine code, in this source tree. Where a source is newer than what
# was compiled from it, all run as Python again.
compiled: $(VENV)/.stamp-dev
	QSIM_COMPILE=1 $(BIN)/python setup.py --quiet build_ext --inplace

clean:
	find qsim/sim -name "*.so" -delete
	rm -rf $(VENV) demo-out build .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
