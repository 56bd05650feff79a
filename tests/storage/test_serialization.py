import json
from dataclasses import asdict, replace

import pytest
import torch
from model_folders import load_onto

from tagi_lightning.data.batch import IGNORE_INDEX
from tagi_lightning.fusion import FusionConfig
from tagi_lightning.hypernetwork import HypernetworkConfig
from tagi_lightning.lora import LoraBank, LoraConfig
from tagi_lightning.model import TagiConfig, TagiModel
from tagi_lightning.storage.serialization import (
    CONFIG,
    WEIGHTS,
    ModelFolderError,
    from_plain,
    load_bank,
    load_tagi_weights,
    read_folder,
    save_bank,
    save_tagi,
)

LORA = LoraConfig(rank=4)
CONFIGS = {
    "default": TagiConfig(LORA),
    "everything else": TagiConfig(
        LoraConfig(rank=2, alpha=3, targets=("q", "o"), stacks=("encoder_self",), dropout=0.1, seed=7),
        HypernetworkConfig(generator="paper", pooling="attention", hidden=8),
        FusionConfig(norm="post", width=8),
        decoder_memory=False,
    ),
    "nothing generated": TagiConfig(LORA, HypernetworkConfig(enabled=False)),
}


@pytest.fixture
def folder(backbone, trained, tmp_path):
    """A saved model."""
    save_tagi(trained(backbone), tmp_path / "model", ("pretrain", "distill"))
    return tmp_path / "model"


@pytest.fixture
def bank(backbone):
    bank = LoraBank(backbone.sites(LORA), LORA, ["one", "two"])
    for number, parameter in enumerate(bank.parameters()):
        parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return bank


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_comes_back_with_every_bit_its_configuration_and_its_stages(
    any_backbone, trained, tokens, tmp_path, name
):
    model = trained(any_backbone, CONFIGS[name])
    save_tagi(model, tmp_path / "model", ("pretrain", "align"))
    loaded = load_onto(tmp_path / "model", any_backbone)
    assert loaded.stages == ("pretrain", "align")
    assert loaded.config == model.config
    assert loaded.digest() == model.digest()
    targets = tokens([3, 2], seed=1)
    labels = targets.ids.masked_fill(targets.mask == 0, IGNORE_INDEX)
    instructions, inputs, index = tokens([5, 7]), tokens([4, 6]), torch.tensor([0, 1])
    with torch.no_grad():
        expected = model(inputs, labels, model.adapt(instructions), index)
        assert torch.equal(loaded.eval()(inputs, labels, loaded.adapt(instructions), index), expected)


def test_the_frozen_backbone_is_left_out_and_what_trained_of_it_is_kept(build, trained, tmp_path):
    frozen, part = build("narrow"), build("narrow")
    part.model.encoder.final_layer_norm.requires_grad_(True)
    for name, backbone in (("frozen", frozen), ("part", part)):
        save_tagi(trained(backbone), tmp_path / name)
    kept = {name: read_folder(tmp_path / name, "tagi", "")[0] for name in ("frozen", "part")}
    assert kept["part"].keys() - kept["frozen"].keys() == {"backbone.model.encoder.final_layer_norm.weight"}
    assert not any(name.startswith("backbone.") for name in kept["frozen"])


def test_saving_again_replaces_the_folder_and_leaves_nothing_beside_it(backbone, trained, folder):
    other = trained(backbone, seed=1)
    (folder / "stale").touch()
    save_tagi(other, folder, ("distill",))
    assert load_onto(folder, backbone).digest() == other.digest()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert {path.name for path in folder.iterdir()} == {CONFIG, WEIGHTS}


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS, None])
def test_a_missing_file_is_named_with_the_command_that_makes_it(backbone, folder, missing):
    target = folder / missing if missing else folder.parent / "absent"
    target.unlink(missing_ok=True)
    with pytest.raises(ModelFolderError, match=r"model\.safetensors.*make distill"):
        load_onto(folder if missing else target, backbone)


