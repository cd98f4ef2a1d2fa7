# Every check has one name, for a person and for CI alike (.ci/run calls these). `make help` lists them.
# QUICK=1 has the long ones run a part, as .ci/run does (tests/part.py).
# Recipes see of their caller's environment only what that script lets through, and the tools of .venv first.
SHELL := bash
.SHELLFLAGS := tools/clean_env.sh sh -c
export PATH := $(CURDIR)/.venv/bin:$(PATH)

PYTEST := .venv/bin/python -m pytest
# Two processes, each of which takes the next file. The order stays: a file of few tests may be the one that takes long.
TWO := -n 2 --dist loadfile --no-loadscope-reorder
.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 15

.PHONY: setup
setup: ## build .venv with pinned versions; make this checkout available as homegpt.vllm
	@bash tools/setup.sh

.PHONY: all
all: ## run all checks completely, make fresh and make bench with QUICK=1; .ci/run runs a part of each long one
	@bash .ci/run all

.PHONY: demo
demo: setup ## bootstrap and switch four stand-in models on this machine; KEEP=1 leaves them running, STOP=1 stops them
	@bash tools/demo.sh

.PHONY: test
test: setup ## every test that needs no container engine and no real vLLM
	$(PYTEST) $(TWO) tests --ignore tests/real --ignore tests/versions --ignore tests/e2e --ignore tests/fuzz --ignore tests/faults \
		--ignore tests/fleet --ignore tests/webui --ignore tests/firewall --ignore tests/manager --ignore tests/gateway

.PHONY: fresh
fresh: ## make demo and make test on bare Debian 12 and 13, as root and as a user, of the tests on two of these a quarter (QUICK=1: a quarter on two, none on the others); ROOTS="debian13 user" selects a single one (needs root)
	@bash tools/fresh.sh $(ROOTS)

.PHONY: lint
lint: setup ## style of Python, YAML, Ansible, shell and the changelog
	ruff check .
	ruff format --check .
	vermin --quiet --no-tips --violations --target=3.8- plugins
	yamllint --strict .
	ansible-lint --offline --strict --nocolor
	antsibull-changelog lint
	git ls-files -z --cached --others --exclude-standard .ci/run '*.sh' | xargs -0 shellcheck

.PHONY: format
format: setup ## format the Python files with ruff
	ruff format .
	ruff check --fix .

.PHONY: types
types: setup ## mypy, strict for the core
	mypy -p ansible_collections.homegpt.vllm.plugins -p ansible_collections.homegpt.vllm.extensions -p model_manager -p tests -p tools -p bench

.PHONY: sanity
sanity: setup ## ansible-test sanity on a clean copy, nothing ignored
	bash tools/sanity.sh

.PHONY: docs
docs: setup ## render the documentation of modules, filters and roles and lint it
	bash tools/docs.sh

.PHONY: dist
dist: setup ## build the package into dist/, install it elsewhere, run the demo's playbooks by name from an empty directory
	bash tools/dist.sh

.PHONY: versions
versions: setup ## playbooks and sanity with the lowest and the newest supported ansible-core
	bash tools/versions.sh

.PHONY: real
real: setup ## the contract, the switch, and the gateway under the SDKs, on two real vLLM servers (3 GB on first use)
	bash tools/real_vllm.sh
	@bash tools/nginx.sh || echo "there is no nginx with Lua"
	$(PYTEST) tests/contract --target real
	REAL_VLLM=1 $(PYTEST) tests/real

.PHONY: vllm-versions
vllm-versions: setup ## the contract and switches on real vLLM of seven versions, old and new (5 GB each on first use)
	.venv/bin/python -m tests.versions.run $(VERSIONS)

.PHONY: webui
webui: setup ## the real Open WebUI in a browser, with two real vLLM servers, and before the gateway (3 GB on first use)
	bash tools/real_vllm.sh
	bash tools/open_webui.sh
	@bash tools/nginx.sh || echo "there is no nginx with Lua"
	@command -v chromium || command -v google-chrome || bash tools/apt.sh chromium || echo "there is no browser"
	OPEN_WEBUI=1 $(PYTEST) -s tests/webui

