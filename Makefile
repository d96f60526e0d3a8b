# SPDX-License-Identifier: MIT
# Thin wrappers over meson; `make help` lists them. Anything longer lives in scripts/.
BUILD ?= build
ARGS  ?=
SOAK_SECONDS ?= 3600

.DEFAULT_GOAL := build
.PHONY: help deps build demo test asan tsan verify kvm-rig soak fuzz bench check qemu10 install clean portability

help: ## Show this list.
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: ## Install the Debian packages that are missing (does nothing when none is).
	@scripts/deps.sh build

$(BUILD)/build.ninja:
	@scripts/deps.sh build
	meson setup $(BUILD) $(ARGS)

build: $(BUILD)/build.ninja ## Build the library, the tool and the tests.
	@ninja -C $(BUILD)

demo: $(BUILD)/build.ninja ## Move a running guest to a second process while its RAM is plugged and unplugged.
	@ninja -C $(BUILD) tool/guestram
	@$(BUILD)/tool/guestram demo

test: ## All tests (with CI=true also under ASan+UBSan and TSan).
	@scripts/test.sh

asan: ## All tests under ASan+UBSan.
	@scripts/test.sh asan

tsan: ## All tests under ThreadSanitizer.
	@scripts/test.sh tsan

verify: ## Check the models of the protocols exhaustively; FULL=1 for the large bounds.
	@scripts/deps.sh models
	@scripts/verify.sh

kvm-rig: ## The KVM tests on machines without /dev/kvm: a kernel under QEMU's TCG (minutes).
	@scripts/kvm-test.sh $(BUILD)

portability: ## The core on other machines, systems and page sizes (PLATFORMS="aarch64 windows": only those).
	@scripts/portability.sh $(PLATFORMS)

soak: $(BUILD)/build.ninja ## RCU's torture for SOAK_SECONDS (3600), with the process-wide fence and without.
	@ninja -C $(BUILD) tests/torture/torture_rcutorture
	@GR_TEST_SECONDS=$$(( $(SOAK_SECONDS) / 2 )) GR_TEST_TIMEOUT=$$(( $(SOAK_SECONDS) + 600 )) \
		$(BUILD)/tests/torture/torture_rcutorture
	@GR_TEST_SECONDS=$$(( $(SOAK_SECONDS) / 2 )) GR_TEST_TIMEOUT=$$(( $(SOAK_SECONDS) + 600 )) \
		GR_FORCE_FENCES=1 $(BUILD)/tests/torture/torture_rcutorture

fuzz: ## Fuzz every parser for FUZZ_SECONDS (60) each.
	@scripts/fuzz.sh

bench: ## Build and run the benchmarks against their peers.
	@scripts/bench.sh

qemu10: ## Fetch and unpack a newer QEMU for the tests (not installed).
	@scripts/qemu10.sh

check: ## Static checks: layers, headers alone, exported symbols, documents, format.
	@scripts/check.sh

install: build ## Install library, tool, headers, pkg-config file and man pages.
	meson install -C $(BUILD)

clean: ## Remove every build folder.
	rm -rf build build-*
