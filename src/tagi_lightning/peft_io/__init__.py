"""Adapters as PEFT folders and merged Hugging Face models, each checked against the adapter before it gets its name."""

from tagi_lightning.peft_io.exporting import Exporter
from tagi_lightning.peft_io.folders import AdapterFolderError
from tagi_lightning.peft_io.merged import merge_to_folder
from tagi_lightning.peft_io.reading import load_adapter, read_instruction, read_lora
from tagi_lightning.peft_io.stacked import StackedAdapters, StackWriter
from tagi_lightning.peft_io.writing import PeftWriter

__all__ = [
    "AdapterFolderError",
    "Exporter",
    "PeftWriter",
    "StackWriter",
    "StackedAdapters",
    "load_adapter",
    "merge_to_folder",
    "read_instruction",
    "read_lora",
]
