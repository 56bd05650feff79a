"""Stage teachers: one LoRA per category on the frozen backbone, reading instruction and input (paper section 4.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor
from transformers import get_scheduler

from tagi_lightning.backbones import BackboneConfig
from tagi_lightning.data.batch import TaskBatch, Tokens
from tagi_lightning.data.progress_bar import progress_bar
from tagi_lightning.data.ranges import check_range
from tagi_lightning.evaluation.predictions import write_metrics
from tagi_lightning.lora import LoraBank, LoraConfig
from tagi_lightning.stages.base import OptimizerConfig, Stage
from tagi_lightning.storage.serialization import save_bank
from tagi_lightning.teachers.bank_optimizer import BankAdamW, Schedule
from tagi_lightning.teachers.gains import TeacherGain, balanced_batches, gain_sums, gains, table, warning
from tagi_lightning.teachers.teaching import AdapterSelection, count_steps, teacher_losses
from tagi_lightning.updates import mean_norms


class TeacherTraining(Stage):
    """Trains all teachers together by cross entropy on (a;b) -> c, each as if it were alone; batches mix categories.

    A teacher's loss is the mean over its own examples of an optimizer step. It has its own AdamW, its own clipping by
    the trainer's `gradient_clip_val`, its own count of steps in the learning-rate schedule, and it moves only where
    a step has examples of its category.
    """

    stage_name = "teachers"

    def __init__(
        self,
        run: str = "runs/default",
        backbone: BackboneConfig = BackboneConfig(),  # noqa: B008  (frozen)
        lora: LoraConfig = LoraConfig(),  # noqa: B008
        optimizer: OptimizerConfig = OptimizerConfig(warmup=0.0),  # noqa: B008
        patience: int | None = 3,
        report_instances: int = 50,
    ) -> None:
        """Takes the settings (Table 6: AdamW, lr 1e-4, rank 32; for each teacher 10,000 steps, batch 8 x 2).

        Args:
            run: Run folder.
            backbone: The frozen language model.
            lora: Sites, rank, scale and A_0, the same as the student's.
            optimizer: Optimizer and schedule, over each teacher's own steps.
            patience: Where instances of the training categories are validated: validations without improvement after
                which a teacher stops at its best weights. null stops none; the best weights are kept all the same.
            report_instances: Held-out instances of each category on which the finished teachers are compared with the
                bare backbone; 0 for no report.

        Raises:
            ValueError: If another optimizer than adamw is asked for, or a number is out of its range.
        """
        super().__init__(run, backbone, optimizer)
        if optimizer.name != "adamw":
            raise ValueError(f"teachers train with optimizer.name=adamw, got {optimizer.name}")
        check_range({"patience": patience}, least=1, otherwise="null to stop no teacher")
        check_range({"report_instances": report_instances}, least=0)
        self.lora = lora
        self.patience = patience
        self.report_instances = report_instances
        self._counted = torch.empty(0, dtype=torch.long)

    def check_trainer(self) -> None:
        """Refuses also strategies that cut parameters apart, since a bank's optimizer needs whole adapters.

        Raises:
            ValueError: If one of them is asked for.
        """
        super().check_trainer()
        if not isinstance(self.trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
            name = type(self.trainer.strategy).__name__
            raise ValueError(f"teachers train on one device or under ddp, not {name}: take TRAINER=gpu or TRAINER=ddp")

    def build(self) -> None:
        """Loads the backbone and creates one adapter per training category."""
        self.backbone = self.load_run_backbone()
        categories = self.trainer.datamodule.categories  # type: ignore[attr-defined]
        self.bank = LoraBank(self.backbone.sites(self.lora), self.lora, categories)
        self.selection = AdapterSelection(self.bank, self.patience)

    def configure_optimizers(self) -> BankAdamW:
        """Returns the bank's optimizer, with each adapter's schedule over its own number of steps."""
        config = self.optimizer_config
        steps = int(self.trainer.estimated_stepping_batches)
        batches = self.trainer.accumulate_grad_batches * self.trainer.datamodule.together  # type: ignore[attr-defined]
        own = count_steps(self.planned_categories(), len(self.bank.names), batches, steps)
        schedules = [schedule(config, adapter_steps) for adapter_steps in own]
        return BankAdamW(self.bank.parameters(), config.lr, config.weight_decay, schedules=schedules)

    def planned_categories(self) -> list[set[int]]:
        """Returns the categories of each batch of the first epoch."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        places = {category: place for place, category in enumerate(self.bank.names)}
        tasks = [places[task.category] for task in data.tasks["train"].tasks]
        # a loader of its own: Lightning makes the trainer's later, and then restores an interrupted epoch
        batches = data.train_dataloader().batch_sampler.plan(0)
        return [{tasks[index.task] for index in batch} for batch in batches]

    def losses(self, batch: TaskBatch, rows: Tensor | None = None) -> Tensor:
        """Returns the cross entropy of the batch's examples, or of its examples `rows`, each under its own teacher."""
        if batch.prompt is None:
            raise ValueError("teachers read instruction and input concatenated: set data.with_prompt=true")
        prompt, labels, category, index = batch.prompt, batch.labels, batch.category, batch.task_index
        if rows is not None:
            prompt, labels = Tokens(prompt.ids[rows], prompt.mask[rows]), labels[rows]
            tasks, index = index[rows].unique_consecutive(return_inverse=True)
            category = category[tasks]
        return teacher_losses(self.backbone, self.bank, prompt, labels, category, index)

    def training_step(self, batch: TaskBatch, batch_index: int) -> Tensor:
        """Returns the summed loss of the examples whose teachers go on; `configure_gradient_clipping` averages it."""
        adapters, rows = batch.category[batch.task_index], None
        is_counted = bool(self.counted(len(batch)))
        if self.selection.stopped.any() or not is_counted:
            rows = (is_counted & ~self.selection.stopped.to(adapters.device)[adapters]).nonzero().flatten()
            adapters = adapters[rows]
            if not len(rows):
                # one example for a gradient of zeros, which other devices may wait for
                rows = torch.zeros_like(batch.task_index[:1])
        losses = self.losses(batch, rows)
        self._counted = adapters
        self.log_loss("loss", losses.mean(), len(losses))
        if self.should_log():
            for stack, norms in mean_norms(self.bank(), self.bank.groups.sites).items():
                for name, norm in norms.items():
                    self.log(f"teachers/{stack}/norm_{name}", norm, batch_size=len(batch))
        return losses.sum() if len(adapters) else 0.0 * losses.sum()

    def on_after_backward(self) -> None:
        """Counts the examples that the gradient is about."""
        super().on_after_backward()
        self.bank_optimizer.count(self._counted)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Makes of each adapter's gradient the mean over its examples on all devices, and clips the norm of each."""
        if gradient_clip_algorithm not in (None, "norm"):
            raise ValueError(f"teachers clip by norm; got --trainer.gradient_clip_algorithm={gradient_clip_algorithm}")
        own = self.bank_optimizer
        own.examples = self.summed(own.examples)
        # Lightning divides the loss by the batches of a step, and ddp the gradient by the devices
        scale = self.trainer.accumulate_grad_batches * self.trainer.world_size
        norms = own.average_and_clip(gradient_clip_val, scale)
        moved = norms[norms > 0]
        if self.should_log() and len(moved):  # none where all teachers of the step have stopped
            self.log("teachers/grad_norm", moved.mean())

    @property
    def bank_optimizer(self) -> BankAdamW:
        """The optimizer, without Lightning's wrapper."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, BankAdamW)
        return optimizer

    def summed(self, values: Tensor) -> Tensor:
        """Returns `values` summed over devices."""
        total = self.trainer.strategy.reduce(values, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def on_train_start(self) -> None:
        """Ends a resumed run in which all teachers have stopped."""
        self.stop_if_converged()

    def on_validation_epoch_start(self) -> None:
        """Starts each teacher's validation loss."""
        self._validation = torch.zeros(len(self.bank.names), 2, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: TaskBatch, batch_index: int) -> None:
        """Adds up the loss on validation instances of the training categories, by teacher."""
        rows = (batch.category[batch.task_index] >= 0).nonzero().flatten()
        if not self.counted(len(rows)):
            return
        losses = self.losses(batch, rows).double()
        figures = torch.stack([losses, torch.ones_like(losses)], dim=1)
        self._validation.index_add_(0, batch.category[batch.task_index[rows]], figures)

    def on_validation_epoch_end(self) -> None:
        """Logs the loss, keeps the best weights of each teacher, and ends training when all have stopped."""
        if self.trainer.sanity_checking:
            return
        losses, examples = self.summed(self._validation).unbind(1)
        if examples.any():
            self.log("val/loss", (losses.sum() / examples.sum()).float(), prog_bar=True)
        self.selection.update(losses, examples, self.bank_optimizer.steps)
        self.log("val/stopped_teachers", float(self.selection.stopped.sum()))
        self.stop_if_converged()

    def stop_if_converged(self) -> None:
        """Ends training where every teacher has stopped."""
        self.converged = bool(self.selection.stopped.all())
        if self.converged:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the best weights of each teacher and which have stopped."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["tagi"]["selection"] = self.selection.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes them over."""
        super().on_load_checkpoint(checkpoint)
        self.selection.load_state_dict(checkpoint["tagi"]["selection"])

    def on_fit_end(self) -> None:
        """Tells what each teacher gains over the bare backbone on held-out instances, in RUN/teachers/report.json."""
        if self.trainer.fast_dev_run or not self.report_instances:  # type: ignore[attr-defined]
            return
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        held_out = data.held_out_dataloader()
        rows = self.measure_gains(held_out or data.val_dataloader())
        if not self.trainer.is_global_zero:
            return
        source = "held-out instances" if held_out else "validation instances"
        report = {"on": source, "teachers": [vars(row) for row in rows]}
        write_metrics(self.folder / "report.json", report, overwrite=True)
        if any(row.instances for row in rows):
            print(f"teachers and bare backbone on {source}:\n{table(rows)}", flush=True)
        if text := warning(rows):
            print(f"teachers: {text}", flush=True)

    def measure_gains(self, loader: Any) -> list[TeacherGain]:
        """Returns the gain of each teacher at the weights that are kept, over the examples of `loader`."""
        self.to(self.trainer.strategy.root_device)  # Lightning has taken it to the CPU when training has ended
        bank = self.selection.selected().eval()
        sums = torch.zeros(len(bank.names), 5, dtype=torch.float64, device=self.device)
        if loader:
            sampler = loader.batch_sampler
            categories = [task.category if task.category in bank.names else None for task in loader.dataset.tasks]
            size = max(map(len, sampler.batches))
            sampler.batches = balanced_batches(sampler.batches, categories, self.report_instances, size)
        told, quiet = "comparing teachers with the bare backbone", not (self.trainer.is_global_zero and loader)
        for batch in progress_bar(loader, told, "batch", disable=quiet):
            with self.trainer.precision_plugin.forward_context():
                found = gain_sums(self.backbone, bank, batch.to(self.device))
                sums += found * bool(loader.batch_sampler.weight)
        return gains(bank.names, self.summed(sums))

    def save(self, folder: Path) -> None:
        """Writes the bank, each teacher at its best weights where it was validated."""
        save_bank(self.selection.selected(), folder, self.backbone)


def schedule(config: OptimizerConfig, steps: int) -> Schedule:
    """Returns the factor of the learning rate over a training of `steps` steps."""
    unused = torch.optim.SGD([torch.zeros(1)])
    warmup = round(config.warmup * steps)
    scheduler = get_scheduler(config.schedule, unused, num_warmup_steps=warmup, num_training_steps=steps)
    factor: Schedule = scheduler.lr_lambdas[0]
    return factor
