"""Plain text as Lightning sees it: batches, validation, resuming and mixing with tasks."""

import os
import time
from pathlib import Path

import lightning as L
import pytest
import torch
from transformers import AutoTokenizer

from data_modules.sni import SNIDataModule
from data_modules.text import BackboneDataModule, PlainTextDataModule
from tagi_lightning.data.batch import IGNORE_INDEX, TaskBatch, TextBatch
from tagi_lightning.data.synthetic import SyntheticConfig, write_synthetic


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "data"
    write_synthetic(folder, SyntheticConfig(train_instances=4, test_instances=2, documents_per_task=2))
    return folder


def settings(folder: Path, **other: object) -> dict:
    corpora, tokenizer = [str(folder / "corpus")], str(folder / "tokenizer")
    return {"corpora": corpora, "tokenizer": tokenizer, "cache_dir": str(folder / ".cache"), **other}


def ready(module: L.LightningDataModule) -> L.LightningDataModule:
    module.prepare_data()
    module.setup("fit")
    return module


def with_tasks(folder: Path, **other: object) -> BackboneDataModule:
    tasks = SNIDataModule(str(folder), str(folder / "tokenizer"), with_prompt=True)
    return ready(BackboneDataModule(**settings(folder, tasks=tasks, instruct=1.0, **other)))


def same(first: TextBatch | TaskBatch, second: TextBatch | TaskBatch) -> bool:
    sources = [batch.source if isinstance(batch, TextBatch) else batch.input for batch in (first, second)]
    return torch.equal(sources[0].ids, sources[1].ids) and torch.equal(first.labels, second.labels)


def test_segments_are_task_batches_of_whole_documents(folder: Path):
    module = ready(PlainTextDataModule(**settings(folder, batch_size=4, max_length=1024)))
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    documents = (folder / "corpus" / "train.txt").read_text().strip().split("\n\n")
    batches = list(module.train_dataloader())
    shown = set()
    for batch in batches:
        assert isinstance(batch, TaskBatch)
        assert batch.task_index.tolist() == list(range(len(batch)))
        labels = batch.labels.masked_fill(batch.labels == IGNORE_INDEX, 0)
        for row in range(len(batch)):
            parts = [batch.instruction.ids[row], batch.input.ids[row], labels[row]]
            shown.add(" ".join(tokenizer.decode(part, skip_special_tokens=True) for part in parts).replace(" ", ""))
    held_out = len(module.sequences[1])
    assert held_out >= 1
    assert shown < {document.replace(" ", "") for document in documents}
    assert len(shown) == len(documents) - held_out


def test_sequences_are_cut_to_the_limit(folder: Path):
    module = ready(PlainTextDataModule(**settings(folder, max_length=16)))
    for batch in module.train_dataloader():
        tokens = batch.instruction.mask.sum(1) + batch.input.mask.sum(1) + (batch.labels != IGNORE_INDEX).sum(1)
        assert int(tokens.max()) <= 16 + 3


def test_validation_is_the_same_in_every_epoch(folder: Path):
    module = ready(BackboneDataModule(**settings(folder, val_share=0.2, eval_batch_size=5)))
    first, second = list(module.val_dataloader()), list(module.val_dataloader())
    assert len(first) > 1
    assert all(same(*pair) for pair in zip(first, second, strict=True))
    assert sum(len(batch.source) for batch in first) == len(module.sequences[1])


def test_backbone_batches_are_text_and_tasks_by_weight(folder: Path):
    module = with_tasks(folder, span_corruption=1.0, prefix_lm=2.0)
    task_batches = len(list(module.tasks.train_dataloader()))
    batches = list(module.train_dataloader())
    assert all(isinstance(batch, TextBatch) for batch in batches)
    assert len(batches) == 4 * task_batches
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    prompts = [tokenizer.decode(batch.source.ids[0]) for batch in batches]
    assert sum("Now complete the following example" in prompt for prompt in prompts) == task_batches


@pytest.mark.parametrize("mixed", [False, True])
def test_an_interrupted_epoch_goes_on_where_it_stopped(folder: Path, mixed: bool):
    def loader() -> object:
        return (with_tasks(folder) if mixed else ready(PlainTextDataModule(**settings(folder)))).train_dataloader()

    whole = loader()
    whole.batch_sampler.set_epoch(1)
    expected = list(whole)
    stopped = loader()
    stopped.batch_sampler.set_epoch(1)
    iterator = iter(stopped)
    for _ in range(3):
        next(iterator)
    resumed = loader()
    resumed.load_state_dict(stopped.state_dict())
    rest = list(resumed)
    assert len(rest) == len(expected) - 3
    assert all(same(*pair) for pair in zip(rest, expected[3:], strict=True))


def test_workers_change_nothing(folder: Path):
    batches = [list(with_tasks(folder, num_workers=workers).train_dataloader()) for workers in (0, 2)]
    assert len(batches[0]) == len(batches[1])
    assert all(same(*pair) for pair in zip(*batches, strict=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_length": 2}, "max_length must be at least 3, got 2"),
        ({"val_share": 0.0}, "val_share must be above 0 and below 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"eval_batch_size": -1}, "eval_batch_size must be at least 1"),
        ({"max_val_sequences": -5}, "max_val_sequences must be at least 1"),
        ({"span_corruption": 0.0, "prefix_lm": 0.0}, "all 0"),
        ({"span_corruption": -1.0}, "span_corruption must be at least 0, got -1"),
        ({"instruct": 1.0}, "with_prompt"),
    ],
)
def test_wrong_settings_are_refused(folder: Path, wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        BackboneDataModule(**settings(folder, **wrong))


def test_too_little_text_is_refused(folder: Path, tmp_path: Path):
    (tmp_path / "short.txt").write_text("cat\n\ndog\n")
    module = PlainTextDataModule(**settings(folder) | {"corpora": [str(tmp_path)]})
    with pytest.raises(ValueError, match="at least 3 tokens"):
        ready(module)


@pytest.mark.realdata
def test_real_text_gives_long_sequences_quickly(tmp_path: Path):
    data, tokenizer = os.environ.get("TAGI_DATA"), os.environ.get("TAGI_TOKENIZER")
    if not data or not tokenizer:
        pytest.skip("TAGI_DATA or TAGI_TOKENIZER names no folder of real data")
    novels = sorted((Path(data) / "corpora" / "english_novels_subset").glob("*.txt"))[:3]
    start = time.perf_counter()
    module = ready(
        PlainTextDataModule(
            [str(path) for path in novels], tokenizer, document_unit="file", val_share=0.3, cache_dir=str(tmp_path)
        )
    )
    size = sum(path.stat().st_size for path in novels)
    assert size / (time.perf_counter() - start) > 100_000
    batch = next(iter(module.train_dataloader()))
    assert int(batch.instruction.mask.sum() + batch.input.mask.sum() + (batch.labels != IGNORE_INDEX).sum()) > 8 * 1000
