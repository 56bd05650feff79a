import pytest
import yaml

from tagi_lightning.data.yaml_text import MAX_DEPTH, parse_yaml


def aliases(levels, form):
    """Returns YAML of which each level holds ten times the level before."""
    rows = [f"a{level}: &a{level} {form}" % ", ".join([f"*a{level - 1}"] * 10) for level in range(1, levels)]
    return "\n".join(["a0: &a0 {x: 1}", *rows])


def nested(depth):
    return "[" * depth + "]" * depth


@pytest.mark.parametrize("text", ["", "a: [1, 2.5, null, x]", "{a: {b: c}}", aliases(3, "[%s]"), nested(MAX_DEPTH - 2)])
def test_plain_documents_are_what_pyyaml_makes_of_them(text):
    assert parse_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "nested too deeply"),
        (nested(MAX_DEPTH + 1), "nested too deeply"),
        ("- " * 100_000, "nested too deeply"),
        (aliases(10, "[%s]"), "more than 1,000,000 values"),
        (aliases(10, "{<<: [%s]}"), "more than 1,000,000 values"),
        ("a: &a {b: *a}", "'a' holds itself"),
        ("a: *b", "undefined alias"),
        ("a: 1\nb:\n  c: 1\n  c: 2", "key given twice: 'c'"),
        ("a: !!python/object/apply:os.system [ls]", "no YAML of plain types"),
        ("a: !!timestamp x", "no YAML of plain types"),
        ("a: '", "no YAML of plain types"),
        ("a: 2001-99-99", "no YAML of plain types"),
    ],
)
def test_what_could_end_the_process_is_refused(text, told):
    with pytest.raises(ValueError, match=r".") as refused:
        parse_yaml(text)
    assert told in str(refused.value)
