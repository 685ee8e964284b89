# SPDX-License-Identifier: Apache-2.0
#
# make demo      make the demo set, train on it, verify: ends with the accuracy, the checkpoint and a picture
# make test      the tests, two at a time, with real Horovod and KVStore processes; ARGS='-k records' passes
#                options to pytest, JOBS=4 runs four at a time, JOBS=0 one after the other in one process
# make test-all  the whole suite, slow tests too, under each CPython 3.9 to 3.14 of this machine,
#                and under 3.9 with the oldest dependencies, too
# make test-hosts  runs on several hosts: namespaces of this machine with networks of their own; needs root, and
#                packages that docs/records/hosts.md names
# make fuzz      each parser of files fed with broken inputs by Atheris; ARGS='--seconds 300 --only records'
# make bench     the short form of all benches of speed and memory, in one table beside the stored figures: ratios to
#                the alternative measured in the same run; ARGS='--only head input', ARGS=--store stores them
# make lint      ruff and mypy
# make chaos     small runs killed, their disks filled, files damaged, clocks set: fills docs/records/reliability.md; long
# make lock      pin anew what all of these install, with hashes, for each CPython 3.9 to 3.14 of this machine
# make audit     licences of what is pinned, and known vulnerabilities where their database can be reached
# make clean     remove environments and caches; data sets and models stay
#
# Each makes its own virtual environment first, once. PYTHON=python3.10 chooses the Python, MXNET=cu112 the MXNet for
# NVIDIA GPUs (about 4 GB). ENGINE=torch is PyTorch: `ENGINE=torch make demo` makes .venv-torch, without MXNet, and
# `ENGINE=torch make test` adds it to .venv and runs the tests of both engines.

SHELL := /bin/bash
MXNET ?= cpu
ENGINE ?= mxnet
ARGS ?=
JOBS ?= 2

ifeq ($(ENGINE),torch)
with_torch := torch
else ifneq ($(ENGINE),mxnet)
$(error ENGINE: found '$(ENGINE)', expected mxnet or torch)
endif

VENV := .venv
python = $(VENV)/bin/python
# Install the extras named after it; the interpreter is chosen when the recipe runs.
install = python="$$(PYTHON='$(PYTHON)' scripts/choose_python.sh $(VENV))" && \
	"$$python" -I scripts/environment.py $(VENV)

.PHONY: demo test test-all test-hosts fuzz bench lint chaos lock audit clean

demo: VENV := .venv$(with_torch:%=-%)
demo:
	@$(install) $(or $(with_torch),$(MXNET)) plot
	@ENGINE=$(ENGINE) scripts/demo.sh $(ARGS)

test:
	@$(install) $(MXNET) plot onnx test horovod $(with_torch) $(with_torch:torch=triton)
	@REQUIRE_HOROVOD=1 REQUIRE_TORCH=$(with_torch) $(python) -m pytest -m "not slow" -n $(JOBS) --dist worksteal $(ARGS)

test-all:
	@PYTHON='$(PYTHON)' ENGINE=$(ENGINE) scripts/test_all.sh $(MXNET) $(ARGS)

test-hosts:
	@$(install) $(MXNET) plot test horovod $(with_torch)
	@$(python) -m pytest -n 0 $(ARGS) tests/hosts

fuzz:
	@$(install) $(MXNET) test fuzz
	@$(python) -m faults.fuzz $(ARGS)

bench:
	@$(install) $(MXNET) horovod
	@[[ -f datasets/demo/property ]] || $(python) -m datasets.demo --output datasets/demo
	@$(python) -m bench.short $(ARGS)

lint:
	@$(install) $(MXNET) plot test
	@$(python) -m ruff check .
	@$(python) -m mypy $(wildcard recognition common scripts *.py datasets/*.py bench/*.py bench/*/*.py faults/*.py)

chaos:
	@$(install) $(MXNET) plot test horovod
	@$(python) -m faults.chaos --record $(ARGS)

lock:
	@PYTHON='$(PYTHON)' scripts/choose_python.sh --all | while IFS= read -r python; do \
		"$$python" -I scripts/lock.py </dev/null || exit; done

audit:
	@$(install) $(MXNET) plot test onnx horovod fuzz torch
	@$(python) scripts/audit.py $(VENV)

clean:
	rm -rf .venv .venv.lock .venv-torch .venv-torch.lock .venvs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find recognition common scripts tests datasets bench faults -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
