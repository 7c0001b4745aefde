# make demo: install and run the main job    make test: install and run the tests    make compare: STL against DCR
# make test-slow: what make test leaves out for its time
# make test-properties: bad recipes, data files and manifests by the thousand
# make test-kernels: the kernels alone, with the full product of sizes, dtypes and options
# make test-slurm-quick, make test-slurm: jobs on a private SLURM of three virtual nodes (Debian, as root; else skipped)
# A virtual environment is made in .venv unless one is active.

VENV := $(or $(VIRTUAL_ENV),$(CURDIR)/.venv)
BIN := $(VENV)/bin
export PATH := $(BIN):$(PATH)

.PHONY: demo compare test test-slow test-properties test-kernels test-slurm-quick test-slurm lint clean

demo: $(BIN)/.dcr-ds
	deepspeed train.py

compare: $(BIN)/.dcr-ds
	deepspeed train.py recipes/smollm2-135m-stl.yaml
	deepspeed train.py recipes/smollm2-135m.yaml
	dcr-ds report runs/smollm2-135m-stl runs/smollm2-135m --out runs/compare.md

test: $(BIN)/.dcr-ds-dev
	python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(BIN)/.dcr-ds-dev
	python -m pytest -m slow --timeout 900

test-properties: $(BIN)/.dcr-ds-dev
	DCR_DS_FULL_PROPERTIES=1 python -m pytest tests/properties --timeout 3600 -n 2 --dist loadfile

test-kernels: $(BIN)/.dcr-ds-dev
	python -m pytest tests/kernels --full-kernels -n 2 --dist loadgroup

test-slurm-quick: $(BIN)/.dcr-ds-dev
	tests/slurm/cluster.sh install
	python -m pytest tests/slurm/test_slurm_quick.py --slurm quick -rs

test-slurm: $(BIN)/.dcr-ds-dev
	tests/slurm/cluster.sh install
	python -m pytest tests/slurm --slurm all -rs

lint: $(BIN)/.dcr-ds-dev
	ruff check .
	ruff format --check .

clean:
	rm -rf .venv build *.egg-info

$(BIN)/python:
	python3 -m venv $(VENV)

$(BIN)/.dcr-ds: setup.py pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e .
	touch $@

$(BIN)/.dcr-ds-dev: setup.py pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@ $(BIN)/.dcr-ds
