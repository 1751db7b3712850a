# `make` lists what there is. Everything it needs is installed on the way, by tests/setup.

CAPTURE ?= $(firstword $(wildcard pcaps/vsftpd-curl-ipv4.pcap pcaps/*.pcap pcaps/*.pcapng))
FUZZ_SECONDS ?= 5
FUZZ_TARGETS := $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))

export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH):/usr/sbin:/sbin

# Where nobody is there to look, Cargo.lock must be as committed.
LOCKED := $(if $(CI),--locked)

# What runs on Debian's other kernels, in an emulated machine that is some twenty times slower than this one: modules of the
# test programs, or a program whose tests are in no module. Patterns will do. `sets` and `native` are the mechanisms; each
# has a machine of its own, as has the comparison with conntrackd.
#
# On 6.1, the oldest, all that asks the kernel for something. (The tests in `native*` name their mechanism themselves.
# Those in `systemd` ask systemd more than the kernel, and have run with sets on this machine.)
ON_6.1_sets := abort attacks_live deploy host_check iptables live ruleset_restore nat_* netlink overflow guarantee_* queue restart ruleset sandbox watchdog
ON_6.1_native := attacks_live data_dropped deploy ftps live nat_* native* guarantee_* restart systemd watchdog
ON_6.1_conntrackd := nat_dialogues reference
# On the two newer ones, what depends on the kernel most: transfers, NAT, restarts, the ruleset, expectations. Left out, to keep
# `.ci/run` under an hour, are the long ones (attacks_live, nat_dialogues, nat_matrix), and abort, deploy, host_check, iptables,
# netlink, overflow, queue, ruleset, sandbox, systemd, watchdog, the other guarantees, and the comparison with conntrackd.
# `make test-vm kernel=6.12 only="attacks_live netlink"` runs them there.
NEWER_KERNELS := live nat_crash_mid_rewrite nat_killed nat_edge_cases guarantee_kernel_is_the_database guarantee_narrowest_hole restart
# This machine's kernel has neither flowtables nor VRFs.
ON_6.12_sets := $(NEWER_KERNELS) containers flowtables vrf bridges synproxy zones ruleset_restore guarantee_saved_ruleset
ON_6.12_native := $(NEWER_KERNELS) containers native*
ON_sid_sets := $(NEWER_KERNELS) ftps ruleset_restore guarantee_saved_ruleset
ON_sid_native := $(NEWER_KERNELS) native*

# Where the tests are that a pattern names: PROGRAM:MODULE, or PROGRAM.
PROGRAMS := $(patsubst tests/%/main.rs,%,$(wildcard tests/*/main.rs))
modules = $(strip $(foreach program,$(PROGRAMS),$(patsubst tests/$(program)/%.rs,$(program):%,$(patsubst %/mod.rs,%.rs, \
	$(wildcard tests/$(program)/$(1).rs tests/$(program)/$(1)/mod.rs)))))
located = $(or $(call modules,$(1)),$(filter $(subst *,%,$(1)),$(PROGRAMS)),$(error there are no tests by the name $(1)))

# For `make test-vm`: which kernel, and which tests instead of the above.
kernel ?= 6.1
only ?=
# Of those, what runs in a machine.
ONLY_sets = $(filter-out conntrackd native%,$(only))
ONLY_native = $(filter $(ON_6.1_native:*=%),$(only))
ONLY_conntrackd = $(if $(filter conntrackd,$(only)),$(ON_6.1_conntrackd))

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
# Lists the tests that passed only the second time.
export PINHOLE_RETRIED := $(CURDIR)/target/retried
# What the emulated machines printed.
VM_OUTPUT := target/vm-output

SHELL := /bin/bash
.NOTPARALLEL:
.PHONY: help run demo replay test test-kernels test-vm fuzz-all fuzz bench lint clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

run: ## build, and run the service until Ctrl-C (POLICY=file, else the one in /etc/pinhole)
	@tests/setup run
	cargo $(AS_ROOT) run --quiet --release $(LOCKED) -- run $(if $(POLICY),--policy $(POLICY))

demo: ## build, and show it all in network namespaces of its own
	@tests/setup run
	cargo $(AS_ROOT) run --quiet --release $(LOCKED) -- demo

replay: ## build, and replay a capture: which data connections would have been let through (CAPTURE=file)
	@tests/setup
	cargo run --quiet --release $(LOCKED) -- replay $(CAPTURE)

