import pytest
import yaml
from commands import ROOT

from tagi_lightning.reproduce.systems import System, load_system, merge
from tagi_lightning.storage.run_layout import CHAIN

SYSTEMS = sorted((ROOT / "experiments" / "systems").glob("*.yaml"))


def write(folder, **systems):
    for name, values in systems.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder


def test_merging_goes_key_by_key_and_replaces_everything_else():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    assert merge(base, {"a": {"c": [3]}, "d": {"e": 2}}) == {"a": {"b": 1, "c": [3]}, "d": {"e": 2}}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 1}


def test_a_part_is_what_the_system_says_of_the_stage(tmp_path):
    values = {
        "title": "x",
        "chain": ["pretrain", "distill"],
        "tagi": {"lora": {"rank": 4}, "decoder_memory": False},
        "data": {"categories": 6},
        "distill": {"model": {"init_args": {"tagi": {"decoder_memory": True}, "loss": {"lambda1": 0.0}}}},
    }
    system = load_system(write(tmp_path, x=values) / "x.yaml")
    tagi = {"lora": {"rank": 4}, "decoder_memory": False}
    assert system.part("pretrain") == {"model": {"init_args": {"tagi": tagi}}}
    assert system.part("distill") == {
        "model": {
            "init_args": {"tagi": tagi | {"decoder_memory": True}, "init_from": "pretrain", "loss": {"lambda1": 0.0}}
        },
        "data": {"init_args": {"categories": 6}},
    }
    assert system.part("teachers") == {
        "model": {"init_args": {"lora": {"rank": 4}}},
        "data": {"init_args": {"categories": 6}},
    }
    assert system.part("pretrain-backbone") == {}
    with pytest.raises(ValueError, match=r"x has no stage align; its chain is pretrain, distill"):
        system.part("align")


@pytest.mark.parametrize(
    ("chain", "source"),
    [(["distill"], "none"), (["pretrain", "distill"], "pretrain"), (["pretrain", "align", "distill"], "align")],
)
def test_distill_starts_where_the_chain_says(tmp_path, chain, source):
    system = load_system(write(tmp_path, x={"title": "x", "chain": chain}) / "x.yaml")
    assert system.part("distill") == {"model": {"init_args": {"init_from": source}}}
    if "align" in chain:
        assert system.part("align") == {}


@pytest.mark.parametrize("place", ["tagi", "distill"])
def test_a_backbone_that_trains_is_loaded_in_float32(tmp_path, place):
    trained = {"trained_backbone": "all"}
    section = trained if place == "tagi" else {"model": {"init_args": {"tagi": trained}}}
    values = {"title": "x", "chain": ["pretrain", "distill"], place: section}
    system = load_system(write(tmp_path, x=values) / "x.yaml")
    assert system.part("distill")["backbone"] == {"dtype": "float32"}
    assert ("backbone" in system.part("pretrain")) is (place == "tagi")


def test_a_system_inherits_and_changes_only_what_it_says(tmp_path):
    base = {"title": "base", "chain": ["distill"], "tagi": {"fusion": {"enabled": False}, "decoder_memory": False}}
    write(tmp_path, base=base, heir={"title": "heir", "inherits": "base", "tagi": {"decoder_memory": True}})
    heir = load_system(tmp_path / "heir.yaml")
    assert (heir.name, heir.title, heir.chain) == ("heir", "heir", ("distill",))
    assert heir.sections["tagi"] == {"fusion": {"enabled": False}, "decoder_memory": True}
    assert load_system(tmp_path / "base.yaml").sections["tagi"]["decoder_memory"] is False


def test_overrides_have_the_shape_of_a_system():
    system = System("x", "X", ("pretrain", "distill"), {"tagi": {"lora": {"rank": 4}}})
    changed = system.with_overrides({"chain": ["distill"], "tagi": {"decoder_memory": False}, "logits_teacher": "y"})
    assert (changed.chain, changed.logits_teacher, changed.name) == (("distill",), "y", "x")
    assert changed.sections == {"tagi": {"lora": {"rank": 4}, "decoder_memory": False}}
    assert system.with_overrides({}) is system
    with pytest.raises(ValueError, match=r"the overrides of x: unknown keys distil; choose from .*distill"):
        system.with_overrides({"distil": {}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chain": ["distill"], "tagy": {}}, "unknown keys tagy; choose from .*tagi"),
        ({"chain": ["distill", "pretrain"]}, "in this order"),
        ({"chain": ["teachers"]}, "chain must be stages of pretrain, align, distill"),
        ({"title": "x"}, "chain must be"),
        ({"chain": [], "tagi": 3}, "tagi must be mappings"),
        (3, "holds no mapping but int"),
        ({"inherits": "x"}, "inherits from itself"),
    ],
)
def test_what_is_no_system_is_told_with_its_file(tmp_path, values, message):
    with pytest.raises(ValueError, match=message) as error:
        load_system(write(tmp_path, x=values) / "x.yaml")
    assert "x.yaml" in str(error.value)


def test_an_unknown_system_is_told_with_those_there_are(tmp_path):
    write(tmp_path, one={"chain": []}, two={"chain": [], "inherits": "three"})
    with pytest.raises(FileNotFoundError, match="choose from one, two"):
        load_system(tmp_path / "thre.yaml")
    with pytest.raises(FileNotFoundError, match=r"three\.yaml; choose from"):
        load_system(tmp_path / "two.yaml")


@pytest.mark.parametrize("path", SYSTEMS, ids=lambda path: path.stem)
def test_every_system_of_the_project_is_one(path):
    system = load_system(path)
    assert system.title
    for stage in system.chain:
        system.part(stage)
    assert not set(CHAIN).difference(system.chain).intersection(system.sections)
