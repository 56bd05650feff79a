import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import pytest
import torch
from commands import same_tensors
from instructed_models import build_instructed
from peft import PeftModel
from safetensors.torch import load

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.backbones import GenerationConfig
from tagi_lightning.data.instruction import Instruction
from tagi_lightning.peft_io.folders import difference, plain_model
from tagi_lightning.ui.workbench import (
    LORA_ALONE,
    PROMPTED,
    WITH,
    WITHOUT,
    LimitError,
    Limits,
    Workbench,
)

SHORT = GenerationConfig(max_new_tokens=6)
LIMITS = Limits(instruction_tokens=60, input_characters=40, inputs=3, waiting=3)
TEXTS = ["Say the first word.", "Say the last word.", "1 2 1 2", "Output: the example"]
INPUTS = ["first word", "2 1", "say the word 1"]


@pytest.fixture(scope="module")
def loaded():
    """A TAGI-LoRA model; not to be changed."""
    return build_instructed("t5-lora")


@pytest.fixture(scope="module")
def bench(loaded):
    """A workbench on it with known tasks; not to be changed."""
    return Workbench(loaded, [Instruction(TEXTS[0], name="first"), *map(Instruction, TEXTS[1:])], LIMITS, SHORT)


def weights(archive):
    """Returns the tensors of an archive."""
    with zipfile.ZipFile(BytesIO(archive)) as packed:
        [name] = [name for name in packed.namelist() if name.endswith(".safetensors")]
        return load(packed.read(name))


def test_an_adapter_is_the_model_s_own_with_its_norms_and_nearest_tasks(bench, loaded, distance):
    made = bench.adapt(bench.instruction(TEXTS[0]))
    expected = loaded.adapt(TEXTS[0]).lora
    for site in expected.a:
        assert distance(made.adapter.lora.delta(site), expected.delta(site)) < 1e-5
    sites = loaded.model.sites
    norms = {}
    for site in sites:
        norms.setdefault(f"{site.stack} {site.target}", []).append(expected.delta(site.name).norm().item())
    assert made.norms.keys() == norms.keys()
    for place, values in norms.items():
        assert made.norms[place] == pytest.approx(values, rel=1e-4)
    whole = torch.cat([expected.delta(site.name).flatten() for site in sites])
    assert made.norm == pytest.approx(whole.norm().item(), rel=1e-4)
    assert made.tokens == loaded.read([Instruction(TEXTS[0])]).ids.shape[1]
    assert 0 < made.seconds < 60

    assert made.nearest[0] == ("first", pytest.approx(1, abs=1e-4))
    assert {name for name, _ in made.nearest} == {"first", *TEXTS[1:]}
    for name, cosine in made.nearest[1:]:
        other = loaded.adapt(name).lora
        flat = torch.cat([other.delta(site.name).flatten() for site in sites])
        assert cosine == pytest.approx(torch.cosine_similarity(whole, flat, dim=0).item(), abs=1e-4)
    cosines = [cosine for _, cosine in made.nearest]
    assert cosines == sorted(cosines, reverse=True)


def test_answers_stand_beside_those_without_the_adapter(bench, loaded):
    made = bench.adapt(bench.instruction(TEXTS[1]))
    compared = bench.compare(made, [INPUTS[0], "  ", *INPUTS[1:]])
    assert compared.inputs == tuple(INPUTS)
    assert compared.cut == (False, False, False)
    assert list(compared.answers) == [WITH, PROMPTED, WITHOUT]
    assert compared.answers[WITH] == loaded.generate(loaded.adapt(TEXTS[1]), INPUTS, SHORT)
    assert len({tuple(each) for each in compared.answers.values()}) == 3
    bare, prompted = loaded, build_instructed("t5-prompt")  # on the same backbone, they read what is compared
    for title, model in ((WITHOUT, bare), (PROMPTED, prompted)):
        asked = (TaskAdapter(), [Instruction(TEXTS[1])], [0] * len(INPUTS), INPUTS, SHORT)
        assert compared.answers[title] == list(model.answer(*asked).texts)


def test_what_peft_does_not_hold_is_left_out_of_one_column():
    loaded = build_instructed("t5")
    whole = Workbench(loaded, generation=SHORT)
    made = whole.adapt(whole.instruction(TEXTS[0], [("1 2", "2")]))
    answers = whole.compare(made, INPUTS).answers
    assert list(answers) == [WITH, LORA_ALONE, PROMPTED, WITHOUT]
    assert answers[WITH] != answers[LORA_ALONE] != answers[WITHOUT]
    assert made.nearest == ()
    assert [each.output for each in made.adapter.instruction.demonstrations] == ["2"]


