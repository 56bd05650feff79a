"""Super-NaturalInstructions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_modules.instruction import InstructionDataModule
from tagi_lightning.data.report import DataReport
from tagi_lightning.data.sni import read_sni, sni_files
from tagi_lightning.data.task import TaskSplits


class SNIDataModule(InstructionDataModule):
    """The official Super-NaturalInstructions folder: tasks/*.json and splits/default/*.txt."""

    def read(self, report: DataReport, held_out_instances: int = 0) -> TaskSplits:
        """Reads the tasks of the default track."""
        return read_sni(
            self.folder,
            held_out_instances=held_out_instances,
            report=report,
            **self.read_options,
        )

    @property
    def read_options(self) -> dict[str, Any]:
        """What `read` depends on beside the files."""
        return {
            **super().read_options,
            "allow_missing": self.allow_missing,
            "categories": self.categories_wanted,
        }

    def source_files(self) -> Sequence[Path]:
        """Returns the split lists and all task files."""
        return sni_files(self.folder)
