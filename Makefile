# Two environments: .venv serves (no torch, no Node), .venv-dev trains and tests. Both follow constraints.txt.
PYTHON ?= python3
PIP_FLAGS ?= --quiet --disable-pip-version-check
HOST ?= 127.0.0.1
PORT ?= 3000
export BENTOML_DO_NOT_TRACK = True

.DEFAULT_GOAL := help
.PHONY: help serve test lint types contracts unit bento benchmark-smoke test-pacs test-page pictures pacs clean sbom audit third-party test-clean-root fuzz

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install $(PIP_FLAGS) -c constraints.txt -e '.[cpu,postgresql,build]'
	touch $@

.venv-dev/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-dev
	.venv-dev/bin/pip install $(PIP_FLAGS) -c constraints.txt -e '.[cpu,dimse,postgresql,score,build,train,dev]'
	touch $@

serve: .venv/.done  ## Serve the shipped models on 127.0.0.1:3000 (HOST, PORT)
	.venv/bin/overread serve --host $(HOST) --port $(PORT)

test: lint types contracts unit  ## Lint, types, contracts and tests

lint: .venv-dev/.done  ## Style
	.venv-dev/bin/ruff check .
	.venv-dev/bin/ruff format --check .

types: .venv-dev/.done  ## Static types
	.venv-dev/bin/mypy

contracts: .venv-dev/.done  ## Which part may import which
	.venv-dev/bin/lint-imports

# Two test processes share two cores, so that neither may start threads of its own for numbers. Files go to them in this order:
# what takes longest first. What measures a capacity, or takes a port that a page of the docs names, has the machine to itself.
FIRST = tests/e2e tests/page tests/training tests/models
SPREAD = $(FIRST) $(filter-out $(FIRST) %__pycache__,$(patsubst %/,%,$(sort $(wildcard tests/*/))))
WORKERS ?= 2
ALONE = $(wildcard $(patsubst %,tests/e2e/test_%.py,overload replicas tutorial))
unit: .venv/.done .venv-dev/.done  ## The tests alone
	OMP_NUM_THREADS=1 .venv-dev/bin/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 15 $(SPREAD) $(addprefix --ignore=,$(ALONE))
	.venv-dev/bin/pytest $(ALONE)

# The long figure of each row of docs/reliability.md that has one; make test-long-5 is that of row 5.
LONG_1 = OVERREAD_REQUESTS=50000 tests/e2e/test_malformed_http.py
LONG_2 = OVERREAD_MUTATIONS=100000 tests/models/test_dicom_mutations.py
LONG_4 = OVERREAD_STRICT=1 tests/models/test_imaging_bombs.py
LONG_5 = OVERREAD_KILLS=500 tests/e2e/test_kills.py tests/e2e/test_labels.py tests/e2e/test_replicas.py
LONG_7 = OVERREAD_OVERLOAD_SECONDS=60 tests/e2e/test_overload.py
LONG_8 = OVERREAD_LEAK_REQUESTS=200000 tests/e2e/test_leak.py
LONG_15 = OVERREAD_INSTANCES=300 tests/e2e/test_pacs.py
LONG_ROWS = $(sort $(patsubst LONG_%,test-long-%,$(filter-out LONG_ROWS,$(filter LONG_%,$(.VARIABLES)))))
.PHONY: test-long $(LONG_ROWS)

test-long: $(LONG_ROWS) .venv/.done .venv-dev/.done  ## The long figures of docs/reliability.md, and every test marked long: hours
	.venv-dev/bin/pytest --timeout 0 -m long $(addprefix --ignore=,$(filter %.py,$(foreach row,$(LONG_ROWS),$(LONG_$(row:test-long-%=%)))))

$(LONG_ROWS): test-long-%: .venv/.done .venv-dev/.done
	env $(filter OVERREAD_%,$(LONG_$*)) .venv-dev/bin/pytest --timeout 0 -m '' $(filter %.py,$(LONG_$*))

# Its wheels are for Linux alone, and no test needs it.
.venv-fuzz/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-fuzz
	.venv-fuzz/bin/pip install $(PIP_FLAGS) -c constraints.txt -e '.[cpu,fuzz]'
	touch $@

TARGET ?= image
SECONDS ?= 600
fuzz: .venv-fuzz/.done  ## Search for damage that is not refused, led by coverage (TARGET=image|form|related, SECONDS, DATA=folder)
	PYTHONPATH=. .venv-fuzz/bin/python -W ignore tests/fuzz/fuzz.py $(TARGET) --seconds $(SECONDS) $(if $(DATA),--data $(DATA))

test-pacs: .venv-dev/.done  ## The tests with a real Orthanc alone
	.venv-dev/bin/pytest -q tests/e2e/test_pacs.py tests/e2e/test_pacs_many.py tests/e2e/test_pacs_slides.py tests/e2e/test_receive.py

test-page: .venv-dev/.done  ## The tests of the page alone, in a real browser (Debian's chromium)
	.venv-dev/bin/pytest -q tests/page

pictures: .venv-dev/.done  ## The README's pictures of the page again
	PYTHONPATH=. .venv-dev/bin/python docs/pictures/draw.py

pacs: .venv/.done  ## Orthanc, the service and the watch together on loopback, with an example sent
	PATH="$(CURDIR)/.venv/bin:$$PATH" deploy/pacs.sh

bento: .venv/.done  ## Build the Bento for machines without a GPU
	.venv/bin/bentoml build -f bentofile.cpu.yaml

test-clean-root:  ## The README on a bare Debian in a folder; needs root, debootstrap and the registries, and is no part of make test
	$(PYTHON) -m tests.clean_root.run

sbom: .venv/.done .venv-dev/.done  ## What serving runs, as CycloneDX: build/sbom.cdx.json
	mkdir -p build
	.venv-dev/bin/cyclonedx-py environment .venv --pyproject pyproject.toml --output-reproducible --output-format JSON --output-file build/sbom.cdx.json
	.venv/bin/python deploy/third_party.py --sbom build/sbom.cdx.json

audit: .venv/.done .venv-dev/.done  ## Known vulnerabilities of what serving runs; needs a network, and is no part of make test
	.venv-dev/bin/pip-audit --path "$$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" --skip-editable

third-party: .venv/.done  ## Write docs/regulatory/third-party.md from what is installed
	.venv/bin/python deploy/third_party.py > docs/regulatory/third-party.md

benchmark-smoke: .venv/.done .venv-dev/.done  ## Every benchmark in its shortest form; judges no goal
	.venv-dev/bin/pytest -q tests/e2e/test_benchmarks.py

clean:  ## Remove the environments and caches
	rm -rf .venv .venv-dev .venv-fuzz .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
