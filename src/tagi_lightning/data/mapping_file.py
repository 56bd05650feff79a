"""Files that hold one mapping, JSON or YAML by their name: configurations, records, notes and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tagi_lightning.data.json_text import parse_json
from tagi_lightning.data.report import shortened
from tagi_lightning.data.yaml_text import MAX_DEPTH, parse_yaml


def read_mapping(path: Path, advice: str = "", error: type[ValueError] = ValueError) -> dict[str, Any]:
    """Returns the mapping in a file, JSON where it is named .json and YAML elsewhere.

    Args:
        path: The file.
        advice: What to do where it cannot be used, the end of the message.
        error: What is raised then.

    Raises:
        ValueError: If the file is missing, damaged or holds something else; of the kind `error`.
    """
    advice = f"; {advice}" if advice else ""
    if not path.is_file():
        raise error(f"there is no {path}{advice}")
    is_json = path.suffix == ".json"
    try:
        text = path.read_text(encoding="utf-8")
        values = parse_json(text) if is_json else parse_yaml(text)
        check_plain(values)
    except ValueError as problem:
        reason = shortened(" ".join(str(problem).split()))
        expected = "one mapping is expected, in " + ("JSON" if is_json else "YAML")
        raise error(f"{path} is damaged ({reason}): {expected}{advice}") from problem
    assert isinstance(values, dict)
    return values


def check_plain(values: Any) -> None:
    """Refuses what is no mapping of texts to values that JSON has, nested no deeper than anyone would write.

    Raises:
        ValueError: If it is none; the message says why.
    """
    if not isinstance(values, dict):
        raise ValueError(f"it holds no mapping but {type(values).__name__}")
    pending: list[tuple[Any, int]] = [(values, 1)]
    while pending:
        value, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        if isinstance(value, dict):
            if wrong := [key for key in value if not isinstance(key, str)]:
                raise ValueError(f"a key is no text but {wrong[0]!r}")
            pending += [(each, depth + 1) for each in value.values()]
        elif isinstance(value, list):
            pending += [(each, depth + 1) for each in value]
        elif not isinstance(value, str | int | float | None):
            raise ValueError(f"a value is no text, number or list but {type(value).__name__}")
