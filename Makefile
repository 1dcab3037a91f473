# The verbs of this repository. A fresh Debian 12 machine with Rust and git needs `make demo` and `make test`.

SHELL := /bin/bash
CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR
BIN := $(CARGO_TARGET_DIR)/release
BULKHEAD := $(BIN)/bulkhead

BUILD_PACKAGES := bc bison busybox-static ca-certificates cpio curl e2fsprogs flex gcc libc6-dev libelf-dev libssl-dev make patch xz-utils
TEST_PACKAGES := $(BUILD_PACKAGES) apache2-utils debootstrap docker-registry erofs-utils expect iproute2 nftables openssl postgresql-client procps python3-venv qemu-system-x86 redis-tools skopeo strace umoci util-linux wrk
BENCH_PACKAGES := $(TEST_PACKAGES) containerd iperf3 podman python3 runc slirp4netns

.PHONY: help setup setup-test setup-bench build kernel-uml kernel-kvm demo test bench bench-image bench-net bench-vmm fuzz lint fmt install clean

help: ## Show the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{ printf "make %-12s %s\n", $$1, $$2 }'

setup: ## Install what building and the demo need (Debian packages)
	@scripts/apt-install.sh $(BUILD_PACKAGES)

setup-test:
	@scripts/apt-install.sh $(TEST_PACKAGES)

setup-bench:
	@scripts/apt-install.sh $(BENCH_PACKAGES)

build: setup ## Build the binaries and the initramfs
	@cargo build --release --locked --bin bulkhead --bin bulkhead-vmm --bin bulkhead-fs --bin bulkhead-net
	@agent/build-initramfs.sh $(BIN)/initramfs.cpio

kernel-uml: setup ## Build the guest kernel of the uml accelerator (cached outside the checkout)
	@guest-kernel/build.sh uml

kernel-kvm: setup ## Build the guest kernel of the kvm accelerator (cached outside the checkout)
	@guest-kernel/build.sh kvm

demo: build ## Build what is missing and run a first container
	@scripts/demo.sh $(BULKHEAD)

test: setup-test build kernel-uml kernel-kvm ## Run all tests
	@scripts/test.sh $(BULKHEAD)

bench: setup-bench build kernel-uml ## Time `run` beside runc, ctr and podman, and what the API costs
	@tests/bench/run.sh $(BULKHEAD)
	@python3 tests/bench/api.py $(BULKHEAD)

bench-image: setup-bench ## Time making an image ready beside podman, containerd and umoci
	@python3 image-unpack/benches/bench-image.py

bench-net: setup-bench build kernel-uml ## Networks (iperf3) and files (fio) beside podman with slirp4netns and runc with a bridge
	@python3 tests/bench/net.py $(BULKHEAD)

fuzz: setup ## Run the fuzzers, FUZZ_SECONDS each (60), beginning with the kept corpus
	@image-unpack/fuzz/run.sh
	@vmm/fuzz/run.sh

bench-vmm: setup-bench kernel-uml ## Time machines beside Firecracker's published figures, their disks and interfaces beside QEMU's
	@BULKHEAD_KERNEL_UML=$$(guest-kernel/build.sh uml --print-path) cargo bench --locked -p vmm --bench vmm

lint: ## Check formatting and run clippy
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --locked -- -D warnings

fmt: ## Format everything
	@cargo fmt --all

install: build ## Install below PREFIX (default /usr/local)
	install -D -m 755 $(BULKHEAD) $(DESTDIR)$(or $(PREFIX),/usr/local)/bin/bulkhead
	install -D -m 755 $(BIN)/bulkhead-vmm $(DESTDIR)$(or $(PREFIX),/usr/local)/lib/bulkhead/bulkhead-vmm
	install -D -m 755 $(BIN)/bulkhead-fs $(DESTDIR)$(or $(PREFIX),/usr/local)/lib/bulkhead/bulkhead-fs
	install -D -m 755 $(BIN)/bulkhead-net $(DESTDIR)$(or $(PREFIX),/usr/local)/lib/bulkhead/bulkhead-net
	install -D -m 644 $(BIN)/initramfs.cpio $(DESTDIR)$(or $(PREFIX),/usr/local)/lib/bulkhead/initramfs.cpio

clean: ## Remove what was built here (not the kernel cache)
	cargo clean
