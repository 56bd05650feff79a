"""P3's templates, lists and rows, raw and rendered, damaged in every way."""

import json
import textwrap

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Dataset
from fuzzing import (
    DEEP,
    LEFT_OUT,
    MARKS,
    OTHER,
    READ,
    REFUSED,
    damaged_bytes,
    damaged_json,
    damaged_lines,
    fuzz,
    kind,
    lines,
    put,
    refused,
)
from hypothesis import strategies as st

from tagi_lightning.data.p3.examples import Examples
from tagi_lightning.data.p3.limits import MAX_CHARACTERS, RowProblem
from tagi_lightning.data.p3.lists import test_datasets, train_datasets
from tagi_lightning.data.p3.render import PromptTemplate
from tagi_lightning.data.p3.rewrite import TemplateProblem
from tagi_lightning.data.p3.rows import open_rows
from tagi_lightning.data.p3.templates import TemplateSource, read_templates
from tagi_lightning.data.report import DataError, DataReport

pytestmark = MARKS

ROW = {"text": "Größe", "label": 1, "answers": {"text": ["a", "b"]}, "score": 0.5}
ROWS = [ROW, {**ROW, "text": "two", "label": 0}]
ASK = "{{text}} is one of {{answers.text | join(', ')}}? ||| {{ answer_choices[label] }}"
SAY = (
    "{% if score > 0 %}Say: {{text}}{% for each in answers.text %} {{each | upper}}{% endfor %} ||| {{text}}{% endif %}"
)
TEMPLATES = {
    "good": {"name": "good", "jinja": "{{text}} ? ||| {{ answer_choices[label] }}", "answer_choices": "no ||| yes"},
    "bad": {"name": "bad", "jinja": ASK, "answer_choices": "no ||| yes"},
}
LISTS = {
    "train": {"own": {"templates": "own", "names": ["good", "bad"]}},
    "test": {"other": {"templates": "own", "names": ["good"], "rows": ["own"]}},
}
RENDERED = [
    {"inputs_pretokenized": "Is it?", "targets_pretokenized": "yes", "answer_choices": ["no", "yes"]},
    {"inputs_pretokenized": "And now?", "targets_pretokenized": "no", "answer_choices": ["no", "yes"]},
]
CHOICE_ROWS = [
    {"inputs_pretokenized": "It?", "targets_pretokenized": text, "is_correct": text == "a", "idx": [0, place]}
    for place, text in enumerate("ab")
]


def test_files_of_templates(record, tmp_path):
    path = tmp_path / "templates.yaml"
    good = f"templates:\n  1: {json.dumps(TEMPLATES['good'])}\n".encode()
    bad = (
        f"  2: {json.dumps(TEMPLATES['bad'])}\n".encode()
        + textwrap.indent(yaml.safe_dump({3: TEMPLATES["bad"]}), "  ").encode()
    )

    def attempt(content):
        put(path, content)
        report = DataReport("templates")
        found = read_templates(path, report)
        told = [place for places in (report.errors | report.notes).values() for place in places]
        assert all(str(path) in place for place in told)
        refused(report.raise_if_errors, DataError, path)
        if content.startswith(good) and not report.errors:
            assert found["good"].jinja == TEMPLATES["good"]["jinja"]
        "".join(each for source in found.values() for each in (source.name, source.jinja)).encode()
        return kind(report)

    inputs = damaged_json({"templates": TEMPLATES}) | damaged_bytes(bad).map(lambda content: good + content)
    tens = (f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 12))
    bomb = "\n".join(["a0: &a0 {x: 1}", *tens])
    known = [b"templates: " + DEEP * b"[", DEEP * b"- ", bomb.encode(), b"templates: &a {b: *a}"]
    fuzz(record, "files of templates", inputs | damaged_bytes(good + bad), attempt, known)


def test_lists_of_data_sets(record, tmp_path):
    path = tmp_path / "lists.yaml"

    def attempt(content):
        put(path, content)
        found = refused(lambda: (*train_datasets(None, path), *test_datasets(path)), DataError, path)
        if found is None:
            return REFUSED
        for dataset in found:
            for template in dataset.templates:
                assert not (tmp_path / dataset.rendered_folder(template) / dataset.task_name(template)).exists()
        return READ

    inputs = damaged_json(LISTS) | damaged_bytes(yaml.safe_dump(LISTS).encode(), json.dumps(LISTS).encode())
    odd = yaml.safe_dump({**LISTS, "train": {"own": {**LISTS["train"]["own"], "rendered": "{:>1000000000}"}}})
    fuzz(record, "lists of data sets", inputs, attempt, [odd.encode(), b"train:", b"&a train: *a"])


def fuzz_rows(record, reader, folder, good, inputs, examples):
    """Reads damaged rows between good ones, and compares what `examples` makes of the good ones."""

    def fill(content):
        put(folder / "train.jsonl", content)
        report = DataReport("rows")
        found = examples(open_rows(folder, "train", report))
        assert not report.errors
        filled = []
        for position in range(found.count):
            filled.append(refused(lambda position=position: found.fill(position), RowProblem))
        return filled

    first, last = (fill(lines(*rows)) for rows in good)

    def attempt(line):
        filled = fill(lines(*good[0]) + line + b"\n" + lines(*good[1]))
        assert filled[: len(first)] == first
        assert filled[-len(last) :] == last
        "".join(each.prompt + "".join((*each.targets, *each.choices)) for each in filled if each).encode()
        return LEFT_OUT if None in filled else READ

    fuzz(record, reader, inputs, attempt)


