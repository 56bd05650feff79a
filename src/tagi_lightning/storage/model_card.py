"""The README.md of a trained model, and what its run measured of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tagi_lightning import __version__
from tagi_lightning.markdown import aligned_table
from tagi_lightning.model import TagiModel
from tagi_lightning.report.checks import read_metrics
from tagi_lightning.storage.run_layout import EVALUATE, METRICS_FILE, runs_of

Metrics = Mapping[str, Mapping[str, float]]
"""Averages over the test tasks by system."""

SHOWN = {"exact_match": "exact match", "rougeL": "ROUGE-L", "accuracy_mean": "accuracy"}
"""Figures that a card shows, with their titles."""

BACKBONE_SYSTEMS = ("no_instruction", "concatenated")
"""Systems that the card of a model shows besides its own."""

USE = """\
    import tagi_lightning

    model = tagi_lightning.load("this folder"{backbone})
    adapter = model.adapt("Write the last bird of the list.")
    print(model.generate(adapter, ["owl cat crow"]))"""


def run_metrics(folder: Path, model: TagiModel) -> dict[str, dict[str, float]]:
    """Returns what the run that holds a model folder measured of these very weights, and of their backbone alone.

    Args:
        folder: RUN/model or RUN/<stage>/model.
        model: The model that was loaded from it.
    """
    found = {}
    digest, backbone_digest = model.digest(), model.backbone.digest()
    for run in runs_of(folder):
        for file in sorted(run.glob(f"{EVALUATE}/*/{METRICS_FILE}")):
            metrics, system = read_metrics(file), file.parent.name
            of_weights = metrics.get("weights_digest") == digest
            of_backbone = system in BACKBONE_SYSTEMS and metrics.get("backbone_digest") == backbone_digest
            if of_weights or of_backbone:
                found[system] = metrics["overall"]
    return found


def model_card(model: TagiModel, metrics: Metrics) -> str:
    """Returns the text of a README.md.

    Args:
        model: The model.
        metrics: What was measured of it.
    """
    backbone, lora = model.backbone, model.config.lora
    is_hub_id = backbone.name.count("/") < 2 and not Path(backbone.name).exists()
    base = f"base_model: {json.dumps(backbone.name)}\n" if is_hub_id else ""
    kinds = {"lora": "a LoRA adapter", "prefix": "a prefix of keys and values", "both": "a LoRA adapter and a prefix"}
    facts = {
        "backbone": f"{backbone.name}, weights {backbone.digest()[:12]}",
        "weights": model.digest()[:12],
        "writes": kinds[model.config.hypernetwork.writes] if model.hypernetwork is not None else "nothing",
        "encoder fusion": "yes" if model.config.fusion.enabled else "no",
        "instruction as memory of the decoder": "yes" if model.config.decoder_memory else "no",
        "rank": f"{lora.rank}, updates scaled by {lora.scale:g}",
        "trained by": ", ".join(model.stages) or "unknown",
        "tagi-lightning": __version__,
    }
    parts = [
        f"---\n{base}library_name: tagi-lightning\ntags: [tagi, hypernetwork, lora]\n---",
        "# A hypernetwork that writes adapters from instructions",
        "It reads a task's instruction once and writes what makes a frozen language model solve the task. Here are its "
        "own weights; the backbone is loaded from where it lies, and refused if it is another one.",
        "## Use",
        USE.format(backbone="" if is_hub_id else ', backbone="the folder it lies in"'),
        aligned_table([("", ""), *facts.items()], texts=2),
    ]
    if metrics:
        parts += ["## Test tasks, 0 to 100", _table(metrics)]
    return "\n\n".join(parts) + "\n"


def _table(metrics: Metrics) -> str:
    columns = [name for name in SHOWN if any(name in row for row in metrics.values())]
    lines = [["system", "instances", *(SHOWN[name] for name in columns)]]
    for system, row in metrics.items():
        figures = [f"{row[name]:.1f}" if name in row else "-" for name in columns]
        lines.append([system, f"{row['n']:.0f}", *figures])
    return aligned_table(lines)
