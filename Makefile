# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Two commands are enough: `make rehearsal` plays the whole disaster plan in the lab, `make test` runs every test.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
BIN := .venv/bin
# A lock that changed, or a checkout that moved, asks for another virtual environment.
STAMP := .venv/.installed-$(shell { cat requirements/dev.txt; pwd; } | sha256sum | cut -c1-16)
LINK := build/collections/ansible_collections/kmsops/fortanix_dsm
LAB := lab/lab
# Debian packages
FOR_UNITS := openssh-client openssl iproute2
FOR_SANITY := git shellcheck
FOR_INTEGRATION := openssh-server iproute2 procps gcc libc6-dev

export PATH := $(CURDIR)/$(BIN):$(PATH)
export ANSIBLE_COLLECTIONS_PATH := $(CURDIR)/build/collections
export ANSIBLE_HOME := $(CURDIR)/build/ansible
export PYTHONDONTWRITEBYTECODE := 1
# Ansible refuses to run without UTF-8, and tools are read by machine: in this language they always speak the same.
export LC_ALL := C.UTF-8

.PHONY: help venv machine rehearsal test check lint types units contract reuse sanity integration compat stories lab lab-build lab-down lab-selftest bench mutation lock clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

venv: $(STAMP) $(LINK) ## Make the locked virtual environment (.venv)

$(STAMP):
	@requirements/make-venv "$(PYTHON)" .venv requirements/dev.txt
	@touch $@

$(LINK):
	@mkdir -p $(dir $@) && ln -sfn ../../../.. $@

machine:
	@requirements/machine $(or $(MAKECMDGOALS),rehearsal)

rehearsal: machine venv lab-build ## The vendor's whole disaster plan, end to end, on a real site (V=1 shows Ansible's output)
	@$(BIN)/python lab/rehearse

test: machine venv ## Everything that CI runs
	@requirements/system $(sort $(FOR_UNITS) $(FOR_SANITY) $(FOR_INTEGRATION))
	@tests/all 'lab-build lint types reuse sanity' units contract integration lab-selftest stories

check: lint types units contract reuse ## Lint, types and units: fast, no lab

lint: venv ## ruff, yamllint, ansible-lint (production)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/yamllint --strict .
	$(BIN)/ansible-lint --offline

types: venv ## mypy, strict on _core, _parse and _transfer
	$(BIN)/mypy

units: venv ## Unit tests, no lab and no network
	@requirements/system $(FOR_UNITS)
	$(BIN)/python -m pytest -q -n 2 tests/unit tests/standin tests/lab

contract: venv ## One contract over all modules: the documentation is executed
	@requirements/system $(FOR_UNITS)
	$(BIN)/python -m pytest -q -n 2 tests/contract

reuse: venv ## Every file says its licence
	$(BIN)/reuse --suppress-deprecation lint --quiet || $(BIN)/reuse lint

sanity: venv ## ansible-test sanity, without ignores
	@requirements/system $(FOR_SANITY)
	@tests/sanity/run

integration: venv ## Transfers against a real sshd on this machine; the bench itself
	@requirements/system $(FOR_INTEGRATION)
	$(BIN)/python -m pytest -q -n 4 tests/integration/transfer
	$(BIN)/python -m pytest -q tests/integration/bench

compat: venv ## The same checks without a lab under the other supported releases of ansible-core (not part of test)
	@tests/compat/run $(RELEASE)

stories: machine venv lab-build ## molecule: the stories an operator could live through
	@molecule/run

lab: machine venv lab-build ## Bring the rehearsal site up (profile small) and show it
	@$(LAB) up
	@$(LAB) status

lab-build: machine venv ## Build and cache what the lab is made of
	@$(LAB) prerequisites
	@$(LAB) build
	@$(BIN)/python lab/rehearsal/wheelhouse.py >/dev/null
	@$(BIN)/python lab/rehearsal/wheelhouse.py --timers >/dev/null

lab-down: venv ## Take the rehearsal site down; leaves nothing behind
	@$(LAB) down

lab-selftest: machine venv lab-build ## The lab proves its own promises
	@$(LAB) selftest

bench: venv ## Shipping against scp, sftp, rsync, lftp and rclone on five links (ONLY=lan: one; root; see bench/README.md)
	@bench/bench --only "$(ONLY)" $(ARGS)

mutation: venv ## Change what decides about keeping and believing backups, piece by piece: the tests must notice
	$(BIN)/python tests/mutation/run

lock: venv ## Make requirements/dev.txt anew from requirements/dev.in
	$(BIN)/python -m pip install --quiet 'pip==24.2' pip-tools
	$(BIN)/pip-compile --quiet --upgrade --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url \
	  --no-emit-trusted-host --no-emit-find-links --output-file requirements/dev.txt requirements/dev.in

clean: ## Remove build results and the virtual environment (the lab's cache stays)
	rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache
