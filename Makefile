# make up      install what is needed, start fsd on a pool of its own with a small image in it
# make down    stop it and detach the pool; its content stays for the next `make up`
# make test    install what the tests need, run them
# make check   linters and type checker
# make bench   measure (minutes)
# make sanitize  the data plane's tests and random requests, every memory access checked
# make clean   make down, then delete the pool, the virtual environment and every build product

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

# Where `make up` keeps its store.
FSD_HOME ?= /var/lib/fsd
MOUNTPOINT ?= /run/fsd
GRAPHROOT := $(FSD_HOME)/storage
RUNROOT ?= /run/containers/fsd
STORAGE_CONF := $(FSD_HOME)/storage.conf
FSD := $(SUDO) env CONTAINERS_STORAGE_CONF=$(STORAGE_CONF) $(abspath $(BIN))/fsd
IMAGE := localhost/busybox:latest

PACKAGES := btrfs-progs busybox-static fuse3 gcc kmod libc6-dev libfuse3-dev mount pkg-config python3-dev python3-venv
TEST_PACKAGES := $(PACKAGES) acl attr bats buildah ca-certificates containers-storage crun debootstrap docker-registry \
	docker.io fio fuse-overlayfs git groff-base podman rsync skopeo sqlite3 strace stress-ng vim xfsprogs
BUILD_SCRIPTS := $(wildcard drivers/_*_build.py fsd/plane/_*_build.py)
GENERATED := $(BUILD_SCRIPTS:_build.py=.c)
BUILD_SOURCES := $(filter-out $(GENERATED),$(wildcard drivers/*.c drivers/*.h drivers/*/*.c drivers/*/*.h fsd/plane/*.c fsd/plane/*.h))
BUILD_INPUTS := $(VENV)/bin/python pyproject.toml setup.py $(BUILD_SCRIPTS) $(BUILD_SOURCES)
SANITIZE_TESTS ?= tests/test_rootfs.py tests/test_rootfs_bulk.py tests/test_rootfs_names.py tests/test_rootfs_views.py tests/test_posix.py
SANITIZE ?= address,undefined
comma := ,
# Found by the shell: when make reads this it may not be built yet.
SANITIZED_MODULE = $$(echo $(CURDIR)/build/sanitized-$(subst $(comma),-,$(SANITIZE))/fsd/plane/_plane.*.so)
RUNTIMES = $(foreach word,$(subst $(comma), ,$(SANITIZE)),$(shell gcc -print-file-name=lib$(RUNTIME_$(word)).so))
RUNTIME_address := asan
RUNTIME_undefined := ubsan
RUNTIME_thread := tsan
SANITIZED = env PYTHONPATH=$(CURDIR)/tests/sanitized FSD_PYTHON=$(abspath $(BIN))/python FSD_PRELOAD="$(RUNTIMES)" \
	FSD_SANITIZED=$(SANITIZED_MODULE) ASAN_OPTIONS=detect_leaks=0:exitcode=99 \
	UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=exitcode=66
# Three at a time: the tests wait for disks and for other programs more than they compute.
PYTEST_ARGS ?= -n 3 --dist worksteal

.PHONY: up down test check bench sanitize clean packages test-packages
.NOTPARALLEL:

up: packages $(VENV)/installed $(STORAGE_CONF)
	$(FSD) up $(MOUNTPOINT)
	@$(FSD) images $(IMAGE) >/dev/null 2>&1 || { \
		$(BIN)/python examples/busybox_rootfs.py | $(FSD) import - $(IMAGE); }
	@echo
	@echo "fsd is up. Look around:"
	@echo "  cat $(MOUNTPOINT)/README"
	@echo "  ls $(MOUNTPOINT)/images/$(IMAGE)/rootfs"
	@echo "  mkdir $(MOUNTPOINT)/containers/web && echo busybox > $(MOUNTPOINT)/containers/web/from"
	@echo "The same store for fsd and podman on the command line:"
	@echo "  export CONTAINERS_STORAGE_CONF=$(STORAGE_CONF)"
	@echo "  $(BIN)/fsd status"

down:
	@# Without the virtual environment, so that it works after that was removed.
	@if [ -e $(STORAGE_CONF) ]; then \
		$(SUDO) env CONTAINERS_STORAGE_CONF=$(STORAGE_CONF) PYTHONPATH=$(CURDIR) PYTHONDONTWRITEBYTECODE=1 \
			$(PYTHON) -m fsd down; \
	else echo "there is no store in $(FSD_HOME)"; fi

test: test-packages $(VENV)/installed-dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The data plane with every memory access checked. SANITIZE=thread looks for races instead. For a million
# requests: make sanitize FSD_FUZZ_REQUESTS=330000 (for each of three seeds) SANITIZE_TESTS=
sanitize: test-packages $(VENV)/installed-dev
	FSD_SANITIZE=$(SANITIZE) $(BIN)/python fsd/plane/_plane_build.py
	$(SANITIZED) tests/sanitized/python -m pytest $(PYTEST_ARGS) tests/fuzz/test_fuzz_plane.py $(SANITIZE_TESTS)

bench: test-packages $(VENV)/installed-dev
	$(BIN)/python -m tests.bench

clean: down
	$(SUDO) rm -rf --one-file-system $(FSD_HOME) $(RUNROOT)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f drivers/*.so fsd/plane/*.so $(GENERATED)
	find . -name __pycache__ -prune -exec rm -rf {} +

packages:
	@$(call install-missing,$(PACKAGES))

test-packages:
	@$(call install-missing,$(TEST_PACKAGES))

# $(call install-missing,PACKAGES): apt-get only what dpkg does not have; a failed download is tried once more.
define install-missing
	wanted="$(1)"; missing=; \
	for package in $$wanted; do \
		dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null | grep -q '^installed' || missing="$$missing $$package"; \
	done; \
	[ -z "$$missing" ] && exit 0; \
	echo "installing$$missing"; \
	apt="$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o Acquire::Retries=2"; \
	install="$$apt install --no-install-recommends -y $$missing"; \
	{ $$apt update; $$install || { $$apt update; $$install; }; } </dev/null >/dev/null
endef

$(STORAGE_CONF):
	$(SUDO) mkdir -p $(FSD_HOME)
	printf '[storage]\ndriver = "btrfs"\ngraphroot = "%s"\nrunroot = "%s"\n' $(GRAPHROOT) $(RUNROOT) | $(SUDO) tee $@ >/dev/null

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Compiled here, since who sets PYTHONDONTWRITEBYTECODE would compile them again for every process.
$(VENV)/installed: $(BUILD_INPUTS)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -e .
	$(BIN)/python -m compileall -q fsd drivers store
	@touch $@

$(VENV)/installed-dev: $(BUILD_INPUTS)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]'
	$(BIN)/python -m compileall -q fsd drivers store tests
	@touch $(VENV)/installed $@
