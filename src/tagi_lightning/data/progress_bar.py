"""Progress of long loops outside training: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(iterable: Iterable[Any] | None, description: str, unit: str, **kwargs: Any) -> tqdm[Any]:
    """Returns a bar that is drawn as often as what standard error leads to bears.

    Args:
        iterable: What is counted; None where the caller updates the bar.
        description: What goes on.
        unit: What one item is called.
        **kwargs: Further arguments of tqdm.
    """
    interval = 0.1 if sys.stderr.isatty() else 30.0
    return tqdm(iterable, description, unit=unit, mininterval=interval, **kwargs)
