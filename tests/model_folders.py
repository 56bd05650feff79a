"""Model folders put onto a backbone at hand."""

from tagi_lightning.storage.serialization import build_tagi, read_folder


def load_onto(folder, backbone):
    """Returns the model of a folder on `backbone`."""
    return build_tagi(folder, *read_folder(folder, "tagi", "make distill"), backbone)
