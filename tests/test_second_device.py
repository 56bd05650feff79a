"""The core on a second device: nothing of it stays behind on the CPU, and figures and answers are the CPU's."""

import copy
from dataclasses import replace
from itertools import repeat

import pytest
import torch
from inspection_tasks import tasks_for
from instructed_models import build_instructed
from peft.utils import save_and_load
from safetensors.torch import load_file
from second_device import SecondTensor, second_device
from transformers import LlamaConfig

from tagi_lightning.backbones import GenerationConfig
from tagi_lightning.backbones.causal import CausalBackbone
from tagi_lightning.backbones.causal_modules import FAMILIES
from tagi_lightning.backbones.checkpointing import checkpoint_blocks
from tagi_lightning.backbones.quantization import quantize_linears
from tagi_lightning.caches.instructions import InstructionStatesCache
from tagi_lightning.caches.teacher_logits import TeacherCache, example_keys
from tagi_lightning.data.batch import IGNORE_INDEX, TaskBatch
from tagi_lightning.data.instruction import Instruction
from tagi_lightning.data.labelled import LabelledInput
from tagi_lightning.evaluation.controls import Controls
from tagi_lightning.evaluation.systems import SYSTEMS, SystemRunner
from tagi_lightning.fusion import FusionConfig
from tagi_lightning.hypernetwork import HypernetworkConfig
from tagi_lightning.inference.answering import Answerer
from tagi_lightning.inference.finetuning import FinetuneConfig, Finetuner
from tagi_lightning.inference.requests import Request
from tagi_lightning.inspection.answers import answer_tasks
from tagi_lightning.inspection.pictures import inspect_model
from tagi_lightning.lora import LoraBank, LoraConfig
from tagi_lightning.losses import alignment_loss, prediction_and_distillation_loss
from tagi_lightning.model import TagiConfig
from tagi_lightning.peft_io import load_adapter
from tagi_lightning.stages.base import OptimizerConfig
from tagi_lightning.stages.few_shot import FewShotConfig, fine_tuned
from tagi_lightning.teachers.bank_optimizer import BankAdamW
from tagi_lightning.teachers.teaching import AdapterSelection, teacher_losses
from tagi_lightning.updates import mean_norms, update_cosine

LORA, NONE, OFF = LoraConfig(rank=4), HypernetworkConfig(enabled=False), FusionConfig(enabled=False)
T5 = {
    "all": TagiConfig(LORA),
    "paper": TagiConfig(LORA, HypernetworkConfig(generator="paper", pooling="mean+attention")),
    "attention": TagiConfig(LORA, HypernetworkConfig(generator="attention", standardize=True)),
    "constant": TagiConfig(LORA, HypernetworkConfig(generator="constant"), FusionConfig(norm="post", width=8)),
    "prefix": TagiConfig(LORA, HypernetworkConfig(writes="both", prefix_length=3), memory_lora=True),
    "dropout": TagiConfig(replace(LORA, dropout=0.1), HypernetworkConfig(dropout=0.1), decoder_memory=False),
    "demonstrations": TagiConfig(LORA, NONE, OFF, memory_of="demonstrations", trained_backbone="norms_embeddings"),
    "trained": TagiConfig(LORA, trained_backbone="all"),
}
LLAMA = {
    "llama": TagiConfig(LORA, fusion=OFF),
    "llama-again": TagiConfig(LORA, fusion=OFF, memory_lora=True),
    "llama-prefix": TagiConfig(LORA, HypernetworkConfig(writes="prefix"), OFF, decoder_memory=False),
}
SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "initializer_range": 0.3, "eos_token_id": 1, "pad_token_id": None}
RUNS, MIXED = [0, 0, 1, 1], [1, 0, 1, 1]


@pytest.fixture
def second():
    """The second device."""
    with second_device() as device:
        yield device


