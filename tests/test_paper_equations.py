"""Equations 1 to 6 of the paper, each against a computation of its own in a few lines."""

import math

import pytest
import torch

from tagi_lightning.backbones import BackboneConfig
from tagi_lightning.data.batch import IGNORE_INDEX, TaskBatch, Tokens
from tagi_lightning.fusion import EncoderFusion, FusionConfig
from tagi_lightning.hypernetwork import Hypernetwork, HypernetworkConfig
from tagi_lightning.lora import LoraBank, LoraConfig
from tagi_lightning.losses import alignment_loss, distillation_loss, prediction_loss
from tagi_lightning.model import TagiConfig
from tagi_lightning.stages.align import AlignmentConfig
from tagi_lightning.stages.distill import Distillation, DistillationConfig

LORA = LoraConfig(rank=4)
INSTRUCTIONS, INPUTS, TARGETS = [5, 9, 3], [4, 7, 2, 6], [3, 2, 4, 5]
TASK_INDEX = torch.tensor([0, 1, 1, 2])


def rms_norm(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_equation_1_fusion(norm, distance):
    """F_l = S_l + g Attn(RMSNorm(S_l), I), head by head; post-norm: RMSNorm(S_l + Attn(S_l, I))."""
    torch.manual_seed(0)
    heads, head, width, instruction, length = 4, 5, 32, 6, 7
    layer = EncoderFusion(FusionConfig(norm=norm), blocks=1, width=width, heads=heads, inner=heads * head).layers[0]
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    s, i = torch.randn(length, width), torch.randn(instruction, width)
    queries = rms_norm(s, layer.norm.weight) if norm == "pre" else s
    attended = []
    for h in range(heads):
        rows = slice(h * head, (h + 1) * head)
        q, k, v = (x @ linear.weight[rows].T for x, linear in ((queries, layer.q), (i, layer.k), (i, layer.v)))
        attended.append((q @ k.T / math.sqrt(head)).softmax(-1) @ v)
    update = torch.cat(attended, -1) @ layer.o.weight.T
    expected = s + torch.tanh(layer.gate) * update if norm == "pre" else rms_norm(s + update, layer.norm.weight)
    keys, values = layer.keys_values(i[None])
    found = layer(s[None], keys, values, torch.ones(1, instruction, dtype=torch.long))[0]
    assert distance(found, expected) < 1e-5


def test_equation_2_generator(backbone, distance):
    """(LoRA_l^Q, LoRA_l^V) = MLP_l(mean of I; idx) with idx 2l for q and 2l + 1 for v; A = A_0 + dA, B = dB."""
    torch.manual_seed(0)
    sites = backbone.sites(LORA)
    config = HypernetworkConfig(generator="paper", hidden=16)
    network = Hypernetwork(sites, backbone.width, config, LORA)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    states = torch.randn(1, 6, backbone.width)
    weights = network(states, torch.ones(1, 6, dtype=torch.long)).lora
    start = LoraBank(sites, LORA, ["any"])()
    for number, site in enumerate(sites):
        first, _, _, last = network.generator.mlps[number // 2]
        idx = 2 * site.block + {"q": 0, "v": 1}[site.target]
        hidden = torch.relu(first.weight @ torch.cat([states[0].mean(0), torch.tensor([float(idx)])]) + first.bias)
        out = last.weight @ hidden + last.bias
        a = out[: 4 * site.in_features].view(4, site.in_features)
        b = out[4 * site.in_features :].view(site.out_features, 4)
        assert distance(weights.a[site.name][0], start.a[site.name][0] + a) < 1e-5
        assert distance(weights.b[site.name][0], b) < 1e-5


def text_batch(tokens):
    """Returns instructions a, inputs b, targets c, padded, and the rows of b and c without padding."""
    a, b, c = tokens(INSTRUCTIONS), tokens(INPUTS), tokens(TARGETS, seed=1)
    rows = [(b.ids[n : n + 1, : INPUTS[n]], c.ids[n : n + 1, : TARGETS[n]]) for n in range(len(INPUTS))]
    return a, b, c.ids.masked_fill(c.mask == 0, IGNORE_INDEX), rows


def test_equation_3_pretraining(backbone, trained, tokens, merge, plain_t5):
    """-log P(c | b; LLM + Hypernet(a)): merged weights, one example at a time, by transformers' own loss."""
    config = TagiConfig(LORA, fusion=FusionConfig(enabled=False), decoder_memory=False)
    model = trained(backbone, config)
    a, b, labels, rows = text_batch(tokens)
    adapter = model.adapt(a)
    found = prediction_loss(model(b, labels, adapter, TASK_INDEX), labels)
    for n, (source, target) in enumerate(rows):
        merged = plain_t5(merge(backbone, adapter.lora, int(TASK_INDEX[n])))
        assert found[n].item() == pytest.approx(merged(input_ids=source, labels=target).loss.item(), rel=1e-5)


def test_equation_4_alignment(backbone, lora):
    """MSE(Delta_i, Hypernet(a)): the mean over all numbers of an adapter, A with A and B with B."""
    generated, taught = lora(backbone, 2, seed=0), lora(backbone, 2, seed=1)
    for task in range(2):
        numbers = [
            torch.cat([factor[task].flatten() for factor in (*w.a.values(), *w.b.values())])
            for w in (generated, taught)
        ]
        expected = torch.nn.functional.mse_loss(*numbers).item()
        assert alignment_loss(generated, taught)[task].item() == pytest.approx(expected, rel=1e-5)


def naive_kl(teacher, student, length):
    total = 0.0
    for position in range(length):
        p, q = teacher[position].double().softmax(-1), student[position].double().softmax(-1)
        total += sum(pi * math.log(pi / qi) for pi, qi in zip(p.tolist(), q.tolist(), strict=True))
    return total / length


def test_equation_5_distillation(backbone, trained, tokens, lora, merge, plain_t5):
    """KL(P(. | a; b) of LLM + Delta_i || P(. | b) of the student), over the tokens of c."""
    model, taught = trained(backbone), lora(backbone, 3)
    a, b, labels, rows = text_batch(tokens)
    student = model(b, labels, model.adapt(a), TASK_INDEX)
    teacher = torch.zeros_like(student)
    for n, (source, target) in enumerate(rows):
        task = int(TASK_INDEX[n])
        prompt = torch.cat([a.ids[task : task + 1, : INSTRUCTIONS[task]], source], dim=1)
        teacher[n, : TARGETS[n]] = plain_t5(merge(backbone, taught, task))(input_ids=prompt, labels=target).logits[0]
    found = distillation_loss(student, teacher, labels)
    for n in range(len(rows)):
        assert found[n].item() == pytest.approx(naive_kl(teacher[n], student[n], TARGETS[n]), rel=1e-5)


def test_equation_6_finetuning(backbone, trained, tokens, merge, plain_t5):
    """L_pred + lambda_1 L_kl + sigmoid(L_ins) L_ins, each a mean over examples, as the stage adds them up."""
    model = trained(backbone)
    a, b, labels, rows = text_batch(tokens)
    prompt = Tokens.pad(
        [a.ids[t, : INSTRUCTIONS[t]].tolist() + rows[n][0][0].tolist() for n, t in enumerate(TASK_INDEX.tolist())], 0
    )
    categories = torch.tensor([1, 0, 1])
    bank = LoraBank(model.sites, LORA, ["x", "y"])
    for number, parameter in enumerate(bank.parameters()):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    batch = TaskBatch(a, b, labels, TASK_INDEX, categories, prompt)
    stage = Distillation(
        "unused", BackboneConfig(), model.config, DistillationConfig(lambda1=5.0), AlignmentConfig(scale=50.0)
    )
    stage.backbone = stage.teacher_model = backbone
    stage.model, stage.bank, stage.log = model, bank, lambda *args, **kwargs: None
    adapter = model.adapt(a)
    found = sum(stage.loss_terms(batch, adapter).values()).item()

    student, expected = model(b, labels, adapter, TASK_INDEX), 0.0
    for n, (source, target) in enumerate(rows):
        task, length = int(TASK_INDEX[n]), TARGETS[n]
        category, one = int(categories[task]), student[n, :length]
        read = torch.cat([a.ids[task : task + 1, : INSTRUCTIONS[task]], source], dim=1)
        teacher = plain_t5(merge(backbone, bank(), category))(input_ids=read, labels=target).logits[0]
        pred = torch.nn.functional.cross_entropy(one, target[0]).item()
        taught = bank()
        squared = [
            ((generated[task] - right[category]) ** 2).flatten()
            for generated, right in zip(
                (*adapter.lora.a.values(), *adapter.lora.b.values()),
                (*taught.a.values(), *taught.b.values()),
                strict=True,
            )
        ]
        ins = 50.0 * torch.cat(squared).mean().item()
        expected += (pred + 5.0 * naive_kl(teacher, one, length) + ins / (1 + math.exp(-ins))) / len(rows)
    assert found == pytest.approx(expected, rel=1e-5)
