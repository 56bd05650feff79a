"""The training stages as LightningModules: pretrain-backbone, teachers, pretrain, align, distill; and evaluate."""

from tagi_lightning.stages.align import Alignment
from tagi_lightning.stages.backbone import BackbonePretraining
from tagi_lightning.stages.base import OptimizerConfig, Stage
from tagi_lightning.stages.distill import Distillation
from tagi_lightning.stages.evaluate import Evaluation
from tagi_lightning.stages.pretrain import HypernetworkPretraining
from tagi_lightning.stages.teachers import TeacherTraining

__all__ = [
    "Alignment",
    "BackbonePretraining",
    "Distillation",
    "Evaluation",
    "HypernetworkPretraining",
    "OptimizerConfig",
    "Stage",
    "TeacherTraining",
]
