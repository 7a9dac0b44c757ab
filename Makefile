# `make` sets everything up and runs the default workflow; `make test` sets everything up and passes the tests.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: run paper-proxy setup test test-all test-slurm lint docs dag lock venv clean

run: setup
	$(BIN)/snakemake --cores all

setup: $(INSTALLED)

# The rows of all tables of the paper on tiny models and images: results/proxy/report/*/paper.md
paper-proxy: setup
	for table in table1 ablation_block_size ablation_second_order ablation_power ablation_schemes; do \
		$(BIN)/snakemake --cores all --configfile config/paper/$$table.yaml config/paper/proxy.yaml \
			--until paper_tables || exit 1; \
	done

test: setup
	$(BIN)/pytest -n 2

# The second tier, after `make test`: what takes minutes, processors without VNNI in QEMU, and the kernels and exports as
# on a processor with AVX2 only.
OLDER_CPU := LPVIT_INSTRUCTION_SET=avx2 ATEN_CPU_CAPABILITY=avx2
test-all: setup
	$(BIN)/pytest -n 2 -m thorough -rs
	$(OLDER_CPU) ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/pytest -n 2 tests/sparse tests/quantisation
	$(OLDER_CPU) $(BIN)/pytest -n 2 tests/api tests/export tests/benchmark

# Through a real SLURM, started on this machine for the test; Debian's packages are installed where that is allowed.
# A timeout interrupts, so that the daemons are ended.
test-slurm: setup
	@test "$$(id -u)" != 0 || command -v slurmctld >/dev/null || ! command -v apt-get >/dev/null || \
		{ apt-get update -qq && apt-get install -y -qq slurmctld slurmd slurm-client munge; } >/dev/null || \
		echo "test-slurm: SLURM's packages cannot be installed here"
	timeout --signal=INT --kill-after=30 900 $(BIN)/pytest -m slurm -rs tests/cluster

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m lpvit.config.reference --check
	$(BIN)/snakemake --lint
	$(BIN)/snakefmt --check Snakefile workflow
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir .venv/site

# The documentation as a site, in site/.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The stages of the default config as a graph: dag.svg, or dag.mmd where graphviz is missing (GitHub draws it).
dag: setup
	@if command -v dot > /dev/null; then $(BIN)/snakemake --rulegraph dot | dot -Tsvg > dag.svg && echo dag.svg; \
	else $(BIN)/snakemake --rulegraph mermaid-js > dag.mmd && echo dag.mmd; fi

# Pins and hashes of everything, for all platforms, from the ranges in pyproject.toml. `make lock UPGRADE=` keeps the pins
# that there are.
UPGRADE := --upgrade
lock: setup
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --system-certs --quiet $(UPGRADE) --output-file requirements.lock

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lpvit needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(MAKE) --no-print-directory venv
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# Debian and Ubuntu ship Python without venv: installed where that is allowed, else told.
venv:
	@test "$$(id -u)" = 0 || { echo "$(PYTHON) lacks venv; first run: sudo apt-get install python3-venv"; exit 1; }
	apt-get update -qq && apt-get install -y -qq python3-venv

clean:
	rm -rf .venv
