# Everything sets itself up: Python 3.11+ and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LABELLING := $(VENV)/.labelling
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
FAULTS ?= faults
SLOW ?= slow
NIGHTS ?= nights and not long
TOOLS ?= tools
PRODUCTION ?= production and not long

.PHONY: help demo install packages pictures test test-slow test-faults test-s3 test-azure test-nights test-production rehearsal test-images test-monitoring test-doors test-examples test-tools fuzz test-pages test-gpu check bench bench-gpu bench-compare clean

help:  ## This list
	@grep -hE "^[a-z0-9-]+:.*## " $(MAKEFILE_LIST) | sed -E "s/^([a-z0-9-]+):[^#]*## /\1\t/" | expand -t 18

demo: $(LABELLING)  ## Label a small photo archive, within a minute or two, install included
	test -f demo/archive/notes.txt || { rm -rf demo/archive && $(BIN)/fer-pipeline sample-archive demo/archive; }
	$(BIN)/fer-pipeline label demo/archive --out demo/run
	@echo; echo "Open $(CURDIR)/demo/run/report.html"

install: $(INSTALLED)  ## The whole project: training, flows and the tools for development

pictures: $(INSTALLED)  ## The pictures of the documents, from small runs over photos in the public domain (needs Chromium)
	$(BIN)/python -m tests.report.pictures docs/pictures

test: $(INSTALLED)  ## The tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(INSTALLED)  ## Tests of half a minute each: trainings, sweeps, whole datasets; SLOW="slow and not long" for the short form
	$(BIN)/python -m pytest -m "$(SLOW)" tests/jobs tests/flows tests/faces tests/labelling tests/datasets tests/models tests/archive tests/compat

test-faults: $(INSTALLED)  ## Poison files, killed drivers and workers, lost nodes; FAULTS="faults and not long" for the short form
	$(BIN)/python -m pytest -m "$(FAULTS)" tests/faults

test-s3: $(INSTALLED)  ## Labelling from S3 to S3 on a real server, with faults injected (installs Swift; needs root)
	$(BIN)/python -m pytest -m s3 tests/s3

test-azure: $(INSTALLED)  ## Sources, runs and tables on Azure's local server, Azurite (needs npm, which installs it below .venv)
	test -d $(VENV)/azurite/node_modules || npm install --silent --prefix $(VENV)/azurite azurite@3.37.0
	$(BIN)/python -m pytest -m azure tests/azure

test-nights: $(INSTALLED)  ## Seven nights, kills and publishers in any order; NIGHTS=nights for the long form, with an S3 server
	$(BIN)/python -m pytest -m "$(NIGHTS)" tests/nights tests/table

test-production: $(INSTALLED)  ## Schedules that fire, jobs on a cluster with tokens, and all that can be lost of them
	$(BIN)/python -m pytest -m "$(PRODUCTION)" tests/production

rehearsal: $(INSTALLED)  ## A store, Prefect, a head and workers as machines of their own; one is lost (needs root, iproute2)
	unshare --net --mount --pid --fork --kill-child --mount-proc $(BIN)/python -m pytest -m rehearsal -s tests/rehearsal

test-images: $(INSTALLED)  ## Both images, built from a Debian of our own and used (installs buildah, debootstrap; needs root; 40 GB)
	command -v buildah >/dev/null && command -v debootstrap >/dev/null || { apt-get update -q && apt-get install -qy --no-install-recommends buildah debootstrap; }
	$(BIN)/python -m pytest -m images -s tests/cluster/test_images.py

test-monitoring: $(INSTALLED)  ## The alert rules, each set off in Prometheus' own test runner (installs prometheus; needs root; Debian)
	command -v promtool >/dev/null || { apt-get update -q && RUNLEVEL=1 apt-get install -qy --no-install-recommends prometheus; }
	$(BIN)/python -m pytest tests/cluster/test_monitoring.py

test-doors: $(INSTALLED)  ## No command listens to other machines or looks up a name (needs root and iproute2)
	$(BIN)/python -m pytest -m doors tests/doors

test-examples: $(INSTALLED)  ## docs/tour.md, docs/extending.md, examples/ and `make demo` in a fresh copy, done as they say
	$(BIN)/python -m pytest -m examples tests/test_extending.py tests/test_examples.py tests/test_install.py tests/test_tour.py

test-tools: $(INSTALLED)  ## Exports for other tools, read by their own packages, which it installs into .venv-tools (1.4 GB); TOOLS="tools and not long" for the short form
	test -x .venv-tools/bin/python || $(PYTHON) -m venv .venv-tools
	.venv-tools/bin/python -m pip install -q pycocotools label-studio-sdk datumaro datasets fiftyone
	$(BIN)/python -m pytest -m "$(TOOLS)" tests/cli/test_tools.py

fuzz: $(INSTALLED)  ## Mutated files of every kind; FUZZ="--images 300000 --others 5000" for the long form
	$(BIN)/python -m tests.fuzz $(FUZZ)

test-pages: $(INSTALLED)  ## Every page, opened and used in headless Chromium (installs it where it is missing; needs root; Debian)
	command -v chromium >/dev/null || { apt-get update -q && apt-get install -qy --no-install-recommends chromium; }
	$(BIN)/python -m pytest -m pages tests/report

packages:  ## What test-s3, test-pages and test-monitoring install, all at once (needs root; Debian)
	for tool in chromium promtool swift-proxy-server memcached; do command -v $$tool >/dev/null || missing=1; done; \
	test -z "$$missing" || { apt-get update -q && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
	chromium prometheus swift-proxy swift-account swift-container swift-object memcached; }

test-gpu: $(INSTALLED)  ## What runs on a CUDA device, against the same on a CPU; skips where there is none (needs ../shared, no Ray)
	$(BIN)/python -m pytest -m gpu --noconftest -rs tests/gpu

check: $(INSTALLED)  ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)  ## Throughput of labelling against a plain loop (needs ../shared)
	$(BIN)/python tests/benchmarks/label.py

bench-gpu: $(INSTALLED)  ## The GPU way without Ray, part by part and end to end; on the CPU where there is no GPU (needs ../shared)
	$(BIN)/python -m tests.benchmarks.gpu $(GPU)

bench-compare: $(INSTALLED)  ## The main benchmarks as ratios to a plain loop, against the kept ones (needs ../shared)
	$(BIN)/python -m tests.benchmarks.compare

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[demo,dev]'
	touch $@ $(LABELLING)

# What labels on CPUs, and the photos of the sample archive.
$(LABELLING): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --quiet --upgrade 'pip>=25.1'  # the first that installs groups
	$(PIP) --no-compile --group label
	$(PIP) --no-compile --no-deps -e . scikit-image
	touch $@

clean:
	rm -rf $(VENV) demo build *.egg-info
