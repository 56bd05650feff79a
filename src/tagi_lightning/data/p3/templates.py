"""promptsource's templates.yaml, read without promptsource."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tagi_lightning.data.report import DataReport
from tagi_lightning.data.task_file import read_text


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


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the C one is ten times faster
    """PyYAML's safe loader with promptsource's two tags, read as plain mappings."""


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
        document = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        report.error("not a file of templates", f"{path} ({' '.join(str(error).split())})")
        return {}
    entries = document.get("templates") if isinstance(document, dict) else None
    if not isinstance(entries, dict):
        report.error("not a file of templates", f"{path} (no mapping `templates`)")
        return {}
    found = {}
    for key, entry in entries.items():
        match entry:
            case {"name": str(name), "jinja": str(jinja)} if isinstance(entry.get("answer_choices"), str | None):
                found[name] = TemplateSource(name, jinja, entry.get("answer_choices") or "")
            case _:
                report.note("template without name, prompt or choices as text, left out", f"{path} ({key})")
    return found
