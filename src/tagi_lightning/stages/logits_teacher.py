"""Another system's checkpoint as the model whose distribution L_kl follows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tagi_lightning.backbones import Backbone, BackboneConfig, load_backbone
from tagi_lightning.data.mapping_file import read_mapping
from tagi_lightning.model import TagiModel
from tagi_lightning.stages.base import MissingInputError
from tagi_lightning.storage.serialization import CONFIG, load_tagi


def load_teacher_folder(folder: Path, config: BackboneConfig, student: Backbone) -> Backbone | TagiModel:
    """Loads a logits teacher, frozen, with a backbone of its own.

    Args:
        folder: A system trained on the student's backbone, or a Hugging Face model.
        config: How the student's backbone is loaded.
        student: The student's backbone.

    Raises:
        MissingInputError: If nothing is there.
        ModelFolderError: If the system was trained on another backbone.
        ValueError: If its configuration is damaged, or the vocabularies differ.
    """
    if not (folder / CONFIG).is_file():
        raise MissingInputError(
            f"no logits teacher in {folder} ({CONFIG} is missing); train one, or set "
            "--model.init_args.logits_teacher to category, backbone or the folder of another"
        )
    is_system = "kind" in read_mapping(folder / CONFIG, "make the logits teacher again, or name another")
    teacher = load_tagi(folder, config) if is_system else load_backbone(replace(config, name=str(folder)))
    backbone = teacher.backbone if isinstance(teacher, TagiModel) else teacher
    if backbone.vocabulary_size != student.vocabulary_size:
        raise ValueError(
            f"the logits teacher {folder} has a vocabulary of {backbone.vocabulary_size} tokens and the student's "
            f"backbone {student.name} one of {student.vocabulary_size}: their distributions cannot be compared; "
            "choose a teacher with the student's tokenizer"
        )
    teacher.requires_grad_(False)
    return teacher.eval()
