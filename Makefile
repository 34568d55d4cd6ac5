# make reproduce · test · smoke · rehearse · check · figures · html · lab · demo · e2e · backbone · bench · faults · check-style. Each sets up .venv first
# if it is missing or stale.

PYTHON ?= python3
PROFILE ?= default

export HF_HUB_OFFLINE ?= 1
export TRANSFORMERS_OFFLINE ?= 1
# Training allocates and frees large blocks; keeping them in the heap makes steps up to 1 % faster on CPU (benchmarks/settings.csv).
export MALLOC_MMAP_THRESHOLD_ ?= 1073741824
export MALLOC_TRIM_THRESHOLD_ ?= 1073741824

VENV := .venv/bin/python
# The stamps' names change with the package lists and the folder (an editable install knows its folder), not with file times.
SUM := $(shell (echo "$(CURDIR)"; cat pyproject.toml requirements.lock) | cksum | cut -d ' ' -f 1)
READY := .venv/.ready-$(SUM)
TOOLS := .venv/.dev-$(SUM)
NEW_ENOUGH := -c "import sys; sys.exit(sys.version_info < (3, 11))"
NOTEBOOKS = $(wildcard notebooks/*.ipynb)

.PHONY: reproduce test smoke rehearse check figures html lab demo e2e backbone bench faults check-style

reproduce: $(READY)
	ABC_PROFILE=$(PROFILE) $(VENV) -m doit

smoke: $(READY)
	ABC_PROFILE=smoke $(VENV) -m doit

rehearse: $(READY)
	ABC_PROFILE=rehearse $(VENV) -m doit

check: $(READY)
	$(VENV) -m abc_core.reproduce.check $(PROFILE)

html: $(READY)
	$(VENV) -m abc_core.reproduce.site $(PROFILE)

# The committed figures again, from committed rows.
figures: $(READY)
	$(VENV) -m abc_core.reproduce.redraw

test: check-style
	$(VENV) -m pytest -q -n auto --maxprocesses 4 --dist loadfile

check-style: $(TOOLS)
	$(VENV) -m ruff check .
	$(if $(NOTEBOOKS),$(VENV) -m nbstripout --verify --extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution" $(NOTEBOOKS))

# Bytes: a picture for the demo arrives in one message, and photographs pass the 10 MB that are usual.
lab: $(READY)
	$(VENV) -m jupyterlab --ServerApp.tornado_settings="{'websocket_max_message_size': 209715200}"

# WITH="own_pictures=… own_captions=…": parameters of notebook 09.
demo: .venv/.demo-$(SUM)
	$(VENV) -m abc_core.demo.serve $(PROFILE) $(WITH)

# The demo in Debian's Chromium, with what PROFILE has trained; screenshots go to runs/<profile>/screenshots.
e2e: $(TOOLS) .venv/.e2e-$(SUM)
	@command -v chromium >/dev/null || { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends chromium; } \
		>.venv/chromium.log 2>&1 || { echo "make e2e needs Chromium; as root: apt-get install chromium (see .venv/chromium.log)" >&2; exit 1; }
	ABC_E2E=1 ABC_PROFILE=$(PROFILE) $(VENV) -m pytest -q tests/e2e

backbone: $(READY)
	$(VENV) -m abc_core.miniature.backbone

bench: $(TOOLS)
	$(VENV) benchmarks/bench.py

# Kills, full disks, damaged files and the like, many times over; ONLY="kill, stage 1" one of them.
faults: $(TOOLS)
	PYTHONPATH=tests/made $(VENV) tests/faults/campaign.py $(if $(ONLY),--only "$(ONLY)")

$(READY):
	@$(PYTHON) $(NEW_ENOUGH) 2>/dev/null || { echo "abc_core needs Python 3.11 or newer; '$(PYTHON)' is not. Name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(VENV) $(NEW_ENOUGH) 2>/dev/null || rm -rf .venv
	$(PYTHON) -m venv .venv
	$(VENV) -m pip install -e . -c requirements.lock
	@rm -f .venv/.ready-*
	@touch $@

# The packages of one of pyproject.toml's extras.
.venv/.%-$(SUM): $(READY)
	$(VENV) -m pip install -e ".[$*]" -c requirements.lock
	@rm -f .venv/.$*-*
	@touch $@
