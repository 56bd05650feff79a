import json

import pytest

from tagi_lightning.cli import main
from tagi_lightning.evaluation.metrics import aggregate
from tagi_lightning.evaluation.predictions import Prediction, write_predictions

ROWS = [
    Prediction("0", "t", "c", "", "", "", "yes", ("yes",)),
    Prediction("1", "t", "c", "", "", "", "süß", ("no",)),
]


@pytest.fixture
def predictions(tmp_path):
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, ROWS)
    return path


def test_standard_output_is_the_metrics_and_nothing_else(predictions, capsys):
    assert main(["score", "--predictions", str(predictions)]) == 0
    assert json.loads(capsys.readouterr().out) == aggregate(ROWS)


def test_output_is_the_text_of_standard_output_and_kept_unless_asked(predictions, tmp_path, capsys):
    arguments = [f"--predictions={predictions}", f"--output={tmp_path / 'metrics.json'}"]
    assert main(["score", *arguments]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "metrics.json").read_text(encoding="utf-8") == printed
    assert main(["score", *arguments]) == 1
    refused = capsys.readouterr()
    assert refused.out == ""
    assert "metrics.json exists" in refused.err
    assert main(["score", *arguments, "--overwrite=true"]) == 0


def test_a_bad_file_is_one_message_and_a_failure(predictions, capsys):
    predictions.write_text("{}\n", encoding="utf-8")
    assert main(["score", "--predictions", str(predictions)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "1 x key 'id' missing: predictions.jsonl:1" in told.err
    assert main(["score", "--predictions", "absent.jsonl"]) == 1
    assert "absent.jsonl does not exist" in capsys.readouterr().err


def test_an_unknown_option_is_an_error(predictions):
    with pytest.raises(SystemExit) as error:
        main(["score", "--predictions", str(predictions), "--prediction", "x"])
    assert error.value.code == 2
