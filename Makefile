# `make run` and `make test` on a fresh clone are enough: every target first sets up .venv from
# requirements.lock, once, and again when the lock changes. Works with GNU make 3.81 and later.

PROFILE ?= quick
ARGS ?=
PYTHON ?=
TORCH_ARGS ?=

PY := .venv/bin/python
READY := .venv/.ready
CODE := helpers tests notebooks benchmarks
SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

.PHONY: help run test lab bench lint clean

help:
	@echo "make run    run the notebooks that are new or changed   PROFILE=quick|real|paper  ARGS='--jobs 2'"
	@echo "make test   run the tests                               ARGS='-k prepare'"
	@echo "make lab    open the notebooks in JupyterLab"
	@echo "make bench  measure speed and memory against peers"
	@echo "make peers  an environment with scvi-tools, scib-metrics and Scanorama too, for notebook 07"
	@echo "make lint   check style"
	@echo "make clean  remove .venv and caches; runs/ and data stay"
	@echo
	@echo "PYTHON=/path/to/python chooses the interpreter (3.11 to 3.13) of .venv,"
	@echo "TORCH_ARGS='...' options of pip for another build of torch."

run: $(READY)
	@$(PY) -m helpers.run all --profile $(PROFILE) $(ARGS)

test: $(READY)
	@$(PY) -m pytest $(ARGS)

lab: $(READY)
	@$(PY) -m jupyterlab notebooks $(ARGS)

bench: $(READY) bench-peers
	@PYTHONPATH=. $(PY) benchmarks/loop.py $(ARGS)
	@PYTHONPATH=. $(PY) benchmarks/memory.py
	@PYTHONPATH=. $(PY) benchmarks/imports.py
	@PYTHONPATH=. $(PY) benchmarks/sweep.py
	@PYTHONPATH=. $(PY) benchmarks/multidgd.py

lint: $(READY)
	@$(PY) -m ruff check $(CODE)
	@$(PY) -m ruff format --check $(CODE)

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last: an installation that stops half-way is taken up again by the next `make`.
$(READY): requirements.lock pyproject.toml
	@rm -f $(READY)
	@if ! $(PY) -c '$(SUITABLE)' 2>/dev/null; then \
	  for candidate in $(if $(PYTHON),"$(PYTHON)",python3.11 python3.12 python3.13 python3); do \
	    if "$$candidate" -c '$(SUITABLE)' 2>/dev/null; then found="$$candidate"; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "No Python 3.11, 3.12 or 3.13 found$(if $(PYTHON), at $(PYTHON)). Install one, or say PYTHON=/path/to/python" >&2; \
	    exit 1; \
	  fi; \
	  echo "creating .venv with $$found"; \
	  "$$found" -m venv --clear .venv || { \
	    echo "Python cannot make virtual environments (Debian, Ubuntu: install python3-venv)" >&2; exit 1; }; \
	fi
	@echo "installing torch, then the other packages (once; minutes)"
	@$(PY) -m pip install -qq --disable-pip-version-check $(TORCH_ARGS) torch==2.13.0
	@$(PY) -m pip install -qq --disable-pip-version-check -r requirements.lock
	@$(PY) -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

include benchmarks/peers.mk
