# The front door. Everything is built by Ninja below $(BUILD); scripts/configure writes the list of what to build.
#
#   make            both executables and the tests   make ARCHS="90"   for the given GPU architectures only
#   make demo       writes text with the model linked into the executable
#   make test       all tests but the long ones      make test-long    the long ones
#   make sanitize   compute-sanitizer, on a GPU      make clean

BUILD ?= build
ARCHS ?= 80 86 89 90 100 120

.PHONY: all programs demo test test-long sanitize clean configure
all: configure
	@ninja -C $(BUILD)

programs: configure
	@ninja -C $(BUILD) staged-gpt2 weights_tool

configure:
	@scripts/configure "$(BUILD)" "$(ARCHS)"

DEMO = $(BUILD)/staged-gpt2 --echo --stats --max-tokens 120 --temperature 0.6 --top-p 0.95 --seed 2 "class Stack:"
demo: programs
	@echo '$$ $(DEMO)'
	@$(DEMO)

test: all
	@BUILD=$(BUILD) $(BUILD)/tests --test-case-exclude='long:*,bench:*'

test-long: all
	@BUILD=$(BUILD) $(BUILD)/tests --test-case='long:*'

sanitize: all
	@scripts/sanitize "$(BUILD)"

clean:
	@rm -rf $(BUILD)
