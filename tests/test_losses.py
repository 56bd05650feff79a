import copy
import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tagi_lightning.data.batch import IGNORE_INDEX, pad_labels
from tagi_lightning.lora import LoraWeights
from tagi_lightning.losses import (
    alignment_loss,
    distillation_loss,
    lambda_ins,
    prediction_and_distillation_loss,
    prediction_loss,
    token_mean,
    top_k,
)

LABELS = pad_labels([[5, 9, 1], [7, 1], [3, 4, 6, 8, 1]])
VOCABULARY = 11


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def logits(seed=0, dtype=torch.float64):
    return draw(*LABELS.shape, VOCABULARY, seed=seed, dtype=dtype)


def adapters(seed=0, tasks=3):
    shapes = {"q": (16, 24), "o": (24, 16)}
    return LoraWeights(
        {site: draw(tasks, 4, inputs, seed=seed) for site, (inputs, _) in shapes.items()},
        {site: draw(tasks, outputs, 4, seed=seed + 100) for site, (_, outputs) in shapes.items()},
        scale=2.0,
    )


def test_token_mean_weighs_every_target_token_of_an_example_alike():
    values = torch.arange(15.0).view(3, 5)
    assert token_mean(values, LABELS).tolist() == [1.0, 5.5, 12.0]


def test_an_example_without_targets_costs_nothing_and_is_no_nan():
    empty = torch.full((1, 4), IGNORE_INDEX)
    scores = logits()[:1, :4].requires_grad_()
    loss = prediction_loss(scores, empty) + distillation_loss(scores, logits(1)[:1, :4], empty)
    assert loss.item() == 0.0
    loss.backward()
    assert scores.grad.abs().max() == 0


@pytest.mark.parametrize("seed", range(3))
def test_prediction_loss_is_the_mean_negative_log_likelihood_of_each_example(seed):
    scores = logits(seed)
    for example, loss in enumerate(prediction_loss(scores, LABELS).tolist()):
        targets = [label for label in LABELS[example].tolist() if label != IGNORE_INDEX]
        nll = 0.0
        for position, target in enumerate(targets):
            row = scores[example, position].tolist()
            nll += math.log(sum(math.exp(score) for score in row)) - row[target]
        assert loss == pytest.approx(nll / len(targets), rel=1e-12)


def test_kl_is_zero_exactly_when_teacher_and_student_agree():
    scores = logits(dtype=torch.float32)
    assert torch.equal(distillation_loss(scores, scores.clone(), LABELS), torch.zeros(3))
    # the softmax does not see a shift of all logits; rounding of the shifted logits is all that may be left
    assert distillation_loss(scores + 3.0, scores, LABELS).abs().max() < 1e-6


def test_kl_is_positive_and_moves_the_student_towards_the_teacher_when_they_differ():
    student, teacher = logits(0).requires_grad_(), logits(1)
    losses = distillation_loss(student, teacher, LABELS)
    assert losses.min() > 0.01
    (gradient,) = torch.autograd.grad(losses.sum(), student)
    counted = LABELS != IGNORE_INDEX
    assert gradient[counted].abs().amax(-1).min() > 0
    expected = (student.softmax(-1) - teacher.softmax(-1)) / counted.sum(-1)[:, None, None]
    assert torch.allclose(gradient[counted], expected[counted], atol=1e-12)
    nearer = distillation_loss(student - 0.1 * gradient, teacher, LABELS)
    assert (nearer < losses).all()


@pytest.mark.parametrize(
    "loss", [lambda s, t: prediction_loss(s, LABELS), lambda s, t: distillation_loss(s, t, LABELS)]
)
def test_padding_of_the_targets_changes_neither_loss_nor_gradient(loss):
    padding = (LABELS == IGNORE_INDEX)[..., None]
    student = logits(0).requires_grad_()
    poisoned = logits(0).masked_fill(padding, 1e4).requires_grad_()
    plain = loss(student, logits(1))
    dirty = loss(poisoned, logits(1).masked_fill(padding, -1e4))
    assert torch.equal(plain, dirty)
    plain.sum().backward()
    dirty.sum().backward()
    assert torch.equal(student.grad, poisoned.grad)
    assert (student.grad * padding).abs().max() == 0


