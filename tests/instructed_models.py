"""Tiny random models that read instructions in words."""

import torch
from byte_tokenizer import build_byte_tokenizer
from transformers import LlamaConfig, T5Config

from tagi_lightning.backbones import build_backbone
from tagi_lightning.backbones.causal import CausalBackbone
from tagi_lightning.backbones.causal_modules import FAMILIES
from tagi_lightning.data.instruction import InstructionPrompts
from tagi_lightning.fusion import FusionConfig
from tagi_lightning.inference.instructed import InstructedModel
from tagi_lightning.lora import LoraConfig
from tagi_lightning.model import TagiConfig, TagiModel

LORA = LoraConfig(rank=4)
CONFIGS = {
    "t5": TagiConfig(LORA),
    "t5-lora": TagiConfig(LORA, fusion=FusionConfig(enabled=False), decoder_memory=False),
    "t5-prompt": TagiConfig(LORA, fusion=FusionConfig(enabled=False), decoder_memory=False, reads="prompt"),
    "llama": TagiConfig(LORA, fusion=FusionConfig(enabled=False)),
}


def build_instructed(name):
    """Returns the model of one of `CONFIGS`, moved away from its start."""
    tokenizer, config = build_byte_tokenizer(), CONFIGS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "llama":
            shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
            llama = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, num_key_value_heads=2, **shape)
            backbone = CausalBackbone(FAMILIES["llama"](llama), name)
        else:
            shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2, "dropout_rate": 0.0}
            ids = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 2, "tie_word_embeddings": False}
            backbone = build_backbone(T5Config(vocab_size=len(tokenizer), **shape, **ids), name)
        backbone.freeze()
        model = TagiModel(backbone.eval(), config)
        with torch.no_grad():
            for parameter in model.trained_parameters().values():
                parameter += 0.2 * torch.randn_like(parameter)
    prompts = InstructionPrompts("causal" if name == "llama" else "t5", demonstrations=1, max_input_length=200)
    return InstructedModel(model.requires_grad_(False).eval(), tokenizer, prompts)
