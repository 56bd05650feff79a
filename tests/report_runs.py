"""Run folders as `tagi fit` and `tagi evaluate` leave them, with scores that a test chooses."""

import json
from pathlib import Path

import yaml
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

TASKS = tuple(f"task{number}" for number in range(6))


def write_evaluation(
    run, system="tagi", seed=0, score=50.0, tasks=TASKS, metric="rougeL", categories=None, counts=None, digest="b0",
    references="", description=None, options=None, **metrics,
):  # fmt: skip
    """Writes RUN/evaluate/<system> with a score for each task, and returns its folder.

    Args:
        run: The run folder.
        system: What is evaluated.
        seed: Seed of the run.
        score: Score of every task, or by task.
        tasks: The tasks, where there is one score for all.
        metric: Name of the score.
        categories: Category by task; none without it.
        counts: Instances by task; two of each without it.
        digest: Digest of the backbone; None for what runs no model.
        references: What all references say: other data where it differs.
        description: What system.yaml says of the row.
        options: Options of the evaluation that differ from the usual ones.
        metrics: More keys of metrics.json.
    """
    scores = score if isinstance(score, dict) else dict.fromkeys(tasks, score)
    counts = counts or dict.fromkeys(scores, 2)
    rows = [{"task": task, "id": str(i), "references": [references]} for task in scores for i in range(counts[task])]
    by_task = {task: {"n": counts[task], metric: value} for task, value in scores.items()}
    weights = counts if metric == "rougeL" else dict.fromkeys(scores, 1)
    mean = sum(scores[task] * weights[task] for task in scores) / sum(weights.values())
    values = {"overall": {"n": len(rows), metric: mean}, "by_task": by_task, "system": system, "seed": seed}
    if categories:
        values["by_category"] = {categories[task]: row for task, row in by_task.items()}
    if digest is not None:
        values |= {"seconds": 2.0, "backbone_digest": digest, "relative_flops": 0.5}
    folder = Path(run) / "evaluate" / system
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps(values | metrics), encoding="utf-8")
    usual = {"seed_everything": seed, "run": str(run), "setting": "def", "backbone": {"name": "tiny"}}
    usual["model"] = {"init_args": {"generation": {"max_new_tokens": 8}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(usual | (options or {})), encoding="utf-8")
    if description:
        (Path(run) / "system.yaml").write_text(yaml.safe_dump(description), encoding="utf-8")
    return folder


def write_stage(run, stage="distill", steps=10, batch=4, seed=0, curve=(), start=None, **init_args):
    """Writes RUN/<stage> as training leaves it, without weights; returns the model folder's name for metrics.json."""
    folder = Path(run) / stage
    (folder / "model").mkdir(parents=True, exist_ok=True)
    record = {"global_step": steps, "effective_batch": batch, "trained_parameters": 7, "seconds": 3.0}
    record["init_from"] = start
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    options = {"seed_everything": seed, "run": str(run), "model": {"init_args": init_args}}
    (folder / "config.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
    if curve:
        writer = EventFileWriter(str(folder / "tensorboard"))
        for step, value in curve:
            scalars = [Summary.Value(tag="train/loss", simple_value=value)]
            scalars.append(Summary.Value(tag="val/rougeL", simple_value=10 * value))
            writer.add_event(Event(step=step, wall_time=float(step), summary=Summary(value=scalars)))
        writer.close()
    return str(folder / "model")
