import json

import pytest

from tagi_lightning.data.json_text import parse_json


@pytest.mark.parametrize("value", [None, 1.5, "Größe 😀", [], {"a": {"a": [1, {"b": ""}]}, "b": ["\\ud800"]}])
def test_what_json_writes_comes_back(value):
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False)) == value


def test_a_byte_order_mark_is_no_part_of_a_text():
    assert parse_json('\ufeff{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "Expecting value"),
        ("[1,", "Expecting value"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 100_000, "nested too deeply"),
        ("9" * 5_000, "4300 digits"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "key given twice: 'c'"),
        ('["half \\ud83d of a pair"]', "unpaired surrogate"),
    ],
)
def test_what_could_stop_something_later_is_refused_at_once(text, told):
    with pytest.raises(ValueError, match=r".") as refused:
        parse_json(text)
    assert told in str(refused.value)
    str(refused.value).encode()


def test_half_characters_can_be_asked_for():
    assert parse_json('["\\ud83d"]', half_characters=True) == ["\ud83d"]
