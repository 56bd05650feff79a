import json
import shutil

import pytest
import torch
import yaml

from data_modules import P3DataModule
from data_modules.evaluation import EvaluationData
from tagi_lightning.data.p3.lists import test_datasets as all_test_datasets
from tagi_lightning.data.p3.lists import train_datasets
from tagi_lightning.data.vocabulary import train_vocabulary

ROWS = [
    {"sentence1": f"one pear {'and one fig ' * (n % 3)}.", "sentence2": f"two {'plum ' * (1 + n % 5)}.", "label": n % 2}
    for n in range(24)
]
CHOICES = {n: tuple(f"a {'very ' * (n % 3)}{kind} fig"[: 40 - n] for kind in "xyz"[: 2 + n % 2]) for n in range(24)}
ENDINGS = [{"ctx": f"one pear {n}", "endings": list(CHOICES[n]), "label": str(n % 2)} for n in range(24)]
ASK = "{{sentence1}} and {{sentence2}}? ||| {{answer_choices[label]}}"
TEMPLATES = {
    "glue_mrpc": {"want to know": (ASK, "no ||| yes"), "replace": ("Say {{sentence1}} ||| {{sentence2}}", None)},
    "super_glue_rte": {"GPT-3 style": (ASK, "True ||| False")},
    "hellaswag": {
        "Randomized prompts template": ("{{ctx}} then ||| {{answer_choices[label | int]}}", "{{endings|join('|||')}}")
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("p3")
    for dataset in (*train_datasets(["glue_mrpc"]), *all_test_datasets()):
        if dataset.name not in TEMPLATES:
            continue
        split = "train" if dataset.name == "glue_mrpc" else "validation"
        rows = ENDINGS if dataset.name == "hellaswag" else ROWS
        (path / "p3" / dataset.name).mkdir(parents=True)
        (path / "p3" / dataset.name / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        entries = [
            {"name": name, "jinja": jinja, "answer_choices": choices}
            for name, (jinja, choices) in TEMPLATES[dataset.name].items()
        ]
        file = path / "p3_templates" / dataset.template_folder / "templates.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(yaml.safe_dump({"templates": dict(enumerate(entries))}), encoding="utf-8")
    text = (
        "one two pear plum fig and say then a very x y z [sentence1] [sentence2] [ctx] no yes True False 0123456789 ?."
    )
    train_vocabulary([text] * 3, path / "tokenizer", vocab_size=90)
    return path


def module(folder, **options):
    options = {"subset": ["glue_mrpc"], "allow_missing": True, "tasks_per_batch": 2, "eval_batch_size": 9, **options}
    data = P3DataModule(str(folder / "p3"), str(folder / "tokenizer"), **options)
    data.setup("fit")
    return data


def rows(tokens):
    return [ids[mask.bool()].tolist() for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]


def encode(data, text):
    return [*data.tokenizer(text, add_special_tokens=False)["input_ids"], data.tokenizer.eos_token_id]


def test_training_batches_read_what_the_row_fills_in(folder):
    data = module(folder, with_prompt=True)
    seen = set()
    for batch in data.train_dataloader():
        assert (batch.choices, batch.choice_index, batch.gold, batch.choice_texts) == (None, None, None, ())
        tasks = [data.find_task(name) for name in batch.tasks]
        assert rows(batch.instruction) == [encode(data, task.definitions[0]) for task in tasks]
        for place, (task, id_) in enumerate(zip(batch.task_index.tolist(), batch.ids, strict=True)):
            row = next(each for each in tasks[task].instances if each.id == id_)
            assert rows(batch.input)[place] == encode(data, row.input)
            assert rows(batch.prompt)[place] == encode(data, row.prompt)
            assert [each for each in batch.labels[place].tolist() if each >= 0] == encode(data, row.references[0])
            seen.add((tasks[task].name, id_))
    assert len(seen) == 48
    assert data.categories == ("glue_mrpc",)


def test_evaluation_batches_carry_all_choices_in_order(folder):
    data = module(folder)
    found = {}
    for batch in data.test_dataloader():
        choices = rows(batch.choices)
        assert len(choices) == len(batch.choice_index) == sum(map(len, batch.choice_texts))
        assert batch.choice_index.tolist() == sorted(batch.choice_index.tolist())
        assert batch.choice_index.dtype == batch.gold.dtype == torch.long
        for place, id_ in enumerate(batch.ids):
            texts = batch.choice_texts[place]
            own = [choices[row] for row in range(len(choices)) if batch.choice_index[row] == place]
            assert own == [encode(data, text) for text in texts]
            assert texts[batch.gold[place]] == batch.references[place][0]
            found[id_] = texts
    assert len(found) == 48
    assert {len(texts) for texts in found.values()} == {2, 3}
    assert {id_: texts for id_, texts in found.items() if id_.startswith("hellaswag")} == {
        f"hellaswag/validation/{n}": texts for n, texts in CHOICES.items()
    }


def test_batches_without_ranked_rows_have_no_choices(folder):
    data = module(folder, val_split="instances", val_share=0.2, eval_batch_size=1)
    by_task = {batch.tasks[0]: batch for batch in data.val_dataloader()}
    assert by_task["glue_mrpc/replace"].choices is None
    assert len(by_task["glue_mrpc/want_to_know"].choices) == 2
    mixed = next(iter(module(folder, val_split="instances", val_share=0.2, eval_batch_size=99).val_dataloader()))
    ranked = [bool(texts) for texts in mixed.choice_texts]
    assert {True, False} == set(ranked)
    assert [gold >= 0 for gold in mixed.gold.tolist()] == ranked
    moved = mixed.to("cpu")
    assert torch.equal(moved.choices.ids, mixed.choices.ids)


def test_complete_prompts_and_limits(folder):
    data = module(folder, model_input="prompt", with_prompt=True, max_input_length=14, max_output_length=3)
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(batch.input.ids, batch.prompt.ids)
    assert batch.prompt.ids.shape[1] <= 14
    data.prepare_data()
    assert "complete prompt truncated to the limit" in data.report.notes
    assert all(len(row) <= 3 for batch in data.test_dataloader() for row in rows(batch.choices))


def test_the_cache_is_shared_by_equal_settings_alone(folder, tmp_path):
    first = module(folder, cache_dir=str(tmp_path))
    folders = set(tmp_path.iterdir())
    module(folder, cache_dir=str(tmp_path), max_input_length=100)
    assert set(tmp_path.iterdir()) == folders
    for options in ({"model_input": "prompt"}, {"with_prompt": True}, {"max_examples_per_template": 5}, {"seed": 1}):
        before = set(tmp_path.iterdir())
        module(folder, cache_dir=str(tmp_path), **options)
        assert set(tmp_path.iterdir()) - before, options
    assert len(first.tasks["train"]) == 48


def test_wrong_instructions_are_of_another_data_set(folder):
    data = module(folder)
    right = {
        name: ids
        for batch in data.test_dataloader()
        for name, ids in zip(batch.tasks, rows(batch.instruction), strict=True)
    }
    for batch in EvaluationData(data).wrong_instruction():
        for name, ids in zip(batch.tasks, rows(batch.instruction), strict=True):
            assert ids != right[name]
            assert ids in right.values()


@pytest.mark.parametrize(
    "wrong", [{"max_examples_per_template": -1}, {"shots": -1}, {"max_test_instances": 0}, {"max_output_length": 0}]
)
def test_numbers_out_of_range_are_refused_before_anything_is_read(wrong):
    [(option, value)] = wrong.items()
    with pytest.raises(ValueError, match=f"^{option} must be at least .*got {value}$"):
        P3DataModule("nowhere", "tokenizer", **wrong)


def test_demonstrations_are_drawn_where_asked_for(folder):
    data = module(folder, shots=4)
    assert [len(task.demonstrations) for task in data.splits.test] == [4, 4]
    assert [len(task.instances) for task in data.splits.test] == [20, 20]


def test_a_second_start_renders_nothing_and_any_change_renders_again(folder, tmp_path, monkeypatch):
    own = tmp_path / "own"
    shutil.copytree(folder, own, ignore=shutil.ignore_patterns(".cache"))
    first = module(own)

    def refuse(*args, **kwargs):
        pytest.fail("rendered again")

    with monkeypatch.context() as patch:
        patch.setattr("data_modules.p3.read_p3", refuse)
        second = module(own)
        assert [batch.ids for batch in second.test_dataloader()] == [batch.ids for batch in first.test_dataloader()]
        assert second.report.notes == first.report.notes
        for options in ({"model_input": "prompt"}, {"with_prompt": True}, {"shots": 2}, {"seed": 1}):
            with pytest.raises(pytest.fail.Exception, match="rendered again"):
                module(own, **options)
        for changed in (own / "p3/glue_mrpc/train.jsonl", own / "p3_templates/glue/mrpc/templates.yaml"):
            text = changed.read_text(encoding="utf-8")
            changed.write_text(text + "\n", encoding="utf-8")
            with pytest.raises(pytest.fail.Exception, match="rendered again"):
                module(own)
            changed.write_text(text, encoding="utf-8")
