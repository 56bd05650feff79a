"""One task's LoRA as a folder that PEFT loads, and what PEFT cannot hold beside it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, TaskType, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from tagi_lightning.adapter import PreparedAdapter
from tagi_lightning.backbones.base import Backbone
from tagi_lightning.lora import LoraWeights
from tagi_lightning.peft_io.folders import (
    CARD,
    PREFIX,
    REST,
    WEIGHTS,
    AdapterFolderError,
    check_float32,
    check_single,
    difference,
    location,
    new_folder,
    plain_model,
)

TOLERANCE = 1e-5
"""Largest relative difference of logits between PEFT's model and ours."""


class PeftWriter:
    """Writes adapters of one backbone; a folder that PEFT does not load to the same logits is not left behind."""

    def __init__(self, backbone: Backbone) -> None:
        """Takes the backbone.

        Raises:
            AdapterFolderError: If it is not stored in float32.
        """
        check_float32(backbone)
        self.backbone = backbone
        self.digest = backbone.digest()

    def write(
        self,
        lora: LoraWeights,
        folder: Path,
        card: str = "",
        rest: PreparedAdapter | None = None,
        overwrite: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Writes adapter_config.json, adapter_model.safetensors and README.md, and loads them back through PEFT.

        Args:
            lora: The adapter of one task.
            folder: The folder to make.
            card: Text of README.md.
            rest: The whole adapter where it has more than LoRA, which goes into tagi_adapter.safetensors.
            overwrite: Whether to replace a folder that is already there.
            metadata: More that the file of the LoRA tells, beside its backbone's digest.

        Raises:
            AdapterFolderError: If the folder is there, or PEFT does not load it to the same logits.
        """
        check_single(lora)
        tensors = peft_tensors(lora)
        with new_folder(folder, overwrite) as made:
            told = {**(metadata or {}), "format": "pt", "backbone_digest": self.digest}
            save_file(tensors, made / WEIGHTS, told)
            self._config(lora).save_pretrained(str(made))
            (made / CARD).write_text(card, encoding="utf-8")
            if rest is not None:
                save_file(dict(rest_tensors(rest)), made / REST, {"model_digest": rest.model_digest})
            if problem := self.check(made, tensors, lora):
                raise AdapterFolderError(f"{folder} was not written: {problem}; report this with your versions")

    def check_loads(self, lora: LoraWeights) -> None:
        """Writes a LoRA to a folder that is removed again, where PEFT has to load it to the same logits.

        Raises:
            AdapterFolderError: If it does not.
        """
        with TemporaryDirectory(prefix="tagi-adapter-") as temporary:
            self.write(lora, Path(temporary, "adapter"))

    def _config(self, lora: LoraWeights) -> PeftLoraConfig:
        model = self.backbone.model
        alpha = lora.scale * lora.rank
        return PeftLoraConfig(
            task_type=TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM,
            base_model_name_or_path=location(self.backbone),
            r=lora.rank,
            lora_alpha=int(alpha) if alpha == int(alpha) else alpha,  # type: ignore[arg-type]
            target_modules=target_modules(model, set(lora.a)),
            inference_mode=True,
        )

    def check(self, folder: Path, tensors: dict[str, Tensor], lora: LoraWeights) -> str:
        """Returns what is wrong with a folder as PEFT loads it, empty where nothing is."""
        with warnings.catch_warnings():
            # PEFT runs the plain model where names do not fit, and only warns
            warnings.simplefilter("ignore", FutureWarning)  # of transformers, about what PEFT calls
            warnings.filterwarnings("error", message=r"(?s).*(missing|unexpected).*key")
            try:
                plain: Any = plain_model(self.backbone)
                model = PeftModel.from_pretrained(plain, str(folder), torch_device=str(plain.device)).eval()
            except (UserWarning, ValueError, KeyError, RuntimeError) as error:
                return f"PEFT does not load it ({error})"
        loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
        if differing := sorted(name for name in loaded.keys() ^ tensors.keys()):
            return f"PEFT has other sites than the adapter, e.g. {differing[0]}"
        if differing := sorted(name for name, tensor in tensors.items() if not torch.equal(loaded[name].cpu(), tensor)):
            return f"PEFT has other values than the adapter, e.g. of {differing[0]}"
        found = difference(model, self.backbone, lora)
        return "" if found <= TOLERANCE else f"PEFT's logits differ from ours by {found:.1e} of the largest"


def peft_tensors(lora: LoraWeights) -> dict[str, Tensor]:
    """Returns the factors of one task under PEFT's names, A [r, in] and B [out, r] as PEFT has them."""
    tensors = {}
    for site in lora.a:
        for part, factor in (("A", lora.a[site]), ("B", lora.b[site])):
            tensors[f"{PREFIX}{site}.lora_{part}.weight"] = factor[0].detach().float().cpu().contiguous().clone()
    return tensors


def target_modules(model: nn.Module, sites: set[str]) -> list[str]:
    """Returns the projections' names where they select `sites` and nothing else, otherwise the sites' full names."""
    ends = {site.rpartition(".")[2] for site in sites}
    selected = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in ends}
    return sorted(ends if selected == sites else sites)


def rest_tensors(adapter: PreparedAdapter) -> Iterator[tuple[str, Tensor]]:
    """Yields the instruction's part in fusion, memory and prefix by name, as `reading.load_adapter` takes it."""
    named: dict[str, Tensor] = {}
    if adapter.fusion is not None:
        named |= {"fusion.mask": adapter.fusion.mask}
        for block, pair in enumerate(zip(adapter.fusion.keys, adapter.fusion.values, strict=True)):
            named |= {f"fusion.keys.{block}": pair[0], f"fusion.values.{block}": pair[1]}
    if adapter.memory is not None:
        named |= {"memory.mask": adapter.memory.mask, "memory.states": adapter.memory.states}
        for layer, pair in enumerate(adapter.memory.keys_values):
            named |= {f"memory.keys.{layer}": pair[0], f"memory.values.{layer}": pair[1]}
    if adapter.prefix is not None:
        for part, sites in (("keys", adapter.prefix.keys), ("values", adapter.prefix.values)):
            named |= {f"prefix.{part}.{site}": tensor for site, tensor in sites.items()}
    for name, tensor in named.items():
        yield name, tensor.detach().cpu().contiguous().clone()
