import json
import os
from pathlib import Path

import pytest
import yaml

from tagi_lightning.data.p3 import exchange_datasets, read_p3, train_datasets
from tagi_lightning.data.p3.lists import test_datasets as all_test_datasets
from tagi_lightning.data.p3.render import PromptTemplate
from tagi_lightning.data.p3.templates import TemplateSource, read_templates
from tagi_lightning.data.report import DataError, DataReport

ASK = "{{sentence1}} Does it mean: {{sentence2}}? ||| {{ answer_choices[label] }}"


def write_rows(folder, name, split, rows):
    (folder / name).mkdir(parents=True, exist_ok=True)
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    (folder / name / f"{split}.jsonl").write_text(text, encoding="utf-8")


def write_templates(folder, dataset, templates):
    path = folder / dataset.template_folder / "templates.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = {
        str(number): {"name": name, "jinja": jinja, "answer_choices": choices}
        for number, (name, (jinja, choices)) in enumerate(templates.items())
    }
    path.write_text(yaml.safe_dump({"dataset": dataset.name, "templates": entries}), encoding="utf-8")


def pairs(size, shift=0):
    return [{"sentence1": f"s{n}", "sentence2": f"t{n}", "label": n % 2} for n in range(shift, shift + size)]


MRPC, RTE = train_datasets(["glue_mrpc"])[0], all_test_datasets()[0]
PAWS = train_datasets(["paws"])[0]
OPTIONS = {"subset": ["glue_mrpc"], "allow_missing": True}


@pytest.fixture
def folder(tmp_path):
    """Rows and templates of one training set with two templates and one test task with one."""
    rows, templates = tmp_path / "p3", tmp_path / "p3_templates"
    write_rows(rows, "glue_mrpc", "train", pairs(40))
    write_rows(rows, "super_glue_rte", "train", pairs(30, 100))
    write_rows(rows, "super_glue_rte", "validation", pairs(20, 200))
    say = "{% if label == 1 %}Say again: {{sentence1}} ||| {{sentence2}}{% endif %}"
    write_templates(templates, MRPC, {"want to know": (ASK, "no ||| yes"), "generate_paraphrase": (say, None)})
    write_templates(templates, RTE, {"GPT-3 style": (ASK, "True ||| False")})
    return tmp_path


def read(folder, **options):
    report = DataReport("p3")
    return read_p3(folder / "p3", folder / "p3_templates", report=report, **{**OPTIONS, **options}), report


def task(tasks, name):
    return next(task for task in tasks if task.name == name)


def test_one_task_for_each_template(folder):
    splits, report = read(folder)
    assert [each.name for each in splits.train] == ["glue_mrpc/generate_paraphrase", "glue_mrpc/want_to_know"]
    assert [each.name for each in splits.test] == ["super_glue_rte/GPT_3_style"]
    known = task(splits.train, "glue_mrpc/want_to_know")
    assert (known.category, known.dataset, known.template) == ("glue_mrpc", "glue_mrpc", "want to know")
    assert known.definitions == ("[sentence1] Does it mean: [sentence2]?",)
    assert len({each.id for each in known.instances}) == 40
    for each in known.instances:
        number = int(each.id.removeprefix("glue_mrpc/train/"))
        assert each.input == f"s{number}\nt{number}"
        assert each.prompt == f"s{number} Does it mean: t{number}?"
        assert (each.choices, each.gold) == (("no", "yes"), number % 2)
        assert each.references == (("no", "yes")[number % 2],)
    said = task(splits.train, "glue_mrpc/generate_paraphrase")
    assert (len(said.instances), {each.choices for each in said.instances}) == (20, {()})
    (place,) = report.notes["row skipped: row that the template leaves out"]
    assert place.startswith(f"{said.name} (20 of 40, first glue_mrpc/train/")


