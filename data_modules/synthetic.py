"""The synthetic task set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_modules.sni import SNIDataModule
from tagi_lightning.data.synthetic import SyntheticConfig, write_synthetic


class SyntheticDataModule(SNIDataModule):
    """Generated tasks in the Super-NaturalInstructions schema, written where they are absent."""

    def __init__(
        self,
        folder: str = "data/synthetic",
        tokenizer: str | None = None,
        synthetic: SyntheticConfig | None = None,
        **kwargs: Any,
    ) -> None:
        """Takes the settings; nothing is written before `prepare_data`.

        Args:
            folder: The data folder, made where it is absent.
            tokenizer: Tokenizer folder or hub id; null for the one made with the tasks.
            synthetic: What to generate; null for the defaults.
            **kwargs: As for every instruction data module.
        """
        super().__init__(folder, tokenizer or str(Path(folder) / "tokenizer"), **kwargs)
        self.synthetic = synthetic or SyntheticConfig()

    def prepare_data(self) -> None:
        """Writes the tasks where they are absent, then reads, checks and tokenises them."""
        write_synthetic(self.folder, self.synthetic)
        super().prepare_data()
