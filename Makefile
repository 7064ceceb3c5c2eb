# Each target makes .venv and installs what it needs; nothing else to type.
# Another interpreter than python3: `make test PYTHON=python3.12`.
PYTHON ?= python3
PYTEST := .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadgroup
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.NOTPARALLEL:
.PHONY: demo train-demo docs browser test test-slow test-gpu test-hub test-browser bench bench-gpu check clean

demo: .venv/.demo
	.venv/bin/python -m experiments.demo --out runs/demo

train-demo: .venv/.demo
	.venv/bin/python -m experiments.scenes --seeds 1 --out runs/train-demo

docs: .venv/.docs
	.venv/bin/python -m mkdocs build

browser: .venv/.dev
	.venv/bin/python -m experiments.browser_page --out build/browser

test: .venv/.dev
	$(PYTEST) -m "not slow and not gpu and not hub and not browser"

test-slow test-gpu test-hub: test-%: .venv/.dev
	$(PYTEST) -m $*

test-browser: .venv/.dev
	.venv/bin/python -m pytest -m browser

bench: .venv/.dev
	.venv/bin/python -m benchmarks.speed

bench-gpu: .venv/.dev
	.venv/bin/python -m benchmarks.gpu

check: .venv/.dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pyright

clean:
	rm -rf .venv .pytest_cache .ruff_cache build dist

.venv/.demo: pyproject.toml constraints.txt
	$(call install,train$(comma)eval$(comma)demo,.demo)

.venv/.docs: pyproject.toml constraints.txt
	$(call install,docs,.docs)

.venv/.dev: pyproject.toml constraints.txt
	$(call install,train$(comma)eval$(comma)demo$(comma)remote$(comma)onnx$(comma)fast$(comma)docs$(comma)browser$(comma)dev,.demo .docs .dev)

comma := ,
# install,EXTRAS,STAMPS. The mark .installing outlives an installation that was cut off: the next run starts afresh.
define install
$(if $(fit),,$(new_venv))
@echo "Installing groupvit with the extras $(1) into .venv: about two minutes, most of it PyTorch."
@touch .venv/.installing
@.venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[$(1)]'
@cd .venv && touch $(2) && rm .installing
endef

define new_venv
$(if $(unfit_python),$(error $(unfit_python)))
@echo "Making .venv with $(PYTHON)."
@$(PYTHON) -m venv --clear .venv
endef

version := import sys; print("%d.%d" % sys.version_info[:2])
asked := $(if $(filter file,$(origin PYTHON)),,$(shell $(PYTHON) -c '$(version)' 2>&1))

# "yes" if .venv is whole, was made here, and has the Python that was asked for, if one was.
fit = $(shell [ ! -e .venv/.installing ] && grep -qs '$(CURDIR)/.venv' .venv/bin/activate \
	&& .venv/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { [ -z '$(asked)' ] || [ '$(asked)' = "$$(.venv/bin/python -c '$(version)')" ]; } && echo yes)
ifeq ($(fit),)
.PHONY: .venv/.demo .venv/.docs .venv/.dev
endif

# One line that says why $(PYTHON) cannot make .venv; empty when it can.
unfit_python = $(strip $(shell \
	if ! $(PYTHON) -c '' 2>/dev/null; then \
	  echo 'groupvit needs Python 3.11 or newer, and $(PYTHON) was not found or does not run. Name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3'; \
	elif ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
	  echo "groupvit needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1). Name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12"; \
	elif ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo '$(PYTHON) cannot make virtual environments: its venv or ensurepip is missing. On Debian and Ubuntu: apt install python3-venv'; \
	fi))
