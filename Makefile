# Everything a fresh machine with Python 3.10+ needs: each target makes its environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# glibc gives large buffers back to the system after every use; keeping them saves a fifth of a training step.
KEEP_BUFFERS := MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=17179869184

# Kernels of torch, MKL and oneDNN as processors without AVX, and with AVX2 alone, would run them.
ISA_OLD := MKL_ENABLE_INSTRUCTIONS=SSE4_2 ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41
ISA_AVX2 := ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=COMPATIBLE

# Two tests at a time with one thread each: most of them wait for processes to start, and two threads help none.
JOBS ?= 2
THREADS ?= 1
PYTEST := OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal

.PHONY: demo autoformer test test-isa test-slow test-peft test-lowest lint card benchmarks gpu docs dist clean

demo: $(VENV)/.installed  ## handwritten digits, dense and OIALR, in about a minute
	$(KEEP_BUFFERS) $(BIN)/python examples/demo/run.py --output outputs/demo

AUTOFORMER := outputs/autoformer$(if $(DATA),-$(firstword $(subst ., ,$(notdir $(DATA)))))
autoformer: $(VENV)/.installed  ## the Autoformer example; DATA=path/to/ETTm2.csv.gz for the real series
	$(KEEP_BUFFERS) $(BIN)/python examples/autoformer/run.py $(if $(DATA),--data $(DATA)) --output $(AUTOFORMER)
	@echo "Table above; figures, models and traces in $(AUTOFORMER) (ranks.png, results.json)."

test: $(VENV)/.installed  ## the suite, about ten minutes on two cores; JOBS=1 to see one test at a time
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

test-peft: $(VENV)/.installed  ## PEFT's own tests of methods over OIALRConfig, in both modes, about five minutes
	$(BIN)/python tests/peft_suite/run.py
	$(BIN)/python tests/peft_suite/run.py --residual
	$(BIN)/python tests/peft_suite/run.py --registration
	$(BIN)/python tests/peft_suite/run.py --registration --residual

test-isa: $(VENV)/.installed  ## both suites as on other processors: two older instruction sets, then two threads
	$(ISA_OLD) $(MAKE) test
	$(ISA_AVX2) $(MAKE) test
	$(MAKE) test THREADS=2
	$(ISA_OLD) $(BIN)/python tests/peft_suite/run.py
	$(ISA_AVX2) $(BIN)/python tests/peft_suite/run.py

test-lowest:  ## registration, training, saving, loading and compressed checkpoints on the oldest supported versions
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable ".[plots]" datasets pytest pytest-timeout pytest-xdist
	OMP_NUM_THREADS=$(THREADS) $(VENV)-lowest/bin/python -m pytest --numprocesses $(JOBS) --dist worksteal tests/peft tests/export tests/hostile tests/training/test_trainer.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

FORECASTS := $(wildcard model_cards/patchtst model_cards/patchtsmixer)
PICTURES := $(wildcard model_cards/*-cifar10)
card: $(VENV)/.installed  ## regenerate the model cards from their results files
	$(BIN)/python examples/autoformer/card.py model_cards/autoformer-ettm2
	$(BIN)/python examples/stability/card.py model_cards/stability
	for card in $(FORECASTS); do $(BIN)/python examples/forecast/forecast_card.py $$card || exit 1; done
	for card in $(PICTURES); do $(BIN)/python examples/vision/vision_card.py $$card || exit 1; done
	$(BIN)/python examples/autoformer/horizons.py --card
	$(BIN)/python model_cards/index.py

benchmarks: $(VENV)/.installed  ## every measurement of examples/benchmarks and its tables; forty minutes on two idle cores
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[benchmarks]"
	cd examples/benchmarks && for question in layer updates initialisation latency process_memory load_memory; do \
		$(abspath $(BIN))/python $$question.py --output results/$$question.json || exit 1; done
	cd examples/benchmarks && for task in bert bert_without_dropout autoformer autoformer_without_dropout; do \
		$(abspath $(BIN))/python step.py --task $$task --output results/step_$$task.json || exit 1; done
	$(BIN)/python examples/benchmarks/tables.py

GPU_PYTHON ?= $(BIN)/python
gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(VENV)/.installed)  ## measure on a GPU what has no results yet; TINY=1: try it on a CPU
	PYTHONPATH=. $(if $(TINY),OMP_NUM_THREADS=1) $(GPU_PYTHON) examples/gpu/run.py $(if $(TINY),--tiny --results outputs/gpu-tiny) $(if $(DATA),--data $(DATA))

docs: $(VENV)/.installed  ## the pages of docs/ as a site in outputs/docs; readable without network
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

dist: $(VENV)/.installed  ## wheel and sdist, checked, and the quick start run with the wheel in an empty environment
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dist]"
	rm -rf dist build
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv --clear $(VENV)-dist
	$(VENV)-dist/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	folder=$$(mktemp -d) && $(VENV)-dist/bin/python -I tests/quick_start.py $$folder && rm -r $$folder

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-dist $(VENV)-lowest outputs build dist *.egg-info
