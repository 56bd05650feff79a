"""A system: one YAML over the shared core, with the stages of its own and what it changes in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tagi_lightning.data.mapping_file import read_mapping
from tagi_lightning.data.report import shortened
from tagi_lightning.options import fits, flatten
from tagi_lightning.storage.run_layout import CHAIN

SECTIONS = ("tagi", "data", *CHAIN, "evaluate")
KEYS = frozenset({"title", "chain", "logits_teacher", "inherits", *SECTIONS})


@dataclass(frozen=True)
class System:
    """What a system changes of the stages as size and task set configure them.

    Attributes:
        name: Its file's name.
        title: What tables call it.
        chain: The stages that it trains in.
        sections: `tagi`, merged into the model of each of them; `data`, merged into the data of teachers, align and
            distill; and a section in the shape of a configuration file for any stage of the chain, and for evaluate.
        logits_teacher: Name of the system whose distilled model is the logits teacher; None for distill's own choice.
    """

    name: str
    title: str
    chain: tuple[str, ...]
    sections: Mapping[str, Any] = field(default_factory=dict)
    logits_teacher: str | None = None

    def part(self, stage: str) -> dict[str, Any]:
        """Returns what the system changes of a stage's configuration.

        Raises:
            ValueError: If the stage is one of `CHAIN` and not in the system's chain.
        """
        if stage in CHAIN and stage not in self.chain:
            own = ", ".join(self.chain) or "without any stage: it is not trained"
            raise ValueError(f"system {self.name} has no stage {stage}; its chain is {own}")
        part: dict[str, Any] = {}
        tagi, data = self.sections.get("tagi", {}), self.sections.get("data", {})
        if stage in CHAIN and tagi:
            part["model"] = {"init_args": {"tagi": tagi}}
        if stage == "distill":  # whatever a size does by itself
            source = ("none", *self.chain)[self.chain.index(stage)]
            part = merge(part, {"model": {"init_args": {"init_from": source}}})
        if stage == "teachers" and "lora" in tagi:
            part["model"] = {"init_args": {"lora": tagi["lora"]}}
        if stage in ("teachers", "align", "distill") and data:
            part["data"] = {"init_args": data}
        part = merge(part, self.sections.get(stage, {}))
        trained = dict(flatten(part)).get("model.init_args.tagi.trained_backbone", "none")
        if stage in CHAIN and trained != "none":  # 16 bits would lose most updates
            part = merge({"backbone": {"dtype": "float32"}}, part)
        return part

    def with_overrides(self, overrides: Mapping[str, Any]) -> System:
        """Returns the system with `overrides`, in the shape of a system's file, merged into it."""
        if not overrides:
            return self
        values = {"title": self.title, "chain": list(self.chain), "logits_teacher": self.logits_teacher}
        return _build(self.name, merge(values | dict(self.sections), overrides), f"the overrides of {self.name}")


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `base` with `over` merged into it: mappings key by key, anything else replaced."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def load_system(path: Path) -> System:
    """Reads a system's file, and those it inherits from beside it.

    Raises:
        FileNotFoundError: If there is no such file; the message lists those there are.
        ValueError: If the file is damaged, a key is unknown, or it is no system.
    """
    return _build(path.stem, _inherited(path, ()), str(path))


def _inherited(path: Path, heirs: tuple[Path, ...]) -> dict[str, Any]:
    if not os.path.isfile(path):  # unlike Path.is_file, it takes what can be no file's name
        raise FileNotFoundError(f"there is no system {shortened(str(path))}; {_choices(path.parent)}")
    if path in heirs:
        raise ValueError(f"{path} inherits from itself")
    values = read_mapping(path, f"its keys are of {', '.join(sorted(KEYS))}")
    parent = values.pop("inherits", None)
    if parent is None:
        return values
    if not isinstance(parent, str) or Path(parent).name != parent:
        raise ValueError(f"{path}: inherits must be the name of a system beside it, got {shortened(repr(parent))}")
    return merge(_inherited(path.parent / f"{parent}.yaml", (*heirs, path)), values)


def _choices(folder: Path) -> str:
    names = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    return f"choose from {names}" if names else f"{folder} holds none"


def _build(name: str, values: Mapping[str, Any], where: str) -> System:
    if unknown := sorted(values.keys() - KEYS):
        told = shortened(", ".join(unknown))
        raise ValueError(f"{where}: unknown keys {told}; choose from {', '.join(sorted(KEYS))}")
    chain = values.get("chain")
    if not isinstance(chain, list) or chain != [stage for stage in CHAIN if stage in chain]:
        told = shortened(repr(chain))
        raise ValueError(f"{where}: chain must be stages of {', '.join(CHAIN)} in this order, got {told}")
    sections = {key: values[key] for key in SECTIONS if key in values}
    if wrong := [key for key, section in sections.items() if not isinstance(section, Mapping)]:
        raise ValueError(f"{where}: {', '.join(wrong)} must be mappings")
    title, teacher = values.get("title", name), values.get("logits_teacher")
    if not fits(title, str) or not fits(teacher, str | None):
        raise ValueError(f"{where}: title and logits_teacher must be text")
    if teacher is not None and Path(teacher).name != teacher:
        raise ValueError(
            f"{where}: logits_teacher must be the name of a system beside it, got {shortened(repr(teacher))}"
        )
    return System(name, title, tuple(chain), sections, teacher)