@pytest.mark.parametrize("jinja", [ASK, SAY], ids=["choices", "loop"])
def test_raw_rows(record, tmp_path, jinja):
    template = PromptTemplate(TemplateSource("t", jinja, "no ||| yes" if jinja == ASK else ""))
    fuzz_rows(
        record, f"rows of P3 in a template with {'choices' if jinja == ASK else 'a loop'}", tmp_path,
        (ROWS, ROWS), damaged_lines(ROW), lambda rows: Examples.raw("own/train", template, rows, 0),
    )  # fmt: skip


def test_rendered_rows(record, tmp_path):
    bad = damaged_lines({**RENDERED[0], "inputs_pretokenized": "More?"})
    fuzz_rows(
        record, "rendered rows of P3", tmp_path, (RENDERED, RENDERED), bad, lambda rows: Examples.rendered("own", rows)
    )


def test_rendered_rows_of_a_choice_each(record, tmp_path):
    bad = damaged_lines(*({**row, "inputs_pretokenized": "More?", "idx": [1, n]} for n, row in enumerate(CHOICE_ROWS)))
    last = [{**row, "inputs_pretokenized": "Last?", "idx": [2, n]} for n, row in enumerate(CHOICE_ROWS)]
    fuzz_rows(
        record, "rendered rows of P3, a choice each", tmp_path, (CHOICE_ROWS, last), bad,
        lambda rows: Examples.rendered("own", rows),
    )  # fmt: skip


def parquet(folder):
    pq.write_table(pa.Table.from_pylist(4 * ROWS), folder / "train.parquet")


def arrow(folder):
    Dataset.from_list(4 * ROWS).save_to_disk(str(folder / "train"))


@pytest.mark.parametrize("write", [parquet, arrow])
def test_tables(record, tmp_path, write):
    write(tmp_path)
    files = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    expected = list(open_rows(tmp_path, "train", DataReport("rows")))

    def attempt(drawn):
        path, content = drawn
        put(path, content)
        report = DataReport("rows")
        try:
            rows = open_rows(tmp_path, "train", report)
            refused(report.raise_if_errors, DataError, tmp_path)
            assert (rows is None) or not report.errors
            found = list(rows or [])
            assert all(row is None or isinstance(row, dict) for row in found)
        finally:
            put(path, files[path])
        return READ if found == expected else LEFT_OUT if None in found else REFUSED if not found else OTHER

    inputs = st.sampled_from(sorted(files)).flatmap(lambda path: st.tuples(st.just(path), damaged_bytes(files[path])))
    fuzz(record, f"tables of rows, {write.__name__}", inputs, attempt)


PIECES = (
    *("{{text}}", "{{ text }} ||| {{ label }}", " ||| ", "{{ answer_choices[label] }}", "{{ answers.text[0] }}", "x"),
    *("{% if label %}", "{% elif score %}", "{% else %}", "{% endif %}", "{% for x in answers.text %}", "{% endfor %}"),
    *("{% for x in range(10**9) %}", "{% for x in text %}{% for y in text %}{% endfor %}{% endfor %}", "{{ x }}"),
    *("{% set text = text ~ text %}", "{% set x = [text, text] %}", "{{ text * 10**9 }}", "{{ 9 ** 9 ** 9 }}"),
    *("{{ text | length * label }}", "{{ answers | choice }}", '{{ ["a", "b"] | choice }}', "{{ text.__class__ }}"),
    *("{{ text | replace('', text) }}", "{{ text.split() | join(text) }}", "{{ text | map('upper') | list }}"),
    *('{{ "%s" % text }}', "{{ text.format(1) }}", "{{ answers | sort | first }}", "{{ answers.items() | list }}"),
    *("{% macro m() %}", "{% include 'x' %}", "{% raw %}", "{{", "}}", "{%", "%}", "{#", "#}", "|", "\ufdd0", "\ufdd1"),
    *(f"{{{{ {left * 300}text{right * 300} }}}}" for left, right in ("()", "[]", ("-", ""), ("", " | upper"))),
    *("{% if label %}" * 30, "{% endif %}" * 30, "{{ text" + " ~ text" * 300 + " }}", "{{ 9 ** score }}"),
    *("{% for x in answers.text %}" * 12 + "{% endfor %}" * 12, "{{ text | round }}", "{{ score | round(10**9) }}"),
    *("{{ 10**400 * label }}", "{{ score / 0 }}", "{{ text[::-1] }}", "{{ text[label:] }}", "{{ answers[text] }}"),
    "x" * 60_000,
)
"""Pieces of templates, good and bad."""


def test_templates_and_what_fills_them(record):
    def attempt(drawn):
        pieces, choices, line = drawn
        row = json.loads(line)
        source = TemplateSource("t", "".join(pieces), choices)
        template = refused(lambda: PromptTemplate(source), TemplateProblem)
        filled = template and refused(
            lambda: template.fill(row if isinstance(row, dict) else ROW, "own/train/0"), (TemplateProblem, RowProblem)
        )
        if filled is None:
            return LEFT_OUT
        assert 0 < len(filled.prompt) <= MAX_CHARACTERS
        assert filled.targets
        assert all(filled.targets)
        assert filled == template.fill(row if isinstance(row, dict) else ROW, "own/train/0")
        return READ

    pieces = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6) | damaged_bytes(ASK.encode(), SAY.encode()).map(
        lambda content: [content.decode(errors="replace")]
    )
    rows = st.just(json.dumps(ROW).encode()) | damaged_json(ROW).filter(parses)
    choices = st.sampled_from(("", "no ||| yes", "{{answers.text | join('|||')}}"))
    fuzz(record, "templates, and rows that fill them", st.tuples(pieces, choices, rows), attempt)


def parses(content):
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True
