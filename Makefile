# The commands of this project, once: tox and CI call these same targets.
#
# Variables: PYTHON (interpreter for the virtual environment), TORCH_INDEX (extra package index for
# torch), BIN (folder with the tools; tox points it at its own environments), GPU (any value: give
# the containers the GPUs), ARGS (passed on to pytest and to the demo).

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
# One more than the cores of a small machine: many tests wait for a stack or for a time-out.
TEST_PROCESSES ?= 2
ARGS ?=

# With a BIN from outside, what is installed there is not ours to look after.
ifdef BIN
INSTALLED :=
else
BIN := $(VENV)/bin
INSTALLED := $(STAMP)
endif
RUN := $(BIN)/python -m

COMPOSE = GIT_COMMIT="$$(git rev-parse HEAD 2>/dev/null)" docker compose --env-file deploy/.env -f deploy/docker-compose.yml \
	$(if $(GPU),-f deploy/docker-compose.gpu.yml) --profile flower

# Threads of torch's own would fight over the cores with the test processes beside them.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install demo up start stop restart test test-quick test-faults test-gpu check lint \
	types imports constraints-check format clean distclean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' Makefile

install: $(STAMP) ## make .venv with everything pinned (a second call does nothing)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@TORCH_INDEX='$(TORCH_INDEX)' sh deploy/install.sh $(VENV) '$(PYTHON)'
	@touch $@

demo: $(INSTALLED) ## train a tokenizer and a GPT-2 on real text with the whole system
	@env -u OMP_NUM_THREADS $(BIN)/trainer demo $(ARGS)

up: $(INSTALLED) ## start the whole system here, until Ctrl-C
	@env -u OMP_NUM_THREADS $(BIN)/trainer up $(ARGS)

start: deploy/.env ## start the whole system in containers (GPU=1: with its GPUs)
	$(COMPOSE) up --build --detach
	@echo "http://127.0.0.1:8000 answers soon; its key is in deploy/.env"

stop: ## stop the containers; running jobs are handed back with a checkpoint
	$(COMPOSE) stop

restart: deploy/.env ## build what has changed, and start the containers anew
	$(COMPOSE) up --build --detach --force-recreate

# Made once; edit it to change what the containers are given.
deploy/.env:
	@umask 077; secret() { head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n'; }; \
	printf 'SECURITY__API_KEY=%s\nBROKER_PASSWORD=%s\nTORCH_INDEX=%s\n' \
		"$$(secret)" "$$(secret)" '$(TORCH_INDEX)' > $@

test: $(INSTALLED) ## all tests that a CPU can run, with coverage
	$(RUN) pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --ignore tests/faults --cov --cov-report= $(ARGS)
	@# What must happen within seconds is tested with the machine to itself. All lines are covered;
	@# the bound leaves room for one that a process which is killed has had no time to count.
	$(RUN) pytest -m 'not slow' tests/faults --cov --cov-append --cov-report=term --cov-fail-under=99.9 $(ARGS)

test-quick: $(INSTALLED) ## the tests that are not marked slow, without coverage
	$(RUN) pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder -m 'not slow' --ignore tests/faults $(ARGS)

test-faults: $(INSTALLED) ## processes killed, paused and cut off from each other
	$(RUN) pytest -v tests/faults $(ARGS)

test-gpu: $(INSTALLED) ## what only a CUDA device can run
	$(RUN) pytest -v -m gpu $(ARGS)

check: lint types imports constraints-check ## every gate but the tests

lint: $(INSTALLED) ## ruff: rules and format
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: $(INSTALLED) ## mypy, strict
	$(RUN) mypy

imports: $(INSTALLED) ## the layers of the house
	$(BIN)/lint-imports --no-logo

constraints-check: $(INSTALLED) ## constraints.txt pins what setup.cfg needs
	$(RUN) pip check
	$(RUN) pytest -q tests/test_constraints.py

format: $(INSTALLED) ## rewrite the source as ruff wants it
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

clean: ## remove caches, reports and the containers; volumes, which hold the data, stay
	-@[ ! -f deploy/.env ] || $(COMPOSE) down
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .tox build htmlcov
	rm -rf .coverage .coverage.* coverage.xml
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## also remove .venv
	rm -rf $(VENV) model_trainer.egg-info
