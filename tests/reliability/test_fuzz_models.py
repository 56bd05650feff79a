"""Checkpoints, model folders and adapter folders, damaged in every way."""

import functools
import io
import json
import zipfile

import pytest
import torch
from fuzzing import (
    LEFT_OUT,
    MARKS,
    OTHER,
    READ,
    REFUSED,
    damaged_bytes,
    damaged_file,
    damaged_json,
    fuzz,
    put,
    refused,
)
from hypothesis import strategies as st
from instructed_models import build_instructed
from model_folders import load_onto

from tagi_lightning.data.instruction import Instruction
from tagi_lightning.data.task import Demonstration
from tagi_lightning.lora import LoraBank, LoraConfig
from tagi_lightning.peft_io import AdapterFolderError, Exporter, load_adapter
from tagi_lightning.peft_io.stacked import INDEX, INSTRUCTIONS, StackedAdapters, StackWriter
from tagi_lightning.storage.checkpoint_files import (
    LAST,
    PREVIOUS,
    CheckpointError,
    find_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from tagi_lightning.storage.serialization import (
    CONFIG,
    WEIGHTS,
    ModelFolderError,
    _sha256,
    load_bank,
    save_bank,
    save_tagi,
)

pytestmark = MARKS

CHECKPOINT = {
    "tagi": {"stage": "distill", "backbone_digest": "00"},
    "global_step": 4,
    "state_dict": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)},
    "resume": {"random": {"python": (3, (1, 2), None), "torch": torch.arange(8, dtype=torch.uint8)}},
}


@pytest.fixture(scope="module")
def loaded():
    """A model with fusion and memory, whose weights never change, so that its digests are taken once."""
    loaded = build_instructed("t5")
    for module in (loaded.model, loaded.model.backbone):
        module.digest = functools.cache(module.digest)
    return loaded


