import copy
import sqlite3

import pytest
import torch

from tagi_lightning.caches.teacher_logits import TeacherCache, adapter_digests, example_keys
from tagi_lightning.data.batch import IGNORE_INDEX, Tokens, pad_labels
from tagi_lightning.lora import LoraConfig
from tagi_lightning.losses import distillation_loss, prediction_and_distillation_loss, target_rows, top_k
from tagi_lightning.model import TagiConfig, TagiModel

VOCABULARY = 50
LABELS = pad_labels([[5, 9, 1], [7, 1], [3, 4, 6, 8, 1]])
PROMPT = Tokens.pad([[4, 5, 6], [7, 8], [9, 10, 11, 12]], pad_id=0)
KEYS = example_keys(PROMPT, LABELS, [b"x"] * 3)


class Teacher:
    """Logits that remember for which examples they were asked."""

    def __init__(self, seed=0):
        self.logits = torch.randn(*LABELS.shape, VOCABULARY, generator=torch.Generator().manual_seed(seed))
        self.asked = []

    def __call__(self, rows):
        self.asked.append(rows.tolist())
        return self.logits[rows]


def opened(folder, k=8, temperature=1.0, **backbone):
    return TeacherCache(folder, k, temperature, backbone)


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_the_first_time_and_every_later_time_give_the_same_bits(tmp_path):
    teacher = Teacher()
    fresh, found = opened(tmp_path).fill(KEYS, LABELS, teacher)
    assert found == 0
    again, found = opened(tmp_path).fill(KEYS, LABELS, teacher)
    assert found == 3
    assert teacher.asked == [[0, 1, 2]]
    assert same(fresh, again)
    student = Teacher(seed=1).logits
    assert torch.equal(distillation_loss(student, fresh, LABELS), distillation_loss(student, again, LABELS))


def test_what_is_kept_is_the_teachers_distribution_over_the_target_tokens(tmp_path):
    teacher = Teacher()
    kept, _ = opened(tmp_path, temperature=2.0).fill(KEYS, LABELS, teacher)
    assert same(kept, top_k(target_rows(teacher.logits, LABELS), 8, 2.0))
    assert len(kept.ids) == (LABELS != IGNORE_INDEX).sum()


def test_the_teacher_runs_on_missing_examples_only(tmp_path):
    teacher, cache = Teacher(), opened(tmp_path)
    whole = top_k(target_rows(teacher.logits, LABELS), 8)
    cache.fill([KEYS[1]], LABELS[1:2], lambda rows: teacher(rows + 1))
    filled, found = cache.fill(KEYS, LABELS, teacher)
    assert found == 1
    assert teacher.asked == [[1], [0, 2]]
    assert same(filled, whole)
    # another batch, in another order and padded otherwise, reads the same
    turned, found = cache.fill([KEYS[1], KEYS[0]], LABELS[[1, 0]][:, :4], teacher)
    assert found == 2
    lengths = (LABELS != IGNORE_INDEX).sum(-1).tolist()
    assert same(turned, [torch.cat(column.split(lengths)[1::-1]) for column in whole])


@pytest.mark.parametrize("change", [{"k": 9}, {"temperature": 2.0}, {"dtype": "bfloat16"}])
def test_another_teacher_k_or_temperature_has_a_file_of_its_own(tmp_path, change):
    assert opened(tmp_path).path == opened(tmp_path).path
    assert opened(tmp_path, **change).path != opened(tmp_path).path


def test_the_key_is_what_the_teacher_reads_and_says_without_padding():
    narrow = Tokens.pad([[4, 5, 6], [7, 8], [9, 10, 11, 12]], pad_id=0)
    wider = narrow.map(lambda tensor: torch.nn.functional.pad(tensor, (0, 12)))
    assert example_keys(wider, torch.nn.functional.pad(LABELS, (0, 3), value=IGNORE_INDEX), [b"x"] * 3) == KEYS
    others = [
        example_keys(PROMPT, LABELS, [b"y"] * 3),
        example_keys(Tokens(PROMPT.ids + 1, PROMPT.mask), LABELS, [b"x"] * 3),
        example_keys(PROMPT, LABELS.clamp(max=2), [b"x"] * 3),
    ]
    assert len({*KEYS, *(key for keys in others for key in keys)}) == 12


