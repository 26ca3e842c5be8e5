# `make demo` and `make test` need Python 3.10 or newer and make; they set up the rest in .venv.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# a process a core, as small tensors are slower on several threads
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
# FFCV is built from source, where the libraries that it needs are installed
EXTRAS = dev$(shell pkg-config --exists opencv4 libturbojpeg 2>/dev/null && echo ,ffcv)

.PHONY: demo quick test test-all lint compat docs gpu clean

$(VENV)/.installed: pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	touch $@

# two networks that teach each other, on real images, in about three minutes
demo: RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)
demo: $(VENV)/.installed
	$(BIN)/fastcat train --arch resnet18 --peers trades,alp --data digits --eps 0.1 \
		--alpha 0.2 --epochs 5 --batch-size 64 --schedule onecycle --lr 0.04 --out $(RUN)
	$(BIN)/fastcat eval $(RUN) --weights last --attacks clean,fgsm,pgd20,cw20
	@echo
	@echo "the run is in $(RUN), its curves in $(RUN)/report.html"
	@echo "next: $(BIN)/fastcat train --arch resnet18 --peers trades,alp --data cifar10"
	@echo "or:   $(BIN)/fastcat train --arch resnet18 --peers trades,alp --data FOLDER_OF_IMAGES"

# what a developer runs between two edits: under a minute on two idle cores
quick: $(VENV)/.installed
	$(PYTEST) -m "not (slow or process or compile or gpu)"

# what decides whether a change lands
test: $(VENV)/.installed
	$(PYTEST)

# also each case that another one represents: before a release, and after a change of an engine
test-all: $(VENV)/.installed
	$(PYTEST) --all

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# the quick tests and those of engines with another torch: make compat TORCH=2.11
compat:
	$(PYTHON) -m venv .venv-torch$(TORCH)
	.venv-torch$(TORCH)/bin/pip install --quiet --disable-pip-version-check 'torch==$(TORCH).*' torchvision \
		--editable '.[dev]'
	OMP_NUM_THREADS=1 .venv-torch$(TORCH)/bin/python -m pytest -n 2 --dist worksteal -m "not (slow or process or gpu)"
	OMP_NUM_THREADS=1 .venv-torch$(TORCH)/bin/python -m pytest -n 2 --dist worksteal tests/step/test_engine.py \
		tests/step/test_merged_views.py tests/attacks/test_frozen.py tests/kernels

# the site in site/, after the pages' tables, pictures and options were written anew
docs: $(VENV)/.installed
	$(BIN)/python -m tools.pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# what only a GPU can show, in visits of 4 and 5 minutes: make gpu, make gpu CALL=2; needs torch, triton,
# numpy, pytest and tyro in $(PYTHON), no .venv
gpu:
	$(PYTHON) -m benchmarks.gpu --out benchmarks/results/gpu.json --call $(or $(CALL),1)

clean:
	rm -rf $(VENV) build dist site *.egg-info
