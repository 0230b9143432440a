# Two commands to know: `make demo` and `make test`. Each sets up .venv once, by itself.

PYTHON ?= $(firstword $(foreach python,python3 python3.13 python3.12 python3.11,$(shell \
	$(python) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && \
	command -v $(python))))
BIN := .venv/bin
# pip shows what it downloads and installs: the first set-up takes minutes.
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
# pairs to measure speed on; without the file, crystals made in code
PAIRS ?= ../shared/data/pairs_wbm_dev.jsonl.gz
# potentials to compare with: a folder of matgl models
POTENTIALS ?= ../shared/potentials

# ty checks types: as fast as ruff, by the same makers, and it reads torch and numpy as they are.
.PHONY: demo test test-fast bench results docs lint format tutorials clean

demo: .venv/installed
	$(BIN)/python tutorials/demo.py demo_output/unrelaxed
	$(BIN)/deeprelax relax demo_output/unrelaxed/*.extxyz --out demo_output/relaxed

test: lint
	$(BIN)/python -m pytest $(ARGS)

# For daily work: two minutes, without what trains, calls DFT or drives a browser.
test-fast: .venv/installed-test
	$(BIN)/python -m pytest -m 'not slow' $(ARGS)

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/ty check

# All figures of speed, into benchmarks/results/ and the pages; 15 minutes. Without pairs they
# are only shown, for crystals made in code; without potentials, rivals are left out.
bench: .venv/installed
ifeq ($(wildcard $(PAIRS)),)
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/scaling.py
else
	$(BIN)/python benchmarks/measure.py bench published scaling roofline \
		$(if $(wildcard $(POTENTIALS)),rivals) suite \
		--set PAIRS='$(abspath $(PAIRS))' --set POTENTIALS='$(abspath $(POTENTIALS))'
	$(PIP) -e '.[plot]'
	$(BIN)/python benchmarks/speed_figure.py
endif

format: .venv/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Measures tables of the pages again, and renders them: make results NAMES='table bench' PAIRS=...
# Words in capitals in the commands of benchmarks/results/*.json are variables to give here.
INPUTS := ALLOYS DEFECTS LAYERED LAYERS MP_PAIRS PAIRS PANDEY POTENTIALS SEEDS SLABS SMALL TENSORNET
NAMES ?= table
results: .venv/installed
	$(BIN)/python benchmarks/measure.py $(NAMES) \
		$(foreach name,$(INPUTS),$(if $($(name)),--set $(name)='$($(name))'))
	$(BIN)/python benchmarks/figure.py

# The site, in site/; a warning is an error.
docs: .venv/installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# The notebooks' cells are the scripts' cells; their outputs are made here.
tutorials: .venv/installed-test
	$(PIP) -e '.[tutorials]'
	cd tutorials && ../$(BIN)/jupytext --to ipynb --execute [0-9]*.py

.venv/python:
	@test -n '$(PYTHON)' || { echo 'no Python >= 3.11 found; set PYTHON=...' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/installed: pyproject.toml constraints.txt | .venv/python
	$(PIP) -e .
	@touch $@

.venv/installed-test: pyproject.toml constraints.txt | .venv/python
	$(PIP) -e '.[test]'
	@touch .venv/installed $@

clean:
	rm -rf .venv demo_output site
