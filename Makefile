# Two commands are enough: `make run` and `make test`. `make help` lists the rest.

PYTHON ?= python3
PORT ?= 3000
INPUT ?=

VENV := .venv
BIN := $(VENV)/bin
UV ?= uv

# Airflow holds its dependencies to other versions than ours. It needs Python 3.11 or newer.
AIRFLOW := .venvs/airflow

# Set by the maintainers' `make lock`; everybody else installs exactly what it wrote.
LOCKS := requirements-build.lock requirements.lock requirements-dev.lock

# --no-deps: the locks are complete. --no-build-isolation: what pip builds with is locked too.
PIP_INSTALL := $(BIN)/python -m pip install --no-deps --no-build-isolation --disable-pip-version-check --no-input

# It saves time, and nothing needs it. Where there is no Java, `make run` says what to do.
ARCHIVE_CLASSES := echo "Archiving Spark's classes (once; half a minute) ..."; \
	$(BIN)/python -c 'from synapse_assets.compute.spark.class_archive import make; make()' 2>/dev/null \
	|| echo "That failed: Spark starts without them, a little slower."

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: $(VENV)/.installed ## Materialize the whole pipeline (INPUT=path/to/Titanic.csv for your own file)
	@$(BIN)/synapse-assets run $(if $(INPUT),--input "$(INPUT)")

.PHONY: ui
ui: $(VENV)/.installed ## Open the Dagster UI (PORT=3000)
	@$(BIN)/synapse-assets ui --port "$(PORT)"

.PHONY: services
services: $(VENV)/.installed ## Run Azurite, HDFS and stand-ins for Synapse and Azure ML until Ctrl-C
	@$(BIN)/synapse-assets services

.PHONY: test
test: $(VENV)/.installed-dev ## Run the tests, all but those that need a browser or a service
	$(BIN)/python -m pytest -m "not browser and not services" $(PYTEST_ARGS)

.PHONY: test-services
test-services: $(VENV)/.installed-dev ## Run the tests against a real Azurite and a real HDFS, which they start
	$(BIN)/python -m pytest -m services $(PYTEST_ARGS)

.PHONY: test-browser
test-browser: $(VENV)/.installed-dev ## Run the tests that drive a real Chromium
	$(BIN)/python -m pytest -m browser $(PYTEST_ARGS)

.PHONY: test-matrix
test-matrix: ## Run the tests with each Python and each pyspark (PYTHONS="..." PYSPARKS="...")
	@.ci/test-matrix

.PHONY: check
check: $(VENV)/.installed-dev ## Format, lint, types, direction of imports, spelling, nothing of this machine in the tree
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell
	$(BIN)/python .ci/check_tracked_files.py
	$(BIN)/python -m pip check --disable-pip-version-check

.PHONY: format
format: $(VENV)/.installed-dev ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

.PHONY: bench
bench: $(VENV)/.installed-dev ## Measure against plain scripts and plain Dagster (minutes to hours)
	$(BIN)/python -m benchmarks.run

.PHONY: bench-storage
bench-storage: $(VENV)/.installed-dev ## Measure the datastore against the raw libraries, on Azurite and a folder
	$(BIN)/python -m benchmarks.storage $(BENCH_ARGS)

.PHONY: bench-sensor
bench-sensor: $(VENV)/.installed-dev ## Measure ticks of the arrival sensor at up to a million blobs
	$(BIN)/python -m benchmarks.sensor $(BENCH_ARGS)

.PHONY: bench-spark
bench-spark: $(VENV)/.installed-dev $(AIRFLOW)/.installed ## Measure Spark batches against Airflow's operators, on a stub
	$(BIN)/python -m benchmarks.spark --airflow $(AIRFLOW)/bin/python $(BENCH_ARGS)

.PHONY: lock
lock: ## Resolve the dependencies anew (maintainers; needs uv, UV=path/to/uv)
	@UV="$(UV)" .ci/lock $(LOCK_ARGS)

.PHONY: clean
clean: ## Remove the virtual environments and caches (not your data)
	rm -rf $(VENV) .venvs .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp and not the folder: an interrupted `python -m venv` leaves a folder without pip.
$(VENV)/.created:
	@.ci/check-python "$(PYTHON)"
	@echo "Creating $(VENV) ..."
	@"$(PYTHON)" -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created requirements-build.lock requirements.lock pyproject.toml
	@echo "Installing the locked packages into $(VENV) (once; a few minutes) ..."
	@$(PIP_INSTALL) --require-hashes -r requirements-build.lock
	@$(PIP_INSTALL) --require-hashes -r requirements.lock
	@$(PIP_INSTALL) --no-index --editable .
	@$(ARCHIVE_CLASSES)
	@touch $@

# Holds the runtime packages too, at the same versions, so that `make run` finds its work done.
$(VENV)/.installed-dev: $(VENV)/.created requirements-build.lock requirements-dev.lock pyproject.toml
	@echo "Installing the locked packages for development into $(VENV) (once; a few minutes) ..."
	@$(PIP_INSTALL) --require-hashes -r requirements-build.lock
	@$(PIP_INSTALL) --require-hashes -r requirements-dev.lock
	@$(PIP_INSTALL) --no-index --editable .
	@$(ARCHIVE_CLASSES)
	@touch $(VENV)/.installed $@

$(AIRFLOW)/.installed: benchmarks/requirements-airflow.txt
	@.ci/check-python "$(PYTHON)"
	@echo "Installing Airflow into $(AIRFLOW) (once; a few minutes) ..."
	@"$(PYTHON)" -m venv --clear $(AIRFLOW)
	@$(AIRFLOW)/bin/python -m pip install --quiet --no-deps --only-binary :all: --disable-pip-version-check --no-input -r $<
	@touch $@
