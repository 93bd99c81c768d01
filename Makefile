# Everything a person or CI does with Naru. Each target sets up what it needs.
.DEFAULT_GOAL := help
.PHONY: help run test test-unit test-all test-python lint format types build deploy screenshots bench fuzz audit requirements clean

PYTHON ?= python3
UV_VERSION := 0.13.9
# A uv on the machine serves if it is new enough; otherwise one is installed into .tools.
UV ?= $(shell uv --version 2>/dev/null | awk '{split($$2, v, "."); if (v[1] > 0 || v[2] >= 13) print "uv"}' | head -n 1)
ifeq ($(UV),)
UV := .tools/bin/uv
endif
RUN := $(UV) run --frozen --no-sync
SAM := .venv-sam/bin/sam
MINUTES ?= 10
export AWS_DEFAULT_REGION ?= ap-northeast-2
export SAM_CLI_TELEMETRY := 0

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: .venv/.ready ## the whole system on this machine: http://127.0.0.1:8000/v1 (NARU_PORT, NARU_CATALOG, HOLYSHEEP_API_KEY)
	@exec .venv/bin/python -m local.run

test: .venv/.ready ## every test but the long proofs, about 4 minutes; ARGS="-k name" chooses, ARGS="-n 0" runs one process
	@echo "Unit, integration, security, end-to-end and browser tests in three processes: about 4 minutes on two free cores."
	@echo "Quicker: make test-unit. With the long proofs, as in CI: make test-all."
	$(RUN) pytest -m "not slow" $(ARGS)

test-unit: .venv/.ready ## the unit tests, about a minute and a half; ARGS as for test
	@echo "Unit tests, a process for each core: about a minute and a half on two free cores. Everything else: make test."
	$(RUN) pytest -n auto -m "not slow" tests/unit $(ARGS)

test-all: test ## make test, then the long proofs, as CI runs them; NARU_LONG_TESTS=1 makes both larger
	@echo "Long proofs (chaos, property tests with many examples, every crash and interleaving): about 3 minutes."
	$(RUN) pytest -m slow $(ARGS)

test-python: .venv/.ready ## the unit tests, and what hostile bodies cost, on another Python: VERSION=3.13
	@if found=$$(.venv/bin/python -m local.pythons $(VERSION) $(UV)); then \
		UV_PROJECT_ENVIRONMENT=.venv-$(VERSION) $(UV) sync --frozen --quiet --python "$$found" \
		&& .venv-$(VERSION)/bin/python -m pytest -m "not slow" tests/unit tests/security/test_doors.py $(ARGS); \
	else echo "Python $(VERSION) is not on this machine: not tested"; fi

lint: .venv/.ready .venv-sam/.ready ## ruff, import contracts, cfn-lint, sam validate, the exported requirements
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) lint-imports --no-cache
	$(RUN) cfn-lint template.yaml
	$(SAM) validate --lint --region $(AWS_DEFAULT_REGION)
	@$(UV) export --frozen --package naru-gateway --no-dev --no-emit-project --no-header --quiet \
		| diff -u layers/gateway/requirements.txt - \
		|| { echo "layers/gateway/requirements.txt is behind uv.lock: run 'make requirements'" >&2; exit 1; }

format: .venv/.ready ## let ruff write the code as it wants it
	$(RUN) ruff check --fix-only .
	$(RUN) ruff format .

types: .venv/.ready ## mypy, strict
	$(RUN) mypy

build: .venv/.ready .venv-sam/.ready ## sam build, then import every handler from nothing but its artifact
	$(RUN) python -m local.build --uv $(UV) --sam $(SAM)

deploy: build ## sam deploy --guided, into your own AWS account; FAST_START=snapstart or FAST_START=5 (kept ready)
	$(if $(FAST_START),$(RUN) python -m local.fast_start $(FAST_START) .aws-sam/build/template.yaml)
	$(SAM) deploy --guided --template-file .aws-sam/build/template.yaml

screenshots: .venv/.ready ## docs/images: the dashboard on thirty days of generated history, in headless Chromium
	$(RUN) python -m local.screenshots

bench: .venv/.ready ## the measurements behind the README's figures
	$(RUN) python -m benchmarks

fuzz: .venv/.ready .venv-fuzz/.ready ## for MINUTES=10, side by side: the event decoder, and the API against its own description
	$(RUN) python -m tests.security.fuzz --minutes $(MINUTES) --schemathesis .venv-fuzz/bin/schemathesis

audit: $(filter .tools/%,$(UV)) ## known vulnerabilities in what uv.lock pins; without a network it says so and is content
	@$(UV) audit --frozen > .audit.txt 2>&1; status=$$?; \
	if [ $$status -ne 0 ] && grep -qE 'error sending request|dns error' .audit.txt; then \
		echo "The database of vulnerabilities cannot be reached: not audited"; status=0; \
	else cat .audit.txt; fi; rm -f .audit.txt; exit $$status

requirements: .venv/.ready
	$(UV) export --frozen --package naru-gateway --no-dev --no-emit-project --no-header --quiet \
		--output-file layers/gateway/requirements.txt

.venv-fuzz/.ready: uv.lock $(filter .tools/%,$(UV))
	@UV_PROJECT_ENVIRONMENT=.venv-fuzz $(UV) sync --frozen --quiet --no-default-groups --group fuzz --no-install-workspace
	@touch $@

clean: ## forget environments, builds and the local run's state
	rm -rf .venv .venv-* .tools .aws-sam .naru .mypy_cache .ruff_cache .pytest_cache

.tools/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Naru needs Python 3.11 or newer; '$(PYTHON)' is older. Try: make PYTHON=python3.13 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv .tools \
		|| { echo "Python's venv module is missing. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@.tools/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

.venv/.ready: uv.lock pyproject.toml layers/gateway/pyproject.toml $(filter .tools/%,$(UV))
	@$(UV) sync --frozen --quiet --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')"
	@touch $@

.venv-sam/.ready: uv.lock $(filter .tools/%,$(UV))
	@UV_PROJECT_ENVIRONMENT=.venv-sam $(UV) sync --frozen --quiet --no-default-groups --group sam --no-install-workspace
	@touch $@
