from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tagi_lightning.data.p3.fetch import HUB, fetch_rows
from tagi_lightning.data.p3.lists import test_datasets as all_test_datasets
from tagi_lightning.data.p3.lists import train_datasets
from tagi_lightning.data.p3.rows import open_rows
from tagi_lightning.data.report import DataError, DataReport


def test_every_data_set_but_one_has_an_address():
    without = [each.name for each in (*train_datasets(), *all_test_datasets()) if not each.hub]
    assert without == ["story_cloze_2016"]
    assert HUB.format("owner/name") == "hf://datasets/owner/name@~parquet"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder laid out as the hub's, with ANLI's first round."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for split, size in (("train_r1", 3), ("dev_r1", 2), ("dev_r2", 1)):
        folder = tmp_path / "hub" / "facebook" / "anli" / "plain_text" / split
        folder.mkdir(parents=True)
        for shard in range(2):
            rows = [{"premise": f"{split} {shard} {n}", "label": n} for n in range(size)]
            pq.write_table(pa.Table.from_pylist(rows), folder / f"000{shard}.parquet")
    return f"{tmp_path / 'hub'}/{{}}"


def test_splits_are_written_whole_and_once(hub, tmp_path):
    anli = [each for each in all_test_datasets() if each.name == "anli_r1"]
    fetch_rows(tmp_path / "rows", anli, ("train", "validation"), hub)
    folder = tmp_path / "rows" / "anli_r1"
    assert sorted(path.name for path in folder.iterdir()) == ["train.parquet", "validation.parquet"]
    rows = open_rows(folder, "validation", DataReport("rows"))
    assert [row["premise"] for row in rows] == [f"dev_r1 {shard} {n}" for shard in range(2) for n in range(2)]
    before = (folder / "train.parquet").stat().st_mtime_ns
    fetch_rows(tmp_path / "rows", anli, ("train", "validation"), hub)
    assert (folder / "train.parquet").stat().st_mtime_ns == before


def test_what_cannot_be_fetched_is_told_after_the_rest(hub, tmp_path):
    known = {each.name: each for each in all_test_datasets()}
    asked = [known["story_cloze_2016"], replace(known["hellaswag"], hub=("nobody/nothing", "*")), known["anli_r1"]]
    with pytest.raises(DataError, match=r"requested from its authors: story(.|\n)*cannot be fetched: hellaswag, train"):
        fetch_rows(tmp_path / "rows", asked, ("train",), hub)
    assert (tmp_path / "rows" / "anli_r1" / "train.parquet").is_file()