def test_a_change_of_one_adapter_changes_its_digest_alone(backbone, lora):
    before = lora(backbone, 3)
    digests = adapter_digests(before)
    assert len(set(digests)) == 3
    after = lora(backbone, 3)
    next(iter(after.b.values()))[1, 0, 0] += 1e-3
    changed = adapter_digests(after)
    assert (changed[0], changed[2]) == (digests[0], digests[2])
    assert changed[1] != digests[1]


def test_a_batch_whose_writing_is_interrupted_leaves_nothing(tmp_path):
    cache, entry = opened(tmp_path), top_k(Teacher().logits[0], 8)
    with pytest.raises(sqlite3.Error):
        cache.add({KEYS[0]: entry, object(): entry})
    assert len(opened(tmp_path)) == 0
    # a process that ends between the rows of a transaction
    connection = sqlite3.connect(cache.path)
    connection.execute("INSERT INTO entries VALUES (?, ?)", (KEYS[0], b"half"))
    connection.close()
    assert opened(tmp_path).find(KEYS) == {}


def test_of_two_processes_that_write_the_same_example_the_first_stays(tmp_path):
    first, second = opened(tmp_path), opened(tmp_path)
    kept, _ = first.fill(KEYS, LABELS, Teacher(0))
    second.add(dict.fromkeys(KEYS, top_k(Teacher(1).logits[0], 8)))
    assert same(second.fill(KEYS, LABELS, Teacher(1))[0], kept)
    assert len(second) == 3


def test_a_file_that_is_no_cache_is_told_by_name(tmp_path):
    path = opened(tmp_path).path
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(ValueError, match=path.name):
        opened(tmp_path)


def test_the_size_is_eight_bytes_a_token_and_k_and_little_more(tmp_path):
    labels = torch.ones(500, 14, dtype=torch.long)
    cache = TeacherCache(tmp_path, 64, 1.0, {})
    keys = [bytes([number % 256, number // 256]) for number in range(500)]
    cache.fill(keys, labels, lambda rows: torch.randn(len(rows), 14, 100))
    assert 1.0 < cache.num_bytes / (500 * 14 * 64 * 8) < 1.25


def train(model, batch, teacher, k, steps=40):
    """Trains a copy of `model` on one batch; returns its weights and its losses, measured against the exact teacher."""
    model = copy.deepcopy(model)
    inputs, labels, instruction, task_index = batch
    target = teacher if k is None else top_k(target_rows(teacher, labels), k)
    optimizer, losses = torch.optim.AdamW(model.trained_parameters().values(), lr=3e-4), []
    for _ in range(steps):
        logits = model(inputs, labels, model.adapt(instruction), task_index)
        pred, kl = prediction_and_distillation_loss(logits, target, labels)
        optimizer.zero_grad()
        (pred.mean() + 5 * kl.mean()).backward()
        optimizer.step()
        losses.append(distillation_loss(logits.detach(), teacher, labels).mean())
    weights = torch.cat([parameter.detach().flatten() for parameter in model.trained_parameters().values()])
    return weights, torch.stack(losses)


def test_the_student_of_the_kept_tokens_is_the_student_of_the_exact_teacher(build, tokens):
    torch.manual_seed(0)
    model = TagiModel(build(seed=1), TagiConfig(lora=LoraConfig(rank=4)))
    instruction, inputs = tokens([6, 9]), tokens([7, 5, 8, 6])
    labels = pad_labels([[row % 5 + 3, row + 9, 1] for row in range(4)])
    draw = torch.Generator().manual_seed(0)
    # as sharp as a trained teacher's: a quarter of the vocabulary holds all but a thousandth
    teacher = 8 * torch.randn(4, 3, 64, generator=draw)
    assert top_k(target_rows(teacher, labels), 16).log_rest.exp().max() < 1e-3
    batch = inputs, labels, instruction, torch.tensor([0, 0, 1, 1])
    start = torch.cat([parameter.detach().flatten() for parameter in model.trained_parameters().values()])
    exact, curve = train(model, batch, teacher, None)
    assert curve[-1] < 0.7 * curve[0]
    for k, least, most in ((64, 0, 1e-4), (16, 0, 1e-2), (1, 0.05, 1)):
        weights, losses = train(model, batch, teacher, k)
        assert least <= (weights - exact).norm() / (exact - start).norm() < most
        assert least <= ((losses - curve) / curve).abs().max() < most
