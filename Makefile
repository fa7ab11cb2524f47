# `make help` lists the commands. Nothing is needed but Python 3.11 or newer, pip and make.
#   PYTHON=python3.12   the Python that the virtual environment is made with
#   PY=python           use this Python as it is and install nothing (a conda environment, for example)
#   JOBS=1              chapters and tests that run side by side (default: one per core, at most 4)

.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= python3
ifeq ($(origin PY),undefined)
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
else
INSTALLED :=
endif

SCALE ?=
PARAMS ?=
STRICT ?=
JOBS ?= $(shell $(PYTHON) -c 'import os; print(min(4, os.cpu_count() or 1))' 2>/dev/null || echo 1)
export LOSSLAND_STORE ?= $(CURDIR)/_build/store
export JUPYTER_PREFER_ENV_PATH := 1
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1

PACKAGE := $(shell find lossland -name '*.py' 2>/dev/null)
CHAPTERS := $(wildcard book/chapters/[0-9]*.ipynb book/*.ipynb)
NUMBERS := $(wildcard book/papers/*.yml book/results/*/*.json)
PAGES := $(wildcard book/*.md book/*.yml book/*.bib book/benchmarks/* book/chapters/*.md book/_assets/* book/_ext/*.py) _config.yml
VERSIONS := pyproject.toml constraints.txt

.PHONY: help book test lab assignments run edition record bench notebooks clean fresh unit-tests notebook-tests site-tests

help:  ## list the commands
	@echo "make COMMAND, where COMMAND is one of"
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1|\2/p' Makefile | while IFS='|' read -r name text; do printf '  %-10s %s\n' "$$name" "$$text"; done

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON): install Python 3.11 or newer, or say PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "lossland needs Python 3.11 or newer and $(PYTHON) is $$($(PYTHON) -V): say for example make PYTHON=python3.12 book"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv module. On Debian or Ubuntu: apt install python3-venv. Or use a Python that has it: make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VERSIONS) | $(VENV)/bin/python
	$(PY) -m pip install --disable-pip-version-check -e '.[book,classroom,cluster,test]' -c constraints.txt
	@touch $@

_build/.book: $(INSTALLED) $(VERSIONS) $(PACKAGE) $(CHAPTERS) $(NUMBERS) $(PAGES) book/_tools/build_book.py
	@mkdir -p _build && rm -f $@
	$(PY) book/_tools/build_book.py --jobs $(JOBS) $(if $(STRICT),--strict) $(if $(FRESH),--fresh)
	@touch $@

book: _build/.book  ## execute what changed, render the book, say where the page is
	@$(PY) book/_tools/build_book.py --summary

fresh: $(INSTALLED)  ## build the book from scratch; every warning is an error
	@mkdir -p _build && rm -f _build/.book
	$(PY) book/_tools/build_book.py --jobs $(JOBS) --strict --fresh
	@touch _build/.book

test: unit-tests notebook-tests site-tests  ## unit tests, the notebooks, the site checks

unit-tests: $(INSTALLED)
	$(ONE_THREAD) $(PY) -m pytest -n $(JOBS) tests --ignore=tests/notebooks --ignore=tests/site
	$(ONE_THREAD) $(PY) -m pytest -q --doctest-modules lossland

notebook-tests: unit-tests _build/.nbval
	$(ONE_THREAD) $(PY) -m pytest -n $(JOBS) --dist loadgroup tests/notebooks

_build/.nbval: $(INSTALLED) $(VERSIONS) $(PACKAGE) $(CHAPTERS) $(NUMBERS)
	@mkdir -p _build
	$(ONE_THREAD) $(PY) -m pytest -n $(JOBS) --dist loadscope --nbval-lax --nbval-current-env -p no:cacheprovider $(CHAPTERS)
	@touch $@

site-tests: notebook-tests _build/.book
	$(ONE_THREAD) $(PY) -m pytest -n $(JOBS) --dist loadgroup tests/site

run: $(INSTALLED)  ## re-run one chapter: make run CHAPTER=02 SCALE=laptop [PARAMS=file.yml]
	@$(PY) book/_tools/run_chapter.py "$(CHAPTER)" $(if $(SCALE),--scale "$(SCALE)") $(if $(PARAMS),--params "$(PARAMS)")

edition: $(INSTALLED)  ## re-run every chapter and render your own book: make edition SCALE=laptop [PARAMS=file.yml] [NAME=mine]
	@$(PY) book/_tools/build_edition.py $(if $(SCALE),--scale "$(SCALE)") $(if $(PARAMS),--params "$(PARAMS)") $(if $(NAME),--name "$(NAME)") --jobs $(JOBS)

bench: $(INSTALLED)  ## measure, for the page Benchmarks, on a quiet machine: make bench [ONLY=path_evaluation] [DEVICE=cuda]
	@$(PY) book/_tools/bench.py $(ONLY) $(if $(DEVICE),--device "$(DEVICE)") $(if $(OPTIONS),-- $(OPTIONS))

record: $(INSTALLED)  ## list or make the recorded runs: make record [NEXT=1] [BUDGET=8m] [CHAPTER=05 SCALE=paper DATASET=mnist]
	@$(PY) book/_tools/record.py $(if $(NEXT),--next="$(NEXT)") $(if $(BUDGET),--budget="$(BUDGET)") \
	  $(if $(CHAPTER),--chapter="$(CHAPTER)") $(if $(SCALE),--scale="$(SCALE)") $(if $(DATASET),--dataset="$(DATASET)") \
	  $(if $(DATA_DIR),--data-dir="$(DATA_DIR)") $(if $(DEVICE),--device="$(DEVICE)") \
	  $(if $(SCHEDULER),--scheduler="$(SCHEDULER)") $(if $(WORKERS),--workers="$(WORKERS)")

notebooks: $(INSTALLED)  ## execute at scale tiny the chapters whose saved outputs are out of date, in place
	$(ONE_THREAD) $(PY) book/_tools/refresh_notebooks.py --jobs $(JOBS) $(if $(ALL),--all)

lab: $(INSTALLED)  ## open the chapters in JupyterLab
	$(PY) -m jupyterlab --notebook-dir=book/chapters

assignments: $(INSTALLED)  ## make the students' versions of the assignments, into book/assignments/release
	$(PY) book/_tools/build_assignments.py

clean:  ## delete what was built (runs/ and .venv stay)
	rm -rf _build .pytest_cache lossland.egg-info
	find lossland tests book -name __pycache__ -type d -prune -exec rm -rf {} +
