# make setup      a virtual environment in $(VENV) with everything that the other targets need
# make demo       the shipped policy at work; then four policies learn from demonstrations; nine minutes
# make unit       unit tests: no Ray, no processes, no rendering; under two minutes
# make test       lint, types, documentation site, unit and integration tests; under 15 minutes on two cores
# make slow-test  tests that take minutes each, and those of gym-aloha with its older MuJoCo and of LeRobot
# make test-lerobot  LeRobot 0.6.1 itself reads what `dataset convert` writes; needs Python 3.12, see $(LEROBOT_PYTHON)
# make docs       the documentation site, in site/
# make chaos      a sweep while faults are injected, compared with an undisturbed one
# Every target sets up $(VENV) first, and slow-test also $(ALOHA_VENV).
PYTHON ?= python3
VENV ?= .venv
STORAGE ?= runs
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ALOHA_VENV ?= $(VENV)-aloha
ALOHA_STAMP := $(ALOHA_VENV)/.installed
# LeRobot has an environment of its own, because it needs Python 3.12 and older libraries.
LEROBOT_PYTHON ?= $(shell python3.12 -c "import sys; print(sys.executable)" 2>/dev/null)
LEROBOT_VENV ?= $(VENV)-lerobot
LEROBOT_STAMP := $(LEROBOT_VENV)/.installed
PIP_INSTALL := install --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest --timeout=1800
# Two processes, each with a Ray cluster of its own: a test often waits for processes to start.
PARALLEL_PYTEST := $(PYTEST) -n 2 --dist loadfile

.PHONY: setup demo lint docs unit integration test slow-test test-aloha test-lerobot chaos clean

setup: $(STAMP)

$(STAMP): pyproject.toml setup.py requirements.txt scripts/check_system.sh
	sh scripts/check_system.sh $(PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip $(PIP_INSTALL) --requirement requirements.txt
	$(BIN)/pip $(PIP_INSTALL) --no-deps --editable .
	$(BIN)/python scripts/check_rendering.py
	touch $@

$(ALOHA_STAMP): $(STAMP) requirements-aloha.txt scripts/overlay.sh
	sh scripts/overlay.sh $(BIN)/python $(ALOHA_VENV) mujoco
	$(ALOHA_VENV)/bin/pip $(PIP_INSTALL) --requirement requirements-aloha.txt
	touch $@

$(LEROBOT_STAMP): requirements-lerobot.txt
	$(LEROBOT_PYTHON) -m venv $(LEROBOT_VENV)
	$(LEROBOT_VENV)/bin/pip $(PIP_INSTALL) --requirement requirements-lerobot.txt
	touch $@

demo: setup
	$(BIN)/imf-ray demo storage_path=$(STORAGE)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: setup
	$(BIN)/python -m mkdocs build --strict

unit: setup
	$(PARALLEL_PYTEST) tests/unit

integration: setup
	$(PARALLEL_PYTEST) tests/integration tests/ray_bugs --durations=30

test: lint docs unit integration

slow-test: setup test-aloha test-lerobot
	$(PARALLEL_PYTEST) -m slow --durations=30

test-aloha: $(ALOHA_STAMP)
	$(ALOHA_VENV)/bin/python -m pytest tests/integration/sim/test_aloha.py

ifeq ($(LEROBOT_PYTHON),)
test-lerobot:
	@echo "There is no python3.12, so LeRobot's tests are skipped. Set LEROBOT_PYTHON to a Python 3.12."
else
test-lerobot: setup $(LEROBOT_STAMP)
	LEROBOT_PYTHON=$(LEROBOT_VENV)/bin/python $(PYTEST) -m slow tests/lerobot
endif

chaos: setup
	$(BIN)/python -m benchmarks.chaos --faults 5

clean:
	rm -rf $(STORAGE)/demo
