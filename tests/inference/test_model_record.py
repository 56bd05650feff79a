import json

import pytest

from tagi_lightning.backbones import GenerationConfig
from tagi_lightning.inference.model_record import ModelRecord


def test_the_record_of_an_evaluation_goes_before_that_of_training(tmp_path):
    def write(place, **options):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "config.yaml").write_text(json.dumps(options))

    assert ModelRecord.of(None) is None
    assert ModelRecord.of(tmp_path / "model") is None
    write("distill", backbone={"dtype": "bfloat16"}, model={"init_args": {"generation": {"stop_at_newline": True}}})
    for source in (tmp_path / "model", tmp_path / "distill" / "model"):
        record = ModelRecord.of(source)
        assert record.run == tmp_path
        assert record.generation == GenerationConfig(stop_at_newline=True)
        assert "trained with the backbone in bfloat16, which rounds" in record.describe()
    write("evaluate/tagi", backbone={}, model={"init_args": {"generation": {"max_new_tokens": 3}}})
    record = ModelRecord.of(tmp_path / "distill" / "model")
    assert record.generation == GenerationConfig(max_new_tokens=3)
    assert "evaluated with the backbone in float32, as above" in record.describe()
    write("evaluate/tagi", model={"init_args": {"generation": {"max_new_tokens": 0}}})
    with pytest.raises(ValueError, match=r"tagi/config.yaml is damaged: max_new_tokens must be at least 1, got 0; rem"):
        _ = ModelRecord.of(tmp_path / "model").generation
    write("evaluate/tagi", backbone={"dtype": 8})
    with pytest.raises(ValueError, match=r"tagi/config.yaml is damaged: backbone.dtype cannot be 8"):
        ModelRecord.of(tmp_path / "model").describe()