def test_temperature_softens_both_distributions_and_its_square_keeps_the_gradients_size():
    student, teacher = logits(0), logits(1)
    softened = distillation_loss(student / 4, teacher / 4, LABELS)
    assert torch.allclose(distillation_loss(student, teacher, LABELS, temperature=4.0), 16 * softened)
    # at high temperature tau^2 KL tends to half the variance of the logits' difference, whatever tau is
    hot = distillation_loss(student, teacher, LABELS, temperature=1e3)
    limit = token_mean((teacher - student).var(-1, correction=0) / 2, LABELS)
    assert torch.allclose(hot, limit, rtol=0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_compared_in_float32(dtype):
    student, teacher = logits(0).to(dtype), logits(1).to(dtype)
    assert prediction_loss(student, LABELS).dtype == torch.float32
    assert torch.equal(
        distillation_loss(student, teacher, LABELS), distillation_loss(student.float(), teacher.float(), LABELS)
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_factor_loss_compares_a_with_a_and_b_with_b(reduction):
    generated, taught = adapters(0), adapters(1)
    expected, elements = torch.zeros(3, dtype=torch.float64), 0
    for site in generated.a:
        for found, wanted in ((generated.a, taught.a), (generated.b, taught.b)):
            expected += ((found[site] - wanted[site]) ** 2).sum((1, 2))
            elements += found[site][0].numel()
    expected = expected / elements if reduction == "mean" else expected
    assert torch.allclose(alignment_loss(generated, taught, reduction=reduction), expected)
    assert torch.allclose(alignment_loss(generated, taught, reduction=reduction, scale=7.0), 7 * expected)


def test_factor_loss_is_zero_at_the_teacher_and_not_at_its_transpose():
    square = LoraWeights({"q": draw(1, 4, 8)}, {"q": draw(1, 8, 4, seed=1)}, scale=2.0)
    swapped = LoraWeights({"q": square.b["q"].transpose(1, 2)}, {"q": square.a["q"].transpose(1, 2)}, scale=2.0)
    assert torch.allclose(swapped.delta("q"), square.delta("q").transpose(1, 2))
    assert alignment_loss(square, square).item() == 0.0
    assert alignment_loss(swapped, square).item() > 0.1


def test_product_loss_is_the_squared_distance_of_the_updates():
    generated, taught = adapters(0), adapters(1)
    differences = torch.stack([(generated.delta(s) - taught.delta(s)).square().sum((1, 2)) for s in generated.a])
    elements = sum(generated.delta(s)[0].numel() for s in generated.a)
    found = alignment_loss(generated, taught, target="product")
    assert torch.allclose(found, differences.sum(0) / elements, rtol=1e-10)
    summed = alignment_loss(generated, taught, target="product", reduction="sum")
    assert torch.allclose(summed, differences.sum(0), rtol=1e-10)


def test_the_product_loss_is_no_rounding_of_16_bits():
    """It is a difference of sums that are nearly equal late in training."""
    taught = adapters(1)
    near = LoraWeights({site: a + 1e-4 for site, a in taught.a.items()}, taught.b, taught.scale)
    expected = alignment_loss(near, taught, target="product")
    with torch.autocast("cpu", torch.bfloat16):
        found = alignment_loss(near, taught, target="product")
    assert torch.allclose(found, expected, rtol=1e-9)


def test_no_change_of_basis_between_the_factors_disturbs_the_product_loss():
    generated, taught = adapters(0), adapters(1)
    basis = draw(4, 4, seed=2) + 4 * torch.eye(4, dtype=torch.float64)
    turned = LoraWeights(
        {site: torch.linalg.inv(basis) @ a for site, a in generated.a.items()},
        {site: b @ basis for site, b in generated.b.items()},
        generated.scale,
    )
    plain = alignment_loss(generated, taught, target="product")
    assert torch.allclose(alignment_loss(turned, taught, target="product"), plain, rtol=1e-9)
    assert alignment_loss(turned, generated, target="product").abs().max() < 1e-9 * plain.max()
    assert not torch.allclose(alignment_loss(turned, taught), alignment_loss(generated, taught), rtol=0.1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: LoraWeights({"q": w.a["q"]}, {"q": w.b["q"]}, w.scale), "sites"),
        (lambda w: LoraWeights({k: a[:, :2] for k, a in w.a.items()}, w.b, w.scale), "rank"),
        (lambda w: LoraWeights(w.a, w.b, 1.0), "scale"),
    ],
)
def test_adapters_that_cannot_be_compared_are_refused(change, named):
    with pytest.raises(ValueError, match=named):
        alignment_loss(adapters(0), change(adapters(1)))


def test_lambda2_is_a_number_or_the_sigmoid_of_the_loss():
    loss = torch.tensor([0.0, 1.0, 30.0], requires_grad=True)
    assert torch.equal(lambda_ins(loss, 0.3), torch.full((3,), 0.3))
    assert lambda_ins(loss, "sigmoid").tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-1)), 1.0])


def test_a_detached_lambda2_is_a_constant_for_the_gradient():
    value = 0.8
    loss = torch.tensor(value, requires_grad=True)
    sigmoid = 1 / (1 + math.exp(-value))
    (through,) = torch.autograd.grad(lambda_ins(loss, "sigmoid") * loss, loss)
    (constant,) = torch.autograd.grad(lambda_ins(loss, "sigmoid", detach=True) * loss, loss)
    assert constant.item() == pytest.approx(sigmoid)
    assert through.item() == pytest.approx(sigmoid + value * sigmoid * (1 - sigmoid))


