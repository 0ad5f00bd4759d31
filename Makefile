# make demo   the policy of this repository; demonstrations, a small sweep, the table, videos
# make test   lint, types, tests; those of gym-aloha with its older MuJoCo
# make slow-test   the tests that take minutes each
# make chaos  a sweep while things break, against the same sweep left alone
# Each does all its own set-up in $(VENV), and for gym-aloha in $(ALOHA_VENV).
PYTHON ?= python3
VENV ?= .venv
DEMO ?= runs/demo
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ALOHA_VENV ?= $(VENV)-aloha
ALOHA_STAMP := $(ALOHA_VENV)/.installed

.PHONY: demo test lint unit slow-test chaos test-aloha setup clean

setup: $(STAMP)

$(STAMP): pyproject.toml requirements.txt scripts/check_system.sh
	sh scripts/check_system.sh $(PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	$(BIN)/python scripts/check_rendering.py
	touch $@

$(ALOHA_STAMP): $(STAMP) requirements-aloha.txt scripts/overlay.sh
	sh scripts/overlay.sh $(BIN)/python $(ALOHA_VENV) mujoco
	$(ALOHA_VENV)/bin/pip install --quiet --disable-pip-version-check \
	  --requirement requirements-aloha.txt
	touch $@

demo: setup
	$(BIN)/python -m imf_ray.evaluate checkpoint=policies/sim_transfer evaluate.num_episodes=8 \
	  evaluate.video=all evaluate.output_dir=$(DEMO)/policy
	$(BIN)/python -m imf_ray.collect data.dataset_dir=$(DEMO)/data collect.num_episodes=24
	$(BIN)/python -m imf_ray.tune search_space=quickstart data.dataset_dir=$(DEMO)/data \
	  storage_path=$(DEMO) run_name=sweep

test: setup lint unit test-aloha

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: setup
	$(BIN)/python -m pytest --timeout=1800 --durations=30

slow-test: setup
	$(BIN)/python -m pytest -m slow --timeout=1800

chaos: setup
	$(BIN)/python -m benchmarks.chaos --faults 5

test-aloha: $(ALOHA_STAMP)
	$(ALOHA_VENV)/bin/python -m pytest tests/integration/sim/test_aloha.py

clean:
	rm -rf $(DEMO)
