import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from table_cells import table_rows

import tagi_lightning
from tagi_lightning.data.instruction import InstructionPrompts
from tagi_lightning.lora import LoraConfig
from tagi_lightning.model import TagiConfig, TagiModel
from tagi_lightning.storage.hub import HubOptions
from tagi_lightning.storage.serialization import CONFIG, WEIGHTS, ModelFolderError, read_folder, save_tagi, write_folder

PROMPTS = InstructionPrompts("t5", demonstrations=2, max_input_length=99)


@pytest.fixture
def model(backbone, trained):
    model = trained(backbone)
    model.stages, model.prompts = ("pretrain", "distill"), PROMPTS
    return model


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_model_comes_back_with_the_same_adapters_bit_for_bit(model, folder, any_backbone, trained, tokens, tmp_path):
    loaded = TagiModel.from_pretrained(folder, model.backbone)
    assert (loaded.stages, loaded.prompts, loaded.config) == (model.stages, PROMPTS, model.config)
    assert not loaded.training
    instructions = tokens([5, 7])
    for left, right in zip(loaded.prepare(instructions).tensors(), model.prepare(instructions).tensors(), strict=True):
        assert torch.equal(left, right)
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert (tmp_path / "again" / CONFIG).read_bytes() == (folder / CONFIG).read_bytes()


def test_the_folder_is_the_one_that_training_leaves_with_a_card(model, folder, tmp_path):
    save_tagi(model, tmp_path / "left", model.stages, PROMPTS)
    assert {path.name for path in folder.iterdir()} == {CONFIG, WEIGHTS, "README.md"}
    for name in (CONFIG, WEIGHTS):
        assert (folder / name).read_bytes() == (tmp_path / "left" / name).read_bytes()
    assert not any(name.startswith("backbone.") for name in load_file(folder / WEIGHTS))
    assert TagiModel.from_pretrained(tmp_path / "left", model.backbone).digest() == model.digest()


def test_what_else_is_in_the_folder_stays(model, folder):
    (folder / "notes.txt").write_text("mine")
    model.save_pretrained(folder)
    assert (folder / "notes.txt").read_text() == "mine"
    assert len(list(folder.iterdir())) == 4


def test_the_card_tells_what_the_run_measured_of_these_weights_alone(model, tmp_path):
    save_tagi(model, tmp_path / "run" / "distill" / "model", model.stages, PROMPTS)
    backbone_digest = model.backbone.digest()
    for system, digest, figure in (
        ("tagi", model.digest(), 12.34),
        ("wrong_instruction", "another", 99.9),
        ("teachers", None, 77.7),
        ("concatenated", None, 56.78),
    ):
        overall = {"n": 7, "exact_match": figure, "rougeL": 1.0}
        metrics = {"overall": overall, "by_task": {}, "system": system, "seed": 0, "backbone_digest": backbone_digest}
        target = tmp_path / "run" / "evaluate" / system / "metrics.json"
        target.parent.mkdir(parents=True)
        target.write_text(json.dumps(metrics | ({"weights_digest": digest} if digest else {})))
    loaded = TagiModel.from_pretrained(tmp_path / "run" / "distill" / "model", model.backbone)
    loaded.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert table_rows(card)[-2:] == [["concatenated", "7", "56.8", "1.0"], ["tagi", "7", "12.3", "1.0"]]
    assert "99.9" not in card
    assert "77.7" not in card


def flip(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def rewrite(change):
    """Returns a damage that has a right digest: what another program would have written."""

    def damage(folder):
        tensors, config = read_folder(folder, "tagi", "")
        write_folder(folder, *change(tensors, config))

    return damage


def without_one(tensors, config):
    return {name: tensor for name, tensor in tensors.items() if name != sorted(tensors)[0]}, config


def other_rank(tensors, config):
    return tensors, config | {"tagi": config["tagi"] | {"lora": config["tagi"]["lora"] | {"rank": 2}}}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, r"saved is damaged"),
        (rewrite(without_one), r"saved do not fit this configuration \(rank.*missing"),
        (rewrite(other_rank), r"saved do not fit this configuration \(rank.*has shape"),
    ],
)
def test_a_damaged_folder_is_refused_by_name(model, folder, damage, message):
    damage(folder)
    with pytest.raises(ModelFolderError, match=message):
        TagiModel.from_pretrained(folder, model.backbone)


def test_another_backbone_and_an_absent_one_are_refused(model, folder, build):
    with pytest.raises(ModelFolderError, match=r"trained on backbone 'narrow-0'.*but 'narrow-1'"):
        TagiModel.from_pretrained(folder, build("narrow", seed=1))
    with pytest.raises(ModelFolderError, match=r"trained on backbone 'narrow-0'; where it lies now: --backbone DIR"):
        TagiModel.from_pretrained(folder)


def test_a_model_of_the_hub_is_found_in_the_cache_without_a_network(model, tmp_path):
    repository = tmp_path / "models--somebody--tagi"
    model.save_pretrained(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    cached = HubOptions(cache_dir=str(tmp_path), local_files_only=True)
    assert TagiModel.from_pretrained("somebody/tagi", model.backbone, hub=cached).digest() == model.digest()
    with pytest.raises(ModelFolderError, match="no folder somebody/else, and the Hugging Face hub gives no such model"):
        TagiModel.from_pretrained("somebody/else", model.backbone, hub=cached)


def test_what_is_pushed_is_what_is_saved(model, tmp_path, monkeypatch):
    seen = {}

    def create_repo(self, repo_id, *, private, exist_ok):
        seen.update(private=private, exist_ok=exist_ok)
        return SimpleNamespace(repo_id=f"somebody/{repo_id}")

    def upload_folder(self, *, folder_path, repo_id, **options):
        seen.update(options, repo_id=repo_id, loaded=TagiModel.from_pretrained(folder_path, model.backbone))
        return SimpleNamespace(commit_url="there")

    monkeypatch.setattr("tagi_lightning.storage.hub.HfApi.create_repo", create_repo)
    monkeypatch.setattr("tagi_lightning.storage.hub.HfApi.upload_folder", upload_folder)
    assert model.push_to_hub("tagi", private=True, revision="dev") == "there"
    assert (seen["repo_id"], seen["private"], seen["revision"]) == ("somebody/tagi", True, "dev")
    assert seen["loaded"].digest() == model.digest()


def test_the_package_gives_its_names_when_they_are_asked_for(backbone):
    assert tagi_lightning.TagiModel is TagiModel
    assert tagi_lightning.InstructedModel.__module__ == "tagi_lightning.inference.instructed"
    assert TagiModel(backbone, TagiConfig(replace(LoraConfig(), rank=4))).prompts is None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tagi_lightning.nothing