@pytest.fixture
def batch(tokens):
    """Four examples of two tasks."""
    targets = tokens([3, 2, 5, 4], seed=1)
    return TaskBatch(
        instruction=tokens([5, 9], seed=2),
        input=tokens([4, 7, 2, 6], seed=3),
        labels=targets.ids.masked_fill(targets.mask == 0, IGNORE_INDEX),
        task_index=torch.tensor(RUNS),
        category=torch.tensor([1, 0]),
        prompt=tokens([9, 12, 7, 11], seed=4),
        demonstrations=replace(tokens([8, 8], seed=5), segments=2),
        tasks=("a", "b"),
        ids=("0", "1", "2", "3"),
        references=(("yes",),) * 4,
    )


@pytest.fixture(scope="session")
def llama():
    """A tiny Llama of the vocabulary of `build`; not to be changed."""
    config = LlamaConfig(**SHAPE, num_key_value_heads=2, tie_word_embeddings=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = CausalBackbone(FAMILIES["llama"](config), "llama")
    backbone.freeze()
    return backbone.eval()


def to(tensors, device):
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def build_bank(backbone):
    bank = LoraBank(backbone.sites(LORA), LORA, ["x", "y"])
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=draw)
    return bank


def close(found, expected):
    """Whether a tensor of the second device is close to one of the CPU."""
    assert isinstance(found, SecondTensor)
    return torch.allclose(found.cpu(), expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max() + 1))


def gradients(model, batch, seed=0):
    """Returns the logits of a batch, and the gradient of every trained weight."""
    torch.manual_seed(seed)
    adapter = model.adapt(model.conditions(batch))
    logits = model(model.inputs(batch), batch.labels, adapter, batch.task_index)
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad for name, p in model.trained_parameters().items() if p.grad is not None}


@pytest.mark.parametrize(
    "mixes",
    [
        lambda x: x + torch.ones(4),
        lambda x: torch.ones(4).add_(x[0]),
        lambda x: torch.ones(()).add_(x[0, 0]),
        lambda x: torch.cat([x, torch.ones(1, 4)]),
        lambda x: torch.stack([x[0, 0], torch.ones(())]),
        lambda x: torch.ones(3, 4)[torch.tensor([0], device=x.device)],
        lambda x: x.index_put_((torch.tensor([0]),), torch.ones(4)),
        lambda x: torch.nn.functional.embedding(torch.tensor([0]), x),
        lambda x: x.uniform_(generator=torch.Generator()),
        lambda x: torch.rand(2, device=x.device, generator=torch.Generator()),
        lambda x: x.numpy(),
    ],
)
def test_the_device_refuses_what_cuda_refuses(second, mixes):
    with pytest.raises(RuntimeError):
        mixes(torch.ones(3, 4, device=second))


def test_the_device_allows_what_cuda_allows(second):
    x = torch.ones(3, 4, device=second)
    assert (x + torch.tensor(1.0)).sum().item() == 24
    assert x[torch.tensor([0, 1])].shape == (2, 4)
    assert torch.zeros(3, 4).copy_(x).sum() == 12
    with second:
        linear = torch.nn.Linear(4, 2)
    assert all(isinstance(parameter, SecondTensor) for parameter in linear.parameters())
    weight, others = linear.weight, linear.to("cpu")
    assert weight is others.weight
    assert not isinstance(weight, SecondTensor)


@pytest.mark.parametrize("name", [*T5, *LLAMA])
def test_every_switch_trains_there_as_on_the_cpu(second, build, batch, name, request):
    backbone = build("narrow") if name in T5 else request.getfixturevalue("llama")
    backbone = copy.deepcopy(backbone)
    model = request.getfixturevalue("trained")(backbone, (T5 | LLAMA)[name]).train()
    if model.hypernetwork is not None and model.hypernetwork.to_measure:
        model.hypernetwork.measure(model.encode_instructions(batch.instruction).states[:, 0])
    expected = gradients(model, batch)
    model.zero_grad()
    model.to(second)
    found = gradients(model, batch.to(second))
    if name != "dropout":  # the CPU draws in its fused attention, too
        assert close(found[0], expected[0])
        assert all(close(found[1][part], gradient) for part, gradient in expected[1].items())
    mixed = replace(batch, task_index=torch.tensor(MIXED)).to(second)
    assert gradients(model.eval(), mixed)[0].isfinite().all()


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_int8_and_checkpointed_blocks_train_there(second, build, batch, trained, optimizer):
    backbone = build("v1.1")
    quantize_linears(backbone.model)
    checkpoint_blocks(backbone.model)
    model = trained(backbone).to(second)
    weights = list(model.trained_parameters().values())
    before, own = [weight.detach().clone() for weight in weights], OptimizerConfig(optimizer, lr=0.1).build(weights)
    gradients(model, batch.to(second))
    own.step()
    assert not any(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True) if weight.grad.any())


