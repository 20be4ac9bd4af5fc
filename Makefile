# Two commands, with no step before them:  make run  and  make test.

.DEFAULT_GOAL := help
.PHONY: help setup run test lint types format pins methods docs clean

PYTHON ?= $(shell for p in python3.11 python3; do $$p -c "" 2>/dev/null && { echo $$p; break; }; done)
INDEX ?=
GPU ?=
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out/first-light

# One thread per test process, and nothing is ever fetched from a hub.
TEST_ENV := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

help: ## this list
	@echo "Luthier"
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1	/' | expand -t 18
	@echo "  PYTHON=python3.11   which Python       INDEX=ADDRESS   one more package index, or a folder of wheels"
	@echo "  OUT=out/first-light where to write     GPU=1           allow GPU packages on a machine without a GPU"

setup: ## make .venv and install what is pinned in constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python here. Install Python 3.11 or newer, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) tools/setup.py --venv $(VENV) --index "$(INDEX)" $(if $(GPU),--gpu)

run: setup ## compare 7 ways of adapting a real pretrained model on real data (a first taste, under 6 minutes)
	@HF_HUB_OFFLINE=1 $(BIN)/luthier compare --model builtin:minilm --data builtin:pydocs \
	  --methods lora,adapter,prompt_tuning,p_tuning_v2,ia3,bitfit,lst \
	  --budget rows=1500,epochs=2 --seeds 1 --no-grid --out $(OUT)
	@echo "Report:  $(OUT)/report.html   (one file: open it in a browser)"
	@echo "Try:     $(BIN)/luthier predict $(OUT)/runs/lora-0 --text \"Return True if the path refers to an existing file.\""

test: setup ## lint, types and all tests
	@$(MAKE) --no-print-directory lint types
	@$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal

lint: setup ## ruff: rules and formatting
	@$(BIN)/ruff check src tests tools
	@$(BIN)/ruff format --check src tests tools

format: setup ## let ruff put the code in form
	@$(BIN)/ruff check --fix src tests tools
	@$(BIN)/ruff format src tests tools

types: setup ## mypy
	@$(BIN)/mypy src

methods: setup ## write again what is generated from the methods (what applies to whom, index, table in the README)
	@$(TEST_ENV) $(BIN)/python -m tests.conformance.table
	@$(BIN)/python -m luthier.methods.index

docs: setup ## build the site in site/: a page per method and per room, guides, figures
	@$(BIN)/python -m mkdocs build --strict --quiet --clean
	@echo "Site:  site/index.html   (open it in a browser; it loads nothing from elsewhere)"

pins: setup ## write constraints.txt again from what is installed
	@$(BIN)/python tools/pins.py

clean: ## remove .venv and whatever tools left behind (never results: out/ and runs/ stay)
	@rm -rf $(VENV) build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	@find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
