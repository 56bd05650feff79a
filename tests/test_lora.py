import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tagi_lightning.lora import LoraBank, LoraConfig, LoraSite, LoraWeights, SiteGroups, adapted_linear, initial_a

IN, OUT, RANK, TASKS, EXAMPLES, LENGTH = 16, 24, 4, 3, 5, 7
SITES = (
    LoraSite("encoder.block.0.layer.0.SelfAttention.q", IN, OUT, "encoder_self", 0, "q"),
    LoraSite("encoder.block.0.layer.0.SelfAttention.o", OUT, IN, "encoder_self", 0, "o"),
    LoraSite("encoder.block.1.layer.0.SelfAttention.q", IN, OUT, "encoder_self", 1, "q"),
)
NAME = SITES[0].name


@pytest.fixture
def weights():
    draw = torch.Generator().manual_seed(0)
    return LoraWeights(
        {s.name: torch.randn(TASKS, RANK, s.in_features, generator=draw) for s in SITES},
        {s.name: torch.randn(TASKS, s.out_features, RANK, generator=draw) for s in SITES},
        scale=1.5,
    )


@pytest.fixture
def x():
    return torch.randn(EXAMPLES, LENGTH, IN, generator=torch.Generator().manual_seed(1))


TASK_INDEX = torch.tensor([2, 0, 1, 1, 2])


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements that any operation returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def test_scale_is_alpha_over_rank_and_alpha_is_twice_the_rank_unless_given():
    assert LoraConfig(rank=8).scale == 2.0
    assert LoraConfig(rank=8, alpha=4).scale == 0.5


@pytest.mark.parametrize(("settings", "named"), [({"rank": 0}, "lora.rank"), ({"targets": ()}, "lora.targets")])
def test_config_refuses_what_has_no_meaning(settings, named):
    with pytest.raises(ValueError, match=named):
        LoraConfig(**settings)


def update(weights, x, task_index):
    return weights.add(torch.zeros(*x.shape[:-1], OUT), NAME, x, task_index)


def test_each_example_gets_the_update_of_its_own_task(weights, x, distance):
    found = update(weights, x, TASK_INDEX)
    for example, task in enumerate(TASK_INDEX.tolist()):
        expected = 1.5 * x[example] @ (weights.b[NAME][task] @ weights.a[NAME][task]).T
        # two orders of summation over 16 and 4 terms in fp32
        assert distance(found[example], expected) < 1e-5


def test_delta_is_the_matrix_that_apply_multiplies_by(weights, x, distance):
    linear = nn.Linear(IN, OUT, bias=False)
    adapted = adapted_linear(linear, NAME, x[:1], weights, torch.tensor([1]))
    assert distance(adapted, x[:1] @ (linear.weight + weights.delta(NAME)[1]).T) < 1e-5


def test_an_examples_update_depends_neither_on_its_batch_nor_on_padding(weights, x, distance):
    together = update(weights, x, TASK_INDEX)
    for example in range(EXAMPLES):
        alone = update(weights.index(TASK_INDEX[example : example + 1]), x[example : example + 1, :4], None)
        assert distance(together[example : example + 1, :4], alone) < 1e-5


def test_an_untouched_site_and_no_adapter_leave_the_linear_alone(weights, x):
    linear = nn.Linear(IN, OUT)
    assert torch.equal(adapted_linear(linear, "elsewhere", x, weights, TASK_INDEX), linear(x))
    assert torch.equal(adapted_linear(linear, NAME, x, None, None), linear(x))


def test_several_adapters_need_a_task_index(weights, x):
    with pytest.raises(ValueError, match="task_index"):
        update(weights, x, None)


def test_index_selects_rows_in_order(weights):
    chosen = weights.index(torch.tensor([2, 2, 0]))
    assert chosen.num_tasks == 3
    assert chosen.rank == RANK
    for site in weights.a:
        assert torch.equal(chosen.delta(site), weights.delta(site)[[2, 2, 0]])


@pytest.mark.parametrize("tasks", [1, TASKS])
def test_nothing_larger_than_an_activation_or_a_factor_per_example_is_formed(weights, x, tasks):
    """The bound is tight enough to exclude [B, S, r, in], [B, S, r, out] and [B, out, in], forward and backward."""
    weights = weights.index(torch.arange(tasks))
    for factor in (*weights.a.values(), *weights.b.values()):
        factor.requires_grad_()
    index = TASK_INDEX.clamp_max(tasks - 1)
    with LargestTensor() as largest:
        update(weights, x.requires_grad_(), index).sum().backward()
    bound = EXAMPLES * max(LENGTH * max(IN, OUT), RANK * max(IN, OUT))
    assert largest.elements <= bound
    assert bound < min(EXAMPLES * OUT * IN, EXAMPLES * LENGTH * RANK * IN)


