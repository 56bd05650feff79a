import pytest
import yaml
from commands import ROOT

from tagi_lightning.cli import main
from tagi_lightning.cli.experiment_files import builtin_experiments, names, summary

FILES = [path.relative_to(ROOT / "experiments").as_posix() for path in (ROOT / "experiments").rglob("*.yaml")]


def test_all_files_are_listed_and_a_kind_is_those_of_its_folder(capsys):
    assert main(["ls"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == sorted(FILES)
    assert main(["ls", "systems"]) == 0
    systems = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert systems == [name for name in listed if name.startswith("systems/")]


@pytest.mark.parametrize("name", names("systems"))
def test_every_system_says_what_it_is_in_a_sentence(name):
    text = summary(name)
    assert 20 < len(text) < 250
    assert not text.endswith((".", "eq", "("))


def test_a_summary_ends_with_its_sentence_and_not_with_an_abbreviation():
    assert summary("systems/tagi-lora.yaml") == "The generated LoRA alone: no fusion, no memory"
    assert "eq. 2" in summary("systems/tagi-paper.yaml")


@pytest.mark.parametrize("name", ["systems/tagi-lora.yaml", "systems/tagi-lora"])
def test_a_copy_is_the_file_and_never_replaces_one(name, tmp_path, capsys):
    for target, place in ((tmp_path, "tagi-lora.yaml"), (tmp_path / "new" / "mine.yaml", "new/mine.yaml")):
        assert main(["cp", name, str(target)]) == 0
        assert capsys.readouterr().out == f"{tmp_path / place}\n"
        assert (tmp_path / place).read_bytes() == (builtin_experiments() / "systems" / "tagi-lora.yaml").read_bytes()
    (tmp_path / "new" / "mine.yaml").write_text("title: mine\n", encoding="utf-8")
    assert main(["cp", name, str(tmp_path / "new" / "mine.yaml")]) == 1
    assert "already there" in capsys.readouterr().err
    assert (tmp_path / "new" / "mine.yaml").read_text(encoding="utf-8") == "title: mine\n"


def test_a_folder_is_copied_whole(tmp_path, capsys):
    assert main(["cp", "sizes", str(tmp_path)]) == 0
    copied = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert copied == names("sizes")
    assert all(yaml.safe_load((tmp_path / name).read_text(encoding="utf-8")) for name in copied)
    assert capsys.readouterr().out == f"{tmp_path / 'sizes'}\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ls", "models"], "choose from data, sizes, stages, systems, tables, trainers"),
        (["cp", "systems/lora", "here"], "systems/tagi-lora.yaml"),
        (["cp", "../setup.cfg", "here"], "no experiment file '../setup.cfg'"),
    ],
)
def test_an_unknown_name_lists_what_there_is(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
