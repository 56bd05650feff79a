"""A bank of teachers trained together, against PEFT LoRA runs that take turns on the same examples."""

from __future__ import annotations

import copy
from statistics import median
from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from tagi_lightning.backbones import Backbone
from tagi_lightning.backbones.compilation import compile_forward, has_compiler
from tagi_lightning.bench.measure import Result, in_turn, summarize
from tagi_lightning.bench.shapes import backbone, random_tokens
from tagi_lightning.costs.lengths import OUTPUT
from tagi_lightning.data.batch import Tokens
from tagi_lightning.lora import LoraBank, LoraConfig, initial_a
from tagi_lightning.teachers.bank_optimizer import BankAdamW
from tagi_lightning.teachers.teaching import teacher_losses

TEACHERS = 16

CASES = {"teachers_1x64": (1, 64, 0.33), "teachers_8x202": (8, 202, 0.95)}
"""Examples of a teacher in one step, their tokens (instruction and input: 93 + 109), and the figure aimed at."""

AT_ONCE = 32
"""Examples in one batch at most; a step of more accumulates, as the stage does with accumulate_grad_batches."""

RATE, MAX_NORM = 1e-4, 1.0

Examples = tuple[Tokens, Tensor]


class Together:
    """A bank in which every teacher has the same number of examples in each step, teacher by teacher."""

    def __init__(self, model: Backbone, examples: Examples, each: int) -> None:
        """Takes the frozen model and `each` examples of every teacher."""
        config = LoraConfig()
        self.model, self.examples, self.each = model, examples, each
        self.bank = LoraBank(model.sites(config), config, [str(teacher) for teacher in range(TEACHERS)])
        self.optimizer = BankAdamW(self.bank.parameters(), RATE)

    def step(self) -> None:
        """Makes one step of all teachers."""
        self.optimizer.zero_grad()
        prompt, labels = self.examples
        at_once = max(1, AT_ONCE // self.each)
        for first in range(0, TEACHERS, at_once):
            category = torch.arange(first, min(first + at_once, TEACHERS))
            index = torch.arange(len(category)).repeat_interleave(self.each)
            rows = slice(first * self.each, (first + len(category)) * self.each)
            batch = Tokens(prompt.ids[rows], prompt.mask[rows]), labels[rows]
            teacher_losses(self.model, self.bank, *batch, category, index).sum().backward()
            self.optimizer.count(category[index])
        self.optimizer.average_and_clip(MAX_NORM)
        self.optimizer.step()


def plain_model(model: Backbone) -> T5ForConditionalGeneration:
    """Returns transformers' own T5 with the weights of `model`, frozen."""
    plain: Any = T5ForConditionalGeneration(copy.deepcopy(model.model.config))  # type: ignore[arg-type]
    # the configuration class ties every T5; an output layer of its own makes room for untied weights
    plain.lm_head.weight = nn.Parameter(torch.empty_like(plain.lm_head.weight))
    plain.load_state_dict(model.model.state_dict())
    plain.requires_grad_(False)
    return plain.eval()  # type: ignore[no-any-return]


class InTurn:
    """One PEFT model a teacher over the same frozen weights, each with the optimizer that Trainer takes."""

    def __init__(self, model: Backbone, examples: Examples, each: int) -> None:
        """Takes the frozen model and `each` examples of every teacher."""
        config, plain = LoraConfig(), plain_model(model)
        self.examples, self.each = examples, each
        frozen: dict[int, Any] = {id(parameter): parameter for parameter in plain.parameters()}
        settings = PeftConfig(r=config.rank, lora_alpha=2 * config.rank, target_modules=list(config.targets))
        self.runs = []
        for _ in range(TEACHERS):
            run: Any = get_peft_model(copy.deepcopy(plain, dict(frozen)), settings)
            with torch.no_grad():
                for site in model.sites(config):
                    layer = run.base_model.model.get_submodule(site.name)
                    layer.lora_A["default"].weight.copy_(initial_a(site, config))
            trained = [parameter for parameter in run.parameters() if parameter.requires_grad]
            self.runs.append((run, trained, torch.optim.AdamW(trained, RATE, weight_decay=0.0, fused=True)))

    def step(self) -> None:
        """Makes one step of each teacher."""
        prompt, labels = self.examples
        for teacher, (run, trained, optimizer) in enumerate(self.runs):
            rows = slice(teacher * self.each, (teacher + 1) * self.each)
            optimizer.zero_grad()
            run(input_ids=prompt.ids[rows], attention_mask=prompt.mask[rows], labels=labels[rows]).loss.backward()
            nn.utils.clip_grad_norm_(trained, MAX_NORM)
            optimizer.step()


def teachers_together(size: str, repeats: int) -> list[Result]:
    """Forward, backward, clipping and AdamW of sixteen teachers, together and as PEFT runs in turn.

    Where there is a C++ compiler the bank also runs on a compiled backbone (`backbone.compile`).
    """
    model, results = backbone(size), []
    models = {"": model}
    if has_compiler():
        models["_compiled"] = backbone(size)
        compile_forward(models["_compiled"])
    for name, (each, length, at_most) in CASES.items():
        prompt = random_tokens(TEACHERS * each, length, model.vocabulary_size, seed=0)
        examples = prompt, random_tokens(TEACHERS * each, OUTPUT, model.vocabulary_size, seed=1).ids
        banks = [Together(each_model, examples, each).step for each_model in models.values()]
        times = in_turn([*banks, InTurn(model, examples, each).step], repeats)
        for place, suffix in enumerate(models):
            parts = {"together": median(row[place] for row in times), "in_turn": median(row[-1] for row in times)}
            compares = (
                f"{TEACHERS} teachers, {each} x {length} tokens each: a bank{suffix.replace('_', ', ')} / PEFT in turn"
            )
            ratios = [row[place] / row[-1] for row in times]
            results.append(summarize(name + suffix, compares, ratios, at_most, size=size, seconds=parts))
    return results
