"""What the libraries say at every start, and nobody needs to read."""

from __future__ import annotations

import logging
import warnings

import transformers


class Without(logging.Filter):
    """Drops log records that contain a text."""

    def __init__(self, text: str) -> None:
        """Takes the text."""
        super().__init__()
        self.text = text

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether `record` stays."""
        return self.text not in str(record.msg)


def without_loading_bars() -> None:
    """Has transformers load weights without a bar of progress."""
    transformers.utils.logging.disable_progress_bar()


def quiet() -> None:
    """Drops what Lightning and Hugging Face say at every start that is of no use here; everything else stays."""
    for pattern in (
        ".*LightningCLI's args parameter is intended to run from within Python.*",
        ".*does not have many workers which may be a bottleneck.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*Total length of `list` across ranks is zero.*",
        ".*is smaller than the logging interval.*",
        ".*when logging on epoch level in distributed setting.*",  # such figures are those of all devices already
        ".*exists and is not empty.*",
        ".*is not supported by the model summary.*",
        ".*module.s. in eval mode at the start of training.*",
    ):
        warnings.filterwarnings("ignore", pattern)
    # T5's configuration class calls every T5 tied; the weights say otherwise and are loaded as they are
    for logger, text in (
        ("lightning.pytorch.utilities.rank_zero", "litlogger"),
        ("transformers.modeling_utils", "we will NOT tie them"),
    ):
        logging.getLogger(logger).addFilter(Without(text))
    without_loading_bars()
