"""The Python of an exported adapter's card: it builds prompts token by token as in training, and answers them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tagi_lightning.backbones.base import GenerationConfig
from tagi_lightning.backbones.causal import CausalBackbone
from tagi_lightning.data.instruction import Instruction
from tagi_lightning.data.prompts import PromptForm
from tagi_lightning.peft_io.folders import location

if TYPE_CHECKING:
    from tagi_lightning.inference.instructed import InstructedModel

Kind = Literal["adapter", "merged"]
"""adapter for a PEFT folder, merged for a whole model."""

ADAPTER = """\
BACKBONE = {backbone}
FOLDER = "."  # where this README.md lies

tokenizer = AutoTokenizer.from_pretrained(BACKBONE)
model = {auto}.from_pretrained(BACKBONE, dtype=torch.float32)
model.generation_config = GenerationConfig({generation})
model = PeftModel.from_pretrained(model, FOLDER).eval()"""

MERGED = """\
FOLDER = "."  # where this README.md lies

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = {auto}.from_pretrained(FOLDER, dtype=torch.float32).eval()
model.generation_config = GenerationConfig({generation})"""

TOKENS = """\
def tokens(text, **options):
    return tokenizer(text, add_special_tokens=False, **options)["input_ids"]"""

SENTENCE = """\
    text = text.strip()
    if not text or text[-1] not in string.punctuation:
        text += "."  # as in training
"""

BARE = """\
    before, after = tokens({before!r}), tokens({after!r}){end}
    own = {own}[: {longest} - len(before) - len(after)]
    return {bos}before + own + after"""

CONCATENATED = """\
    before = tokens({start!r}) + {definition}
    examples = [{examples}]
    joint, after = tokens({before!r}), tokens({after!r}){end}
    room = {longest} - len(before) - len(joint) - len(after)
    own = {own}[:room]
    while sum(map(len, examples)) > room - len(own):
        examples.pop()  # those that fit beside the input are shown
    return {bos}before + sum(examples, []) + joint + own + after"""

NEVER_BLANK = """\
class NeverBlank(LogitsProcessor):
    def __init__(self, start):
        self.start = start

    def __call__(self, ids, scores):  # no answer ends before anything is said
        if not tokenizer.decode(ids[0, self.start :]).strip():
            scores[:, {ends}] = float("-inf")
        return scores"""

ANSWER = """\
def answer(text):
    ids = torch.tensor([prompt(text)])
    output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids){processor})
    said = tokenizer.decode(output[0, {start} :], skip_special_tokens=True).strip()
    return {said}


print(answer({example!r}))"""


@dataclass(frozen=True)
class Usage:
    """What the code is made for.

    Attributes:
        loaded: The model.
        instruction: What the adapter was made from, with the demonstrations that were shown.
        generation: How long answers are, and whether they are one line.
        kind: What is loaded.
    """

    loaded: InstructedModel
    instruction: Instruction
    generation: GenerationConfig
    kind: Kind = "adapter"

    def code(self) -> str:
        """Returns the code, which runs in the folder that the card lies in."""
        parts = ["\n\n".join([self._imports(), self._load()]), TOKENS, self._prompt()]
        if self._never_blank:
            parts.append(NEVER_BLANK.format(ends=self._ends))
        return "\n\n\n".join([*parts, self._answer()])

    @property
    def _is_causal(self) -> bool:
        return isinstance(self.loaded.model.backbone, CausalBackbone)

    @property
    def _is_plain(self) -> bool:
        return self.loaded.prompts.texts == "plain"

    @property
    def _ends(self) -> list[int]:
        backbone = self.loaded.model.backbone
        return list(backbone.eos_ids) if isinstance(backbone, CausalBackbone) else [backbone.model.config.eos_token_id]

    @property
    def _never_blank(self) -> bool:
        return self.generation.stop_at_newline and self._is_causal and bool(self._ends)

    @property
    def _auto(self) -> str:
        return "AutoModelForCausalLM" if self._is_causal else "AutoModelForSeq2SeqLM"

    def _imports(self) -> str:
        lines = [] if self._is_plain else ["import string\n"]
        lines += ["import torch"]
        lines += ["from peft import PeftModel"] if self.kind == "adapter" else []
        names = [self._auto, "AutoTokenizer", "GenerationConfig", *(["LogitsProcessor"] if self._never_blank else [])]
        return "\n".join([*lines, f"from transformers import {', '.join(names)}"])

    def _load(self) -> str:
        backbone, ends = self.loaded.model.backbone, self._ends
        options = {"max_new_tokens": self.generation.max_new_tokens, "eos_token_id": ends or None}
        if self._is_causal:
            options |= {"pad_token_id": ends[0] if ends else 0}
        else:
            own = backbone.model.config
            options |= {"pad_token_id": own.pad_token_id, "decoder_start_token_id": own.decoder_start_token_id}
        generation = ", ".join(f"{name}={value!r}" for name, value in options.items())
        text = ADAPTER if self.kind == "adapter" else MERGED
        return text.format(backbone=json.dumps(location(backbone)), auto=self._auto, generation=generation)

    def _prompt(self) -> str:
        loaded = self.loaded
        prompts, form, backbone = loaded.prompts, loaded.prompts.form, loaded.model.backbone
        alone = loaded.model.config.reads == "input" or self._is_plain
        start, before, after = self._frame(alone)
        parts = {"start": start, "before": before, "after": after, "longest": prompts.max_input_length}
        parts |= {"own": self._tokens("' ' + text" if form.input("").startswith(" ") else "text")}
        parts |= {"bos": "", "end": "" if self._is_causal else " + [tokenizer.eos_token_id]"}
        if isinstance(backbone, CausalBackbone) and backbone.bos_id is not None:
            parts |= {"bos": "[tokenizer.bos_token_id] + "}
        if not alone:
            shown = enumerate(self.instruction.demonstrations[: prompts.demonstrations], start=1)
            examples = [self._tokens(repr(form.demonstration(number, each))) for number, each in shown]
            parts |= {"definition": self._tokens(repr(form.definition(self.instruction.text)))}
            parts |= {"examples": ", ".join(examples)}
        body = (BARE if alone else CONCATENATED).format(**parts)
        return f"def prompt(text):\n{'' if self._is_plain else SENTENCE}{body}"

    def _frame(self, alone: bool) -> tuple[str, str, str]:
        """Returns what stands before an instruction, before an input, alone or after it, and after an input."""
        form, tokenizer = self.loaded.prompts.form, self.loaded.tokenizer
        if isinstance(form, PromptForm):
            return "", "" if alone else form.connection, form.cue
        frame = form.frame(tokenizer)
        start, before, after = (
            str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
            for ids in (frame.start, frame.opening if alone else frame.joint, frame.cue)
        )
        return start, before, after

    def _tokens(self, text: str) -> str:
        """Returns the call that tokenises a text of the data, in which decoder-only models read no special token."""
        return f"tokens({text}, split_special_tokens=True)" if self._is_causal else f"tokens({text})"

    def _answer(self) -> str:
        shown = self.instruction.demonstrations
        return ANSWER.format(
            processor=", logits_processor=[NeverBlank(ids.shape[1])]" if self._never_blank else "",
            start="ids.shape[1]" if self._is_causal else "1",
            said='said.partition("\\n")[0].strip()' if self.generation.stop_at_newline else "said",
            example=shown[0].input if shown else "your input",
        )
