import json
import os
import time
from collections import Counter
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from data_modules import CustomDataModule, SNIDataModule, SyntheticDataModule
from data_modules.evaluation import EvaluationData
from data_modules.instruction import InstructionDataModule
from tagi_lightning.data.report import DataError
from tagi_lightning.data.synthetic import SyntheticConfig

pytestmark = pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")

CONFIG = SyntheticConfig(train_instances=14, test_instances=5, documents_per_task=1)
SMALL = {"tasks_per_batch": 8, "max_train_instances": 6, "max_test_instances": 4, "pool_batches": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthetic") / "data"
    SyntheticDataModule(str(path), synthetic=CONFIG, **SMALL).prepare_data()
    return path


def module(folder, **options):
    data = SyntheticDataModule(str(folder), synthetic=CONFIG, **{**SMALL, **options})
    data.setup("fit")
    return data


def ids(loader):
    return [batch.ids for batch in loader]


def test_prepare_writes_the_tasks_and_one_cache_that_setup_reads(folder):
    before = {path: path.stat().st_mtime_ns for path in (folder / ".cache").rglob("*")}
    data = module(folder)
    data.prepare_data()
    assert {path: path.stat().st_mtime_ns for path in (folder / ".cache").rglob("*")} == before
    assert len(data.tasks["train"]) == 6 * len(data.splits.train)
    assert data.categories == tuple(sorted({task.category for task in data.splits.train}))
    assert "validation" not in data.tasks
    assert data.val_dataloader() == []


def test_second_start_reads_no_task_until_its_texts_are_asked_for(folder, monkeypatch):
    first = module(folder)
    first.prepare_data()
    with monkeypatch.context() as patch:
        patch.setattr("data_modules.sni.read_sni", lambda *args, **kwargs: pytest.fail("read again"))
        second = module(folder)
        second.prepare_data()
        assert ids(second.train_dataloader()) == ids(first.train_dataloader())
        assert ids(second.test_dataloader()) == ids(first.test_dataloader())
        assert second.categories == first.categories
        assert second.report.notes == first.report.notes
        with pytest.raises(pytest.fail.Exception, match="read again"):
            module(folder, seed=1)
    task = first.splits.test[0]
    assert second.find_task(task.name) == task


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("seed", 1),
        ("max_train_instances", 5),
        ("max_test_instances", 3),
        ("categories", ["last"]),
        ("val_split", "tasks"),
        ("allow_missing", True),
    ],
)
def test_every_option_of_reading_counts(folder, option, value):
    assert module(folder, **{option: value}).read_options != module(folder).read_options


def test_training_batches_are_rectangular_padded_and_complete(folder):
    data = module(folder, with_prompt=True, setting="def+2pos", instances_per_task=3)
    seen = Counter()
    for batch in data.train_dataloader():
        tasks, examples = len(batch.tasks), len(batch)
        assert batch.instruction.ids.shape[0] == batch.category.shape[0] == tasks <= 8
        assert batch.input.ids.shape[0] == batch.prompt.ids.shape[0] == batch.labels.shape[0] == examples <= 24
        assert batch.prompt.ids.shape[1] > batch.input.ids.shape[1]
        assert (batch.input.mask.sum(1).max(), batch.instruction.mask.sum(1).max()) == (
            batch.input.ids.shape[1],
            batch.instruction.ids.shape[1],
        )
        assert (batch.category >= 0).all()
        seen.update((batch.tasks[row], each) for row, each in zip(batch.task_index.tolist(), batch.ids, strict=True))
    assert seen == Counter((task.name, row.id) for task in data.splits.train for row in task.instances)


def test_category_is_the_place_among_the_training_categories(folder):
    data = module(folder)
    category = {task.name: task.category for task in data.splits.train}
    for batch in data.train_dataloader():
        assert [data.categories[place] for place in batch.category.tolist()] == [category[name] for name in batch.tasks]


def test_order_does_not_depend_on_workers_and_differs_between_epochs(folder):
    here, workers = module(folder).train_dataloader(), module(folder, num_workers=2).train_dataloader()
    first = ids(here)
    assert ids(workers) == first == ids(here)
    here.batch_sampler.set_epoch(1)
    assert ids(here) != first


