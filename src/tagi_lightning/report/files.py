"""Reading what runs left: JSON and YAML files, options by dotted name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tagi_lightning.data.json_text import parse_json
from tagi_lightning.data.report import shortened
from tagi_lightning.data.yaml_text import parse_yaml
from tagi_lightning.options import flatten


class ReportError(ValueError):
    """A report that cannot be made, or a file it cannot use; the message names it and what to do."""


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        ReportError: If the file is missing, damaged or holds something else.
    """
    return _read(path, parse_json)


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file.

    Raises:
        ReportError: If the file is missing, damaged or holds something else.
    """
    return _read(path, parse_yaml)


PART = re.compile(r"/(systems|pretrain|teachers)/[^/]+$")
"""What a table's grid puts below the run folder that it shares among its rows."""


def read_options(path: Path) -> dict[str, Any]:
    """Returns a config.yaml's options by dotted name, with the path of the run's folder replaced by RUN.

    Raises:
        ReportError: If the file is missing or damaged.
    """
    options = dict(flatten(read_yaml(path)))
    shared = PART.sub("", str(options.get("run", "")))
    if not shared:
        return options
    return {key: value.replace(shared, "RUN") if isinstance(value, str) else value for key, value in options.items()}


def _read(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    if not path.is_file():
        raise ReportError(f"there is no {path}")
    try:
        values = parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{path} is damaged ({shortened(' '.join(str(error).split()))})") from error
    if not isinstance(values, dict):
        raise ReportError(f"{path} is damaged (no mapping but {type(values).__name__})")
    return values
