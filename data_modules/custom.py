"""A user's own tasks."""

from __future__ import annotations

from typing import Any

from data_modules.instruction import InstructionDataModule
from tagi_lightning.data.custom import read_custom
from tagi_lightning.data.ranges import check_range
from tagi_lightning.data.report import DataReport
from tagi_lightning.data.task import TaskSplits


class CustomDataModule(InstructionDataModule):
    """A folder of task files without split lists, or rows in JSONL; `folder` may also be one JSONL file."""

    def __init__(self, folder: str, tokenizer: str, test_share: float = 0.2, **kwargs: Any) -> None:
        """Takes the settings; nothing is read before `prepare_data`.

        Args:
            folder: The data folder, or one JSONL file.
            tokenizer: Tokenizer folder or hub id.
            test_share: Share of the tasks held out for testing where none carries a split.
            **kwargs: As for every instruction data module.

        Raises:
            ValueError: If an option is out of its range.
        """
        check_range({"test_share": test_share}, least=0, most=1)
        super().__init__(folder, tokenizer, **kwargs)
        self.test_share = test_share

    def read(self, report: DataReport, held_out_instances: int = 0) -> TaskSplits:
        """Reads the user's tasks."""
        return read_custom(
            self.folder,
            seed=self.seed,
            test_share=self.test_share,
            max_train_instances=self.max_train_instances,
            max_test_instances=self.max_test_instances,
            held_out_instances=held_out_instances,
            categories=self.categories_wanted,
            val_split=self.val_split,
            val_share=self.val_share,
            report=report,
        )
