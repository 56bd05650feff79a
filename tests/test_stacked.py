import json
from dataclasses import replace

import pytest
import torch
from instructed_models import build_instructed
from safetensors.torch import load_file, save_file

from tagi_lightning.data.instruction import Instruction
from tagi_lightning.data.task import Demonstration
from tagi_lightning.peft_io import AdapterFolderError, Exporter
from tagi_lightning.peft_io.stacked import INDEX, SAMPLE, StackedAdapters, StackWriter, sample

INSTRUCTIONS = [Instruction(f"Say word {number}.", (Demonstration("1", "2"),), f"t{number}") for number in range(5)]
PER_SHARD = 2


@pytest.fixture(scope="module", params=["t5", "llama", "t5-lora"])
def loaded(request):
    """A model with fusion and memory, with memory, or with neither; not to be changed."""
    return build_instructed(request.param)


def write(loaded, folder):
    lora = loaded.adapt("a").lora
    floats = sum(factor.numel() for factor in (*lora.a.values(), *lora.b.values()))
    writer = StackWriter(Exporter(loaded), shard_bytes=4 * PER_SHARD * floats)
    return list(writer.write([*INSTRUCTIONS, INSTRUCTIONS[0]], folder))


def test_adapters_come_back_bit_for_bit_by_name_and_by_number(loaded, tmp_path, distance):
    assert write(loaded, tmp_path / "stack") == [2, 4, 5]
    stack = StackedAdapters(tmp_path / "stack", loaded)
    assert stack.names == tuple(each.folder_name for each in INSTRUCTIONS)
    assert len(stack) == 5
    shards = sorted(path.name for path in (tmp_path / "stack").glob("*.safetensors"))
    assert shards == [f"adapters-0000{shard}-of-00003.safetensors" for shard in (1, 2, 3)]
    for number, name in enumerate(stack.names):
        by_name, by_number = stack.adapter(name), stack.adapter(number)
        [expected] = list(loaded.adapt_all([INSTRUCTIONS[number]]))
        assert by_name.instruction == expected.instruction
        for left, same, right in zip(
            by_name.prepared.tensors(), by_number.prepared.tensors(), expected.prepared.tensors(), strict=True
        ):
            assert torch.equal(left, same)
            assert distance(left, right) < 1e-5
        inputs = ["1 2", "the word"]
        assert loaded.generate(by_name, inputs) == loaded.generate(expected, inputs)


def test_examples_that_the_model_does_not_read_change_no_adapter(tmp_path):
    loaded = build_instructed("t5-lora")
    loaded = replace(loaded, prompts=replace(loaded.prompts, demonstrations=0))
    write(loaded, tmp_path / "stack")
    [first, *_] = INSTRUCTIONS
    found, expected = StackedAdapters(tmp_path / "stack", loaded).adapter(0), loaded.adapt(first.text)
    assert found.instruction == replace(first, demonstrations=())
    for site, factor in expected.lora.b.items():
        assert torch.allclose(found.lora.b[site], factor, atol=1e-6)


def test_what_is_not_there_is_told(loaded, tmp_path):
    write(loaded, tmp_path / "stack")
    stack = StackedAdapters(tmp_path / "stack", loaded)
    for which, message in (
        (5, "has no adapter 5; it has 5"),
        ("t9", "has no adapter t9; names such as t0-"),
        ("t3", "has no adapter t3; there is t3-"),
    ):
        with pytest.raises(AdapterFolderError, match=message):
            stack.adapter(which)
    with pytest.raises(AdapterFolderError, match="no stacked adapters in"):
        StackedAdapters(tmp_path, loaded)
    with pytest.raises(AdapterFolderError, match="is already there"):
        write(loaded, tmp_path / "stack")


def test_damage_and_another_model_are_refused(loaded, tmp_path):
    write(loaded, tmp_path / "stack")
    shard = tmp_path / "stack" / "adapters-00002-of-00003.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    stack = StackedAdapters(tmp_path / "stack", loaded)
    assert stack.adapter(1).lora is not None
    with pytest.raises(AdapterFolderError, match=r"adapters-00002-of-00003\.safetensors is missing or damaged"):
        stack.adapter(2)
    index = json.loads((tmp_path / "stack" / INDEX).read_text())
    index["metadata"]["model_digest"] = "another"
    (tmp_path / "stack" / INDEX).write_text(json.dumps(index))
    with pytest.raises(AdapterFolderError, match="made by other weights"):
        StackedAdapters(tmp_path / "stack", loaded)


def test_a_folder_that_gives_other_adapters_is_not_left_behind(tmp_path, monkeypatch):
    loaded = build_instructed("t5-lora")

    def save_others(tensors, path):
        save_file({name: tensor + 1 for name, tensor in tensors.items()}, path)

    monkeypatch.setattr("tagi_lightning.peft_io.stacked.save_file", save_others)
    with pytest.raises(AdapterFolderError, match="was not written: it gives another adapter"):
        write(loaded, tmp_path / "stack")
    assert list(tmp_path.iterdir()) == []


def test_a_shard_stacks_the_factors_under_the_names_of_peft(tmp_path):
    loaded = build_instructed("t5-lora")
    write(loaded, tmp_path / "stack")
    tensors = load_file(tmp_path / "stack" / "adapters-00001-of-00003.safetensors")
    site = loaded.model.sites[0]
    name = f"base_model.model.{site.name}.lora_A.weight"
    assert tensors[name].shape == (PER_SHARD, 4, site.in_features)
    assert len(tensors) == 2 * len(loaded.model.sites)


def test_the_sample_holds_the_ends():
    for count in (1, 2, 5, 10_000):
        drawn = sample(count)
        assert {0, count - 1} <= drawn <= set(range(count))
        assert len(drawn) == min(count, SAMPLE)
    assert sample(0) == frozenset()