def test_dropout_acts_only_where_gradients_are_recorded(weights, x):
    noisy = LoraWeights(weights.a, weights.b, weights.scale, dropout=0.5)
    torch.manual_seed(0)
    assert not torch.equal(update(noisy, x, TASK_INDEX), update(weights, x, TASK_INDEX))
    with torch.no_grad():
        assert torch.equal(update(noisy, x, TASK_INDEX), update(weights, x, TASK_INDEX))
    assert torch.equal(update(noisy.detach(), x, TASK_INDEX), update(weights, x, TASK_INDEX))


def test_detach_cuts_the_graph_and_converts(weights):
    for factor in weights.a.values():
        factor.requires_grad_()
    detached = weights.detach(torch.bfloat16)
    assert not any(factor.requires_grad for factor in (*detached.a.values(), *detached.b.values()))
    assert {factor.dtype for factor in (*detached.a.values(), *detached.b.values())} == {torch.bfloat16}


def test_a0_is_a_function_of_seed_and_site_alone():
    config = LoraConfig(rank=RANK)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    drawn = initial_a(SITES[0], config)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drawn, initial_a(SITES[0]._replace(block=9), config))
    assert not torch.equal(drawn, initial_a(SITES[2], config))
    assert not torch.equal(drawn, initial_a(SITES[0], LoraConfig(rank=RANK, seed=1)))
    assert drawn.abs().max() <= IN**-0.5
    # variance of a uniform distribution, over 16,384 draws
    wide = initial_a(SITES[0]._replace(in_features=1024), LoraConfig(rank=16))
    assert wide.std().item() == pytest.approx(1024**-0.5 / math.sqrt(3), rel=0.03)


def test_a0_is_drawn_on_the_cpu_whatever_the_default_device_is():
    with torch.device("meta"):
        drawn = initial_a(SITES[0], LoraConfig(rank=RANK))
    assert torch.equal(drawn, initial_a(SITES[0], LoraConfig(rank=RANK)))


def test_groups_hold_one_stack_a_shape_and_give_every_site_its_own_slice():
    groups = SiteGroups(SITES)
    stacked = {
        key: torch.stack([torch.full((2, 1), float(SITES.index(site))) for site in group], dim=1)
        for key, group in groups.groups.items()
    }
    unstacked = groups.unstack(stacked)
    assert len(stacked) == 2
    assert list(unstacked) == [site.name for site in SITES]
    for number, site in enumerate(SITES):
        assert torch.equal(unstacked[site.name], torch.full((2, 1), float(number)))


def test_groups_refuse_no_site():
    with pytest.raises(ValueError, match=r"lora\.targets"):
        SiteGroups(())


def test_a_fresh_bank_changes_nothing_and_all_its_adapters_start_alike(x):
    config = LoraConfig(rank=RANK)
    weights = LoraBank(SITES, config, ["one", "two"])()
    assert weights.num_tasks == 2
    for site in SITES:
        assert torch.equal(weights.a[site.name], initial_a(site, config).expand(2, -1, -1))
        assert weights.delta(site.name).abs().max() == 0
        assert weights.delta(site.name).shape == (2, site.out_features, site.in_features)


def test_gradient_of_one_teacher_reaches_no_other(x):
    bank = LoraBank(SITES, LoraConfig(rank=RANK), ["one", "two", "three"])
    update(bank(), x[:2], torch.tensor([1, 1])).square().mean().backward()
    update(bank(), x[:2], torch.tensor([1, 1])).sum().backward()
    gradient = bank.b[f"{IN}x{OUT}"].grad
    assert gradient[1].abs().max() > 0
    assert gradient[[0, 2]].abs().max() == 0


def test_a_bank_needs_names():
    with pytest.raises(ValueError, match="name"):
        LoraBank(SITES, LoraConfig(rank=RANK), [])


def test_a_bank_in_evaluation_mode_has_no_dropout():
    bank = LoraBank(SITES, LoraConfig(rank=RANK, dropout=0.3), ["one"])
    assert bank().dropout == 0.3
    assert bank.eval()().dropout == 0.0
