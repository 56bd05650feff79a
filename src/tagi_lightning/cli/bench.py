"""`tagi bench`: ratios of two things timed in turn, as a table and as JSON."""

from __future__ import annotations

import sys
from pathlib import Path

from tagi_lightning.cli.command import options_of, words
from tagi_lightning.data.ranges import check_range


def bench(
    cases: list[str] | str | None = None, size: str = "small", repeats: int = 7, output: str | None = None
) -> None:
    """Run the benchmark.

    Args:
        cases: Groups of cases, e.g. padding or [padding,rank]; all where none is named.
        size: Built-in size of the models, with random weights.
        repeats: Paired repeats of each case.
        output: JSON file for the figures, with machine, threads, versions and commit.
    """
    import torch

    from tagi_lightning.bench import CASES
    from tagi_lightning.bench.measure import table
    from tagi_lightning.cli.runs import environment, write_json

    check_range({"--repeats": repeats}, least=1)
    wanted = words(cases) or list(CASES)
    if unknown := [name for name in wanted if name not in CASES]:
        raise ValueError(f"unknown cases {', '.join(unknown)}; choose from {', '.join(CASES)}")
    results = []
    for name in wanted:
        print(f"bench: {name}", file=sys.stderr, flush=True)
        results += CASES[name](size, repeats)
    print(table(results))
    if missed := [result.case for result in results if result.at_most is not None and result.ratio > result.at_most]:
        print(f"above their aim, which is set for two CPU threads and size small: {', '.join(missed)}")
    if output:
        facts = {"threads": torch.get_num_threads(), "device": "cpu", **environment()}
        write_json(Path(output), {"results": [result.to_json() for result in results], **facts})


main = options_of(bench)
