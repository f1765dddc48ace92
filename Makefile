# make demo    compile, simulate, synthesize and report the digits network
# make test    all tests except place and route (those: make test PYTEST_ARGS="-m route")
# make lint    style and types
# make bench   the measurements that docs and README quote
# make calibrate  fit the estimate anew to synthesized parts, and check it on whole networks
# make soak    real models and random networks in numbers: golden against the references, Verilog against golden
# make clean   remove what was built; make distclean removes the virtual environment too
#
# Needs only Python 3.11 or later, gcc, g++, make and perl; all else comes from pip into .venv.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

NET         ?= examples/digits/digits.toml
BUILD       ?= build/digits
TARGET      ?= ecp5-25k
FPS         ?= 20000
FRAMES      ?= 32
CALIBRATION ?= examples/digits/calibration.npz
LABELLED    ?= examples/digits/test.npz
COMPILE_ARGS  ?= --target $(TARGET) --fps $(FPS) --calibration $(CALIBRATION) --test $(LABELLED)
SIMULATE_ARGS ?= --frames $(FRAMES)
SYNTH_ARGS    ?=
REPORT_ARGS   ?=

WORKERS     ?= 2
PYTEST_ARGS ?=
BENCH_ARGS  ?=
GRAPHS      ?= 2000
RTL_GRAPHS  ?= 100

PIP := $(BIN)/python -m pip install --disable-pip-version-check $(if $(CI),--quiet)

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test lint bench calibrate soak clean distclean types

help:
	@sed -n 's/^# \{0,1\}//p; /^$$/q' Makefile

demo: $(VENV)/demo.stamp
	$(BIN)/convfold compile $(NET) $(COMPILE_ARGS) -o $(BUILD)
	$(BIN)/convfold simulate $(BUILD) $(SIMULATE_ARGS)
	$(BIN)/convfold synth $(BUILD) $(SYNTH_ARGS)
	$(BIN)/convfold report $(BUILD) $(REPORT_ARGS)

# One thread for each worker's linear algebra: the workers already fill the cores.
test: $(VENV)/test.stamp
	OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

# BENCH_ARGS="--route --publish" places and routes too, and writes docs/benchmarks.md; --only NAME takes one case.
bench: $(VENV)/bench.stamp
	$(BIN)/python bench/run.py $(BENCH_ARGS)

# Half an hour of processor time for the parts, and as much for the networks that they are checked on.
calibrate: $(VENV)/test.stamp
	$(BIN)/python bench/calibrate.py
	$(BIN)/python bench/calibrate.py --check
	$(BIN)/python bench/calibrate.py --route

# ../shared/models or CONVFOLD_MODELS holds the real models; without them only random networks run.
soak: $(VENV)/test.stamp
	$(BIN)/python bench/exact.py
	$(BIN)/python bench/onnx_nodes.py
	$(BIN)/python bench/random_graphs.py --count $(GRAPHS)
	$(BIN)/python bench/rtl_graphs.py --count $(RTL_GRAPHS)

# The planted errors show that mypy reads our types through the links and not Any: each marked line must be
# reported, and no other.
PLANTED := tests/types/planted.py
CHECKED := convfold tests $(foreach dir,bench examples,$(if $(wildcard $(dir)/*.py $(dir)/*/*.py),$(dir)))
MAPPED  := compiler|hdl|sim|templates
MYPY     = cd build/types && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache

lint: $(VENV)/lint.stamp types
	$(BIN)/ruff check .
	@$(MYPY) $(CHECKED) > ../mypy.log 2>&1; status=$$?; cd ../..; \
		sed -E 's#^convfold/($(MAPPED))/#\1/#' build/mypy.log; exit $$status
	@sed -n '/# planted$$/=' $(PLANTED) > build/planted.expected
	@$(MYPY) --exclude '^$$' $(PLANTED) > ../planted.log 2>&1; true
	@sed -n 's|^$(PLANTED):\([0-9]*\): error: .*|\1|p' build/planted.log > build/planted.found
	@test -s build/planted.expected && diff build/planted.expected build/planted.found \
		|| { cat build/planted.log; echo "lint: mypy must report the planted errors, and only those" >&2; exit 1; }
	@echo "lint: mypy found all $$(wc -l < build/planted.found) planted errors"

# setuptools maps the folders to one package; mypy needs them to lie that way.
types:
	@rm -rf build/types
	@mkdir -p build/types/convfold
	@for name in convfold/*.py convfold/py.typed; do ln -s ../../../$$name build/types/$$name; done
	@for name in $(subst |, ,$(MAPPED)); do ln -s ../../../$$name build/types/convfold/$$name; done
	@for name in tests bench examples; do ln -s ../../$$name build/types/$$name; done

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "convfold needs Python 3.11 or later; name one with: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "no virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/demo.stamp: pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[sim,synth,examples]'
	@touch $@

$(VENV)/bench.stamp: pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[bench]'
	@touch $@

$(VENV)/test.stamp: pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/lint.stamp: pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[lint]'
	@touch $@

clean:
	rm -rf build dist sim_build results.xml *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

distclean: clean
	rm -rf $(VENV)
