# Everything runs in .venv, which is made on first use from python3 alone. The stamp files in it are
# older than pyproject.toml only when something has to be installed again.
#
#   PYTHON=python3.12   the Python that makes .venv (else the first suitable one is taken)
#   PIP_ARGS=…          more options for pip; its own settings (pip.conf, PIP_…) hold as well
#   JOBS=3              processes that share the tests, a file at a time; one more than there are
#                       cores, since some wait for a browser or a server

VENV := .venv
LITE := $(VENV)/lite
RUN := $(VENV)/bin/python -m
JOBS ?= 3
# What is imported is compiled then, a tenth of all; to compile everything would take a minute.
INSTALL = $(RUN) pip install --disable-pip-version-check --no-compile $(PIP_ARGS)
# What --group lite means; a pip that came with Python does not know it.
GROUP = import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['dependency-groups']['lite'])
unexport PYTHONDONTWRITEBYTECODE

# Small products, as in Triton's interpreter, are slowed down by BLAS threads, not sped up.
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: help demo test lab student slides site badges lite lite-check newest lint format clean

help:
	@echo "make demo    generate from the embedded model, in Japanese and in English"
	@echo "make lab     open the lessons in JupyterLab"
	@echo "make student the lessons without their solutions, restart points and quizzes, in build/student"
	@echo "make slides  a deck a lesson and a deck a cut, with clocks and notes, in build/slides"
	@echo "make site    lessons, pages and code as a site that opens without a network, in build/site"
	@echo "make lite    lessons 05 to 09 as a site that runs them in the browser, in build/lite"
	@echo "make lite PYODIDE=build/pyodide  the same with all that it needs, for a room without a network"
	@echo "make lite-check  do these lessons run to their end in WebAssembly, and in that site's pages?"
	@echo "make badges  links to Colab, Binder and others, once pyproject.toml has an address"
	@echo "make test    lint, then all tests, notebooks included"
	@echo "make newest  the tests with the newest versions of everything, pins or not; build/newest/report.md"
	@echo "make lint    ruff and mypy"
	@echo "make format  let ruff mend what it can"
	@echo "make clean   delete caches and builds (rm -r $(VENV) starts from nothing)"

demo: $(VENV)/.installed
	$(RUN) plamo_ref generate --model tiny --echo --prompt '吾輩は' --max-tokens 80 --temperature 0.7 --top-p 0.95 --seed 1 --stats
	$(RUN) plamo_ref generate --model tiny --echo --prompt 'To be, or' --max-tokens 80 --temperature 0.7 --top-p 0.95 --seed 1 --stats

# Not `jupyter lab`, which would start the first one on the PATH.
lab: $(VENV)/.installed-notebooks
	$(RUN) jupyterlab --LabApp.default_url=/lab/tree/notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

student: $(VENV)/.installed-notebooks
	$(RUN) tools.course.editions build/student
	$(RUN) tools.course.restart build/student
	$(RUN) tools.course.quiz build/student

slides: $(VENV)/.installed-slides
	$(RUN) tools.course.slides build/slides

site: $(VENV)/.installed-site
	$(RUN) tools.course.site build/site

# PYODIDE=build/pyodide (or another folder with it): a reader's browser then asks nobody else.
lite: $(LITE)/.installed $(PYODIDE)
	$(LITE)/bin/python -m tools.course.lite $(if $(PYODIDE),--pyodide $(PYODIDE)) build/lite

build/pyodide: | $(LITE)/.installed
	$(LITE)/bin/python -m tools.course.lite.runtime $@

lite-check: $(VENV)/.installed-test $(VENV)/.installed-wasm $(LITE)/.installed
	LITE="$(LITE)/bin/python" PYODIDE="$(PYODIDE)" $(RUN) pytest tests/lite/check_lite.py

badges: $(VENV)/.installed-test
	$(RUN) tools.reach

# Both parts run, side by side, and either can fail; what lint said comes last, on stderr. Without
# Chromium the browser tests are left out, and tools/chromium.sh has said why.
test: $(VENV)/.installed-test
	@status=0; said=$$(mktemp); tools/chromium.sh & chromium=$$!; \
	$(MAKE) --no-print-directory lint >"$$said" 2>&1 & lint=$$!; \
	if wait $$chromium; then marks=; else marks='not browser'; fi; \
	OMP_NUM_THREADS=1 $(RUN) pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "$$marks" || status=1; \
	wait $$lint || status=1; cat "$$said" >&2; rm "$$said"; \
	exit $$status

newest: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(RUN) tools.newest build/newest -n $(JOBS) --dist loadfile

lint: $(VENV)/.installed-test
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

format: $(VENV)/.installed-test
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \
		-o -name '*.egg-info' \) -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@PYTHON="$(PYTHON)" PIP_ARGS="$(PIP_ARGS)" tools/venv.sh $(VENV)

$(VENV)/.installed: pyproject.toml $(VENV)/bin/python
	$(INSTALL) -e .
	@touch $@

# Not in .venv itself: Lab would load JupyterLite's extension, and complain.
$(LITE)/.installed: pyproject.toml $(VENV)/bin/python
	$(VENV)/bin/python -m venv --clear $(LITE)
	$(LITE)/bin/python -m pip install --disable-pip-version-check --no-compile $(PIP_ARGS) \
		$$($(LITE)/bin/python -c "$(GROUP)")
	@touch $@

# What an extra adds to the project, which is there by then and not built a second time.
$(VENV)/.installed-%: $(VENV)/.installed
	$(INSTALL) 'plamo-ref[$*]'
	@touch $@