def damage_byte(position):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[position(len(content))] ^= 1
        path.write_bytes(content)

    return damage


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "empty": lambda path: path.write_bytes(b""),
    "header": damage_byte(lambda length: 0),
    "first bits": damage_byte(lambda length: length // 2),
    "last bit": damage_byte(lambda length: length - 1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_refused(backbone, folder, damage):
    DAMAGES[damage](folder / WEIGHTS)
    with pytest.raises(ModelFolderError, match=r"model is damaged.*make distill"):
        load_onto(folder, backbone)


@pytest.mark.parametrize("text", ["", '{"kind": "tagi"', "[1, 2]", "\x00"])
def test_a_damaged_configuration_is_refused(backbone, folder, text):
    (folder / CONFIG).write_text(text)
    with pytest.raises(ModelFolderError, match=r"make distill"):
        load_onto(folder, backbone)


@pytest.mark.parametrize("key", ["tagi", "stages", "backbone", "backbone_digest", "sha256"])
@pytest.mark.parametrize(
    "change", [lambda c, k: c | {k: "another"}, lambda c, k: {n: v for n, v in c.items() if n != k}]
)
def test_a_changed_configuration_is_refused(backbone, folder, key, change):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(change(config, key)))
    with pytest.raises(ModelFolderError, match=r"model is damaged.*make distill"):
        load_onto(folder, backbone)


def test_another_backbone_is_refused(build, folder):
    with pytest.raises(ModelFolderError, match=r"narrow-0.*narrow-1.*same backbone"):
        load_onto(folder, build("narrow", seed=1))


def test_teachers_are_no_model_and_a_model_no_teachers(backbone, bank, folder, tmp_path):
    save_bank(bank, tmp_path / "teachers", backbone)
    with pytest.raises(ModelFolderError, match="holds teachers, expected tagi"):
        load_onto(tmp_path / "teachers", backbone)
    with pytest.raises(ModelFolderError, match="holds tagi, expected teachers"):
        load_bank(folder, backbone, LORA)


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError, match="LoraConfig has no colour"):
        from_plain(TagiConfig, {"lora": {"rank": 4, "colour": "red"}})


@pytest.mark.parametrize(
    "config",
    [
        TagiConfig(LoraConfig(rank=2)),
        TagiConfig(replace(LORA, targets=("q", "k", "v"))),
        TagiConfig(LORA, HypernetworkConfig(generator="paper")),
        TagiConfig(LORA, fusion=FusionConfig(enabled=False)),
        TagiConfig(LORA, fusion=FusionConfig(width=8)),
    ],
)
def test_weights_of_another_configuration_are_refused_before_anything_is_copied(backbone, trained, folder, config):
    model = trained(backbone, config)
    before = model.digest()
    with pytest.raises(ModelFolderError, match=r"do not fit this configuration.*(missing|unexpected|expected)"):
        load_tagi_weights(model, read_folder(folder, "tagi", "")[0], "there")
    assert model.digest() == before


def test_a_bank_comes_back_frozen_with_every_bit_and_its_names(backbone, bank, tmp_path):
    save_bank(bank, tmp_path / "teachers", backbone)
    loaded = load_bank(tmp_path / "teachers", backbone, replace(LORA, dropout=0.5))
    assert loaded.names == ("one", "two")
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    for site, a in bank().a.items():
        assert torch.equal(loaded().a[site], a)
        assert torch.equal(loaded().b[site], bank().b[site])


@pytest.mark.parametrize(
    ("field", "value"), [("rank", 8), ("alpha", 1.0), ("targets", ("q",)), ("stacks", ("encoder_self",)), ("seed", 3)]
)
def test_a_bank_of_another_lora_configuration_is_refused(backbone, bank, tmp_path, field, value):
    save_bank(bank, tmp_path / "teachers", backbone)
    with pytest.raises(ModelFolderError, match=rf"{field} is .* there and .* here.*make teachers"):
        load_bank(tmp_path / "teachers", backbone, replace(LORA, **{field: value}))


def test_a_bank_of_another_backbone_is_refused(backbone, bank, build, tmp_path):
    save_bank(bank, tmp_path / "teachers", backbone)
    with pytest.raises(ModelFolderError, match="same backbone"):
        load_bank(tmp_path / "teachers", build("narrow", seed=1), LORA)


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_survive_json(name):
    assert from_plain(TagiConfig, json.loads(json.dumps(asdict(CONFIGS[name])))) == CONFIGS[name]


def test_the_start_of_the_updates_returns_with_its_seed(backbone, tmp_path):
    """A_0 is in no file: the seed in the configuration gives it back."""
    model = TagiModel(backbone, TagiConfig(replace(LORA, seed=5)))
    save_tagi(model, tmp_path / "model")
    loaded = load_onto(tmp_path / "model", backbone)
    for (name, expected), (_, found) in zip(
        model.hypernetwork.named_buffers(), loaded.hypernetwork.named_buffers(), strict=True
    ):
        assert name.startswith("a0_")
        assert torch.equal(found, expected)
    assert not any("a0" in name for name in read_folder(tmp_path / "model", "tagi", "")[0])
