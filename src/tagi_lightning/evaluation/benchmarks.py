"""P3's averages over its eleven test tasks, beside the paper's own rows over the same tasks (Tables 3 and 10)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from statistics import fmean
from typing import Any

import yaml

ANLI = ("anli_r1", "anli_r2", "anli_r3")
STORY_CLOZE = "story_cloze_2016"
MTEST11 = (
    *ANLI,
    "hellaswag",
    "super_glue_cb",
    "super_glue_copa",
    "super_glue_rte",
    "super_glue_wic",
    "super_glue_wsc.fixed",
    "winogrande_winogrande_xl",
    STORY_CLOZE,
)
"""The test tasks, by P3's names."""

TABLE10 = dict(zip(("R1", "R2", "R3", "HS", "CB", "COPA", "RTE", "WiC", "WSC", "WGD", "SC"), MTEST11, strict=True))
"""The test tasks by the names of Table 10's columns."""


@cache
def paper_tables() -> dict[str, tuple[dict[str, Any], ...]]:
    """Returns the rows of the paper's tables and figures, as printed, by table2, figure3 and so on."""
    text = resources.files("tagi_lightning.evaluation").joinpath("paper.yaml").read_text(encoding="utf-8")
    return {name: tuple(rows) for name, rows in yaml.safe_load(text).items()}


def paper_table(name: str) -> tuple[dict[str, Any], ...]:
    """Returns the rows of one of the paper's tables, as printed."""
    return paper_tables()[name]


def table10_row(accuracies: Mapping[str, float]) -> dict[str, float | None]:
    """Returns what Table 10 prints of a system, by its columns' names; None for what `accuracies` do not give.

    Args:
        accuracies: Accuracy by task, 0 to 100; a row of the paper's may give the mean of ANLI alone, as `anli`.
    """
    rounds = [accuracies[task] for task in ANLI if task in accuracies]
    anli = fmean(rounds) if len(rounds) == len(ANLI) else accuracies.get("anli")
    averages = average(accuracies)
    columns = {name: accuracies.get(task) for name, task in TABLE10.items()}
    return {"ANLI": anli} | columns | {name: averages.get(name) for name in ("MTest11", "HyperT5")}


def average(accuracies: Mapping[str, float]) -> dict[str, Any]:
    """Averages accuracies over the test tasks that are there.

    Args:
        accuracies: Accuracy by task, 0 to 100; tasks that are not of the eleven are left out.

    Returns:
        With all eleven: `MTest11`, their mean, and `HyperT5`, the mean without StoryCloze and with ANLI counted once.
        Otherwise `mean` over the `k` present ones and the `missing`. Nothing where none is present.
    """
    present = {task: accuracies[task] for task in MTEST11 if accuracies.get(task) is not None}
    if not present:
        return {}
    if len(present) < len(MTEST11):
        missing = [task for task in MTEST11 if task not in present]
        return {"mean": fmean(present.values()), "k": len(present), "missing": missing}
    others = [present[task] for task in MTEST11 if task not in (*ANLI, STORY_CLOZE)]
    anli = fmean(present[task] for task in ANLI)
    return {"MTest11": fmean(present.values()), "HyperT5": fmean([anli, *others])}


def describe(system: str, by_task: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Returns lines with a system's averages over P3's test tasks, by both scoring rules; none where none was ranked.

    Args:
        system: What the lines call it.
        by_task: The `by_task` of its metrics.
    """
    lines = []
    for key, rule in (("accuracy_sum", "sum"), ("accuracy_mean", "mean per token")):
        found = average({task: scores[key] for task, scores in by_task.items() if key in scores})
        if found:
            lines.append(f"{system}, ranked by {rule}: {_shown(found)}")
    return lines


def paper_lines(tasks: Iterable[str]) -> list[str]:
    """Returns lines with the paper's rows of Table 10, averaged over those of `tasks` that are P3's test tasks."""
    wanted = [task for task in MTEST11 if task in set(tasks)]
    lines = []
    for row in paper_table("table10"):
        if wanted and all(task in row for task in wanted):
            name = row["row"] + (f" {row['size']}" if row["size"] != "any" else "")
            quoted = "" if row["source"] == "TAGI" else f" (quoted from {row['source']})"
            lines.append(f"paper, {name}{quoted}: {_shown(average({task: row[task] for task in wanted}))}")
    return lines


def _shown(found: Mapping[str, Any]) -> str:
    if "MTest11" in found:
        return f"MTest11 {found['MTest11']:.1f}, HyperT5 average {found['HyperT5']:.1f}"
    return f"mean over {found['k']} of {len(MTEST11)} {found['mean']:.1f}"
