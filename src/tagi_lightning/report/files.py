"""Reading what runs left: JSON and YAML files, options by dotted name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tagi_lightning.data.mapping_file import read_mapping
from tagi_lightning.options import flatten


class ReportError(ValueError):
    """A report that cannot be made, or a file it cannot use; the message names it and what to do."""


def read_file(path: Path) -> dict[str, Any]:
    """Returns the mapping in a JSON or YAML file.

    Raises:
        ReportError: If the file is missing, damaged or holds something else.
    """
    return read_mapping(path, error=ReportError)


PART = re.compile(r"/(systems|pretrain|teachers)/[^/]+$")
"""What a table's grid puts below the run folder that it shares among its rows."""


def read_options(path: Path) -> dict[str, Any]:
    """Returns a config.yaml's options by dotted name, with the path of the run's folder replaced by RUN.

    Raises:
        ReportError: If the file is missing or damaged.
    """
    options = dict(flatten(read_file(path)))
    shared = PART.sub("", str(options.get("run", "")))
    if not shared:
        return options
    return {key: value.replace(shared, "RUN") if isinstance(value, str) else value for key, value in options.items()}
