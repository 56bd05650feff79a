import pytest
import torch
from commands import ROOT

from tagi_lightning.backbones import SIZES, build_backbone
from tagi_lightning.backbones.loading import t5_config
from tagi_lightning.costs.scale import Cost, Memory, estimate, measure, memory, saved_bytes
from tagi_lightning.costs.scale_report import device_cost, step_flops, workloads
from tagi_lightning.costs.stage_step import Execution, StageStep, Workload
from tagi_lightning.data.batch import Tokens
from tagi_lightning.lora import LoraConfig
from tagi_lightning.losses import prediction_loss
from tagi_lightning.model import TagiConfig, TagiModel
from tagi_lightning.storage.run_layout import EVALUATE, STAGES

VOCABULARY = 32128
SHORT = Workload(tasks=2, examples=4, instruction=7, input=9, output=3, rank=4)
PLAIN = Execution("float32", mixed=False, teachers=3)


def tiny_parameters():
    """Counts the weights of T5 tiny by hand: in the layers that int8 takes, and elsewhere."""
    shape = SIZES["tiny"]
    width, inner, hidden, layers = shape["d_model"], shape["num_heads"] * shape["d_kv"], shape["d_ff"], 2
    attention, feed_forward = 4 * width * inner, 3 * width * hidden
    linear = layers * (attention + feed_forward) + layers * (2 * attention + feed_forward)
    norms = width * (layers * 2 + 1 + layers * 3 + 1)
    biases = 2 * 32 * shape["num_heads"]
    channels = layers * (3 * (3 * inner + width) + 2 * (2 * hidden + width))
    return linear, 2 * VOCABULARY * width + norms + biases, channels


@pytest.fixture(scope="module")
def lora_parameters():
    with torch.device("meta"):
        sites = build_backbone(t5_config("tiny"), "tiny").sites(LoraConfig())
    assert len(sites) == 12
    return sum(4 * (site.in_features + site.out_features) for site in sites)


def test_parameters_and_their_bytes_equal_hand_counts(lora_parameters):
    linear, other, channels = tiny_parameters()
    plain = estimate("teachers", "tiny", SHORT, PLAIN)
    assert (plain.trained, plain.frozen) == (3 * lora_parameters, linear + other)
    assert plain.frozen_bytes == 4 * (linear + other)
    assert plain.optimizer_bytes == 8 * plain.trained
    halved = estimate("teachers", "tiny", SHORT, Execution("bfloat16", teachers=3))
    assert halved.frozen_bytes == 2 * (linear + other)
    rounded = estimate("teachers", "tiny", SHORT, Execution("bfloat16", "int8", teachers=3))
    assert rounded.frozen_bytes == linear + 4 * channels + 2 * other
    aligned = estimate("align", "tiny", SHORT, PLAIN)
    assert aligned.frozen - plain.frozen > 3 * lora_parameters  # the bank and the fusion


def test_operations_of_a_training_backbone_equal_a_hand_count():
    shape = SIZES["tiny"]
    width, inner, hidden, layers = shape["d_model"], shape["num_heads"] * shape["d_kv"], shape["d_ff"], 2
    rows, source, target = SHORT.examples, SHORT.instruction + SHORT.input, SHORT.output

    def attention(queries, keys):
        return 2 * queries * 2 * width * inner + 2 * keys * 2 * width * inner + 2 * 2 * queries * keys * inner

    def feed_forward(tokens):
        return 3 * 2 * tokens * width * hidden

    encoder = attention(source, source) + feed_forward(source)
    decoder = attention(target, target) + attention(target, source) + feed_forward(target)
    forward = rows * (layers * (encoder + decoder) + 2 * target * width * VOCABULARY)
    assert estimate("pretrain-backbone", "tiny", SHORT, PLAIN).flops == 3 * forward


@pytest.mark.parametrize("stage", [*STAGES, EVALUATE])
def test_shapes_tell_what_a_real_step_keeps(stage):
    told, found = (function(stage, "tiny", SHORT, PLAIN) for function in (estimate, measure))
    assert told.activation_bytes == found.activation_bytes > 0
    assert (told.trained, told.frozen, told.frozen_bytes) == (found.trained, found.frozen, found.frozen_bytes)
    assert found.seconds > 0


