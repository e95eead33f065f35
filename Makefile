# Two commands set everything up: `make demo` and `make test`. A Python >= 3.10 and make are all they need.

ifndef PYTHON
PYTHON := $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && { echo $$python; break; }; done)
endif
VENV ?= .venv
HOST_VENV ?= .venv-host
HOST_BASE ?= .host
HOST_ARGS ?=
FUZZ_ARGS ?=
# File by file on as many cores as there are, each process with a ComfyUI of its own; in order, the host's first.
TEST_PARALLEL ?= -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
BENCH ?= $(filter-out %/__init__.py %/in_parts.py %/toy_drawing.py %/toy_subjects.py,$(sort $(wildcard benchmarks/*.py)))

BIN := $(VENV)/bin
PIP := -m pip install --quiet --disable-pip-version-check
LOCATE := tests/host/locate.py

.PHONY: help demo test test-hosts lint bench fuzz host host-python clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/installed  ## a splat becomes a token, a token becomes views: writes demo_output/
	$(BIN)/invert3d demo --out demo_output

test:  ## lint, then unit, golden and host tests; says what it skipped and why
	@$(MAKE) --no-print-directory -j2 lint host-python
	$(BIN)/python -m pytest -rs --durations=10 $(TEST_PARALLEL) $(PYTEST_ARGS)

# An entry is <folder of a ComfyUI>, or <folder>:<its python>; without one a new .venv-host-… is made for each (minutes).
test-hosts: $(VENV)/installed-test  ## the host tests in several ComfyUI: COMFYUI_PATHS="<folder> <folder>"
	@$(call need-python)
	@test -n "$(COMFYUI_PATHS)" || { echo 'say which: make test-hosts COMFYUI_PATHS="<folder> <folder>"'; exit 1; }
	@set -e; for entry in $(COMFYUI_PATHS); do \
		comfy="$${entry%%:*}"; python="$${entry#"$$comfy"}"; python="$${python#:}"; export COMFYUI_PATH="$$comfy"; \
		if [ -z "$$python" ]; then \
			venv="$(HOST_VENV)$$(echo "$$comfy" | tr -c 'A-Za-z0-9\n' -)"; python="$$venv/bin/python"; \
			[ -x "$$python" ] || { $(call make-host-venv,$$venv); }; \
		fi; \
		echo "== $$comfy with $$python"; \
		COMFYUI_PYTHON="$$python" INVERT3D_REQUIRE_HOST=1 $(BIN)/python -m pytest -rs $(or $(PYTEST_ARGS),tests/host); \
	done

lint: $(VENV)/installed-test  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/installed-test  ## every benchmark (hours on a CPU), or BENCH="benchmarks/one.py"
	@missed=""; for script in $(BENCH); do echo "== $$script"; $(BIN)/python $$script || missed="$$missed $$script"; done; \
	test -z "$$missed" || { echo "ended with a claim missed or an error:$$missed"; exit 1; }

fuzz: $(VENV)/installed-test  ## 200,000 damaged files of each format; goes on where it stopped (FUZZ_ARGS="--formats ply --seconds 600")
	$(BIN)/python -m tests.fuzz $(FUZZ_ARGS)

# The interpreter of the host stays apart from .venv: there invert3d_core is installed, and in a host it must never be.
host-python:  ## an interpreter for the ComfyUI found here: one that exists, else a new .venv-host (minutes)
	@$(call need-python)
	@comfy="$$($(PYTHON) $(LOCATE) comfyui)"; \
	if [ -z "$$comfy" ]; then \
		echo "no ComfyUI found (COMFYUI_PATH, the folder that holds custom_nodes/, ~/comfy/ComfyUI): no host tests"; \
	elif ! $(PYTHON) $(LOCATE) python >/dev/null 2>&1; then \
		$(call make-host-venv,$(HOST_VENV)); \
	fi

host: host-python  ## start the ComfyUI found here with this pack linked into .host/custom_nodes
	@comfy="$$($(PYTHON) $(LOCATE) comfyui)"; test -n "$$comfy" || \
		{ echo "make host needs a ComfyUI checkout: say where with COMFYUI_PATH=<folder>"; exit 1; }; \
	python="$$($(PYTHON) $(LOCATE) python)" || exit 1; \
	mkdir -p $(HOST_BASE)/custom_nodes && ln -sfn "$(CURDIR)" $(HOST_BASE)/custom_nodes/invert3d && \
	cpu="$$("$$python" -c 'import torch as t; print("" if t.cuda.is_available() or t.backends.mps.is_available() else "--cpu")')" && \
	cd "$$comfy" && exec "$$python" main.py $$cpu --base-directory "$(abspath $(HOST_BASE))" $(HOST_ARGS)

clean:  ## remove what make made
	rm -rf $(VENV) $(HOST_VENV) $(HOST_VENV)-* $(HOST_BASE) demo_output build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

define need-python
test -n "$(PYTHON)" || { echo "Invert3D needs Python 3.10 or newer: install it, or say where with PYTHON=<path>"; exit 1; }
endef

# $(1): the environment to make, for the ComfyUI in the shell's $comfy.
define make-host-venv
echo "making $(1) for the ComfyUI in $$comfy" && $(PYTHON) -m venv "$(1)" && \
"$(1)/bin/python" $(PIP) $$($(PYTHON) $(LOCATE) torch) -r "$$comfy/requirements.txt" -r requirements.txt
endef

$(VENV)/bin/python:
	@$(call need-python)
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python $(PIP) --editable .
	@touch $@

$(VENV)/installed-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python $(PIP) --editable ".[test]"
	@touch $(VENV)/installed $@