def test_test_rows_are_the_validation_rows_in_order_and_training_rows_a_permutation(folder):
    splits, _ = read(folder, max_train_instances=15)
    assert [each.id for each in splits.test[0].instances] == [f"super_glue_rte/validation/{n}" for n in range(20)]
    known = [each.id for each in task(splits.train, "glue_mrpc/want_to_know").instances]
    whole = [each.id for each in task(read(folder)[0].train, "glue_mrpc/want_to_know").instances]
    assert known == whole[:15] != sorted(whole)[:15]
    other = [each.id for each in task(read(folder, seed=1)[0].train, "glue_mrpc/want_to_know").instances]
    assert other != whole
    assert read(folder)[0] == read(folder)[0]
    every = [row.id for row in read(folder)[0].test[0].instances]
    some = [row.id for row in read(folder, max_test_instances=3)[0].test[0].instances]
    assert some == [every[place * len(every) // 3] for place in range(3)]
    assert [row.id for row in read(folder, max_test_instances=len(every) + 1)[0].test[0].instances] == every


def test_held_out_instances_come_after_the_training_ones(folder):
    trained, whole = read(folder, max_train_instances=15)[0].train, read(folder)[0].train
    held_out = read(folder, max_train_instances=15, held_out_instances=10)[0].train
    for each in held_out:
        ids = [row.id for row in task(whole, each.name).instances]
        assert [row.id for row in each.instances] == ids[15:25]
        assert not {row.id for row in each.instances} & {row.id for row in task(trained, each.name).instances}


def test_model_input_and_prompt_are_switches(folder):
    prompts = task(read(folder, model_input="prompt")[0].train, "glue_mrpc/want_to_know")
    assert all(each.input == each.prompt for each in prompts.instances)
    bare = task(read(folder, with_prompt=False)[0].train, "glue_mrpc/want_to_know")
    assert {each.prompt for each in bare.instances} == {""}


def test_demonstrations_come_from_training_rows(folder):
    splits, _ = read(folder, shots=16)
    (known,) = splits.test
    assert len(set(known.demonstrations)) == 16
    assert len(known.instances) == 20
    for each in known.demonstrations:
        number = int(each.input.split()[0][1:])
        assert 100 <= number < 130
        assert each.output == ("True", "False")[number % 2]
    assert read(folder, shots=16, seed=1)[0].test[0].demonstrations != known.demonstrations
    assert read(folder, shots=4)[0].test[0].demonstrations == known.demonstrations[:4]


def test_training_tasks_have_demonstrations_that_are_none_of_their_instances(folder):
    plain, _ = read(folder, max_train_instances=20)
    shown, _ = read(folder, max_train_instances=20, shots=2)
    held_out, _ = read(folder, max_train_instances=20, held_out_instances=4, shots=2)
    for each in shown.train:
        assert each.instances == task(plain.train, each.name).instances
        prompts = {demonstration.input for demonstration in each.demonstrations}
        if each.name == "glue_mrpc/want_to_know":
            assert len(prompts) == 4 * 2
        assert len(prompts) == len(each.demonstrations)
        assert not prompts & {row.prompt for row in each.instances}
    for each in held_out.train:
        assert not {one.input for one in each.demonstrations} & {row.prompt for row in each.instances}


def test_a_training_task_without_rows_to_spare_is_noted(folder):
    splits, report = read(folder, max_train_instances=1000, shots=2)
    assert all(not each.demonstrations for each in splits.train)
    assert "fewer than 2 demonstrations" in report.summary()


def test_a_folder_may_list_data_sets_of_its_own(folder):
    names = {"templates": RTE.template_folder, "names": ["GPT-3 style"]}
    lists = {"train": {"glue_mrpc": {"templates": "glue/mrpc", "names": ["want to know"]}}, "test": {"mine": names}}
    (folder / "p3" / "super_glue_rte").rename(folder / "p3" / "mine")
    (folder / "p3" / "lists.yaml").write_text(yaml.safe_dump(lists), encoding="utf-8")
    splits, _ = read(folder, subset=None, allow_missing=False)
    assert [each.name for each in (*splits.train, *splits.test)] == ["glue_mrpc/want_to_know", "mine/GPT_3_style"]
    with pytest.raises(DataError, match=r"subset=5 is of T0's training sets.*lists\.yaml"):
        read(folder, subset=5)
    with pytest.raises(DataError, match=r"unknown P3 training sets: paws \(allowed: glue_mrpc\)"):
        read(folder, subset=["paws"])


def test_without_training_rows_demonstrations_are_not_evaluated(folder):
    (folder / "p3" / "super_glue_rte" / "train.jsonl").unlink()
    (known,) = read(folder, shots=16)[0].test
    shown = {each.input for each in known.demonstrations}
    assert (len(shown), len(known.instances)) == (16, 4)
    assert not shown & {each.prompt for each in known.instances}


def test_what_is_absent_is_an_error_unless_it_is_allowed(folder):
    with pytest.raises(DataError) as caught:
        read(folder, allow_missing=False, subset=["glue_mrpc", "imdb"])
    message = str(caught.value)
    for text in (
        "1 x training set without templates.yaml (2 are listed): imdb",
        "10 x test set without templates.yaml (11 are listed)",
        "template that is not in its templates.yaml: glue_mrpc/paraphrase",
        "allow_missing=true",
    ):
        assert text in message
    (folder / "p3_templates" / "imdb").mkdir()
    write_templates(folder / "p3_templates", train_datasets(["imdb"])[0], {"x": (ASK, None)})
    report = read(folder, subset=["glue_mrpc", "imdb"])[1]
    assert report.notes["training set without rows (2 are listed)"] == ["imdb"]
    with pytest.raises(DataError, match="missing folder"):
        read_p3(folder / "nowhere", folder / "p3_templates")
    (folder / "p3" / "super_glue_rte" / "validation.jsonl").unlink()
    with pytest.raises(DataError, match="no usable task"):
        read(folder, subset=["imdb"])


def test_rows_may_lie_under_another_name(folder):
    (folder / "p3" / "glue_mrpc").rename(folder / "p3" / "paws_x_en")
    write_templates(folder / "p3_templates", PAWS, {"Meaning": (ASK, "no ||| yes")})
    splits, _ = read(folder, subset=["paws"])
    assert [each.name for each in splits.train] == ["paws/Meaning"]
    assert splits.train[0].instances[0].id.startswith("paws/train/")


BAD_TEMPLATES = {
    "equivalent": ("{{ sentence1 ||| x", None, "template syntax error"),
    "paraphrase": ("{{sentence1}} {{title}} ||| x", None, "template whose train rows lack title"),
    "replace": ("{{sentence1}}", None, r"template without |||"),
    "same thing": ("{{sentence1.__class__}} ||| x", None, "template that reaches for Python internals"),
    "want to know": ("{{sentence1}} ||| {{ sentence1[90:] }}", None, "training template without a usable row"),
    "generate_sentence": (
        "{{sentence1}}{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %} ||| x",
        None,
        "rendering stopped",
    ),
}


def test_bad_templates_are_left_out_by_name_or_stop_the_run(folder):
    good = {"generate_paraphrase": (ASK, "no ||| yes")}
    bad = {name: (jinja, choices) for name, (jinja, choices, _) in BAD_TEMPLATES.items()}
    write_templates(folder / "p3_templates", MRPC, {**good, **bad})
    splits, report = read(folder)
    assert [each.template for each in splits.train] == ["generate_paraphrase"]
    for name, (_, _, message) in BAD_TEMPLATES.items():
        place = MRPC.task_name(name)
        assert any(kind.startswith(message) and place in places for kind, places in report.notes.items()), name
    with pytest.raises(DataError) as caught:
        read(folder, allow_missing=False)
    for name, (_, _, message) in BAD_TEMPLATES.items():
        assert message in str(caught.value), name


def test_bad_rows_are_counted_and_ids_stay_row_numbers(folder):
    unlabelled, broken = {"sentence1": "a", "sentence2": "b", "label": -1}, '{"sentence1": "\\ud800"}\n'
    rows = [*pairs(4), unlabelled, broken, {"sentence1": "c"}, *pairs(2, 50)]
    write_rows(folder / "p3", "super_glue_rte", "validation", rows)
    splits, report = read(folder)
    ids = [each.id for each in splits.test[0].instances]
    assert ids == [f"super_glue_rte/validation/{number}" for number in (0, 1, 2, 3, 7, 8)]
    skipped = {kind: places for kind, places in report.notes.items() if kind.startswith("row skipped")}
    name = "super_glue_rte/GPT_3_style"
    assert skipped["row skipped: row without label (label is -1)"] == [
        f"{name} (1 of 9, first super_glue_rte/validation/4)"
    ]
    assert skipped["row skipped: row that is no UTF-8 text or no JSON object"] == [
        f"{name} (1 of 9, first super_glue_rte/validation/5)"
    ]
    assert len([kind for kind in skipped if "undefined field" in kind and "sentence2" in kind]) == 1


def test_a_row_without_anything_for_the_model_to_read_is_left_out(folder):
    empty = ("{% if label %}{{sentence1}}{% endif %} Which? ||| {{ answer_choices[label] }}", "bad ||| good")
    write_templates(folder / "p3_templates", MRPC, {"equivalent": empty})
    splits, report = read(folder)
    assert {each.references[0] for each in splits.train[0].instances} == {"good"}
    (place,) = report.notes["row skipped: row that fills nothing into the template"]
    assert place.startswith("glue_mrpc/equivalent")
    splits, report = read(folder, model_input="prompt")
    assert {each.references[0] for each in splits.train[0].instances} == {"bad", "good"}


def test_targets_that_are_never_choices_are_trained_on_but_not_ranked(folder):
    odd = ("{{sentence1}} This is not a ||| {{ answer_choices[1 - label] }} pair.", "bad ||| good")
    write_templates(folder / "p3_templates", MRPC, {"equivalent": odd})
    write_templates(folder / "p3_templates", RTE, {"GPT-3 style": odd, "can we infer": (ASK, "a ||| b")})
    splits, report = read(folder)
    assert {(each.choices, each.gold) for each in splits.train[0].instances} == {((), None)}
    assert {each.references[0] for each in splits.train[0].instances} == {"good pair.", "bad pair."}
    assert [each.template for each in splits.test] == ["can we infer"]
    (place,) = report.notes["row skipped: gold answer not among the choices"]
    assert place.startswith("super_glue_rte/GPT_3_style (20 of 20")
    assert report.notes["test template without a usable row"] == ["super_glue_rte/GPT_3_style"]


RENDERED = ("inputs_pretokenized", "targets_pretokenized", "answer_choices")


def pieces(task):
    return {(row.prompt, row.references, row.choices, row.gold) for row in task.instances}


def test_rendered_rows_give_the_same_tasks(folder):
    raw = read(folder, model_input="prompt")[0]
    for each in (*raw.train, *raw.test):
        dataset, split = (MRPC, "train") if each.category == "glue_mrpc" else (RTE, "validation")
        rows = [
            dict(zip(RENDERED, (row.prompt, row.references[0], row.choices), strict=True))
            for row in sorted(each.instances, key=lambda row: int(row.id.split("/")[-1]))
        ]
        write_rows(folder / "rendered", dataset.rendered_folder(each.template), split, rows)
    found = read_p3(folder / "rendered", folder / "p3_templates", **OPTIONS, model_input="prompt")
    for known, same in zip((*raw.train, *raw.test), (*found.train, *found.test), strict=True):
        assert (known.name, known.category, known.definitions) == (same.name, same.category, same.definitions)
        assert pieces(known) == pieces(same)
    with pytest.raises(DataError, match="set model_input=prompt"):
        read_p3(folder / "rendered", folder / "p3_templates", **OPTIONS)


def test_validation_is_split_off_training_tasks(folder):
    splits, _ = read(folder, val_split="tasks", val_share=0.5)
    assert (len(splits.train), len(splits.validation)) == (1, 1)
    parts = read(folder, val_split="instances", val_share=0.1)[0]
    assert [len(each.instances) for each in parts.validation] == [2, 4]


def test_instructions_are_exchanged_across_data_sets(folder):
    tasks = [*read(folder)[0].train, *read(folder)[0].test]
    exchanged = exchange_datasets(tasks, seed=0)
    origin = {each.definitions: each.dataset for each in tasks}
    for before, after in zip(tasks, exchanged, strict=True):
        assert origin[after.definitions] != before.dataset
        assert after.instances == before.instances
    with pytest.raises(DataError, match="two data sets"):
        exchange_datasets(tasks[:2], seed=0)


@pytest.fixture(scope="module")
def real():
    """The folder of real rows and the one of real templates."""
    root = Path(os.environ.get("TAGI_DATA", "nowhere"))
    if not (root / "p3").is_dir() or not (root / "p3_templates").is_dir():
        pytest.skip("TAGI_DATA names no folder with p3/ and p3_templates/")
    return root / "p3", root / "p3_templates"


@pytest.mark.realdata
def test_every_real_template_compiles_and_has_an_instruction(real):
    report = DataReport("templates")
    for dataset in (*train_datasets(), *all_test_datasets()):
        found = read_templates(real[1] / dataset.template_folder / "templates.yaml", report)
        for name in dataset.templates:
            made = PromptTemplate(found[name])
            assert made.instruction
            assert "{" not in made.instruction.replace("{{", "")
            assert "|||" not in made.instruction
    assert not report.errors
    assert not report.notes


def nonce_row(value, path, nonces):
    """Returns the row with every value replaced by a nonce of its own, remembered by its path."""
    if isinstance(value, list):
        return [nonce_row(each, path, nonces) for each in value]
    if isinstance(value, dict):
        return {key: nonce_row(each, f"{path}.{key}" if path else key, nonces) for key, each in value.items()}
    return nonces.setdefault(path, f"<{len(nonces)}>")


@pytest.mark.realdata
def test_real_instructions_are_the_prompts_of_nonce_rows(real):
    """Where a template neither branches, loops nor chooses, its prompt of a nonce row is its instruction."""
    compared = 0
    for dataset in (*train_datasets(), *all_test_datasets()):
        folders = [real[0] / name for name in dataset.row_folders if (real[0] / name).is_dir()]
        if not folders:
            continue
        found = read_templates(real[1] / dataset.template_folder / "templates.yaml", DataReport("templates"))
        with next(iter(sorted(folders[0].glob("*.jsonl")))).open(encoding="utf-8") as file:
            row = json.loads(file.readline())
        for name in dataset.templates:
            source = found[name]
            prompt = source.jinja.split("|||")[0]
            if any(mark in prompt for mark in ("{%", "choice", "[", "|")) or source.answer_choices.startswith("{{"):
                continue
            nonces = {}
            made = PromptTemplate(TemplateSource(name, f"{prompt} ||| target", ""))
            if made.missing(row):
                continue
            text = made.fill(nonce_row(row, "", nonces), "toy/0").prompt
            for path, nonce in nonces.items():
                text = text.replace(nonce, f"[{path}]")
            assert " ".join(text.split()) == " ".join(made.instruction.split()), (dataset.name, name)
            assert not any(nonce in made.instruction for nonce in nonces.values())
            compared += 1
    assert compared > 100


@pytest.mark.realdata
@pytest.mark.slow
def test_every_real_template_renders_or_is_listed_with_its_missing_field(real):
    report = DataReport(str(real[0]))
    splits = read_p3(*real, allow_missing=True, max_train_instances=None, with_prompt=False, report=report)
    print(report.summary())
    listed = {"train": sum(len(each.templates) for each in train_datasets()), "test": 116}
    absent = {"train": 0, "test": 0}
    sizes = {each.name: len(each.templates) for each in (*train_datasets(), *all_test_datasets())}
    test_names = {each.name for each in all_test_datasets()}
    for kind, places in report.notes.items():
        if "set without rows" in kind:
            for name in places:
                absent["test" if name in test_names else "train"] += sizes[name]
        elif " rows lack " in kind:
            for name in places:
                absent["test" if name.split("/")[0] in test_names else "train"] += 1
        else:
            known = (
                "row skipped: row that the template leaves out",
                "row skipped: undefined field",
                "row skipped: duplicate answer choices",
                "template whose targets are never among its choices",
            )
            assert kind.startswith(known), kind
    assert len(splits.train) == listed["train"] - absent["train"]
    assert len(splits.test) == listed["test"] - absent["test"]
    for each in (*splits.train, *splits.test):
        for row in each.instances:
            assert row.references[0]
            if row.choices:
                assert row.choices[row.gold] == row.references[0]
