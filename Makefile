# Everything here runs as root: the lab makes network namespaces. `make help` lists what there is.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: help
help: ## Show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

.PHONY: bootstrap
bootstrap: ## Install what is needed to build and test, each thing named before
	@scripts/bootstrap build

.PHONY: build
build: bootstrap ## Build the programs, limosa and limosa-lab
	cargo build --locked --workspace --bins

.PHONY: test
test: bootstrap ## Run every test, the lab's included
	cargo build --locked --workspace --bins --tests
	cargo test --locked --workspace --doc --quiet
	@if cargo nextest --version > /dev/null 2>&1; then \
		echo "cargo nextest run --locked --workspace"; \
		cargo nextest run --locked --workspace --no-fail-fast --show-progress none; \
	else \
		echo "cargo test --locked --workspace (cargo-nextest is not there)"; \
		cargo test --locked --workspace --no-fail-fast --lib --bins --tests -- --test-threads 1; \
	fi

.PHONY: lint
lint: ## Check the format, and the code with clippy
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

.PHONY: doc
doc: ## Build the code's documentation, and the book where mdbook is there
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps
	@if command -v mdbook > /dev/null; then mdbook build docs; else echo "no mdbook: the book is not built"; fi

.PHONY: demo
demo: build ## Show a VM that moves around three hosts while it runs; KEEP=1 leaves the cluster up
	target/debug/limosa-lab demo $(if $(KEEP),--keep)

.PHONY: bench
bench: bootstrap ## Run a benchmark, NAME=…, and write target/bench/NAME.jsonl
	cargo build --locked --release --bins -p limosa-cli -p limosa-lab
	target/release/limosa-lab bench $(or $(NAME),--help)

.PHONY: soak
soak: build ## Run what takes long: many moves in a row, under load
	cargo nextest run --locked --workspace --run-ignored only --show-progress none -E 'binary(soak)'
	target/debug/limosa-lab soak
	target/debug/limosa-lab soak

.PHONY: clean-lab
clean-lab: ## Take the lab away that the demo, or limosa-lab up, left
	cargo run --locked --quiet -p limosa-lab --bin limosa-lab -- down
