# All commands that developers and CI run. Needs make and Python 3.11 to 3.13; everything else is installed into .venv.

PYTHON ?=
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
# The demo needs a small installation; tests and lint add the development packages to it.
USER_STAMP := $(VENV)/.installed
STAMP := $(VENV)/.installed-dev
USER_EXTRAS := rtx,demo,report
EXTRAS := $(USER_EXTRAS),search,dev
CUDA_SOURCES := '*.cu' '*.cuh' '*.cpp' '*.h' '*.hpp'
SUPPORTED := import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

install = $(BIN)/python -m pip install --quiet --constraint constraints.txt --build-constraint constraints.txt \
	--editable '.[$(1)]'

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-fast test-emulation test-architectures lint lint-python lint-imports lint-cuda \
	lint-project typecheck docs wheel format clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12 picks the interpreter of .venv, JOBS=8 the number of test processes."

venv: $(STAMP) ## Create .venv with everything the other targets need

$(USER_STAMP): pyproject.toml constraints.txt
	@python=; for candidate in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
		if $$candidate -c '$(SUPPORTED)' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "trtkp needs Python 3.11, 3.12 or 3.13, and $(or $(PYTHON),python3) is not one of them: install one, or name it with PYTHON=..." >&2; \
		exit 1; \
	fi; \
	echo "Installing into $(VENV) (a minute or more the first time)"; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $$python -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip
	@$(call install,$(USER_EXTRAS))
	@touch $@

$(STAMP): $(USER_STAMP)
	@echo "Installing what development needs into $(VENV) (a minute or more the first time)"
	@$(call install,$(EXTRAS))
	@touch $@

demo: $(USER_STAMP) ## Prune a small CNN, build it, verify it and report dense against pruned
	@$(BIN)/python examples/demo.py

# Serial tests run first, alone; pytest's status 5 says that there are none. The others run in several processes, which
# fill the cores, so each library gets one thread per process.
test: export OMP_NUM_THREADS = 1
# Tests read and write UTF-8 in every locale.
test: export PYTHONUTF8 = 1
test: $(STAMP) ## Run every test, slow ones included
	@$(BIN)/python -m pytest -m serial || [ $$? -eq 5 ]
	@$(BIN)/python -m pytest -m "not serial" -n $(JOBS)

# Folders whose tests build, serve or compile something as a whole. They take about half of the time of all tests that are
# neither slow nor serial.
WHOLE := benchmarks budget calib cli comparison emulation examples glue packaging pipeline serving
test-fast: export OMP_NUM_THREADS = 1
test-fast: export PYTHONUTF8 = 1
test-fast: $(STAMP) ## Run the quick tests of each package
	@$(BIN)/python -m pytest -m "not slow and not serial" $(addprefix --ignore=tests/,$(WHOLE)) -n $(JOBS)

test-emulation: $(STAMP) ## Run the emulated kernels on many random layers (CASES=500 of each tier by default)
	@TRTKP_EMULATION_CASES=$(or $(CASES),500) $(BIN)/python -m pytest tests/emulation/test_kernels.py tests/emulation/test_dynamic.py \
		-n $(JOBS)

test-architectures: $(STAMP) ## Compile the kernels for the architectures that `make test` leaves out
	@TRTKP_EVERY_ARCHITECTURE=1 $(BIN)/python -m pytest tests/kernels/test_compile.py -k other_architectures -n $(JOBS)

lint: lint-python lint-imports lint-cuda lint-project typecheck docs ## Check format, lint rules, imports, types and documentation

lint-python: $(STAMP) ## Check format and lint rules with ruff (part of lint)
	@$(BIN)/ruff format --diff --quiet .
	@$(BIN)/ruff check --quiet .

lint-imports: $(STAMP) ## Check that rooms import downward only (part of lint)
	@$(BIN)/lint-imports --no-cache

lint-cuda: $(STAMP) ## Check the format of CUDA and C++ sources (part of lint)
	@git ls-files -z $(CUDA_SOURCES) | xargs -0 -r $(BIN)/clang-format --dry-run -Werror

# zizmor runs offline. A test runs actionlint, if it is installed.
lint-project: $(STAMP) ## Check workflows, issue forms and CITATION.cff against their schemas (part of lint)
	@$(BIN)/check-jsonschema -qq --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(BIN)/check-jsonschema -qq --builtin-schema vendor.dependabot .github/dependabot.yml
	@$(BIN)/check-jsonschema -qq --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	@$(BIN)/check-jsonschema -qq --builtin-schema vendor.github-issue-forms \
		$(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	@$(BIN)/check-jsonschema -qq --builtin-schema vendor.citation-file-format CITATION.cff
	@$(BIN)/zizmor --offline --quiet --no-progress .github

typecheck: $(STAMP) ## Check types with mypy (part of lint)
	@$(BIN)/mypy

docs: $(STAMP) ## Build the documentation in site/; broken links are errors (part of lint)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

wheel: $(STAMP) ## Build sdist, pure wheel and, with nvcc, CUDA wheel in dist/ (ARCHITECTURES='80;90', default all)
	@$(BIN)/python scripts/build_distributions.py --architectures '$(or $(ARCHITECTURES),all)'

format: $(STAMP) ## Format the sources and fix lint findings
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format --quiet .
	@git ls-files -z $(CUDA_SOURCES) | xargs -0 -r $(BIN)/clang-format -i

clean: ## Remove caches, build products and the demo's output, but not .venv
	@rm -rf build dist site demo-out out .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
