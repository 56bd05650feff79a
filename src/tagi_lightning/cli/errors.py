"""Errors whose message is all a user needs: told in one piece, without a traceback."""

from lightning.fabric.utilities.exceptions import MisconfigurationException

from tagi_lightning.backbones.loading import BackboneError
from tagi_lightning.cli.runs import RunFolderError
from tagi_lightning.data.report import DataError
from tagi_lightning.serialization import ModelFolderError
from tagi_lightning.stages.base import MissingInputError

TOLD_ERRORS = (
    BackboneError,
    DataError,
    MisconfigurationException,
    MissingInputError,
    ModelFolderError,
    OSError,
    RunFolderError,
    ValueError,
)
