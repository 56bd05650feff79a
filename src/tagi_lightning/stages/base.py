"""What every stage shares: the run folder, the backbone, the optimizer, trimmed checkpoints."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from transformers import Adafactor, PreTrainedTokenizerBase, get_scheduler

from tagi_lightning.backbones import SIZES, Backbone, BackboneConfig, load_backbone
from tagi_lightning.backbones.loading import DECODER_ONLY_SIZES, refuse_float16
from tagi_lightning.data.ranges import check_range
from tagi_lightning.stages.sharing import over_devices, part_weight
from tagi_lightning.storage.run_layout import model_folder
from tagi_lightning.storage.serialization import ModelFolderError

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
"""Precisions of the trainer that keep trained weights in float32."""


class MissingInputError(ValueError):
    """An input of a stage is not there; the message names the command that makes it."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule."""

    name: Literal["adamw", "adafactor"] = "adamw"
    """adafactor has a fixed learning rate and no parameter scaling, which would hold zero-initialised weights still."""
    lr: float = 1e-4
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    warmup: float = 0.02
    """Share of all steps over which the rate rises linearly (paper: 2 %)."""
    schedule: Literal["constant_with_warmup", "linear", "cosine"] = "constant_with_warmup"
    """What follows the warm-up."""

    def __post_init__(self) -> None:
        check_range({"optimizer.lr": self.lr, "optimizer.weight_decay": self.weight_decay}, least=0)
        check_range({"optimizer.warmup": self.warmup}, least=0, most=1)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Returns the optimizer over `parameters`."""
        if self.name == "adafactor":
            return Adafactor(
                parameters, lr=self.lr, weight_decay=self.weight_decay, relative_step=False, scale_parameter=False
            )
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)


class Stage(L.LightningModule):
    """A training stage that reads from and writes to one run folder.

    A subclass builds its modules in `build`, gives a loss in `training_step`, and saves in `save`. Checkpoints hold
    what is trained and nothing of the frozen backbone.
    """

    stage_name: ClassVar[str]
    """Folder of the stage under RUN, and the make target that runs it."""
    monitor: ClassVar[str | None] = None
    """Validation score, the higher the better, whose best weights are kept where tasks are held out."""
    converged: bool = False
    """Whether training ended before its last step since nothing was left to train."""

    backbone: Backbone

    def __init__(self, run: str, backbone: BackboneConfig, optimizer: OptimizerConfig) -> None:
        """Takes the settings; weights are loaded in `configure_model`.

        Args:
            run: Run folder; this stage writes to its own folder in it.
            backbone: The language model. A built-in size means the weights that this run's pretrain-backbone made.
            optimizer: Optimizer and schedule.
        """
        super().__init__()
        self.run = Path(run)
        self.backbone_config = backbone
        self.optimizer_config = optimizer
        self.strict_loading = False
        self._built = False

    @property
    def folder(self) -> Path:
        """RUN/<stage>."""
        return self.run / self.stage_name

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The data module's tokenizer."""
        tokenizer: PreTrainedTokenizerBase = self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        return tokenizer

    def initial_folder(self) -> Path | None:
        """Returns the model folder that the weights start from, None for fresh ones."""
        return None

    def configure_model(self) -> None:
        """Builds the modules once, after the data module is set up.

        Raises:
            ValueError: If the backbone does not go with the trainer's precision or strategy, or with the prompts.
        """
        if not self._built:
            self.check_trainer()
            self.check_length()
            with torch.device("cpu"):  # Lightning calls this on its own device; seeds give the same weights on any
                self.build()
            is_half = str(self.trainer.precision).startswith("16")
            refuse_float16(self.backbone, is_half, "--trainer.precision=bf16-mixed")
            self.check_prompts()
            self.check_tokenizer()
            self._built = True

    def check_trainer(self) -> None:
        """Refuses to train in 16 bits, and FSDP, whose shards hold weights of one type, with frozen ones of another.

        Raises:
            ValueError: If one of them is asked for.
        """
        precision = str(self.trainer.precision)
        if precision not in PRECISIONS:
            raise ValueError(
                f"--trainer.precision={precision} would not keep the trained weights in float32; take bf16-mixed or "
                "32-true, and backbone.dtype=bfloat16 to store the frozen weights in 16 bits"
            )
        stored = self.backbone_config.quantization or self.backbone_config.dtype
        if stored != "float32" and isinstance(self.trainer.strategy, FSDPStrategy):
            raise ValueError(
                f"a backbone stored in {stored} does not go with --trainer.strategy=fsdp, which shards weights of one "
                "type and trains float32; take ddp or deepspeed_stage_2, or --backbone.dtype=float32"
            )

    def check_length(self) -> None:
        """Refuses to train for a time alone, since the schedule of the learning rate is over a number of steps.

        Raises:
            ValueError: If neither steps nor epochs give one.
        """
        steps = self.trainer.max_steps
        if steps < 1 and (steps != -1 or (self.trainer.max_epochs or 0) < 1):
            raise ValueError(
                f"--trainer.max_steps={steps} gives the learning rate's schedule no number of steps: give "
                "--trainer.max_steps of at least 1, which --trainer.max_time may cut short, or --trainer.max_epochs"
            )

    def check_prompts(self) -> None:
        """Refuses an encoder-decoder model's prompts for a decoder-only one, and the reverse.

        Raises:
            ValueError: If the data module makes them.
        """
        prompt = self.trainer.datamodule.prompt  # type: ignore[attr-defined]
        if (prompt == "t5") != self.backbone.model.config.is_encoder_decoder:
            name, kind = self.backbone.name, self.backbone.model.config.model_type
            advice = "set --data.init_args.prompt=t5"
            if prompt == "t5":
                advice = f"{DECODER_ONLY_SIZES.format(name=name)}; or set --data.init_args.prompt=causal or chat"
            raise ValueError(f"prompt={prompt} does not go with backbone {name}, a {kind} model: {advice}")

    def check_tokenizer(self) -> None:
        """Refuses a tokenizer whose vocabulary is not the backbone's.

        Raises:
            ValueError: If their sizes say so.
        """
        known, needed = len(self.tokenizer), self.backbone.vocabulary_size
        # models pad their vocabularies a little beyond their tokenizers
        if not 0.9 * needed <= known <= needed:
            tokenizer, name = self.tokenizer.name_or_path, self.backbone.name
            advice = f"take the tokenizer of {name}: leave TOKENIZER out, or TOKENIZER={name}"
            if Path(tokenizer) == Path(name):
                advice = "get the tokenizer files of the model that the weights are of, without tokens added to them"
            raise ValueError(
                f"the tokenizer {tokenizer} has {known} tokens and backbone {name} {needed}: its ids mean something "
                f"else there; {advice}"
            )

    @abstractmethod
    def build(self) -> None:
        """Loads the backbone and creates what the stage trains."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the stage's result to `folder`."""

    def load_run_backbone(self) -> Backbone:
        """Loads the frozen backbone; a built-in size is read from this run's pretrain-backbone.

        Raises:
            MissingInputError: If that stage has not been run.
        """
        config = resolve_backbone(self.run, self.backbone_config)
        return load_backbone(config)

    def configure_optimizers(self) -> Any:
        """Returns optimizer and schedule over everything that requires gradients."""
        optimizer = self.optimizer_config.build(p for p in self.parameters() if p.requires_grad)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = get_scheduler(
            self.optimizer_config.schedule,
            optimizer,
            num_warmup_steps=round(self.optimizer_config.warmup * steps),
            num_training_steps=steps,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def weighted(self, loss: Tensor) -> Tensor:
        """Returns the mean loss of this device's part such that the mean over devices is that of the whole batches."""
        weight = part_weight(self.trainer)
        return loss if weight == 1.0 else loss * weight

    def counted(self, size: int) -> int:
        """Returns `size`, or 0 where this device reads its part again to keep step with the others."""
        return size if part_weight(self.trainer) else 0

    def log_loss(self, name: str, loss: Tensor, batch_size: int) -> None:
        """Logs a training scalar under `train/`, that of all devices where it is written.

        The loss is shown on the progress bar, too, between two of these steps that of this device's part.
        """
        value = over_devices(self.trainer, loss.detach()) if self.should_log() else loss.detach()
        self.log(f"train/{name}", value, batch_size=batch_size, prog_bar=name == "loss")

    def should_log(self) -> bool:
        """Whether costly diagnostics of this batch are logged: Lightning writes those of a logged step's last batch."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.trainer.logger is None or (self.global_step + 1) % max(every, 1):
            return False
        return not self.trainer.fit_loop.epoch_loop._should_accumulate()

    def log_gradient_norms(self, terms: Mapping[str, Tensor], batch_size: int) -> None:
        """Logs the norm of each loss term's own gradient over the trained weights."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        for name, term in terms.items():
            if not term.requires_grad:
                continue
            gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
            norm = torch.stack([g.detach().norm() for g in gradients if g is not None]).norm()
            self.log(f"train/grad_norm_{name}", norm, batch_size=batch_size)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Returns the trained weights and buffers alone, so that checkpoints leave the frozen backbone out."""
        named = self.named_parameters(remove_duplicate=False)  # the model holds the stage's backbone once more
        frozen = {name for name, parameter in named if not parameter.requires_grad}
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        return {name: tensor for name, tensor in state.items() if name not in frozen}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the stage is and what it was trained on."""
        checkpoint["tagi"] = {"stage": self.stage_name, "backbone_digest": self.checkpoint_backbone_digest()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another stage, backbone or shape, since loading is not strict.

        Raises:
            ModelFolderError: If the checkpoint does not belong here.
        """
        origin = checkpoint.get("tagi", {})
        if origin.get("stage") != self.stage_name:
            raise ModelFolderError(f"the checkpoint is of stage {origin.get('stage')!r}, not {self.stage_name!r}")
        if origin["backbone_digest"] != self.checkpoint_backbone_digest():
            raise ModelFolderError("the checkpoint was trained on another backbone than the one that is loaded")
        saved = {name: tuple(tensor.shape) for name, tensor in checkpoint["state_dict"].items()}
        needed = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        if differing := sorted(name for name in saved.keys() | needed.keys() if saved.get(name) != needed.get(name)):
            raise ModelFolderError(
                f"the checkpoint's weights do not fit this configuration, e.g. {differing[0]}: "
                f"{saved.get(differing[0], 'absent')} there, {needed.get(differing[0], 'absent')} here"
            )

    def checkpoint_backbone_digest(self) -> str:
        """Returns the digest of the frozen backbone, computed once."""
        if not hasattr(self, "_digest"):
            self._digest = self.backbone.digest()
        return self._digest


def resolve_backbone(run: Path, config: BackboneConfig) -> BackboneConfig:
    """Returns `config` with a built-in size replaced by the folder this run's pretrain-backbone left.

    Raises:
        MissingInputError: If that folder is not there.
    """
    if config.name not in SIZES:
        return config
    folder = model_folder(run, "pretrain-backbone")
    if not (folder / "config.json").is_file():
        raise MissingInputError(
            f"backbone {config.name!r} is trained from scratch and {folder} is not there yet; "
            "make it: make pretrain-backbone, or give a pretrained one: BACKBONE=<hub id or folder>"
        )
    return replace(config, name=str(folder))
