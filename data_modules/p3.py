"""P3: prompt templates as instructions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from data_modules.instruction import InstructionDataModule
from tagi_lightning.data.p3 import exchange_datasets, read_p3
from tagi_lightning.data.prompts import PlainForm
from tagi_lightning.data.ranges import check_range
from tagi_lightning.data.report import DataReport
from tagi_lightning.data.task import Task, TaskSplits


class P3DataModule(InstructionDataModule):
    """T0's training sets and eleven test tasks, one task a template, categories being the data sets.

    The instruction is the template rendered without a row. The concatenated prompt of `with_prompt` is the
    filled-in template. Batches of validation and test carry the answer choices of ranked tasks.
    """

    texts = PlainForm()

    def __init__(
        self,
        folder: str,
        tokenizer: str,
        templates: str | None = None,
        subset: int | list[str] | None = 36,
        model_input: Literal["fields", "prompt"] = "fields",
        shots: int = 0,
        max_examples_per_template: int = 1000,
        max_test_instances: int | None = None,
        max_input_length: int = 512,
        max_output_length: int = 64,
        **kwargs: Any,
    ) -> None:
        """Takes the settings; nothing is read before `prepare_data`.

        Args:
            folder: Rows, FOLDER/<data set>/{train,validation}, raw or rendered; FOLDER/lists.yaml, where it is there,
                lists other data sets than T0's.
            tokenizer: Tokenizer folder or hub id.
            templates: promptsource's folder of templates; null for FOLDER_templates beside the rows.
            subset: Size of one of the paper's subsets of training sets (5, 10, 20, 36), their names, or null for
                all.
            model_input: What a model reads: what the row fills into the prompt, or the complete prompt.
            shots: Demonstrations drawn for each task, of rows that the task neither trains on nor is evaluated on;
                `demonstrations` puts them into batches, and Full FT trains on them.
            max_examples_per_template: Instances taken of a training task.
            max_test_instances: Instances taken of a test task, spread over its rows; null takes all.
            max_input_length: Tokens of an instruction, an input or a complete prompt at most.
            max_output_length: Tokens of a target or an answer choice at most.
            **kwargs: As for every instruction data module.

        Raises:
            ValueError: If an option is out of its range.
        """
        check_range({"max_examples_per_template": max_examples_per_template}, least=1)
        check_range({"shots": shots}, least=0)
        super().__init__(
            folder,
            tokenizer,
            setting="def",
            categories=None,
            max_train_instances=max_examples_per_template,
            max_test_instances=max_test_instances,
            max_input_length=max_input_length,
            max_output_length=max_output_length,
            **kwargs,
        )
        self.templates = Path(templates) if templates else self.folder.with_name(f"{self.folder.name}_templates")
        self.subset, self.model_input, self.shots = subset, model_input, shots

    def read(self, report: DataReport, held_out_instances: int = 0) -> TaskSplits:
        """Reads the templates and renders their rows."""
        options = self.read_options
        return read_p3(self.folder, self.templates, held_out_instances=held_out_instances, report=report, **options)

    @property
    def read_options(self) -> dict[str, Any]:
        """What `read` depends on beside the files."""
        return {
            **super().read_options,
            "subset": self.subset,
            "model_input": self.model_input,
            "with_prompt": self.with_prompt,
            "shots": self.shots,
            "allow_missing": self.allow_missing,
        }

    def source_files(self) -> Sequence[Path]:
        """Returns the files of all rows, FOLDER/lists.yaml and the templates, but none in hidden folders."""
        folders = (self.folder, self.templates)
        found = [(path, path.relative_to(folder).parts) for folder in folders for path in folder.rglob("*")]
        return sorted(path for path, parts in found if path.is_file() and not any(p.startswith(".") for p in parts))

    def exchange(self) -> Sequence[Task]:
        """Returns the test tasks, each with a template of another data set."""
        return exchange_datasets(self.splits.test, self.seed)
