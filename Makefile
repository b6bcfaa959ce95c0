# make demo       train a small LLaMA on the Python standard library's own source
# make test       install into .venv and run the tests
# make bench      time every op against its plain-torch reference
# make lint       ruff and clang-format
# make develop    build the extension beside its sources, for work on it
# make gpu-check  build, test and time on a machine with a card, torch installed and no network:
#                 make gpu-check RESULTS=dir COMMIT=hash STAGE=build|test|sanitize|bench|all
#                 TIME_LIMIT=seconds bounds the whole call, where commands are cut off;
#                 PYTHON=.venv/bin/python if torch is there rather than in python3
# make clean      remove what the others made: .venv, build, dist, the in-place extension, the demo's run
#
# TORCH is spliced into `pip install`, so an index can be named too:
#   make demo TORCH='torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu'

PYTHON  ?= python3
TORCH   ?= torch==2.13.0
VENV    ?= .venv
RESULTS ?= .results
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
STAGE   ?= all
DEMO    ?= runs/demo

# A CUDA compiler alone is no GPU: without a driver the CUDA kernels could not run.
FRUGALORE_CUDA ?= $(if $(wildcard /dev/nvidiactl),AUTO,OFF)
export FRUGALORE_CUDA

BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := pyproject.toml CMakeLists.txt README.md \
           $(shell find csrc python -type f ! -name '*.so' ! -name '*.pyc')
CXX_FILES := $(shell find csrc tests -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh')

.PHONY: demo test bench gpu-check lint develop install clean

demo: install
	$(BIN)/frugalore pretrain --config demo --out $(DEMO) --overwrite $(DEMO_FLAGS)

test: install
	$(BIN)/python -m pytest tests $(PYTEST_FLAGS)

bench: install
	$(BIN)/python bench/run.py $(BENCH_FLAGS)

gpu-check:
	$(PYTHON) bench/gpu_check.py --results $(RESULTS) --commit $(COMMIT) --stage $(STAGE) \
	  $(if $(TIME_LIMIT),--time-limit $(TIME_LIMIT))

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

develop: $(VENV)/.develop
	$(BIN)/cmake -S . -B build/dev -G Ninja -DFRUGALORE_CUDA=$(FRUGALORE_CUDA) -DFRUGALORE_STRICT=ON \
	  -DFRUGALORE_INPLACE=ON -DPython_EXECUTABLE=$(abspath $(BIN)/python) \
	  -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	$(BIN)/cmake --build build/dev
	@echo "use it with: PYTHONPATH=python $(BIN)/python"

install: $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist $(DEMO) python/frugalore/_C.*.so

# ---- stamps: each says that the virtual environment holds what its rule installs --------------------
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	@touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	$(PIP) '.[train,test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.torch
	$(PIP) ruff==0.17.6 clang-format==19.1.7
	@touch $@

$(VENV)/.develop: $(VENV)/.installed
	$(PIP) cmake ninja pybind11
	@touch $@