@pytest.mark.parametrize("parts", [[3, 3], [1, 2, 3], [1] * 6])
def test_gradients_accumulated_over_parts_of_a_batch_are_those_of_the_whole(build, trained, tokens, parts):
    """Each part counts by its number of examples, as the mean over the whole batch does; float64."""
    model = trained(build("narrow")).double()
    teacher = copy.deepcopy(model).requires_grad_(False)
    for parameter in teacher.parameters():
        parameter.mul_(1.1)
    instructions, inputs = tokens([5, 9, 3]), tokens([4, 7, 2, 6, 5, 3])
    targets = tokens([3, 2, 5, 4, 2, 6], seed=1)
    labels = targets.ids.masked_fill(targets.mask == 0, IGNORE_INDEX)
    task_index = torch.tensor([0, 0, 1, 2, 2, 2])

    def gradients(parts):
        model.zero_grad()
        total = 0.0
        for rows in torch.arange(6).split(parts):
            part, index = inputs.map(lambda tensor, rows=rows: tensor[rows]), task_index[rows]
            scores = model(part, labels[rows], model.adapt(instructions), index)
            other = teacher(part, labels[rows], teacher.adapt(instructions), index)
            losses = prediction_loss(scores, labels[rows]) + 5 * distillation_loss(scores, other, labels[rows])
            loss = losses.sum() / 6
            loss.backward()
            total += loss.item()
        return total, torch.cat([p.grad.flatten() for p in model.trained_parameters().values()])

    whole, expected = gradients([6])
    found, accumulated = gradients(parts)
    assert accumulated.dtype == torch.float64
    assert found == pytest.approx(whole, rel=1e-12)
    assert (accumulated - expected).abs().max() < 1e-11 * expected.abs().max()


def rows(scores):
    """Returns the logits of the target tokens [N, V]."""
    return scores[LABELS != IGNORE_INDEX]


def gradient(loss, student):
    student = student.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(student).sum(), student)
    return found


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_whole_vocabulary_in_buckets_is_the_exact_kl_and_its_gradient(temperature):
    student, teacher = logits(0), logits(1)
    buckets = top_k(rows(teacher), VOCABULARY, temperature)
    exact = distillation_loss(student, teacher, LABELS, temperature)
    assert torch.allclose(distillation_loss(student, buckets, LABELS, temperature), exact, atol=1e-12)
    found = gradient(lambda s: distillation_loss(s, buckets, LABELS, temperature), student)
    expected = gradient(lambda s: distillation_loss(s, teacher, LABELS, temperature), student)
    assert torch.allclose(found, expected, atol=1e-12)


@given(
    seed=st.integers(0, 2**16), k=st.integers(1, VOCABULARY), size=st.floats(0.01, 30), temperature=st.floats(0.5, 4)
)
def test_merging_tokens_into_one_bucket_never_adds_to_the_kl(seed, k, size, temperature):
    student, teacher = size * logits(seed), size * logits(seed + 1)
    exact = distillation_loss(student, teacher, LABELS, temperature)
    bucketed = distillation_loss(student, top_k(rows(teacher), k, temperature), LABELS, temperature)
    assert (bucketed >= -1e-9 * (1 + exact)).all()
    assert (bucketed <= exact * (1 + 1e-9) + 1e-12).all()


@pytest.mark.parametrize("k", [1, 4, VOCABULARY - 1, VOCABULARY])
def test_both_losses_have_the_gradient_of_finite_differences_with_and_without_buckets(k):
    student, teacher = logits(0), logits(1)
    for target in (teacher, top_k(rows(teacher), k)):
        both = functools.partial(prediction_and_distillation_loss, teacher=target, labels=LABELS)
        assert torch.autograd.gradcheck(both, (student.clone().requires_grad_(),))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("k", [None, 3])
def test_one_softmax_for_both_losses_gives_what_each_gives_alone(temperature, k):
    student, teacher = logits(0), logits(1)
    target = teacher if k is None else top_k(rows(teacher), k, temperature)
    pred, kl = prediction_and_distillation_loss(student, target, LABELS, temperature)
    assert torch.equal(pred, prediction_loss(student, LABELS))
    assert torch.equal(kl, distillation_loss(student, target, LABELS, temperature))


def test_the_bucket_of_the_rest_is_exact_where_hardly_anything_is_left():
    teacher = torch.zeros(1, 4)
    teacher[0, 0] = 40.0
    kept = top_k(teacher, 1)
    assert kept.ids.tolist() == [[0]]
    assert kept.log_rest.item() == pytest.approx(math.log(3) - 40, rel=1e-6)
    # a student that gives the rest nothing float32 can tell from 0 still gets a finite loss and gradient
    student = torch.zeros(1, 1, 4)
    student[..., 0] = 200.0
    even = top_k(torch.zeros(1, 4), 1)
    loss = functools.partial(distillation_loss, teacher=even, labels=torch.tensor([[0]]))
    assert torch.isfinite(loss(student)).all()
    assert torch.isfinite(gradient(loss, student)).all()
