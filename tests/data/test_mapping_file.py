import json

import pytest
import yaml

from tagi_lightning.data.mapping_file import read_mapping

VALUES = {"a": {"b": [1, 2.5, None, True, "Größe 😀"]}, "": []}


class OwnError(ValueError):
    pass


@pytest.mark.parametrize(("name", "write"), [("a.json", json.dumps), ("a.yaml", yaml.safe_dump), ("a", yaml.safe_dump)])
def test_what_is_written_comes_back(tmp_path, name, write):
    (tmp_path / name).write_text(write(VALUES), encoding="utf-8")
    assert read_mapping(tmp_path / name) == VALUES


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.json", b"", r"Expecting value.*in JSON"),
        ("a.json", b"\xff{}", "codec can't decode"),
        ("a.json", b"[1]", "no mapping but list"),
        ("a.json", b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested too deeply"),
        ("a.json", b'{"a": 1, "a": 2}', "key given twice"),
        ("a.json", b"a: 1", r"Expecting value.*in JSON"),
        ("a.yaml", b"", r"no mapping but NoneType.*in YAML"),
        ("a.yaml", b"a: [1", r"no YAML of plain types.*in YAML"),
        ("a.yaml", b"1: a", "a key is no text but 1"),
        ("a.yaml", b"a: [{2: b}]", "a key is no text but 2"),
        ("a.yaml", b"a: 2020-01-01", "number or list but date"),
        ("a.yaml", b"a: !!set {b}", "number or list but set"),
    ],
)
def test_what_is_no_mapping_is_told_with_its_file_and_what_to_do(tmp_path, name, content, told):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(OwnError, match=told) as error:
        read_mapping(path, "remove it", OwnError)
    assert str(error.value).startswith(f"{path} is damaged (")
    assert str(error.value).endswith("; remove it")


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ValueError, match=rf"there is no {tmp_path / 'a.json'}; make it$"):
        read_mapping(tmp_path / "a.json", "make it")


def test_a_long_reason_is_shortened(tmp_path):
    (tmp_path / "a.yaml").write_text("? " + "x" * 10**6 + "\n: 1\n? " + "x" * 10**6 + "\n: 2\n")
    with pytest.raises(ValueError, match="key given twice") as error:
        read_mapping(tmp_path / "a.yaml")
    assert len(str(error.value)) < 1_000
