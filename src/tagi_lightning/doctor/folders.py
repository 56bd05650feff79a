"""Caches, the Hugging Face hub's settings, and the data folders with counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from huggingface_hub import constants

from tagi_lightning.data.p3.lists import P3Dataset, test_datasets, train_datasets
from tagi_lightning.data.report import MAX_SHOWN, DataError
from tagi_lightning.data.text import corpus_files
from tagi_lightning.doctor.finding import Finding

GIB = 2**30
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
TRUE = ("1", "on", "yes", "true")
"""Values that the hub's library takes for yes, in any case of letters."""


def size(folder: Path) -> int:
    """Returns the bytes of all files in a folder, links not followed."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def shown(names: Sequence[str]) -> str:
    """Returns the first of some names, and how many more there are."""
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(names[:MAX_SHOWN]) + more


def check_caches(folders: Sequence[Path]) -> Iterator[Finding]:
    """Tells the size of the token caches, and what interrupted starts left in them.

    Args:
        folders: Data folders, each with its cache in .cache.
    """
    caches = [path for folder in folders for path in (folder / ".cache", *folder.glob("*/.cache")) if path.is_dir()]
    if not caches:
        yield Finding("token caches", "ok", "none yet")
    for cache in caches:
        leftovers = sorted(path.name for path in cache.glob("writing-*"))
        text = f"{size(cache) / GIB:.2f} GiB in {cache}"
        if leftovers:
            text += f", with {len(leftovers)} unfinished: {shown(leftovers)}"
            yield Finding("token caches", "warning", text, "remove these where nothing is tokenising now")
        else:
            yield Finding("token caches", "ok", text)


def check_hub(environment: Mapping[str, str], cache: Path = Path(constants.HF_HUB_CACHE)) -> Iterator[Finding]:
    """Tells where hub ids are looked up, and whether the network is used for it.

    Args:
        environment: The environment's variables.
        cache: The hub's cache.
    """
    models = sorted(path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*"))
    told = f"{len(models)} models, {size(cache) / GIB:.1f} GiB: {shown(models)}" if models else "no model"
    yield Finding("hub cache", "ok", f"{cache} holds {told}")
    given = {name: environment[name] for name in OFFLINE if name in environment}
    flags = " ".join(f"{name}={value}" for name, value in given.items())
    offline = given.get(OFFLINE[0], "").lower() in TRUE
    if offline:
        yield Finding("offline", "ok", f"{flags}: hub ids load from the cache alone")
    elif any(value.lower() not in ("", "0", "off", "no", "false") for value in given.values()):
        text = f"{flags}, but {OFFLINE[0]} is not 1, and it alone decides for all libraries"
        yield Finding("offline", "warning", text, f"export {OFFLINE[0]}=1, or unset the others")
    else:
        yield Finding("offline", "ok", "hub ids are looked up in the network, then in the cache")


def check_data(folder: Path, corpora: Sequence[Path], named: bool) -> Iterator[Finding]:
    """Tells what the data folder holds.

    Args:
        folder: Holds synthetic/, sni/, p3/ with p3_templates/ beside it, and corpora/.
        corpora: Further files and folders of plain text.
        named: Whether the user named the folder.
    """
    if not folder.is_dir():
        state, advice = ("problem" if named else "warning"), "make data TASKSET=synthetic, or name it: --data FOLDER"
        yield Finding("data", state, f"there is no folder {folder}", advice)  # type: ignore[arg-type]
    elif not any((folder / name).is_dir() for name in ("synthetic", "sni", "p3", "corpora")):
        text = f"{folder} holds none of synthetic/, sni/, p3/ and corpora/"
        yield Finding("data", "warning", text, "make data TASKSET=synthetic, sni or p3")
    for name in ("synthetic", "sni"):
        if (folder / name).is_dir():
            yield check_tasks(folder / name, name)
    if (folder / "p3").is_dir():
        yield check_p3(folder / "p3")
    inside = [folder / "corpora"] if (folder / "corpora").is_dir() else []
    yield from (check_corpus(path) for path in (*inside, *corpora))


def check_tasks(folder: Path, taskset: str) -> Finding:
    """Counts the task files that the split lists name."""
    check, again = f"data, {taskset}", f"remove {folder}; make data TASKSET={taskset}"
    told, absent, empty = [], [], []
    for which in ("train", "test"):
        listed = folder / "splits" / "default" / f"{which}_tasks.txt"
        names = listed.read_text(encoding="utf-8", errors="replace").split() if listed.is_file() else []
        if not names:
            return Finding(check, "problem", f"{listed} is not there, or empty", again)
        files = [folder / "tasks" / f"{name}.json" for name in names]
        there = [file for file in files if file.is_file()]
        told.append(f"{len(there)} of {len(names)} {which} tasks")
        absent += [file.stem for file in files if file not in there]
        empty += [file.name for file in there if not file.stat().st_size]
    text = f"{' and '.join(told)} in {folder}"
    if empty:
        return Finding(check, "problem", f"{text}; empty: {shown(empty)}", again)
    if absent:
        advice = f"{again}; or go on without them: ARGS=--allow_missing=true"
        return Finding(check, "warning", f"{text}; absent: {shown(absent)}", advice)
    return Finding(check, "ok", text)


def check_p3(folder: Path) -> Finding:
    """Counts P3's data sets whose rows and templates are there."""
    templates, told, absent = folder.with_name(f"{folder.name}_templates"), [], []
    for which, datasets in (("training", train_datasets()), ("test", test_datasets())):
        missing = [each.name for each in datasets if not _has_rows(folder, each, which)]
        missing += [
            f"templates of {each.name}"
            for each in datasets
            if not (templates / each.template_folder / "templates.yaml").is_file()
        ]
        found = len(datasets) - len({name.removeprefix("templates of ") for name in missing})
        told.append(f"{found} of {len(datasets)} {which} sets")
        absent += missing
    text = f"{' and '.join(told)} in {folder}"
    if absent:
        advice = "make data TASKSET=p3 fetches rows; ARGS=--allow_missing=true goes on without them"
        return Finding("data, p3", "warning", f"{text}; absent: {shown(absent)}", advice)
    return Finding("data, p3", "ok", text)


def _has_rows(folder: Path, dataset: P3Dataset, which: str) -> bool:
    """Whether a data set's rows are there, raw or rendered, in any form that the reader knows."""
    split = "train" if which == "training" else "validation"
    names = (*dataset.row_folders, *map(dataset.rendered_folder, dataset.templates))
    return any(next((folder / name).glob(f"{split}*"), None) is not None for name in names)


def check_corpus(path: Path) -> Finding:
    """Tells the files and bytes of plain text in a folder or file."""
    try:
        files = corpus_files([path])
    except DataError as error:
        return Finding("corpora", "problem", " ".join(str(error).split()), "name another: --corpora '[FOLDER]'")
    return Finding(
        "corpora", "ok", f"{len(files)} files, {sum(f.stat().st_size for f in files) / 2**20:.1f} MiB in {path}"
    )