test: ## every test on this kernel
	@tests/setup test
	cargo test $(LOCKED) --benches --no-run
	@rm -f $(PINHOLE_RETRIED)
	cargo --config 'target."cfg(unix)".runner="$(strip $(SUDO) tests/retry)"' test $(LOCKED) --workspace || { tests/retry --report; exit 1; }
	@tests/retry --report

test-kernels: ## what asks the kernel for something, on Debian's kernels 6.1, 6.12 and sid's, emulated
	@tests/setup test vm
	@$(call on_kernels,6.1 6.12 sid)

test-vm: ## the same on one of them (kernel=6.12), or some tests only (only="live nat_*")
	@tests/setup test $(kernel)
	@$(call on_kernels,$(kernel))

# Goes on when a machine fails, and says in the end what became of each.
on_kernels = rm -rf $(PINHOLE_RETRIED) $(VM_OUTPUT) && mkdir -p $(VM_OUTPUT) && \
	$(MAKE) --no-print-directory --keep-going \
		$(foreach kernel,$(1),$(foreach machine,sets native conntrackd,on-$(kernel)-$(machine))); status=$$?; \
	cat $(VM_OUTPUT)/* 2>/dev/null | grep -E '^vm: kernel .* (passed in|FAILED)'; \
	tests/retry --report && exit $$status

# Runs tests in a machine: on-KERNEL-MACHINE. Cargo says which programs it has built, one object a line.
on-%: override kernel = $(word 1,$(subst -, ,$*))
on-%: override machine = $(word 2,$(subst -, ,$*))
on-%: override tests = $(strip $(foreach name,$(if $(only),$(ONLY_$(machine)),$(ON_$(kernel)_$(machine))),$(call located,$(name))))
on-%: override programs = $(addprefix --test ,$(sort $(foreach test,$(tests),$(firstword $(subst :, ,$(test))))))
on-%:
	@$(if $(tests),set -fo pipefail; \
	echo cargo test $(LOCKED) --no-run $(programs) && cargo test $(LOCKED) --no-run $(programs) && \
	programs=$$(cargo test $(LOCKED) --quiet --no-run --message-format=json $(programs) | \
		sed -n 's/.*"kind":\["test"\].*"executable":"\([^"]*\)".*/\1/p') && \
	tests=$$(for test in $(tests); do for program in $$programs; do \
		case $$program in (*/$${test%%:*}-*) echo "$$program$${test#$${test%%:*}}";; esac; done; done) && \
	run="tests/vm/run tests/vm/$(machine:sets=tests)" && echo PINHOLE_VM_KERNEL=$(kernel) $$run $$tests && \
	{ PINHOLE_VM_KERNEL=$(kernel) $(SUDO) $$run $$tests | tee $(VM_OUTPUT)/$*; status=$$?; \
	sed -n 's/^vm: \(retry: .*\)/\1 ($(kernel), $(machine))/p' $(VM_OUTPUT)/$* >>$(PINHOLE_RETRIED); exit $$status; },:)

fuzz-all: ## fuzz each target for some seconds (FUZZ_SECONDS=5)
	@tests/setup fuzz
	cargo fuzz build --sanitizer none
	@for target in $(FUZZ_TARGETS); do \
		log=fuzz/target/$$target.log; \
		($(call fuzz,$$target) -max_total_time=$(FUZZ_SECONDS)) >$$log 2>&1 </dev/null || \
			{ cat $$log; echo "fuzz $$target: FAILED"; exit 1; }; \
		echo "fuzz $$target: $$(grep '^Done ' $$log), nothing found"; \
	done

fuzz: ## fuzz one target until it finds something or you stop it (TARGET=lines)
	@tests/setup fuzz
	@test -d fuzz/corpus/$(or $(TARGET),?) || { echo "TARGET is one of: $(FUZZ_TARGETS)"; exit 2; }
	@mkdir -p fuzz/found/$(TARGET)
	@! test -e fuzz/explored/$(TARGET).tar.gz || tar -xzf fuzz/explored/$(TARGET).tar.gz --skip-old-files -C fuzz/found/$(TARGET)
	$(call fuzz,$(TARGET))

bench: ## measure
	@tests/setup test
	cargo $(AS_ROOT) bench $(LOCKED) --benches

lint: ## what is checked without running anything: format, clippy, documentation, licences
	@tests/setup ci
	cargo fmt --all --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo tree $(LOCKED) --manifest-path fuzz/Cargo.toml >/dev/null
	cargo clippy $(LOCKED) --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc $(LOCKED) --workspace --no-deps
	cargo deny $(LOCKED) --workspace check licenses bans sources

clean: ## remove what was built (what the fuzzer found stays)
	rm -rf target fuzz/target
