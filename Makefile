# Two commands do everything on a fresh machine: `make demo` and `make test`. Each sets up first, once.
PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
PIP    := PIP_DISABLE_PIP_VERSION_CHECK=1 $(VENV)/bin/python -m pip --quiet
STAMP  := $(VENV)/.installed-$(shell cat requirements.txt pyproject.toml mpcformer/ring/*.[ch] | sha256sum | cut -c1-16)

.PHONY: help setup extras demo test test-all check conformance programs records docs proto lock clean
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

setup: $(STAMP)  ## create .venv and install everything (again only when the pins change)

# torch first and alone: it is the one package that cannot be pinned by hash (CPU and CUDA builds share a version).
# Then the whole closure with --no-deps, crypten among it (its own metadata cannot be installed).
$(STAMP): requirements.txt pyproject.toml $(wildcard mpcformer/ring/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python >= 3.11 is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.11 setup")'
	@echo "setting up $(VENV) (some minutes the first time)"
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install torch==2.13.0
	$(PIP) install --no-deps --require-hashes -r requirements.txt
	@rm -rf *.egg-info  # one of an older version would hide this one's commands
	$(PIP) install --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.installed-*
	@touch $@

extras: setup  ## also install Ray and the schemas of Kubernetes; the tests that need them skip without
	$(PIP) install --no-deps --require-hashes -r requirements-ray.txt
	$(PIP) install --no-deps --require-hashes -r requirements-schemas.txt

demo: setup  ## teacher -> student -> private inference by separate processes; the table at the end
	$(VENV)/bin/mpcformer demo

test: setup  ## the default suite (some 10 minutes on 2 cores), in JOBS processes
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-all: setup  ## every test, the slow ones too
	$(VENV)/bin/python -m pytest -m 'slow or not slow'

check: setup  ## ruff, mypy --strict, freshness of generated code and tables, the documentation's links
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python protos/generate.py --check
	$(VENV)/bin/python scripts/records.py --check
	$(VENV)/bin/mkdocs build --strict --quiet

conformance: setup  ## CrypTen's own tests between two of our parties: make conformance CRYPTEN=DIR
	@test -n "$(CRYPTEN)" || { echo "error: CRYPTEN is not set"; echo "fix: give a checkout of facebookresearch/CrypTen"; exit 2; }
	$(VENV)/bin/python scripts/conformance.py $(CRYPTEN)

programs: setup  ## CrypTen programs on this machine and between services: errors, rounds, bytes, seconds
	$(VENV)/bin/python -m experiments.programs

records: setup  ## put the tables and figures of experiments/results into docs/
	$(VENV)/bin/python scripts/records.py

docs: setup  ## the documentation as a site: build/site/index.html
	$(VENV)/bin/mkdocs build --strict

proto: setup  ## regenerate parties/stubs from protos/
	$(VENV)/bin/python protos/generate.py

lock:  ## renew requirements.txt from requirements.in, and the extras' files
	$(PYTHON) scripts/lock.py

clean:  ## remove what the targets made
	rm -rf $(VENV) runs build mpcformer/ring/_kernels*.so *.egg-info .pytest_cache .mypy_cache .ruff_cache
