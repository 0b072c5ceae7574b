# Two commands matter: `make demo` and `make test`. Each sets itself up; the second time is quick.
# `make test-all` runs what `make test` leaves out: tests that kill processes and clusters of nodes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench

.PHONY: demo picture test test-all coverage lint types tests bench bench-full bench-gpu clean

demo: $(STAMP)
	$(BIN)/braintumor-ray demo --output demo-output

# The picture of the README, from the demo's stored maps.
picture: demo
	$(BIN)/braintumor-ray explain --results demo-output/results --layout compare --limit 4 --mask-head \
		--output demo-output/picture
	$(BIN)/python -c "$$SHRINK" demo-output/picture/compare_01.png docs/demo.png

# 900 pixels and 256 colors: 600 KB less for every clone.
define SHRINK
import sys
from PIL import Image
sheet = Image.open(sys.argv[1])
sheet.thumbnail((900, 900), Image.Resampling.LANCZOS)
sheet.quantize(256, kmeans=2).save(sys.argv[2], optimize=True)
endef
export SHRINK

test: lint types tests

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# In two processes; which tests share one, and why, is in tests/conftest.py. One that crashes ends
# the run: pytest-xdist 3.8 hands its finished groups out again, and waits for them for ever.
SIDE_BY_SIDE := -n 2 --dist loadgroup --no-loadscope-reorder --max-worker-restart 0

tests: $(STAMP)
	$(BIN)/python -m pytest -m "not chaos" $(SIDE_BY_SIDE)

test-all: $(STAMP)
	$(BIN)/python -m pytest -m chaos

# The same tests with every line counted, which costs a third of their time.
coverage: $(STAMP)
	$(BIN)/python -m pytest -m "not chaos" $(SIDE_BY_SIDE) --cov --cov-report=
	$(BIN)/python -m pytest -m chaos --cov --cov-append --cov-report=term:skip-covered

# Peers come by the extra `bench`; figures go to bench-output/. A quiet machine, please.
bench: $(BENCH_STAMP)
	$(BIN)/python benchmarks/explain.py
	$(BIN)/python benchmarks/score.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/serve.py

bench-full: $(BENCH_STAMP)
	$(BIN)/python benchmarks/explain.py --full
	$(BIN)/python benchmarks/explain.py --engine openvino
	$(BIN)/python benchmarks/score.py --full
	$(BIN)/python benchmarks/decode.py --count 2000
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/train.py --count 1280 --rounds 5
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/scale.py

# Where there is a CUDA device.
bench-gpu: $(BENCH_STAMP)
	$(BIN)/python benchmarks/explain.py --full --device cuda
	$(BIN)/python benchmarks/gpu.py --batches 64 256

# Installed anew only when what is to be installed has changed.
$(STAMP): pyproject.toml constraints.txt
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)  # none, or half of one
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch $@

clean:
	rm -rf $(VENV) demo-output bench-output