def test_setting_decides_how_many_demonstrations_are_shown(folder):
    widths = [
        next(iter(module(folder, setting=s).test_dataloader())).instruction.mask.sum() for s in ("def", "def+2pos")
    ]
    assert widths[1] > widths[0]
    with pytest.raises(ValueError, match="allowed: def, def\\+2pos"):
        module(folder, setting="def+1pos")


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("max_test_instances", -1, "at least 1, or null for all"),
        ("max_test_instances", 0, "at least 1, or null for all"),
        ("max_train_instances", -100, "at least 1"),
        ("tasks_per_batch", 0, "at least 1"),
        ("instances_per_task", -2, "at least 1"),
        ("eval_batch_size", 0, "at least 1"),
        ("pool_batches", 0, "at least 1"),
        ("max_input_length", -1, "at least 1"),
        ("max_output_length", 0, "at least 1"),
        ("max_demonstrated_length", 0, "at least 1, or null for max_input_length"),
        ("demonstrations", -2, "at least 0"),
        ("num_workers", -1, "at least 0"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_read(option, value, allowed):
    with pytest.raises(ValueError, match=f"^{option} must be {allowed}, got {value}$"):
        SyntheticDataModule("nowhere", **{option: value})


def test_shares_out_of_range_are_refused_before_anything_is_read():
    with pytest.raises(ValueError, match=r"^val_share must be above 0 and below 1, got 1"):
        SNIDataModule("nowhere", "tokenizer", val_split="tasks", val_share=1.0)
    with pytest.raises(ValueError, match=r"^test_share must be at least 0 and at most 1, got 2"):
        CustomDataModule("nowhere", "tokenizer", test_share=2)


def test_test_loader_holds_every_test_instance_with_its_references(folder):
    data = module(folder)
    found = {}
    for batch in data.test_dataloader():
        rows = zip(batch.task_index.tolist(), batch.ids, batch.inputs, batch.references, strict=True)
        found |= {(batch.tasks[row], each): (text, references) for row, each, text, references in rows}
    assert found == {
        (task.name, row.id): (row.input, row.references) for task in data.splits.test for row in task.instances
    }


def test_held_out_instances_are_of_training_tasks_and_never_trained_on(folder):
    data = module(folder)
    trained = {each for batch in data.train_dataloader() for each in batch.ids}
    held_out = list(data.held_out_dataloader())
    assert all((batch.category >= 0).all() for batch in held_out)
    unseen = {each for batch in held_out for each in batch.ids}
    assert len(unseen) == (14 - 6) * len(data.splits.train)
    assert not unseen & trained


def test_validation_is_held_out_of_training(folder):
    data = module(folder, val_split="tasks", val_share=0.2)
    trained = {name for batch in data.train_dataloader() for name in batch.tasks}
    validated = {name for batch in data.val_dataloader() for name in batch.tasks}
    assert validated == {task.name for task in data.splits.validation}
    assert not trained & validated


def test_instruction_batches_show_every_training_task_once(folder):
    data = module(folder, instructions_only=True)
    batches = list(data.train_dataloader())
    names = [name for batch in batches for name in batch.tasks]
    assert sorted(names) == sorted(task.name for task in data.splits.train)
    assert {len(batch) for batch in batches} == {0}
    assert max(len(batch.tasks) for batch in batches) == 8


def test_ranks_share_each_batch(folder, monkeypatch):
    whole = ids(module(folder).train_dataloader())
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(InstructionDataModule, "_place", (rank, 2))
        parts.append(ids(module(folder).train_dataloader()))
    assert [left + right for left, right in zip(*parts, strict=True)] == whole


def test_definition_longer_than_the_limit_stops_before_training(folder):
    with pytest.raises(DataError, match="definition alone longer than max_input_length=8"):
        module(folder, max_input_length=8).prepare_data()


def test_custom_rows_become_batches(folder, tmp_path):
    rows = [
        {"task": f"t{n % 3}", "instruction": f"Say {n % 3}", "input": f"fig {n}", "output": f"{n}"} for n in range(12)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    data = CustomDataModule(str(path), str(folder / "tokenizer"), test_share=0.34, tasks_per_batch=2)
    data.prepare_data()
    assert sum(len(batch) for batch in data.train_dataloader()) == 8
    assert sum(len(batch) for batch in data.test_dataloader()) == 4
    assert (tmp_path / ".cache").is_dir()


class Recorder(L.LightningModule):
    """Remembers the batches it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []
        self.validated = Counter()

    def training_step(self, batch, batch_index):
        self.seen.append((self.current_epoch, batch_index, batch.ids))
        return (self.weight**2).sum()

    def validation_step(self, batch, batch_index):
        self.validated.update(batch.ids)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data, tmp_path, ckpt_path=None, checkpoint=None, **options):
    model = Recorder()
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=checkpoint is not None,
        callbacks=[checkpoint] if checkpoint else None,
        default_root_dir=tmp_path,
        **options,
    )
    trainer.fit(model, data, ckpt_path=ckpt_path)
    return model


@pytest.mark.parametrize(("workers", "instructions"), [(0, False), (2, False), (0, True)])
def test_resumed_run_sees_exactly_the_batches_that_are_missing(folder, tmp_path, workers, instructions):
    options = {"num_workers": workers, "instructions_only": instructions}
    whole = fit(module(folder, **options), tmp_path, max_epochs=3).seen
    size = len(whole) // 3
    assert whole[:size] != whole[size : 2 * size]
    for stop in (size + 2, 2 * size):
        checkpoint = ModelCheckpoint(tmp_path / str(stop), save_last=True, every_n_train_steps=1)
        before = fit(module(folder, **options), tmp_path, checkpoint=checkpoint, max_steps=stop).seen
        last = tmp_path / str(stop) / "last.ckpt"
        after = fit(module(folder, **options), tmp_path, ckpt_path=last, max_epochs=3).seen
        assert before + after == whole


def test_validation_starts_over_each_time_it_runs(folder, tmp_path):
    data = module(folder, val_split="instances", val_share=0.2)
    model = fit(data, tmp_path, max_epochs=1, val_check_interval=0.5)
    expected = {row.id for task in data.splits.validation for row in task.instances}
    assert model.validated == dict.fromkeys(expected, 2)


@pytest.mark.realdata
@pytest.mark.slow
def test_real_tasks_are_padded_little_and_start_again_fast(tmp_path):
    if not (os.environ.get("TAGI_DATA") and os.environ.get("TAGI_TOKENIZER")):
        pytest.skip("set TAGI_DATA to a folder holding sni/ and TAGI_TOKENIZER to T5's tokenizer")
    source, tokenizer = str(Path(os.environ["TAGI_DATA"], "sni")), os.environ["TAGI_TOKENIZER"]
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        data = SNIDataModule(source, tokenizer, allow_missing=True, cache_dir=str(tmp_path), pool_batches=100)
        data.prepare_data()
        data.setup("fit")
        seconds.append(time.perf_counter() - start)
    assert seconds[1] < 0.2 * seconds[0]
    tokens, positions = Counter(), Counter()
    for batch in data.train_dataloader():
        masks = {"instruction": batch.instruction.mask, "input": batch.input.mask, "target": batch.labels >= 0}
        for part, mask in masks.items():
            tokens[part] += int(mask.sum())
            positions[part] += mask.numel()
    assert 1 - tokens["input"] / positions["input"] <= 0.06
    assert 1 - (tokens["input"] + tokens["target"]) / (positions["input"] + positions["target"]) <= 0.12
    assert 1 - tokens.total() / positions.total() <= 0.13


def test_no_member_of_an_ensemble_goes_without_a_demonstration(folder):
    data = module(folder, demonstrations=2, with_prompt=True)
    data.setup("test")
    members = EvaluationData(data).members()
    assert len(members) == 2
    for loader in members:
        for shown in loader:
            assert bool(shown.demonstrations.mask.any(1).all())
    longest = max(len(piece) for task in data.tasks["test"].tasks for piece in task.demonstrations)
    frame = data.assembler.max_input_length - data.assembler.instruction_room(0)
    short = module(folder, demonstrations=2, with_prompt=True, max_input_length=frame + longest - 1)
    short.setup("test")
    with pytest.raises(ValueError, match="some test task has 0 that fit"):
        EvaluationData(short).members()
