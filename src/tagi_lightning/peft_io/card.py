"""The README.md of an exported adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tagi_lightning.backbones.pretrained import PACKAGES
from tagi_lightning.data.instruction import Instruction
from tagi_lightning.markdown import aligned_table
from tagi_lightning.peft_io.usage import Kind

LOSES = (
    "This model gives the backbone more than LoRA: {pieces}. PEFT cannot hold that, so whoever loads this folder with "
    "PEFT alone runs a part of the adapter that was not trained to stand alone, and gets other answers. For use with "
    "PEFT train a TAGI-LoRA model (tagi.fusion.enabled=false, tagi.decoder_memory=false); this one loads whole with "
    "tagi_lightning.load(...).load_peft(...). {measured}"
)
"""Said of an adapter that PEFT does not hold whole."""

ELSEWHERE = (
    "`BACKBONE` is where the backbone lay when this was made{source}. Elsewhere give its folder there; tools that load "
    "the backbone by themselves find it in `adapter_config.json`, as `base_model_name_or_path`."
)
"""Said of a backbone that was loaded from a folder."""


def adapter_card(
    instruction: Instruction,
    backbone: str,
    usage: str,
    facts: Mapping[str, object],
    kind: Kind = "adapter",
    evaluated: str = "",
    loses: str = "",
) -> str:
    """Returns the text of a README.md.

    Args:
        instruction: What the adapter was made from, with the demonstrations that were shown.
        backbone: Where the backbone lies: an absolute path, or an id on the hub.
        usage: Python that answers inputs.
        facts: Rows of the table: digests, rank, versions.
        kind: adapter for a PEFT folder, merged for a whole model.
        evaluated: How the model was evaluated, in words; empty where nothing tells.
        loses: What PEFT cannot hold of the adapter, in words; empty where it holds all.
    """
    shown = [f"Input: {each.input}\nOutput: {each.output}" for each in instruction.demonstrations]
    is_folder = Path(backbone).is_absolute()
    base = "" if is_folder else f"base_model: {json.dumps(backbone)}\n"
    library = {"adapter": "library_name: peft\n", "merged": "library_name: transformers\n"}[kind]
    title = {"adapter": "A LoRA adapter", "merged": "A model with a LoRA merged into its weights,"}[kind]
    parts = [
        f"---\n{base}{library}tags: [lora, tagi]\n---",
        f"# {title} generated from an instruction",
        "A hypernetwork of tagi-lightning read this instruction and wrote the adapter:",
        quote("\n\n".join([instruction.text, *shown])),
    ]
    if loses:
        parts.append(f"**Not the whole adapter.** {loses}")
    parts += ["## Use", "The prompt is that of training, token by token:", f"```python\n{usage}\n```"]
    if kind == "adapter" and is_folder:
        name = Path(backbone).name
        source = f" (`make backbone BACKBONE={name}` gets it)" if name in PACKAGES else ""
        parts.append(ELSEWHERE.format(source=source))
    if evaluated:
        parts.append(evaluated)
    parts.append(aligned_table([("", ""), *((name, str(value)) for name, value in facts.items())], texts=2))
    return "\n\n".join(parts) + "\n"


def quote(text: str) -> str:
    """Returns `text` indented as code, which no text can break out of."""
    return "\n".join(f"    {line}" for line in text.splitlines())
