"""`tagi score`: the metrics of a `predictions.jsonl`, from that file alone."""

from __future__ import annotations

from tagi_lightning.cli.command import options_of


def score(predictions: str, output: str | None = None, overwrite: bool = False) -> None:
    """Print the metrics of a predictions file as JSON on standard output.

    Args:
        predictions: The predictions.jsonl to score.
        output: File to write the same JSON to as well.
        overwrite: Replace the output file if it exists.
    """
    from tagi_lightning.evaluation.metrics import aggregate
    from tagi_lightning.evaluation.predictions import metrics_text, read_predictions, write_metrics

    metrics = aggregate(read_predictions(predictions))
    if output is not None:
        write_metrics(output, metrics, overwrite)
    print(metrics_text(metrics))


main = options_of(score)
