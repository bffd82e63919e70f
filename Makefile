# Everything a developer does has a name here. `make run` and `make test` set up what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GUEST := sandbox/guest
GUEST_SOURCES := $(wildcard $(GUEST)/prelude/*.ts $(GUEST)/prelude/*/*.ts $(GUEST)/build/*) $(GUEST)/package-lock.json
ENGINE := $(GUEST)/engine
ENGINE_SOURCES := $(wildcard $(ENGINE)/*.[chs] $(ENGINE)/*.py $(ENGINE)/*.lock $(ENGINE)/*.patch $(ENGINE)/*.sha256)
CLIENT := clients/js
CLIENT_SOURCES := $(wildcard $(CLIENT)/src/*.ts) $(CLIENT)/build.mjs $(CLIENT)/package.json
PAGE := clients/page
PAGE_SOURCES := $(wildcard $(PAGE)/src/*.ts* $(PAGE)/src/*.css $(PAGE)/src/chart/*.ts* $(PAGE)/public/*) $(PAGE)/index.html $(PAGE)/vite.config.ts $(PAGE)/package.json
FORGE_SOURCES := sandbox/forge.py sandbox/image.py sandbox/leb128.py $(wildcard sandbox/protocol/*.py) $(GUEST)/__main__.py

# Python keeps what it compiled, whatever the environment says: half of a short run would go there.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup guest client page screenshots run cluster test slow browser proxies core check format wheel image-check sim sim-cluster chaos chaos-cluster fuzz test262 bench bench-peer lock clean

setup: $(VENV)/.installed guest client page

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "machinehub needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

guest: $(GUEST)/dist/base.wasm

$(GUEST)/node_modules/.installed: $(GUEST)/package.json $(GUEST)/package-lock.json
	cd $(GUEST) && npm ci --no-audit --no-fund
	touch $@

$(GUEST)/dist/quickjs.wasm: $(VENV)/.installed $(ENGINE_SOURCES)
	$(BIN)/python -m sandbox.guest.engine

$(GUEST)/dist/base.wasm: $(GUEST)/dist/quickjs.wasm $(VENV)/.installed $(GUEST)/node_modules/.installed $(GUEST_SOURCES) $(FORGE_SOURCES)
	cd $(GUEST) && npm run --silent check && npm run --silent build
	$(BIN)/python -m sandbox.guest

client: $(CLIENT)/dist/client.js

node_modules/.installed: package.json package-lock.json
	npm ci --no-audit --no-fund
	touch $@

$(CLIENT)/dist/client.js: node_modules/.installed $(CLIENT_SOURCES)
	cd $(CLIENT) && npm run --silent check && npm run --silent build

page: machinehub/web/static/index.html

machinehub/web/static/index.html: $(CLIENT)/dist/client.js $(PAGE_SOURCES)
	cd $(PAGE) && npm run --silent build -- --logLevel warn

# Six machines as a person sees them, in build/screenshots: look at them.
screenshots: setup browser
	$(BIN)/python -m tests.screenshots

run: setup
	$(BIN)/machinehub dev examples/counter.ts

# Postgres, NATS and three nodes, with the counter: docs/cluster.md.
cluster: setup
	$(BIN)/python -m tests.cluster

test: setup check browser proxies
	$(BIN)/python -m pytest -q -n 3 --dist loadgroup -m "not slow"

# Those that take long: processes that are killed and started again, packages from npm, guides. They are named in tests/slow.txt.
slow: setup browser proxies
	$(BIN)/python -m pytest -q -n 3 --dist loadgroup -m slow

# The page is tested in a real browser.
browser:
	command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium; } || { echo "install chromium: apt-get install chromium"; exit 1; }

# The hub is tested behind real proxies.
proxies:
	PATH=$$PATH:/usr/sbin; for name in nginx caddy openssl faketime; do command -v $$name >/dev/null || { apt-get update -qq && apt-get install -y -qq $$name; } || { echo "install $$name: apt-get install $$name"; exit 1; }; done

# Only the files that have such tests are read: importing the others takes longer than these run.
core: setup
	$(BIN)/python -m pytest -q -m core -p no:schemathesis -p no:xdist -p no:anyio -p no:cacheprovider -p no:logging $$(grep -rl 'mark[.]core' tests --include='test_*.py')

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	npm run --silent check

# Brings all sources into the form that `check` asks for.
format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix --quiet .
	npm run --silent format

# A wheel that needs no Node where it is installed, in build/wheel.
wheel: setup
	rm -rf build/wheel
	$(BIN)/python supply.py
	MACHINEHUB_BUILT=1 $(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir build/wheel .

# The steps of the Dockerfile in clean Debian roots, as root, without Docker.
image-check:
	$(PYTHON) deploy/try_dockerfile.py

# One seed of the simulation, or COUNT of them from there on.
sim: setup
	$(BIN)/python -m tests.sim $(or $(SEED),1) $(or $(COUNT),1)

# The same with several nodes.
sim-cluster: setup
	$(BIN)/python -m tests.sim --cluster $(or $(SEED),1) $(or $(COUNT),1)

# One fault after the other at three nodes, Postgres, NATS and what is between them: FAULTS of them, from a SEED.
chaos-cluster: setup
	$(BIN)/python -m tests.cluster.chaos $(or $(SEED),1) $(or $(FAULTS),200)

# Workers, hubs and databases killed under load; CHAOS_KILLS of them (tests/test_chaos.py, tests/effects/test_chaos.py).
chaos: setup
	CHAOS_KILLS=$(or $(KILLS),200) $(BIN)/python -m pytest -q tests/test_chaos.py tests/effects/test_chaos.py -s

# Hostile bytes for everything that reads some, SECONDS for each target; then the immortal image.
fuzz: setup
	$(BIN)/python -m tests.attacks.fuzz --seconds $(or $(SECONDS),60)
	$(BIN)/python -m tests.sandbox.torture --seconds $(or $(SECONDS),60)

# The ECMAScript conformance suite, from a checkout of it: make test262 FROM=../test262
test262: setup
	$(BIN)/python -m tests.test262 $(FROM)

bench: setup
	$(BIN)/python -m bench

# workerd, a durable Object for each session, under the same load.
bench-peer: setup
	cd bench/peers/workerd && npm ci --no-audit --no-fund && npm run --silent build
	$(BIN)/python -m bench.peer

# What is installed: for developers, and for those who only run it. Pins move only where they must;
# `make lock UPGRADE=--upgrade` moves all.
lock: $(VENV)/.installed
	$(BIN)/uv pip compile pyproject.toml --extra dev --generate-hashes --universal --quiet $(UPGRADE) -o requirements.lock
	$(BIN)/uv pip compile pyproject.toml -c requirements.lock --generate-hashes --universal --quiet -o requirements-runtime.lock
	$(BIN)/uv pip compile $(ENGINE)/tools.in --generate-hashes --universal --quiet $(UPGRADE) -o $(ENGINE)/tools.lock

clean:
	rm -rf $(VENV) $(ENGINE)/.venv $(GUEST)/node_modules $(GUEST)/dist node_modules $(CLIENT)/dist machinehub/web/static build