.PHONY: manager
manager: setup ## the model manager's service, role and rulebooks on stand-ins, its page in Chromium, its metrics in Debian's Prometheus
	@command -v promtool || bash tools/apt.sh prometheus || echo "there is no Prometheus"
	@command -v chromium || command -v google-chrome || bash tools/apt.sh chromium || echo "there is no browser"
	@bash tools/eda.sh || echo "there is no ansible-rulebook"
	$(PYTEST) $(TWO) tests/manager

.PHONY: gateway
gateway: setup ## the gateway in Debian's nginx, with stand-ins as its servers
	@bash tools/nginx.sh || echo "there is no nginx with Lua"
	$(PYTEST) $(TWO) tests/gateway
	$(if $(QUICK),,@.venv/bin/python -m tests.gateway.matrix)

.PHONY: faults
faults: engine ## every step of a switch with every fault, kills, races, and a fuzz of the inventory
	$(PYTEST) -s tests/fuzz tests/faults
	@.venv/bin/python -m tests.faults.matrix $(if $(QUICK),--part)

.PHONY: soak
soak: setup ## 500 random rounds of faults, clients and a second operator on stand-ins
	@.venv/bin/python -m tests.faults.soak

.PHONY: mutants
mutants: setup ## break the engine in many places, one at a time, and show which tests notice
	@.venv/bin/python -m tests.mutants

.PHONY: engine
engine: setup ## ensure that a Docker engine runs (as root it is installed and started; tools/engine.sh stop stops it)
	@bash tools/engine.sh

.PHONY: images
images: engine ## build the container images for tests whose inputs changed
	@bash tools/images.sh

.PHONY: e2e
e2e: images ## the stack on a real Docker engine, with stand-ins and with real vLLM
	$(PYTEST) $(TWO) tests/e2e $(foreach name,$(ALONE),--ignore tests/e2e/$(name))
	$(PYTEST) $(addprefix tests/e2e/,$(ALONE))

# One counts seconds of downloads, the other restarts the engine.
ALONE := test_prefetch.py test_engine_restart.py

.PHONY: fleet
fleet: engine ## twenty SSH hosts are provisioned, loaded, and switched in waves, with some that fail and hang
	@bash tools/images.sh fleet
	$(PYTEST) -s tests/fleet

.PHONY: firewall
firewall: setup ## who can reach the models on real engines 20.10 and 26.1, with and without the nftables rules (needs root)
	$(PYTEST) tests/firewall

.PHONY: molecule
molecule: engine ## the molecule scenarios: the role docker_host, and the stack
	@bash tools/molecule.sh

.PHONY: bench
bench: images ## the ratios that the README states
	.venv/bin/python bench/run.py $(if $(QUICK),--quick)

.PHONY: simulate
simulate: setup ## replay traces of requests against the policies of the model manager
	@PYTHONPATH=roles/model_manager/files .venv/bin/python -m tools.simulate

.PHONY: screenshot
screenshot: setup ## take the picture of the model manager's status page in docs/manager.md (needs Chromium)
	PYTHONPATH=.build .venv/bin/python -m tests.manager.screenshot docs/manager.png

.PHONY: lock
lock: ## update the pinned requirements for every supported Python (needs uv)
	$(LOCK) --fork-strategy fewest --generate-hashes --output-file $(SERVICE)/requirements.txt $(SERVICE)/requirements.in
	$(LOCK) --fork-strategy fewest --generate-hashes --output-file $(SERVICE)/requirements-tracing.txt $(SERVICE)/requirements-tracing.in
	$(LOCK) --fork-strategy requires-python --output-file requirements.txt requirements.in
	$(LOCK) --fork-strategy requires-python --generate-hashes --output-file tools/eda-requirements.txt tools/eda-requirements.in

LOCK := uv pip compile --quiet --universal --python-version 3.10 --no-annotate --custom-compile-command "make lock" --upgrade
SERVICE := roles/model_manager/files

.PHONY: clean
clean: ## remove what the other targets created in this directory (not the images, not the caches)
	@if [ -d .build/demo ]; then STOP=1 bash tools/demo.sh; fi
	rm -rf .venv .build .ansible .hypothesis .mypy_cache .pytest_cache .ruff_cache dist tests/output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
