# make run    set up .venv and restore the example picture (half a minute on 2 fast cores, after the set-up)
# make test   set up .venv and run the tests against the installed wheel
# make lint   ruff, ruff format, mypy, clang-format
# make docs   build the site of docs/ into build/site; a warning fails it
# make test-cpp   build the C++ library and its test, plain and with sanitizers, and run both
# make test-cpp SANITIZED=cpu_tests   of the latter those of the CPU alone
# make check-cuda   compile the CUDA kernels for three generations of GPUs and look for warnings and local memory; needs nvcc
# make test-cuda-emulated   run the operators' tests with the CUDA kernels, on an emulated GPU
# make test-replay   replay an ONNX file where there is no PyTorch
# make test-gpu   the tests that need a GPU, skipped with the reason where there is none
# make gpu-bars   all that a GPU has to tell (docs/gpu.md), within half an hour
# make test-browser   look at the report, and use the page, in a browser; needs Debian's package chromium.  `make test` does
#   so too where all that is there: .ci/install_browser.sh installs it
# make wheel   build the source distribution and the wheel of a release in dist/ (docs/release.md)
# make test-wheel   use that wheel in an environment of its own, where there is no compiler
# make wheel-cuda, make test-wheel-cuda   the same with CUDA kernels, for a torch with CUDA
# make test-slow, make clean

PYTHON ?= python3
TORCHES ?= 2.13.0
BIN := .venv/bin
CMAKE = $(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -S . -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python
EMULATED_TESTS := tests/test_norm_conv*.py tests/test_upsample_conv*.py tests/test_perturbation.py tests/test_masking*.py tests/test_engines.py
# A process of tests for each core, at most four.  What PyTorch's threads wait for does not keep the others' cores busy.
PYTEST = OMP_WAIT_POLICY=passive $(BIN)/pytest -n logical --maxprocesses 4 --dist loadfile
SOURCES := $(shell find dip_fast csrc -type f -not -name '*.pyc') setup.py pyproject.toml

.PHONY: wheel-cuda test-wheel-cuda run test test-gpu gpu-bars test-slow test-cpp test-cuda-emulated check-cuda test-replay test-models test-browser wheel test-wheel docs lint format clean

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
	$(PYTEST)

test-slow: .venv/installed
	$(BIN)/pytest -m slow

test-gpu: .venv/installed
	$(BIN)/pytest -m gpu -rs

# From the checkout, with the Python that has a torch for CUDA: nothing is installed.
gpu-bars:
	PYTHON=$(PYTHON) benchmarks/gpu_bars.sh

test-cpp: .venv/requirements
	$(CMAKE) -B build/cpp
	$(CMAKE) -B build/cpp-sanitize -DDIP_FAST_SANITIZE=ON
	$(BIN)/cmake --build build/cpp --parallel $(MAX_JOBS)
	$(BIN)/cmake --build build/cpp-sanitize --parallel $(MAX_JOBS) $(if $(SANITIZED),--target $(SANITIZED))
	$(BIN)/ctest --test-dir build/cpp --parallel $(MAX_JOBS) --output-on-failure
	$(BIN)/ctest --test-dir build/cpp-sanitize --parallel $(MAX_JOBS) --output-on-failure $(if $(SANITIZED),--exclude-regex cuda)

check-cuda: .venv/requirements
	$(BIN)/python .ci/check_cuda.py $(if $(CODES),--codes $(CODES))

test-cuda-emulated: .venv/installed
	$(CMAKE) -B build/cpp
	$(BIN)/cmake --build build/cpp --parallel $(MAX_JOBS) --target dip_fast_emulated
	DIP_FAST_EMULATED=$(CURDIR)/build/cpp/libdip_fast_emulated.so $(PYTEST) $(EMULATED_TESTS) $(if $(SELECT),-k "$(SELECT)")

# An environment with the libraries whose models tests/test_other_models.py fuses.
test-models:
	test -x .venv-models/bin/python || $(PYTHON) -m venv .venv-models
	.venv-models/bin/pip install --quiet --requirement requirements/dev.txt --requirement requirements/models.txt
	.venv-models/bin/pip install --quiet --no-build-isolation --no-deps --force-reinstall .
	.venv-models/bin/pytest -m slow tests/test_other_models.py

# Without DIP_FAST_SCREENSHOT=docs/images/report.png the picture in docs/report.md stays as it is, and without
# DIP_FAST_SCREENSHOTS=docs/images those in docs/ui.md.
test-browser: .venv/installed
	$(BIN)/pip install --quiet --requirement requirements/browser.txt
	$(BIN)/pytest -rs tests/test_report_browser.py tests/test_ui_browser.py

# An environment as somebody has it who only replays.  Without torch the package installs as pure Python.
test-replay:
	test -x .venv-replay/bin/python || $(PYTHON) -m venv .venv-replay
	.venv-replay/bin/pip install --quiet --requirement requirements/replay.txt "setuptools>=77"
	.venv-replay/bin/pip install --quiet --no-build-isolation --no-deps --force-reinstall .
	! .venv-replay/bin/python -c "import torch" 2> /dev/null
	@mkdir -p build
	.venv-replay/bin/dip-fast replay tests/data/model.onnx --verify -o build/replayed.png --overwrite
	.venv-replay/bin/python -c "import dip_fast; print(dip_fast.replay('tests/data/model.onnx').shape)"

# From the source distribution, with a library for each version of torch that TORCHES names.
wheel:
	$(PYTHON) .ci/build_wheel.py $(TORCHES)

# With CUDA kernels, for PyPI's builds of torch, into dist/cuda/; without CUDA_HOME nvcc comes from NVIDIA's packages.
wheel-cuda:
	$(PYTHON) .ci/build_wheel.py --cuda $(TORCHES)

test-wheel-cuda:
	PYTHON=$(PYTHON) DIST=dist/cuda TORCH="=$(firstword $(TORCHES))" .ci/test_wheel.sh

test-wheel:
	PYTHON=$(PYTHON) .ci/test_wheel.sh

# An environment of its own, without torch: mkdocstrings reads the sources and imports nothing.
.venv-docs/requirements: requirements/docs.txt
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --requirement requirements/docs.txt
	@touch $@

docs: .venv-docs/requirements
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet --strict

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
	rm -rf .venv .venv-replay .venv-docs build dist *.egg-info