def repacked(content, changes):
    """Returns a zip archive with the content of some of its files changed, and their check sums as they must be."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            part = name.partition("/")[2]
            new.writestr(name, changes.get(part, old.read(name)))
    return made.getvalue()


def test_checkpoints(record, tmp_path, capsys):
    for step in (2, 4):
        write_checkpoint(CHECKPOINT | {"global_step": step}, tmp_path / LAST)
    content = (tmp_path / LAST).read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        pickled = archive.read(name)

    def attempt(content):
        put(tmp_path / LAST, content)
        found = refused(lambda: read_checkpoint(tmp_path / LAST, "distill"), CheckpointError, tmp_path / LAST)
        path, step = find_checkpoint(tmp_path, "distill", put_aside=False)
        printed = capsys.readouterr().out
        if path.name == PREVIOUS:
            assert step == 2
            assert f"{LAST} is" in printed or f"{LAST}:" in printed
            return REFUSED
        assert isinstance(found["tagi"], dict)
        assert step == 4 or pickled not in content
        return READ

    foreign = damaged_bytes(pickled).map(lambda damaged: repacked(content, {"data.pkl": damaged}))
    # torch looks for the name in its own message, for hours
    endless = repacked(content, {"data.pkl": b"\x80\x02c" + 10**6 * b"x" + b"\na\n."})
    disks = content[:-18] + b"\1" + content[-17:]
    fuzz(record, "checkpoints", damaged_bytes(content) | foreign, attempt, [endless, disks])


def fuzz_files(record, reader, files, inputs, read):
    """Damages one of `files`, a strategy of a file and its content each, and puts it back as it was."""
    good = {path: path.read_bytes() for path in files}

    def attempt(drawn):
        path, content = drawn
        put(path, content)
        try:
            return read()
        finally:
            put(path, good[path])

    fuzz(record, reader, inputs, attempt)


def parts(*strategies):
    """Returns a strategy of files with their damaged content, from one of contents a file."""
    return st.one_of(*(contents.map(lambda content, path=path: (path, content)) for path, contents in strategies))


def consistent(folder):
    """Returns a function that gives a damaged config.json the digest that it must have, where it has any."""

    def with_digest(content):
        try:
            config = json.loads(content)
            config.pop("sha256")
            return json.dumps({**config, "sha256": _sha256(folder / WEIGHTS, config)}).encode()
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            return content

    return with_digest


def damaged_folder(folder):
    """Returns a strategy of damaged files of a model folder, half of its configurations as someone might write them."""
    as_it_is = damaged_file((folder / CONFIG).read_bytes())
    weights = (folder / WEIGHTS).read_bytes()
    return parts(
        (folder / CONFIG, as_it_is),
        (folder / CONFIG, as_it_is.map(consistent(folder))),
        (folder / WEIGHTS, damaged_bytes(weights[:4096]).map(lambda damaged: damaged + weights[4096:])),
    )


def test_model_folders(record, tmp_path, loaded):
    folder, model = tmp_path / "model", loaded.model
    save_tagi(model, folder, ("distill",), loaded.prompts)

    def read():
        found = refused(lambda: load_onto(folder, model.backbone), ModelFolderError, folder)
        if found is None:
            return REFUSED
        return READ if found.digest() == model.digest() else OTHER

    fuzz_files(record, "model folders", [folder / CONFIG, folder / WEIGHTS], damaged_folder(folder), read)


def test_folders_of_teachers(record, tmp_path, loaded):
    folder, backbone, lora = tmp_path / "teachers", loaded.model.backbone, LoraConfig(rank=4)
    save_bank(LoraBank(backbone.sites(lora), lora, ["one", "two"]), folder, backbone)

    def read():
        found = refused(lambda: load_bank(folder, backbone, lora), ModelFolderError, folder)
        if found is None:
            return REFUSED
        assert found.config.rank == 4
        return READ

    fuzz_files(record, "folders of teachers", [folder / CONFIG, folder / WEIGHTS], damaged_folder(folder), read)


def test_adapter_folders(record, tmp_path, loaded):
    folder = tmp_path / "adapter"
    expected = loaded.adapt("Say it.")
    Exporter(loaded).write(expected, folder)
    files = {name: (folder / name).read_bytes() for name in ("adapter_config.json", *TENSORS)}

    def read():
        found = refused(lambda: load_adapter(folder, loaded.model), AdapterFolderError, folder)
        if found is None:
            return REFUSED
        assert all(tensor.isfinite().all() for tensor in found.tensors())
        pairs = zip(found.tensors(), expected.prepared.tensors(), strict=True)
        return READ if all(torch.equal(left, right) for left, right in pairs) else OTHER

    inputs = parts(
        (folder / "adapter_config.json", damaged_file(files["adapter_config.json"])),
        *((folder / name, header(files[name])) for name in TENSORS),
    )
    fuzz_files(record, "adapter folders", [folder / name for name in files], inputs, read)


TENSORS = ("adapter_model.safetensors", "tagi_adapter.safetensors")


def header(content):
    """Returns a strategy of files of tensors, damaged in their header or right behind it."""
    end = 8 + int.from_bytes(content[:8], "little") + 64
    return damaged_bytes(content[:end]).map(lambda damaged: damaged + content[end:])


def test_stacked_adapters(record, tmp_path, loaded):
    folder = tmp_path / "stack"
    instructions = [Instruction(f"Say {word}.", (Demonstration("1", "2"),), word) for word in ("one", "two", "three")]
    size = sum(factor.numel() for lora in [loaded.adapt("a").lora] for factor in (*lora.a.values(), *lora.b.values()))
    list(StackWriter(Exporter(loaded), shard_bytes=8 * size).write(instructions, folder))
    whole = StackedAdapters(folder, loaded)
    expected = {each.folder_name: whole.adapter(each.folder_name) for each in instructions}
    files = {path: path.read_bytes() for path in folder.iterdir() if path.suffix != ".md"}
    shards = [path for path in files if path.suffix == ".safetensors"]

    def read():
        stack = refused(lambda: StackedAdapters(folder, loaded), AdapterFolderError, folder)
        if stack is None:
            return REFUSED
        left_out = False
        for name, adapter in expected.items():
            found = refused(lambda name=name: stack.adapter(name), AdapterFolderError, folder)
            left_out = left_out or found is None
            if found is not None:
                assert found.instruction == adapter.instruction
                pairs = zip(found.prepared.tensors(), adapter.prepared.tensors(), strict=True)
                assert all(torch.equal(left, right) for left, right in pairs)
        return LEFT_OUT if left_out else READ

    rows = [json.loads(line) for line in files[folder / INSTRUCTIONS].decode().splitlines()]
    inputs = parts(
        (folder / INDEX, damaged_file(files[folder / INDEX])),
        (folder / INSTRUCTIONS, damaged_bytes(files[folder / INSTRUCTIONS])),
        (folder / INSTRUCTIONS, damaged_json(*rows).map(lambda line: line + b"\n" + b"\n".join(
            files[folder / INSTRUCTIONS].split(b"\n")[1:]))),
        *((shard, header(files[shard])) for shard in shards),
    )  # fmt: skip
    fuzz_files(record, "stacked adapters", list(files), inputs, read)
