import pytest

from tagi_lightning.data.p3.lists import path_safe, subset_sizes, test_datasets, train_datasets
from tagi_lightning.data.p3.templates import TemplateSource, read_templates
from tagi_lightning.data.report import DataError, DataReport

FILE = """\
dataset: toy
templates:
  4b0d:
    !Template
    answer_choices: No ||| Yes
    id: 4b0d
    jinja: |-
      Is {{sentence}} right? |||
      {{answer_choices[label]}}
    metadata: !TemplateMetadata
      choices_in_prompt: false
      metrics: [Accuracy]
    name: right?
    reference: ''
  5c1e: !Template
    answer_choices: null
    jinja: '{{sentence}} ||| {{summary}}'
    metadata: !TemplateMetadata {}
    name: 'short '
  6d2f: !Template
    jinja: [1]
    name: broken
"""


def read(tmp_path, text):
    path = tmp_path / "templates.yaml"
    path.write_text(text, encoding="utf-8")
    report = DataReport("toy")
    return read_templates(path, report), report


def test_templates_are_read_with_their_two_tags(tmp_path):
    found, report = read(tmp_path, FILE)
    assert found == {
        "right?": TemplateSource("right?", "Is {{sentence}} right? |||\n{{answer_choices[label]}}", "No ||| Yes"),
        "short ": TemplateSource("short ", "{{sentence}} ||| {{summary}}", ""),
    }
    assert not report.errors
    assert [len(places) for places in report.notes.values()] == [1]


@pytest.mark.parametrize(
    "text",
    [
        "templates: !!python/object/apply:os.system ['echo no']",
        "templates: !Other {}",
        "[1, 2]",
        "templates: 3",
        "a: {",
    ],
)
def test_other_files_and_tags_are_errors(tmp_path, text):
    found, report = read(tmp_path, text)
    assert found == {}
    assert list(report.errors) == ["not a file of templates"]


def test_the_lists_have_the_papers_counts():
    assert (len(train_datasets()), sum(len(each.templates) for each in train_datasets())) == (36, 290)
    assert (len(test_datasets()), sum(len(each.templates) for each in test_datasets())) == (11, 116)
    assert subset_sizes() == (5, 10, 20, 36)
    sums = [sum(len(each.templates) for each in train_datasets(size)) for size in subset_sizes()]
    assert sums == [45, 78, 171, 290]
    assert [each.name for each in train_datasets(5)][-1] == "common_gen"
    assert not {each.name for each in train_datasets()} & {each.name for each in test_datasets()}


def test_names_of_tasks_are_path_safe_and_unique():
    names = [each.task_name(name) for each in (*train_datasets(), *test_datasets()) for name in each.templates]
    assert len(set(names)) == 406
    assert all(name.count("/") == 1 for name in names)
    assert path_safe("…As a result, C1 or C2?") == "_As_a_result_C1_or_C2_"
    assert {each.rendered_folder("GPT-3 style") for each in test_datasets() if each.name.startswith("anli")} == {
        f"anli_GPT_3_style_r{number}" for number in (1, 2, 3)
    }


def test_subsets_are_sizes_of_the_paper_or_names():
    assert [each.name for each in train_datasets(["imdb", "ag_news"])] == ["ag_news", "imdb"]
    with pytest.raises(DataError, match="allowed: 5, 10, 20, 36"):
        train_datasets(7)
    with pytest.raises(DataError, match="unknown P3 training sets: nowhere"):
        train_datasets(["imdb", "nowhere"])
