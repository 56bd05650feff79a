"""What all instruction data modules share: read, check, tokenise once, batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
from transformers import PreTrainedTokenizerFast

from data_modules.loader import ResumableLoader
from tagi_lightning.data.causal_prompts import PromptKind, prompt_form
from tagi_lightning.data.collate import InstructionDataset, TaskCollator
from tagi_lightning.data.epochs import EpochSampler
from tagi_lightning.data.instruction import InstructionPrompts
from tagi_lightning.data.prompts import PlainForm, PromptAssembler, PromptForm
from tagi_lightning.data.ranges import check_range
from tagi_lightning.data.reading import SplitName, by_split, load_or_read
from tagi_lightning.data.report import DataReport
from tagi_lightning.data.sampler import EvaluationSampler, InstructionSampler, TaskBatchSampler, task_lengths
from tagi_lightning.data.splits import ValSplit, check_counts, exchange_instructions
from tagi_lightning.data.task import DEMONSTRATIONS, SETTINGS, Setting, Task, TaskSplits
from tagi_lightning.data.token_cache import load_or_tokenize
from tagi_lightning.data.tokenized import TokenizedTasks, check_lengths
from tagi_lightning.data.tokenizer import load_tokenizer

HELD_OUT_INSTANCES = 50
"""Instances of a training task that teachers are scored on: those that follow the ones it trains on."""


class InstructionDataModule(L.LightningDataModule):
    """Tasks with instructions, as batches of T tasks × n instances; subclasses only read a folder.

    The Trainer needs `use_distributed_sampler=False`: with several devices each takes its own share
    of every batch here, and batches are the same whatever the number of devices.
    """

    texts: PromptForm = PromptForm()
    """The text of prompts; `prompt` says how it becomes tokens."""
    together: int = 1
    """Batches of training that the devices read at once."""

    def __init__(
        self,
        folder: str,
        tokenizer: str,
        setting: Setting = "def",
        prompt: PromptKind = "t5",
        tasks_per_batch: int = 4,
        instances_per_task: int = 4,
        eval_batch_size: int = 32,
        max_input_length: int = 1024,
        max_output_length: int = 128,
        max_train_instances: int = 100,
        max_test_instances: int | None = 100,
        categories: int | list[str] | None = None,
        val_split: ValSplit = "none",
        val_share: float = 0.05,
        allow_missing: bool = False,
        with_prompt: bool = False,
        bare_prompt: bool = False,
        demonstrations: int = 0,
        max_demonstrated_length: int | None = None,
        instructions_only: bool = False,
        seed: int = 0,
        num_workers: int = 0,
        cache_dir: str | None = None,
        pool_batches: int = 200,
    ) -> None:
        """Takes the settings; nothing is read before `prepare_data`.

        Args:
            folder: The data folder.
            tokenizer: Tokenizer folder or hub id.
            setting: What an instruction shows: the definition, or also the first two demonstrations.
            prompt: Whom prompts are for: t5 (encoder-decoder), causal (decoder-only), or chat (decoder-only, in the
                tokenizer's chat template).
            tasks_per_batch: Tasks in a training batch over all devices, T.
            instances_per_task: Instances of each task in a training batch, n.
            eval_batch_size: Examples in a batch of validation or test over all devices.
            max_input_length: Tokens of an instruction, an input or a concatenated prompt at most.
            max_output_length: Tokens of a target at most.
            max_train_instances: Instances taken of a training task.
            max_test_instances: Instances taken of a test task; null takes all.
            categories: Size of one of the paper's category subsets (6, 15, 30, 60) or names; null takes all.
            val_split: What validation holds out of the training tasks: nothing, categories, tasks or instances.
            val_share: Share that validation holds out.
            allow_missing: Go on without absent task files and say which.
            with_prompt: Also give instruction and input concatenated, for teachers and baselines.
            bare_prompt: What `with_prompt` gives is the input alone: an ablation, of teachers that see no instruction.
            demonstrations: Of the demonstrations that a task has, those that batches carry for in-context baselines, at
                most. Training draws them anew for every batch, evaluation takes the first.
            max_demonstrated_length: Tokens of demonstrations and prompt together at most; null for max_input_length.
            instructions_only: Train on batches of T instructions without examples, for alignment alone.
            seed: Decides which instances are taken, the order, and the draws of phrasings and references.
            num_workers: Processes that build batches; they change nothing but speed.
            cache_dir: Where the token cache lies; null for .cache beside the data.
            pool_batches: Batches' worth of examples a batch is chosen from: more pads less, fewer mixes better.

        Raises:
            ValueError: If an option is out of its range.
        """
        super().__init__()
        check_counts(max_train_instances, max_test_instances)
        batches = {"tasks_per_batch": tasks_per_batch, "instances_per_task": instances_per_task}
        batches |= {"eval_batch_size": eval_batch_size, "pool_batches": pool_batches}
        lengths = {"max_input_length": max_input_length, "max_output_length": max_output_length}
        check_range(batches | lengths, least=1)
        check_range(
            {"max_demonstrated_length": max_demonstrated_length}, least=1, otherwise="null for max_input_length"
        )
        check_range({"demonstrations": demonstrations, "num_workers": num_workers}, least=0)
        if val_split != "none":
            check_range({"val_share": val_share}, above=0, below=1)
        self.folder, self.tokenizer_name, self.setting = Path(folder), tokenizer, setting
        self.prompt, self.form = prompt, prompt_form(prompt, self.texts)
        self.tasks_per_batch, self.instances_per_task = tasks_per_batch, instances_per_task
        self.eval_batch_size = eval_batch_size
        self.max_input_length, self.max_output_length = max_input_length, max_output_length
        self.max_train_instances, self.max_test_instances = max_train_instances, max_test_instances
        self.categories_wanted = categories
        self.val_split, self.val_share = val_split, val_share
        self.allow_missing, self.with_prompt, self.instructions_only = allow_missing, with_prompt, instructions_only
        self.bare_prompt = bare_prompt
        self.demonstrations, self.max_demonstrated_length = demonstrations, max_demonstrated_length
        self.seed, self.num_workers, self.pool_batches = seed, num_workers, pool_batches
        beside = self.folder.parent if self.folder.is_file() else self.folder
        self.cache_dir = Path(cache_dir) if cache_dir else beside / ".cache"
        self._prepared = False
        if setting not in SETTINGS:
            raise ValueError(f"setting={setting!r} is unknown, allowed: {', '.join(SETTINGS)}")

    @abstractmethod
    def read(self, report: DataReport, held_out_instances: int = 0) -> TaskSplits:
        """Reads the data folder.

        Args:
            report: Receives what is wrong or left out.
            held_out_instances: If positive, training tasks come with this many instances after their training ones.
        """

    @property
    def read_options(self) -> dict[str, Any]:
        """What `read` depends on beside the files; subclasses add theirs."""
        return {
            "seed": self.seed,
            "max_train_instances": self.max_train_instances,
            "max_test_instances": self.max_test_instances,
            "val_split": self.val_split,
            "val_share": self.val_share,
        }

    def source_files(self) -> Sequence[Path] | None:
        """Returns every file that `read` may open, for a start that need not read again; None reads every time."""
        return None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer.

        Raises:
            ValueError: If it is not one of the `tokenizers` library, or has no padding token.
        """
        return load_tokenizer(self.tokenizer_name)

    @property
    def prompts(self) -> InstructionPrompts:
        """How instructions are written, as models keep it."""
        texts: Literal["plain", "definition"] = "plain" if isinstance(self.texts, PlainForm) else "definition"
        return InstructionPrompts(self.prompt, texts, DEMONSTRATIONS[self.setting], self.max_input_length)

    @cached_property
    def report(self) -> DataReport:
        """What was left out of the data folder or cut by the length limits."""
        return DataReport(str(self.folder))

    @cached_property
    def splits(self) -> TaskSplits:
        """The tasks as read, with their texts."""
        return self.read(DataReport(str(self.folder)))

    @property
    def categories(self) -> tuple[str, ...]:
        """The training categories, sorted; a batch's `category` counts in it."""
        return tuple(sorted({task.category for task in self.tasks["train"].tasks})) if "train" in self.tasks else ()

    @cached_property
    def assembler(self) -> PromptAssembler:
        """Joins the pieces of prompts within the length limits."""
        shown = DEMONSTRATIONS[self.setting]
        limits = (self.max_input_length, self.max_output_length)
        return PromptAssembler.from_tokenizer(self.tokenizer, shown, *limits, self.form)

    @property
    def demonstrated(self) -> PromptAssembler | None:
        """Joins demonstrations and prompts; None where batches carry no demonstrations."""
        if not self.demonstrations:
            return None
        length = self.max_demonstrated_length or self.max_input_length
        return replace(self.assembler, max_demonstrations=self.demonstrations, max_input_length=length)

    @cached_property
    def tasks(self) -> dict[SplitName, TokenizedTasks]:
        """The tokenised tasks of each split that has any."""
        return self._load(self.report)

    def prepare_data(self) -> None:
        """Reads and checks the folder, tokenises it into the cache and says what was left out or cut."""
        if self._prepared:
            return
        self._prepared = True
        for tasks in self.tasks.values():
            check_lengths(tasks, self.assembler, self.with_prompt, self.report, self.demonstrated)
        self.report.raise_if_errors("Raise max_input_length, shorten these definitions or leave the tasks out.")
        if summary := self.report.summary():
            print(summary, flush=True)

    def setup(self, stage: str) -> None:
        """Opens what `prepare_data` tokenised.

        Args:
            stage: Any of Lightning's; all need the training tasks' categories.
        """
        _ = self.tasks

    def train_dataloader(self) -> ResumableLoader:
        """Returns training batches, or batches of instructions where `instructions_only` is set."""
        loader = self.instruction_dataloader() if self.instructions_only else self.training_loader(self.tasks["train"])
        loader.batch_sampler.together = self.together
        return loader

    def val_dataloader(self) -> ResumableLoader | list[Any]:
        """Returns the validation tasks' instances, or no loader where nothing is held out."""
        return self.evaluation_loader(self.tasks["validation"]) if "validation" in self.tasks else []

    def test_dataloader(self) -> ResumableLoader | list[Any]:
        """Returns the test tasks' instances, or no loader where there are none."""
        return self.evaluation_loader(self.tasks["test"]) if "test" in self.tasks else []

    def held_out_dataloader(self) -> ResumableLoader | list[Any]:
        """Returns instances of the training tasks that training never shows, if any are left."""
        unseen = self._load(DataReport(str(self.folder)), HELD_OUT_INSTANCES)
        return self.evaluation_loader(unseen["train"]) if "train" in unseen else []

    def exchange(self) -> Sequence[Task]:
        """Returns the test tasks, each with another one's instruction."""
        return exchange_instructions(self.splits.test, self.seed)

    def find_task(self, name: str) -> Task:
        """Returns the task called `name`.

        Raises:
            KeyError: If there is none.
        """
        return self._tasks_by_name[name]

    @cached_property
    def _tasks_by_name(self) -> dict[str, Task]:
        splits = self.splits
        return {task.name: task for task in (*splits.train, *splits.validation, *splits.test)}

    def instruction_dataloader(self, whole: bool = False) -> ResumableLoader:
        """Returns batches of T training instructions with their categories and no examples, for alignment.

        Args:
            whole: Whether every device gets all of them instead of its share.
        """
        place = (0, 1) if whole else self._place
        sampler = InstructionSampler(len(self.tasks["train"].tasks), self.tasks_per_batch, self.seed, *place)
        return ResumableLoader(
            InstructionDataset(self.tasks["train"]),
            batch_sampler=sampler,
            collate_fn=self.collator.instructions,
            num_workers=self.num_workers,
        )

    @property
    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    @property
    def collator(self) -> TaskCollator:
        """What makes batches of examples."""
        pad_id = self.tokenizer.pad_token_id
        settings = (self.seed, self.with_prompt, self.bare_prompt, self.demonstrated)
        return TaskCollator(self.assembler, self.categories, pad_id, *settings)

    def _load(self, report: DataReport, held_out_instances: int = 0) -> dict[SplitName, TokenizedTasks]:
        read = partial(self.read, held_out_instances=held_out_instances)
        files = self.source_files()
        if files is None:
            return {name: self.tokenized(tasks) for name, tasks in by_split(read(report)).items()}
        options = {**self.read_options, "reader": type(self).read.__qualname__, "held_out": held_out_instances}
        return load_or_read(read, files, options, report, self.tokenizer, self.cache_dir, self.form)

    def tokenized(self, tasks: Sequence[Task]) -> TokenizedTasks:
        """Returns the tasks tokenised, from the cache where it has them."""
        return load_or_tokenize(tasks, self.tokenizer, self.cache_dir, self.form)

    def training_loader(self, tasks: TokenizedTasks) -> ResumableLoader:
        """Returns training batches of tasks."""
        counts = (self.tasks_per_batch, self.instances_per_task, self.seed, self.pool_batches)
        return self._loader(tasks, TaskBatchSampler(task_lengths(tasks, self.assembler), *counts, *self._place))

    def evaluation_loader(self, tasks: TokenizedTasks, member: int | None = None) -> ResumableLoader:
        """Returns each of the tasks' instances once; beside one demonstration alone where `member` is its place."""
        lengths = task_lengths(tasks, self.assembler)
        return self._loader(tasks, EvaluationSampler(lengths, self.eval_batch_size, *self._place), member)

    def _loader(self, tasks: TokenizedTasks, sampler: EpochSampler, member: int | None = None) -> ResumableLoader:
        return ResumableLoader(
            tasks,  # type: ignore[arg-type]  # needs no base class
            batch_sampler=sampler,
            collate_fn=replace(self.collator, member=member),
            num_workers=self.num_workers,
        )
