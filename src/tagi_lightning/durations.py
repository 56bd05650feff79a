"""Durations as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Returns a duration such as 1 h 05 min, 3 min 20 s or 12 s."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
