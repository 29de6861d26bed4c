# Each target sets itself up on a machine that has only Python 3.11:  make demo | make test | make check
VENV   ?= .venv
PYTHON ?= python3
# The CPU build where the index offers it under this name; set TORCH= to keep a torch that is already there.
TORCH  ?= torch==2.13.0
BIN     = $(VENV)/bin

.PHONY: demo test check clean

demo: $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/00_tiny.sh

# What needs both cores or a cluster of its own comes alone, the rest on two workers.
MULTI_PROCESS = tests/parallel tests/launch

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(MULTI_PROCESS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests $(MULTI_PROCESS:%=--ignore=%) -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/shellcheck --external-sources examples/*.sh launch/*.sbatch launch/*.sh launch/*/*.sh tests/launch/*/*.sh .ci/run
	$(BIN)/hadolint --failure-threshold error Dockerfile

$(VENV)/.installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH),$(BIN)/python -m pip install -q $(TORCH) numpy)
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