@pytest.mark.parametrize(
    ("text", "examples", "told"),
    [
        (" \n", [], "Say in words"),
        ("do", [("1", " ")], "Example 1 has one side alone"),
        ("do", [("", ""), ("x" * 41, "1")], "Example 2 has 41 characters; at most 40"),
        ("x" * 961, [], "961 characters with its examples; at most 960"),
    ],
)
def test_an_instruction_over_the_limits_is_told(bench, text, examples, told):
    with pytest.raises(LimitError, match=told):
        bench.instruction(text, examples)


def test_examples_that_were_left_empty_are_left_out(bench):
    assert bench.instruction("do", [("", ""), ("1", "2"), (" ", "")]) == bench.instruction("do", [("1", "2")])


def test_an_instruction_of_too_many_tokens_is_told(bench, loaded):
    with pytest.raises(LimitError, match=r"has \d\d+ tokens with its examples; at most 60"):
        bench.adapt(bench.instruction("z " * 60))
    roomy = Workbench(loaded, limits=Limits(instruction_tokens=10_000))
    with pytest.raises(ValueError, match="leaves no room for an input"):
        roomy.adapt(roomy.instruction("z " * 300))


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (["", " "], "at least one input"),
        (["1"] * 4, "4 inputs; at most 3"),
        (["1", "x" * 41], "Input 2 has 41 characters; at most 40"),
    ],
)
def test_inputs_over_the_limits_are_told(bench, inputs, told):
    made = bench.adapt(bench.instruction(TEXTS[0]))
    with pytest.raises(LimitError, match=told):
        bench.compare(made, inputs)


def test_a_limit_of_nothing_is_refused():
    with pytest.raises(ValueError, match="--max_inputs must be at least 1, got 0"):
        Limits(inputs=0)


def test_users_at_once_get_what_each_would_get_alone(loaded):
    bench = Workbench(loaded, limits=Limits(waiting=len(TEXTS)), generation=SHORT)
    start = threading.Barrier(len(TEXTS))

    def use(text):
        start.wait()
        made = bench.adapt(bench.instruction(text))
        compared = [bench.compare(made, INPUTS).answers for _ in range(3)]
        return made, compared, bench.archive(made)

    with ThreadPoolExecutor(len(TEXTS)) as users:
        found = list(users.map(use, TEXTS))
    for text, (_, compared, archive) in zip(TEXTS, found, strict=True):
        made = bench.adapt(bench.instruction(text))
        assert compared == [bench.compare(made, INPUTS).answers] * 3
        assert same_tensors(weights(archive), weights(bench.archive(made)))
    assert len({tuple(compared[0][WITH]) for _, compared, _ in found}) == len(TEXTS)


def test_an_adapter_waits_until_another_s_is_no_longer_merged(bench, loaded, distance):
    alone = bench.adapt(bench.instruction(TEXTS[0])).adapter.lora
    other = loaded.adapt(TEXTS[1]).prepared
    with ThreadPoolExecutor(1) as user:
        with loaded.model.merged(other):
            coming = user.submit(bench.adapt, bench.instruction(TEXTS[0]))
            with pytest.raises(TimeoutError):
                coming.result(timeout=0.5)
        found = coming.result().adapter.lora
    for site in alone.a:
        assert distance(found.delta(site), alone.delta(site)) < 1e-6


def test_who_comes_when_too_many_wait_is_asked_to_come_again(loaded):
    bench = Workbench(loaded, limits=Limits(waiting=2), generation=SHORT)
    instruction = bench.instruction(TEXTS[0])
    with ThreadPoolExecutor(2) as users:
        with loaded.model.backbone.lock:
            waiting = [users.submit(bench.adapt, instruction) for _ in range(2)]
            while bench._places._value:
                threading.Event().wait(0.01)
            with pytest.raises(LimitError, match="2 others are waiting"):
                bench.adapt(instruction)
        assert all(each.result().tokens for each in waiting)
    assert bench.adapt(instruction).tokens


def test_an_archive_is_a_peft_folder_and_leaves_nothing_on_the_disk(bench, loaded, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    made = bench.adapt(bench.instruction(f"../../{TEXTS[0]}\\"))
    with zipfile.ZipFile(BytesIO(bench.archive(made))) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "out")
    assert list((tmp_path / "temporary").iterdir()) == []
    name = made.adapter.instruction.folder_name
    files = ("README.md", "adapter_config.json", "adapter_model.safetensors")
    assert names == [f"{name}/{file}" for file in files]
    plain = plain_model(loaded.model.backbone)
    assert difference(plain, loaded.model.backbone, made.adapter.lora) > 1e-2
    theirs = PeftModel.from_pretrained(plain, str(tmp_path / "out" / name)).eval()
    assert difference(theirs, loaded.model.backbone, made.adapter.lora) < 1e-5
