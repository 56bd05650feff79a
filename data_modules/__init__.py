"""The LightningDataModules: thin, over `tagi_lightning.data`."""

from data_modules.custom import CustomDataModule
from data_modules.instruction import InstructionDataModule
from data_modules.p3 import P3DataModule
from data_modules.sni import SNIDataModule
from data_modules.synthetic import SyntheticDataModule
from data_modules.text import BackboneDataModule, PlainTextDataModule

__all__ = [
    "BackboneDataModule",
    "CustomDataModule",
    "InstructionDataModule",
    "P3DataModule",
    "PlainTextDataModule",
    "SNIDataModule",
    "SyntheticDataModule",
]
