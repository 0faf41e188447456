# make run    set up .venv and restore the example picture (half a minute on 2 fast cores, after the set-up)
# make test   set up .venv and run the tests against the installed wheel
# make lint   ruff, ruff format, mypy, clang-format
# make test-cpp   build the C++ library and its test, plain and with sanitizers, and run both
# make test-replay   replay an ONNX file where there is no PyTorch
# make test-gpu   the tests that need a GPU, skipped with the reason where there is none
# make gpu-bars   all that a GPU has to tell (docs/gpu.md), within half an hour
# make test-slow, make clean

PYTHON ?= python3
BIN := .venv/bin
SOURCES := $(shell find dip_fast csrc -type f -not -name '*.pyc') setup.py pyproject.toml

.PHONY: run test test-gpu gpu-bars test-slow test-cpp test-replay lint format clean

# The package is installed as a user would get it, built as a wheel: the tests never import the checkout.
.venv/installed: $(SOURCES) .venv/requirements
	$(BIN)/pip install --quiet --no-build-isolation --no-deps --force-reinstall .
	@touch $@

.venv/requirements: requirements/dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements/dev.txt
	@touch $@

run: .venv/installed
	$(BIN)/dip-fast run examples/noisy.png --reference examples/clean.png --out runs/example --overwrite

test: .venv/installed
	$(BIN)/pytest

test-slow: .venv/installed
	$(BIN)/pytest -m slow

test-gpu: .venv/installed
	$(BIN)/pytest -m gpu -rs

# From the checkout, with the Python that has a torch for CUDA: nothing is installed.
gpu-bars:
	PYTHON=$(PYTHON) benchmarks/gpu_bars.sh

test-cpp: .venv/requirements
	$(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -S . -B build/cpp -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python
	$(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -S . -B build/cpp-sanitize -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -DDIP_FAST_SANITIZE=ON
	$(BIN)/cmake --build build/cpp --parallel $(MAX_JOBS)
	$(BIN)/cmake --build build/cpp-sanitize --parallel $(MAX_JOBS)
	$(BIN)/ctest --test-dir build/cpp --output-on-failure
	$(BIN)/ctest --test-dir build/cpp-sanitize --output-on-failure

# An environment as somebody has it who only replays.  Without torch the package installs as pure Python.
test-replay:
	test -x .venv-replay/bin/python || $(PYTHON) -m venv .venv-replay
	.venv-replay/bin/pip install --quiet --requirement requirements/replay.txt "setuptools>=77"
	.venv-replay/bin/pip install --quiet --no-build-isolation --no-deps --force-reinstall .
	! .venv-replay/bin/python -c "import torch" 2> /dev/null
	@mkdir -p build
	.venv-replay/bin/dip-fast replay tests/data/model.onnx --verify -o build/replayed.png --overwrite
	.venv-replay/bin/python -c "import dip_fast; print(dip_fast.replay('tests/data/model.onnx').shape)"

lint: .venv/requirements
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@find csrc examples/cpp -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs -r $(BIN)/clang-format --dry-run --Werror

format: .venv/requirements
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	@find csrc examples/cpp -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs -r $(BIN)/clang-format -i

clean:
	rm -rf .venv .venv-replay build dist *.egg-info