def test_standardisation_measures_there(second, build, batch, trained):
    model = trained(build("narrow"), T5["attention"]).to(second)
    pooled = model.encode_instructions(batch.to(second).instruction).states.mean(1)
    model.hypernetwork.measure(pooled)
    assert close(model.hypernetwork.states_mean, pooled.cpu().mean(0))


@pytest.mark.parametrize("cached", [False, True])
def test_losses_are_the_same_there(second, build, batch, trained, tmp_path, cached):
    model, bank, found = trained(build("narrow")), build_bank(build("narrow")), []
    for device in ("cpu", second):
        model.to(device)
        bank.to(device)
        own, states = batch.to(device), InstructionStatesCache(model, 2**20)
        adapter, taught = model.adapt(states.encode(own.instruction)), bank().index(own.category)
        logits = model(own.input, own.labels, adapter, own.task_index)
        teacher = 0.5 * logits.detach()
        if cached:
            cache = TeacherCache(tmp_path / str(device), 8, 1.0, {})
            keys = example_keys(own.prompt, own.labels, [b""] * len(own))
            cache.fill(keys[:2], own.labels[:2], teacher.__getitem__)
            teacher, hits = cache.fill(keys, own.labels, teacher.__getitem__)
            assert hits == 2
        pred, kl = prediction_and_distillation_loss(logits, teacher, own.labels)
        ins = [alignment_loss(adapter.lora, taught, target=target) for target in ("factors", "product")]
        norms = mean_norms(adapter.lora, model.sites)
        diagnostics = [update_cosine(adapter.lora, taught), *(n for each in norms.values() for n in each.values())]
        (pred.mean() + kl.mean() + ins[0].mean() + ins[1].mean()).backward()
        found.append([pred, kl, *ins, *diagnostics])
    assert all(close(there, here) for here, there in zip(*found, strict=True))


@pytest.mark.parametrize("resumed", [False, True])
def test_teachers_train_are_selected_and_resumed_there(second, build, batch, resumed):
    backbone, found = build("narrow"), []
    for device in ("cpu", second):
        bank = build_bank(backbone.to("cpu"))
        selection = AdapterSelection(bank, patience=1)
        if resumed:  # Lightning loads a checkpoint before it moves the module
            old = AdapterSelection(copy.deepcopy(bank).to(device), patience=1)
            old.update(torch.tensor([3.0, 2.0]), torch.ones(2), torch.ones(2))
            selection.load_state_dict(copy.deepcopy(old.state_dict()))
        backbone.to(device)
        bank.to(device)
        optimizer, own = BankAdamW(bank.parameters(), 0.05, schedules=[lambda step: 1.0] * 2), batch.to(device)
        for validation in ([1.0, 5.0], [2.0, 1.0]):
            optimizer.zero_grad()
            teacher_losses(backbone, bank, own.prompt, own.labels, own.category, own.task_index).sum().backward()
            optimizer.count(own.category[own.task_index])
            optimizer.average_and_clip(0.1)
            optimizer.step()
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            losses = torch.tensor(validation, device=device, dtype=torch.float64)
            selection.update(losses, torch.ones(2, device=device), optimizer.steps + resumed)
        found.append((selection.stopped.tolist(), list(selection.selected().parameters())))
    backbone.to("cpu")
    assert found[0][0] == found[1][0]
    assert any(found[0][0])
    assert all(close(there, here) for here, there in zip(found[0][1], found[1][1], strict=True))


class Given:
    """The instructions of a task set of one batch."""

    def __init__(self, batch):
        self.batch = batch

    def of_split(self, split):
        yield self.batch

    def wrong(self, tasks):
        return self.batch.instruction.map(lambda rows: rows.flip(0))


