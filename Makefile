# `make` lists what there is. Everything it needs is installed on the way, by tests/setup.

CAPTURE ?= $(firstword $(wildcard pcaps/vsftpd-curl-ipv4.pcap pcaps/*.pcap pcaps/*.pcapng))
FUZZ_SECONDS ?= 5
FUZZ_TARGETS := $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))

export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH):/usr/sbin:/sbin

# Where nobody is there to look, Cargo.lock must be as committed.
LOCKED := $(if $(CI),--locked)

# What is run on the second kernel, too: the tests that ask the kernel for something, with the mechanism sets; those that
# run the service, with native as well; and those that compare it with conntrackd. Patterns will do. (The tests in `native*`
# name their mechanism themselves. Those in `systemd` ask systemd more than the kernel, and have run with sets elsewhere.)
THERE := attacks_live deploy host_check live mending nat_* netlink overflow promise_* queue restart ruleset sandbox watchdog
THERE_NATIVE := attacks_live deploy live nat_* native* promise_* restart systemd watchdog
THERE_BESIDE_CONNTRACKD := nat_dialogues reference

# Fuzzing without a sanitizer needs no nightly Rust. What is found is kept apart from the committed corpus.
fuzz = mkdir -p fuzz/found/$(1) && cargo fuzz run --sanitizer none $(1) fuzz/found/$(1) fuzz/corpus/$(1) -- -timeout=10

# Through sudo, root would own what is built in someone else's tree.
ifneq ($(filter-out root,$(SUDO_USER)),)
ifeq ($(shell id -u)$(shell stat -c %U .),0$(SUDO_USER))
$(error run make as $(SUDO_USER), not through sudo: it uses sudo itself where it has to)
endif
endif

# The tests make network namespaces. What a test builds belongs to whoever runs make; only the tests run as root.
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo -E)
AS_ROOT := $(if $(SUDO),--config 'target."cfg(unix)".runner="$(SUDO)"')
# Which tests failed at first, and passed alone.
export PINHOLE_AGAIN := $(CURDIR)/target/again

.NOTPARALLEL:
.PHONY: help run demo replay test test-vm second-kernel fuzz-all fuzz bench lint clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

run: ## build, and run the service until Ctrl-C (POLICY=file, else the embedded one)
	@tests/setup run
	cargo $(AS_ROOT) run --quiet --release $(LOCKED) -- run $(if $(POLICY),--policy $(POLICY))

demo: ## build, and show it all in network namespaces of its own
	@tests/setup run
	cargo $(AS_ROOT) run --quiet --release $(LOCKED) -- demo

replay: ## build, and replay a capture: which data connections would have been let through (CAPTURE=file)
	@tests/setup
	cargo run --quiet --release $(LOCKED) -- replay $(CAPTURE)

test: ## every test, then a short run of the fuzzer (FUZZ_SECONDS=5 each)
	@tests/setup test vm
	cargo test $(LOCKED) --benches --no-run
	@rm -f $(PINHOLE_AGAIN)
	cargo --config 'target."cfg(unix)".runner="$(strip $(SUDO) tests/again)"' test $(LOCKED)
	@$(MAKE) --no-print-directory second-kernel
	@$(MAKE) --no-print-directory fuzz-all
	@cat $(PINHOLE_AGAIN) 2>/dev/null || true

test-vm: ## those tests that ask the kernel for something, on a second kernel: Debian's, emulated (only="live nat_*")
	@tests/setup test vm
	@$(MAKE) --no-print-directory second-kernel

second-kernel:
	$(call in_vm,tests/vm/tests,$(if $(only),$(filter-out conntrackd,$(only)),$(THERE)))
	$(call in_vm,tests/vm/native,$(if $(only),$(filter $(THERE_NATIVE:*=%),$(only)),$(THERE_NATIVE)))
	$(call in_vm,tests/vm/conntrackd,$(if $(filter-out conntrackd,$(only)),,$(THERE_BESIDE_CONNTRACKD)))

# Has a script there run test programs, if there are any. Cargo says which it has built, one object a line.
in_vm = $(if $(2),@tests="$(patsubst %,--test %,$(2))"; set -f; \
	echo cargo test $(LOCKED) --no-run $$tests && cargo test $(LOCKED) --no-run $$tests && \
	programs=$$(cargo test $(LOCKED) --quiet --no-run --message-format=json $$tests | \
		sed -n 's/.*"kind":\["test"\].*"executable":"\([^"]*\)".*/\1/p') && \
	echo tests/vm/run $(1) $$programs && $(SUDO) tests/vm/run $(1) $$programs)

fuzz-all: # each target for a few seconds, one line each; all that it printed if it finds something
	@cargo fuzz --version >/dev/null 2>&1 && command -v c++ >/dev/null || { \
		echo "fuzz: left out, there is no cargo-fuzz; the same targets ran above, in tests/fuzz_targets.rs"; exit 0; }; \
	echo cargo fuzz build --sanitizer none; cargo fuzz build --sanitizer none || exit 1; \
	for target in $(FUZZ_TARGETS); do \
		log=fuzz/target/$$target.log; \
		($(call fuzz,$$target) -max_total_time=$(FUZZ_SECONDS)) >$$log 2>&1 </dev/null || \
			{ cat $$log; echo "fuzz $$target: FAILED"; exit 1; }; \
		echo "fuzz $$target: $$(grep '^Done ' $$log), nothing found"; \
	done

fuzz: ## fuzz one target until it finds something or you stop it (TARGET=lines)
	@tests/setup test
	@test -d fuzz/corpus/$(or $(TARGET),?) || { echo "TARGET is one of: $(FUZZ_TARGETS)"; exit 2; }
	$(call fuzz,$(TARGET))

bench: ## measure
	@tests/setup test
	cargo $(AS_ROOT) bench $(LOCKED) --benches

lint: ## what is checked without running anything: format, clippy, documentation, licences
	@tests/setup ci
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo tree $(LOCKED) --manifest-path fuzz/Cargo.toml >/dev/null
	cargo clippy $(LOCKED) --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc $(LOCKED) --no-deps
	cargo deny $(LOCKED) check licenses bans sources

clean: ## remove what was built (what the fuzzer found stays)
	rm -rf target fuzz/target
