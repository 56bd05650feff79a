"""Super-NaturalInstructions."""

from __future__ import annotations

from data_modules.instruction import InstructionDataModule
from tagi_lightning.data.report import DataReport
from tagi_lightning.data.sni import read_sni
from tagi_lightning.data.task import TaskSplits


class SNIDataModule(InstructionDataModule):
    """The official Super-NaturalInstructions folder: tasks/*.json and splits/default/*.txt."""

    def read(self, report: DataReport, held_out_instances: int = 0) -> TaskSplits:
        """Reads the tasks of the default track."""
        return read_sni(
            self.folder,
            allow_missing=self.allow_missing,
            seed=self.seed,
            max_train_instances=self.max_train_instances,
            max_test_instances=self.max_test_instances,
            held_out_instances=held_out_instances,
            categories=self.categories_wanted,
            val_split=self.val_split,
            val_share=self.val_share,
            report=report,
        )