@pytest.mark.slow
def test_small_is_told_within_a_quarter_of_a_real_step_of_the_model_itself():
    work = Workload(tasks=2, examples=4, instruction=40, input=50, output=10)
    backbone = build_backbone(t5_config("small"), "small")
    backbone.freeze()
    model = TagiModel(backbone, TagiConfig(LoraConfig(work.rank)))

    def tokens(rows, length):
        ids = torch.randint(3, 1000, (rows, length))
        mask = torch.ones_like(ids)
        mask[0, -2:] = 0
        return Tokens(ids, mask)

    labels = torch.randint(3, 1000, (work.examples, work.output))
    with saved_bytes(model) as saved:
        adapter = model.adapt(tokens(work.tasks, work.instruction))
        logits = model(tokens(work.examples, work.input), labels, adapter, torch.tensor([0, 0, 1, 1]))
        loss = prediction_loss(logits, labels).mean()
    assert loss.requires_grad
    assert estimate("pretrain", "small", work, PLAIN).activation_bytes == pytest.approx(saved(), rel=0.25)


def test_checkpointing_keeps_less_and_computes_more():
    long = Workload(tasks=2, examples=4, instruction=64, input=128, output=16, rank=4)
    plain, checkpointed = (
        estimate("teachers", "small", long, Execution(gradient_checkpointing=each)) for each in (False, True)
    )
    assert checkpointed.activation_bytes < plain.activation_bytes / 2
    assert plain.flops < checkpointed.flops < 2 * plain.flops


def test_costs_grow_with_the_size():
    sizes = [estimate("teachers", size, SHORT, Execution(teachers=3)) for size in ("tiny", "small", "base")]
    for name in ("trained", "frozen", "frozen_bytes", "optimizer_bytes", "activation_bytes", "flops"):
        values = [getattr(cost, name) for cost in sizes]
        assert values == sorted(values)
        assert len(set(values)) == 3


def test_the_bank_grows_what_trains_and_not_what_a_step_keeps():
    few, many = (estimate("teachers", "tiny", SHORT, Execution("float32", mixed=False, teachers=k)) for k in (3, 300))
    assert many.trained == 100 * few.trained
    assert many.activation_bytes == few.activation_bytes


def test_devices_share_what_their_strategy_shares():
    cost = Cost(trained=100, frozen=1000, frozen_bytes=2000, optimizer_bytes=800, activation_bytes=50,
                temporary_bytes=8, flops=1, accumulate=1)  # fmt: skip
    assert memory(cost, "fsdp", 1) == Memory(2400, 0, 400, 800, 58)
    assert memory(cost, "ddp", 4) == Memory(2400, 0, 800, 800, 58)
    assert memory(cost, "fsdp", 4) == Memory(1100, 2200, 100, 200, 58)
    assert memory(cost, "deepspeed_stage_2", 4) == Memory(2200, 0, 50, 200 + 100, 58)
    assert memory(cost, "ddp", 4).total == 2400 + 800 + 800 + 58


def test_a_device_reads_its_share_of_a_batch_and_at_least_one_example():
    work = Workload(tasks=4, examples=8, instruction=1, input=1, output=1)
    assert [(work.share(n).tasks, work.share(n).examples) for n in (1, 3, 4, 16)] == [(4, 8), (2, 3), (1, 2), (1, 1)]


def test_batches_and_ranks_are_those_of_the_experiment_files():
    xl = workloads(ROOT / "experiments", "xl", "def+2pos")
    assert xl["distill"] == Workload(1, 2, 347, 109, 14, rank=32, optimizer="adamw", accumulate=4)
    assert xl["pretrain"] == Workload(8, 8, 341, 341, 341, rank=32, optimizer="adafactor")
    tiny = workloads(ROOT / "experiments", "tiny", "def")
    assert (tiny["align"].tasks, tiny["align"].examples, tiny["align"].rank) == (16, 16, 16)
    assert (tiny["pretrain-backbone"].examples, tiny["evaluate"].optimizer) == (16, "none")
    assert step_flops("distill", "tiny", SHORT, Execution(teachers=3)) > 0


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="choose from tiny"):
        workloads(ROOT / "experiments", "huge", "def")
    with pytest.raises(FileNotFoundError, match="--experiments"):
        workloads(tmp_path, "tiny", "def")
    with pytest.raises(ValueError, match="choose from pretrain-backbone"):
        StageStep("train", "tiny", SHORT, PLAIN)
    with pytest.raises(ValueError, match="no 8-bit backbone"):
        device_cost("distill", "tiny", SHORT, Execution(quantization="int8"), "fsdp", 2)
