"""The README.md of an exported adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal

from tagi_lightning.data.instruction import Instruction

LOSES = (
    "This model gives the backbone more than LoRA: {pieces}. PEFT cannot hold that, so whoever loads this folder with "
    "PEFT alone runs a part of the adapter that was not trained to stand alone, and gets other answers. For use with "
    "PEFT train a TAGI-LoRA model (tagi.fusion.enabled=false, tagi.decoder_memory=false); this one loads whole with "
    "tagi_lightning.peft_io.load_adapter. {measured}"
)
"""Said of an adapter that PEFT does not hold whole."""

USE = """\
from peft import PeftModel
from transformers import {auto}

model = {auto}.from_pretrained({backbone})
model = PeftModel.from_pretrained(model, "this folder")"""


def adapter_card(
    instruction: Instruction,
    template: str,
    backbone: str,
    is_encoder_decoder: bool,
    facts: Mapping[str, object],
    kind: Literal["adapter", "merged"] = "adapter",
    loses: str = "",
) -> str:
    """Returns the text of a README.md.

    Args:
        instruction: What the adapter was made from, with the demonstrations that were shown.
        template: The text that the model reads, `{input}` standing for an input.
        backbone: Name of the backbone.
        is_encoder_decoder: Whether it is a T5.
        facts: Rows of the table: digests, rank, versions.
        kind: adapter for a PEFT folder, merged for a whole model.
        loses: What PEFT cannot hold of the adapter, in words; empty where it holds all.
    """
    shown = [f"Input: {each.input}\nOutput: {each.output}" for each in instruction.demonstrations]
    auto = "AutoModelForSeq2SeqLM" if is_encoder_decoder else "AutoModelForCausalLM"
    library = {"adapter": "library_name: peft\n", "merged": "library_name: transformers\n"}[kind]
    title = {"adapter": "A LoRA adapter", "merged": "A model with a LoRA merged into its weights,"}[kind]
    parts = [
        f"---\nbase_model: {json.dumps(backbone)}\n{library}tags: [lora, tagi]\n---",
        f"# {title} generated from an instruction",
        "A hypernetwork of tagi-lightning read this instruction and wrote the adapter:",
        quote("\n\n".join([instruction.text, *shown])),
    ]
    if loses:
        parts.append(f"**Not the whole adapter.** {loses}")
    if kind == "adapter":
        parts += ["## Use", quote(USE.format(auto=auto, backbone=json.dumps(backbone)))]
    parts += [
        "The model was trained to read its inputs in this form:",
        quote(template),
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]),
    ]
    return "\n\n".join(parts) + "\n"


def quote(text: str) -> str:
    """Returns `text` indented as code, which no text can break out of."""
    return "\n".join(f"    {line}" for line in text.splitlines())
