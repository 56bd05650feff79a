"""`tagi data`: makes a synthetic task set, or fetches Super-NaturalInstructions or P3."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tagi_lightning.cli.command import options_of


def data(
    taskset: Literal["synthetic", "p3-synthetic", "sni", "p3"],
    folder: str,
    repository: str | None = None,
    seed: int = 0,
) -> None:
    """Make or fetch a task set.

    Args:
        taskset: synthetic writes generated tasks, p3-synthetic generated tasks in P3's shape; sni clones the official
            repository (shallow, tasks and splits only);
            p3 clones promptsource's templates to FOLDER_templates and fetches the rows from the Hugging Face hub, of
            test tasks also the training rows, of which demonstrations are.
        folder: Where to put it.
        repository: For sni and p3, another repository than the official one.
        seed: For synthetic and p3-synthetic, the seed of the tasks.
    """
    from tagi_lightning.data.fetch import PROMPTSOURCE, REPOSITORY, fetch_sni, fetch_templates
    from tagi_lightning.data.p3.fetch import fetch_rows
    from tagi_lightning.data.p3.lists import test_datasets, train_datasets
    from tagi_lightning.data.synthetic import SyntheticConfig, write_synthetic
    from tagi_lightning.data.synthetic_p3 import SyntheticP3Config, write_synthetic_p3

    if taskset == "synthetic":
        write_synthetic(Path(folder), SyntheticConfig(seed=seed))
    elif taskset == "p3-synthetic":
        write_synthetic_p3(Path(folder), SyntheticP3Config(seed=seed))
    elif taskset == "sni":
        fetch_sni(Path(folder), repository or REPOSITORY)
    else:
        templates = Path(f"{folder}_templates")
        if not templates.exists():
            fetch_templates(templates, repository or PROMPTSOURCE)
        fetch_rows(Path(folder), train_datasets(None), ("train",))
        fetch_rows(Path(folder), test_datasets(), ("train", "validation"))
    print(f"{taskset} tasks are in {folder}")


main = options_of(data)
