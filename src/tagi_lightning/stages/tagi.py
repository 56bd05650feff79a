"""What the stages that train the hypernetwork share: the model, where its weights start, and validation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from tagi_lightning.adapter import InstructionStates, TaskAdapter
from tagi_lightning.backbones import BackboneConfig, GenerationConfig
from tagi_lightning.caches.instructions import InstructionStatesCache
from tagi_lightning.data.batch import TaskBatch, Tokens
from tagi_lightning.data.ranges import check_range
from tagi_lightning.evaluation.metrics import aggregate
from tagi_lightning.evaluation.predictions import Prediction
from tagi_lightning.evaluation.systems import to_predictions
from tagi_lightning.inference.answers import answer
from tagi_lightning.losses import prediction_loss
from tagi_lightning.model import TagiConfig, TagiModel
from tagi_lightning.stages.base import MissingInputError, OptimizerConfig, Stage
from tagi_lightning.stages.sharing import gather_rows
from tagi_lightning.storage.run_layout import model_folder
from tagi_lightning.storage.serialization import check_backbone, load_tagi_weights, read_folder, save_tagi
from tagi_lightning.updates import mean_norms


class TagiStage(Stage):
    """A stage that trains a `TagiModel`.

    `init_from` says where its weights start: `auto` is the chain's previous stage that this run has and needs, the name
    of one of `previous` that stage of this run, `none` fresh weights, anything else a model folder. It is never an
    interrupted run's checkpoint.
    """

    previous: ClassVar[tuple[str, ...]] = ()
    """Stages of a run that this one may start from, latest first."""

    reads_memory: ClassVar[bool] = True
    """Whether a training step needs the keys and values of the decoder memory."""

    model: TagiModel

    def __init__(
        self,
        run: str,
        backbone: BackboneConfig,
        tagi: TagiConfig,
        optimizer: OptimizerConfig,
        generation: GenerationConfig,
        init_from: str,
        instruction_cache_mb: int = 0,
    ) -> None:
        """Takes the settings.

        Args:
            run: Run folder.
            backbone: The frozen language model.
            tagi: Adapter, hypernetwork, fusion and memory.
            optimizer: Optimizer and schedule.
            generation: How validation decodes.
            init_from: auto, a stage of `previous`, none, or a model folder.
            instruction_cache_mb: Memory for the states of instructions that come again in every epoch; 0 for none.
        """
        super().__init__(run, backbone, optimizer)
        check_range({"instruction_cache_mb": instruction_cache_mb}, least=0)
        self.tagi_config = tagi
        self.generation = generation
        self.init_from = init_from
        self.instruction_cache_mb = instruction_cache_mb
        self.instruction_cache: InstructionStatesCache | None = None
        self.passed_stages: tuple[str, ...] = ()
        self.validation_rows: list[Prediction] = []

    def build(self) -> None:
        """Loads the backbone, builds hypernetwork and fusion and loads the weights they start from.

        Raises:
            ValueError: If instruction states are to be kept while the backbone that gives them trains.
        """
        self.backbone = self.load_run_backbone()
        self.model = TagiModel(self.backbone, self.tagi_config)
        source = self.initial_folder()
        if source is not None:
            tensors, config = read_folder(source, "tagi", f"make {source.parent.name}")
            check_backbone(source, config, self.backbone)
            load_tagi_weights(self.model, tensors, str(source))
            self.passed_stages = tuple(config["stages"])
        self.freeze_untrained()
        if self.instruction_cache_mb and self.model.uses_instruction:
            size = self.instruction_cache_mb * 2**20
            self.instruction_cache = InstructionStatesCache(self.model, size, self.reads_memory)

    def on_fit_start(self) -> None:
        """Measures the training instructions, where the hypernetwork standardises their states and has not yet."""
        hypernetwork = self.model.hypernetwork
        if hypernetwork is None or not hypernetwork.to_measure:
            return
        pooled = []
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            for instruction in self.instructions_to_measure():
                read = self.read_instructions(instruction.to(self.device))
                weights = read.mask / read.mask.sum(-1, keepdim=True)
                pooled.append(torch.einsum("ti,tid->td", weights, read.states.float()))
        # by way of the CPU: what is broadcast as an object arrives on the device that it was sent from
        measured: Tensor = self.trainer.strategy.broadcast(torch.cat(pooled).cpu())
        hypernetwork.measure(measured.to(self.device))

    def instructions_to_measure(self) -> Iterable[Tokens]:
        """Yields the training instructions, for the mean and deviation of their states."""
        for batch in self.trainer.datamodule.instruction_dataloader(whole=True):  # type: ignore[attr-defined]
            yield batch.instruction

    def freeze_untrained(self) -> None:
        """Holds still what this stage does not train."""

    def read_instructions(self, instruction: Tokens) -> InstructionStates:
        """Returns the backbone's states over instructions [T, I], from the cache where there is one."""
        if self.instruction_cache is not None:
            return self.instruction_cache.encode(instruction)
        return self.model.encode_instructions(instruction, self.reads_memory)

    @property
    def automatic(self) -> tuple[str, ...]:
        """The stages that `init_from=auto` stands for, latest first; the last one is required."""
        return self.previous

    def initial_folder(self) -> Path | None:
        """Returns the model folder that `init_from` stands for, or None for fresh weights.

        Raises:
            MissingInputError: If this run is to have it and has not.
        """
        if self.init_from == "none":
            return None
        if self.init_from != "auto" and self.init_from not in self.previous:
            return Path(self.init_from)
        stages = self.automatic if self.init_from == "auto" else (self.init_from,)
        folders = [model_folder(self.run, stage) for stage in stages]
        found = next((folder for folder in folders if folder.is_dir()), None)
        if stages and found is None:
            raise MissingInputError(
                f"{self.stage_name} starts from what {stages[-1]} trained, and {folders[-1]} is not there; "
                f"make it: make {stages[-1]}, or go on without: --model.init_args.init_from=none"
            )
        return found

    def log_adapter(self, adapter: TaskAdapter, batch_size: int) -> None:
        """Logs norms of A, B and B A by stack, and the fusion gates."""
        if adapter.lora is not None:
            for stack, norms in mean_norms(adapter.lora, self.model.sites).items():
                for name, norm in norms.items():
                    self.log(f"adapter/{stack}/norm_{name}", norm, batch_size=batch_size)
        if self.model.fusion is not None:
            for block, gate in enumerate(self.model.fusion.gates()):
                self.log(f"fusion/gate_{block}", gate, batch_size=batch_size)

    def validation_step(self, batch: TaskBatch, batch_index: int) -> None:
        """Logs the loss, and decodes answers for the scores where the batch carries references."""
        adapter, inputs = self.model.adapt(self.model.conditions(batch)), self.model.inputs(batch)
        logits = self.model(inputs, batch.labels, adapter, batch.task_index)
        loss = prediction_loss(logits, batch.labels).mean()
        self.log("val/loss", loss, batch_size=self.counted(len(batch)), prog_bar=True, sync_dist=True)
        if batch.references:
            answers = answer(self.model, batch, inputs, adapter, self.generation, self.tokenizer)
            find_task = self.trainer.datamodule.find_task  # type: ignore[attr-defined]
            self.validation_rows += to_predictions(batch, answers, self.tokenizer, find_task)

    def on_validation_epoch_start(self) -> None:
        """Forgets the rows of the last validation."""
        self.validation_rows = []

    def on_validation_epoch_end(self) -> None:
        """Logs ROUGE-L and exact match over the validation instances, 0 to 100."""
        self.validation_rows = gather_rows(self.trainer, self.validation_rows)
        if self.validation_rows:
            scores = aggregate(self.validation_rows)["overall"]
            for name in ("rougeL", "exact_match"):
                self.log(f"val/{name}", scores[name], prog_bar=True)

    def save(self, folder: Path) -> None:
        """Writes what was trained, with the stages it passed through."""
        prompts = getattr(self.trainer.datamodule, "prompts", None)  # type: ignore[attr-defined]
        save_tagi(self.model, folder, (*self.passed_stages, self.stage_name), prompts)
