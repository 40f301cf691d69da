# make            build/nibble
# make demo       installs what is missing, builds, trains and runs a small model; under 6 minutes on 2 cores
# make demo-smollm2  fetches SmolLM2-135M-Instruct and makes a 4-bit GGUF of it; TIME=60m
# make test       installs what is missing, builds, runs the quick tests; `make test-all` runs all of them
# make bench      figures of this machine       make fuzz     10,000 mutated files of each format
# make install    PREFIX=/usr/local DESTDIR=    make asan     the quick tests under sanitizers
# make format     clang-format                  make tidy     clang-tidy
# By hand, without apt or root: tools/install.sh --print build test
BUILD ?= build
PREFIX ?= /usr/local
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
FUZZ ?= 10000
CLANG_FORMAT ?= clang-format-14
CLANG_TIDY ?= clang-tidy-14
CMAKE_FLAGS ?=
GENERATOR = $(if $(shell command -v ninja),-G Ninja)
SOURCES = $(wildcard src/*/*.[ch] tests/*.[ch] examples/*.[ch] bench/*.[ch])
configure = test -f $(1)/CMakeCache.txt || cmake -S . -B $(1) $(GENERATOR) $(2) $(CMAKE_FLAGS)
build = cmake --build $(1) -j $(JOBS)

.PHONY: all demo demo-smollm2 test test-all bench install asan fuzz format tidy clean
all:
	@$(call configure,$(BUILD)) || { tools/install.sh build; exit 1; }
	@$(call build,$(BUILD)) $(if $(wildcard src/cli/*.c),--target nibble)
demo:
	@tools/install.sh build
	@$(MAKE) --no-print-directory all
	@BUILD=$(BUILD) bash demo/demo.sh
demo-smollm2:
	@tools/install.sh build smollm2
	@$(MAKE) --no-print-directory all
	@BUILD=$(BUILD) bash demo/smollm2.sh
test:
	@tools/install.sh build test
	@$(call configure,$(BUILD))
	@$(call build,$(BUILD))
	@ctest --test-dir $(BUILD) --output-on-failure -L quick
test-all: test
	@ctest --test-dir $(BUILD) --output-on-failure -LE quick
bench:
	@tools/install.sh build
	@$(call configure,$(BUILD))
	@cmake -DNIBBLE_BENCH=ON $(BUILD) >/dev/null
	@env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE cmake --build $(BUILD) -j $(JOBS) --target bench
install: all
	@$(call build,$(BUILD))
	@cmake --install $(BUILD) --prefix $(PREFIX)
asan:
	@tools/install.sh build test
	@$(call configure,build-asan,-DNIBBLE_SANITIZE=ON -DCMAKE_BUILD_TYPE=Debug)
	@$(call build,build-asan)
	@ctest --test-dir build-asan --output-on-failure -L quick
fuzz:
	@tools/install.sh build test
	@$(call configure,build-asan,-DNIBBLE_SANITIZE=ON -DCMAKE_BUILD_TYPE=Debug)
	@$(call build,build-asan)
	@for f in build-asan/tests/fuzz_*; do test -x $$f -a -f $$f && $$f $(FUZZ) || exit 1; done
format:
	@tools/install.sh tidy
	@$(CLANG_FORMAT) -i $(SOURCES)
tidy:
	@tools/install.sh tidy
	@$(call configure,$(BUILD))
	@for f in $(filter src/%.c,$(SOURCES)); do $(CLANG_TIDY) --quiet -p $(BUILD) $$f 2>/dev/null; done
clean:
	@rm -rf $(BUILD) build-asan build-debug build-clang build-no-onednn
