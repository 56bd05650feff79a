"""JSON of unknown origin: what could be read in two ways, or stops something much later, is refused at once."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any


def parse_json(text: str, half_characters: bool = False) -> Any:
    """Returns the value that a JSON text holds.

    Args:
        text: The text; a byte order mark, with which some editors begin a file, is no part of it.
        half_characters: Take unpaired surrogates, which have no UTF-8, as they are.

    Raises:
        ValueError: If it is no JSON, is nested too deeply to be read, gives a key twice in one object, or holds an
            unpaired surrogate that is not asked for.
    """
    try:
        value = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_unique)
        if not half_characters and ("\\ud" in text or "\\uD" in text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"unpaired surrogate {error.object[error.start]!r}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object's keys and values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"key given twice: {Counter(key for key, _ in pairs).most_common(1)[0][0]!r}")
    return found
