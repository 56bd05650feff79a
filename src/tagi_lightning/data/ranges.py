"""The ranges of options: one message for whatever is too small or too large."""

from __future__ import annotations

import math
from collections.abc import Mapping


def check_range(
    options: Mapping[str, float | None],
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
    otherwise: str = "",
) -> None:
    """Refuses numbers outside a range, and those that are not finite.

    Args:
        options: Values by the names of their options; None passes.
        least: The smallest that is allowed.
        above: What all must be above.
        most: The largest that is allowed.
        below: What all must be below.
        otherwise: What is allowed besides, and what it means, e.g. null for all.

    Raises:
        ValueError: If one is outside; the message names the option, what is allowed and the value.
    """
    limits = {"at least": least, "above": above, "at most": most, "below": below}
    allowed = " and ".join(f"{words} {limit:g}" for words, limit in limits.items() if math.isfinite(limit)) or "finite"
    allowed += f", or {otherwise}" if otherwise else ""
    for name, value in options.items():
        if value is None or (least <= value <= most and above < value < below):
            continue
        finite = "finite, " if value in (math.inf, -math.inf) and allowed != "finite" else ""
        raise ValueError(f"{name} must be {finite}{allowed}, got {value}")
