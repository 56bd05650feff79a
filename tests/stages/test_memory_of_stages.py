"""What the stages read of instructions for a decoder-only memory, whose keys and values are the most of it."""

import pytest
from transformers import LlamaConfig

from tagi_lightning.backbones.causal import CausalBackbone
from tagi_lightning.backbones.causal_modules import FAMILIES
from tagi_lightning.fusion import FusionConfig
from tagi_lightning.lora import LoraConfig
from tagi_lightning.model import TagiConfig
from tagi_lightning.stages import Alignment, Distillation
from tagi_lightning.stages.tagi import TagiStage


def causal():
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**shape, vocab_size=64, eos_token_id=1)
    backbone = CausalBackbone(FAMILIES["llama"](config), "llama")
    backbone.freeze()
    return backbone.eval()


@pytest.mark.parametrize("memory_lora", [False, True])
@pytest.mark.parametrize("cached", [0, 1])
@pytest.mark.parametrize("stage", [Alignment, Distillation])
def test_a_stage_reads_the_memory_where_it_uses_it_alone(stage, cached, memory_lora, tokens, monkeypatch):
    config = TagiConfig(LoraConfig(rank=4), fusion=FusionConfig(enabled=False), memory_lora=memory_lora)
    built = stage(tagi=config, init_from="none", instruction_cache_mb=cached)
    monkeypatch.setattr(built, "load_run_backbone", causal)
    TagiStage.build(built)  # without teachers
    assert (built.instruction_cache is not None) == bool(cached)
    read = built.read_instructions(tokens([5, 9, 3]))
    uses = stage is Distillation
    assert bool(read.keys_values) == (uses and not memory_lora)
    assert (read.tokens is not None) == (uses and memory_lora)
    if memory_lora and not uses:
        with pytest.raises(ValueError, match=r"without what the memory needs: encode_instructions\(memory=True\)"):
            built.model.adapt(read)
