"""promptsource's templates.yaml, read without promptsource."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tagi_lightning.data.report import DataReport
from tagi_lightning.data.task_file import read_text
from tagi_lightning.data.yaml_text import Loader, parse_yaml


@dataclass(frozen=True, slots=True)
class TemplateSource:
    """A template as it stands in the file.

    Attributes:
        name: Unique within its file.
        jinja: Prompt and targets, separated by |||.
        answer_choices: Jinja of the answer choices, separated by |||; empty where the template has none.
    """

    name: str
    jinja: str
    answer_choices: str = ""


class _Loader(Loader):
    """Plain types, and promptsource's two tags read as mappings."""


def _mapping(loader: Any, node: yaml.MappingNode) -> dict[Any, Any]:
    mapping: dict[Any, Any] = loader.construct_mapping(node, deep=True)
    return mapping


for _tag in ("!Template", "!TemplateMetadata"):
    _Loader.add_constructor(_tag, _mapping)


def read_templates(path: Path, report: DataReport) -> dict[str, TemplateSource]:
    """Reads the templates of one data set, by name.

    Args:
        path: A templates.yaml.
        report: Receives an error for a file that cannot be read, and notes templates without a name or prompt.
    """
    text = read_text(path, report)
    if text is None:
        return {}
    try:
        document = parse_yaml(text, _Loader)
    except ValueError as error:
        report.error("not a file of templates", f"{path} ({error})")
        return {}
    entries = document.get("templates") if isinstance(document, dict) else None
    if not isinstance(entries, dict):
        report.error("not a file of templates", f"{path} (no mapping `templates`)")
        return {}
    found = {}
    for key, entry in entries.items():
        match entry:
            case {"name": str(name), "jinja": str(jinja)} if isinstance(entry.get("answer_choices"), str | None):
                if name in found:
                    report.note("template's name given twice, the last one taken", f"{path} ({name})")
                found[name] = TemplateSource(name, jinja, entry.get("answer_choices") or "")
            case _:
                report.note("template without name, prompt or choices as text, left out", f"{path} ({key})")
    return found
