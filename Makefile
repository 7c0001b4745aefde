# A virtual environment is made in .venv unless one is active. `make` alone prints this help.

VENV := $(or $(VIRTUAL_ENV),$(CURDIR)/.venv)
BIN := $(VENV)/bin
export PATH := $(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-properties test-kernels test-wheel test-slurm-quick test-slurm lint study study-report paper-table clean

help:  ## print this help
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r target text; do \
	    printf '  make %-18s %s\n' "$$target" "$$text"; done

demo: $(BIN)/.dcr-ds  ## install and run the default recipe: a 135M model, both stages, the control, a report
	deepspeed train.py

test: $(BIN)/.dcr-ds-dev  ## run the quick test suite on the CPU
	python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(BIN)/.dcr-ds-dev  ## run the tests that `make test` skips because they are slow
	python -m pytest -m slow --timeout 900

test-properties: $(BIN)/.dcr-ds-dev  ## test thousands of generated recipes, data files and manifests
	DCR_DS_FULL_PROPERTIES=1 python -m pytest tests/properties --timeout 3600 -n 2 --dist loadfile

test-kernels: $(BIN)/.dcr-ds-dev  ## test the kernels with every combination of sizes, dtypes and options
	python -m pytest tests/kernels --full-kernels -n 2 --dist loadgroup

test-wheel: $(BIN)/.dcr-ds-dev  ## build the wheel and use it in a new virtual environment, without the checkout
	python -m pytest tests/packaging/test_wheel.py --timeout 900

test-slurm-quick: $(BIN)/.dcr-ds-dev  ## run one job on a private SLURM (installs Debian packages; needs root, else skips)
	tests/slurm/cluster.sh install
	python -m pytest tests/slurm/test_slurm_quick.py --slurm quick -rs

test-slurm: $(BIN)/.dcr-ds-dev  ## run all SLURM tests: time limits, node failures, job chains, sweeps
	tests/slurm/cluster.sh install
	python -m pytest tests/slurm --slurm all -rs

paper-table: $(BIN)/.dcr-ds  ## redo the paper's Table 1 on this node's GPUs; DRY_RUN=1 prints the commands and GPU-hours
	python benchmarks/paper_table.py $(if $(DRY_RUN),--dry-run)

lint: $(BIN)/.dcr-ds-dev  ## check style, types, spelling and the Dockerfile
	ruff check .
	ruff format --check .
	codespell .
	mypy
	hadolint Dockerfile

study: $(BIN)/.dcr-ds-dev  ## run what has no results yet of docs/STUDY.md; DATA=folder of public sets; PLAN=1: print what is left
	python benchmarks/study/run.py $(if $(DATA),--data "$(DATA)") $(if $(PLAN),--plan)

study-report: $(BIN)/.dcr-ds-dev  ## write docs/RESULTS.md from the committed results of the study
	python benchmarks/study/report.py --readme README.md

clean:  ## remove the virtual environment and build outputs
	rm -rf .venv build dist *.egg-info

$(BIN)/python:
	python3 -m venv $(VENV)

$(BIN)/.dcr-ds: setup.py pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e .
	touch $@

$(BIN)/.dcr-ds-dev: setup.py pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@ $(BIN)/.dcr-ds
