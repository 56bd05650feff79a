import torch
from inspection_tasks import tasks_for
from instructed_models import build_instructed

from tagi_lightning.inspection.attention import attention_maps, fusion_weights


def test_weights_give_what_the_fusion_layer_adds():
    model = build_instructed("t5").model
    draw = torch.Generator().manual_seed(0)
    hidden, states = torch.randn(2, 5, 32, generator=draw), torch.randn(2, 7, 32, generator=draw)
    mask = (torch.arange(7) < torch.tensor([[7], [3]])).long()
    layer = model.fusion.layers[0]
    keys, values = layer.keys_values(states)
    weights = fusion_weights(layer, hidden, keys, mask)
    assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert not weights[1, ..., 3:].any()
    update = layer.o((weights @ values).transpose(1, 2).flatten(2))
    assert torch.allclose(layer(hidden, keys, values, mask), hidden + torch.tanh(layer.gate) * update, atol=1e-5)


def test_a_map_is_the_same_alone_and_in_a_batch_with_others():
    loaded = build_instructed("t5")
    [batch] = tasks_for(loaded, 3).batches
    together = attention_maps(loaded.model, batch, loaded.tokenizer, range(3))
    for number, found in enumerate(together):
        [alone] = attention_maps(loaded.model, tasks_for(loaded, number + 1).batches[0], loaded.tokenizer, [number])
        assert torch.allclose(found.weights, alone.weights, atol=1e-5)
        assert found.weights.shape == (2, len(found.input), len(found.instruction))
        assert torch.allclose(found.weights.sum(-1), torch.ones(found.weights.shape[:-1]), atol=1e-5)
        assert "".join(found.instruction).startswith("Definition")


def test_looking_changes_no_answer():
    loaded = build_instructed("t5")
    [batch] = tasks_for(loaded, 2).batches
    adapter = loaded.model.adapt(batch.instruction)
    before = loaded.model(batch.input, batch.labels, adapter, batch.task_index)
    attention_maps(loaded.model, batch, loaded.tokenizer, [0])
    assert torch.equal(loaded.model(batch.input, batch.labels, adapter, batch.task_index), before)