@pytest.mark.parametrize(
    "system", [name for name, spec in SYSTEMS.items() if spec.data in ("test", "held_out") and spec.reads != "input"]
)
def test_systems_and_controls_answer_there_as_on_the_cpu(second, build, batch, trained, system):
    model, found = trained(build("narrow")), []
    bank = build_bank(model.backbone).requires_grad_(False)
    for device in ("cpu", second):
        controls = Controls(model.to(device), bank.to(device), Given(batch))
        found.append(SystemRunner(SYSTEMS[system], model, controls).forward(batch.to(device)))
        SYSTEMS[system].adapter.facts(controls)
    assert close(found[1], found[0])
    for module in (model, bank):
        module.to("cpu")  # as Lightning leaves them; operations are counted then
    runner = SystemRunner(SYSTEMS[system], model, controls)
    assert torch.allclose(runner.forward(batch), found[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("name", "beams"), [("t5", 1), ("t5-prompt", 2), ("llama", 1), ("llama", 2)])
def test_requests_get_the_answers_of_the_cpu(second, name, beams):
    loaded, found = build_instructed(name), []
    decoding = GenerationConfig(max_new_tokens=6, num_beams=beams, stop_at_newline=True)
    first, other = Instruction("Say it."), Instruction("Repeat that, please.")
    requests = [Request(0, first, "abc"), Request(1, other, "de", ("x", "yy")), Request(2, first, "f")]
    for device in ("cpu", second):
        loaded.model.to(device)
        answerer = Answerer(loaded, decoding)
        together, alone = answerer(requests), answerer(requests[:1])  # of one instruction, whose LoRA is merged
        found.append([*together, *alone])
    assert [each.text for each in found[0]] == [each.text for each in found[1]]
    assert found[1][1].logprob_sum == pytest.approx(found[0][1].logprob_sum, rel=1e-4)
    assert loaded.generate(loaded.adapt("Say it."), ["abc"], replace(decoding, do_sample=beams == 1))


def test_full_fine_tuning_there_puts_every_weight_back(second, build, batch):
    backbone = build("v1.1").to(second)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with fine_tuned(backbone, repeat(batch), FewShotConfig(2)):
        assert any(not torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())
        backbone.to("cpu")  # as Lightning does after a test
    assert all(torch.equal(before[name].cpu(), tensor) for name, tensor in backbone.state_dict().items())


def test_an_adapter_is_trained_further_there(second):
    loaded = replace(build_instructed("t5-lora"), generation=GenerationConfig(max_new_tokens=2))
    loaded.model.to(second)
    examples = [LabelledInput(f"{letter} x", (letter,)) for letter in "abcd"]
    lora, report = Finetuner(loaded, FinetuneConfig(steps=2)).run(loaded.adapt("Say it."), examples)
    assert all(isinstance(factor, SecondTensor) for factor in lora.b.values())
    assert report.held_out == 1


def test_models_are_looked_at_there(second):
    loaded = build_instructed("t5")
    loaded.model.to(second)
    tasks = tasks_for(loaded, 3)
    bank = LoraBank(loaded.model.sites, LORA, [f"category {number}" for number in range(3)]).to(second)
    assert len(inspect_model(loaded.model, tasks, loaded.tokenizer, bank).pictures) > 5
    assert len(answer_tasks(loaded.model, tasks, loaded.tokenizer, GenerationConfig(max_new_tokens=2))) == 3


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_an_adapter_is_written_from_there_and_read_to_there(second, name, tmp_path, monkeypatch):
    # safetensors itself does not know the device
    monkeypatch.setattr(save_and_load, "safe_load_file", lambda path, device: to(load_file(path), device))
    loaded = build_instructed(name)
    loaded.model.to(second)
    adapter = loaded.adapt("Say it.")
    loaded.save_peft(adapter, tmp_path / "adapter")
    again = load_adapter(tmp_path / "adapter", loaded.model)
    assert all(torch.equal(again.lora.a[site], adapter.lora.a[site]) for site in adapter.lora.a)
