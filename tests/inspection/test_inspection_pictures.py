import io
import itertools
import re

import pytest
from inspection_tasks import tasks_for
from instructed_models import LORA, build_instructed
from PIL import Image

from tagi_lightning.fusion import FusionConfig
from tagi_lightning.hypernetwork import HypernetworkConfig
from tagi_lightning.inspection.answers import Sample
from tagi_lightning.inspection.page import to_png, write_page
from tagi_lightning.inspection.pictures import inspect_model, sample_pictures
from tagi_lightning.inspection.tasks import InspectedTask
from tagi_lightning.lora import LoraBank
from tagi_lightning.model import TagiConfig, TagiModel
from tagi_lightning.report.charts import DPI

COMPARING = ["lora-points", "lora-cosines", "lora-distributions"]
ATTENTION = ["fusion-attention-1", "fusion-attention-2", "fusion-attention-3"]


def names(inspection):
    return [picture.name for picture in inspection.pictures]


def look(loaded, *counts, model=None, bank=None):
    return inspect_model(model or loaded.model, tasks_for(loaded, *counts), loaded.tokenizer, bank)


def axes_of(inspection, name):
    [figure] = [picture.figure for picture in inspection.pictures if picture.name == name]
    figure.set_dpi(DPI)
    figure.draw_without_rendering()
    return figure, figure.axes[0]


def test_a_model_with_everything_shows_everything():
    loaded = build_instructed("t5")
    bank = LoraBank(loaded.model.sites, LORA, [f"category {number}" for number in range(3)])
    found = look(loaded, 4, 2, bank=bank)
    assert names(found) == [*COMPARING, "lora-teachers", "lora-norms", "fusion-gates", *ATTENTION]
    assert found.left_out == {}
    for picture in found.pictures:
        image = Image.open(io.BytesIO(to_png(picture.figure)))
        assert image.width == 1200
        assert 300 < image.height < 2000
        assert all(axes.get_ylabel() for axes in picture.figure.axes)
        assert any(axes.get_xlabel() for axes in picture.figure.axes)


@pytest.mark.parametrize("name", ["t5-lora", "llama"])
def test_without_fusion_its_pictures_are_left_out_with_the_reason(name):
    found = look(build_instructed(name), 4)
    assert names(found) == [*COMPARING, "lora-norms"]
    assert "no fusion" in found.left_out["gates and attention of the encoder fusion"]
    assert "no teachers" in found.left_out["generated adapters beside taught ones"]


SMALL = {"fusion": FusionConfig(enabled=False), "decoder_memory": False}
OTHERS = {
    "prefix": (TagiConfig(LORA, HypernetworkConfig(writes="prefix", prefix_length=3), **SMALL),
               ["prefix-points", "prefix-cosines", "prefix-distributions", "prefix-norms"], "no LoRA is generated"),
    "constant": (TagiConfig(LORA, HypernetworkConfig(generator="constant"), **SMALL), ["lora-norms"],
                 "the same for all instructions"),
    "post": (TagiConfig(LORA, HypernetworkConfig(enabled=False), FusionConfig(norm="post")), ATTENTION,
             "has no hypernetwork"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_show_what_they_have(name):
    config, expected, reason = OTHERS[name]
    loaded = build_instructed("t5-lora")
    found = look(loaded, 4, model=TagiModel(loaded.model.backbone, config).eval())
    assert names(found) == expected
    assert any(reason in why for why in found.left_out.values())
    for picture in found.pictures:
        to_png(picture.figure)


def test_one_task_alone_is_not_compared():
    found = look(build_instructed("t5-lora"), 1)
    assert names(found) == ["lora-norms"]
    assert "one task" in found.left_out["tasks beside each other, by their adapters"]


def overlapping(labels):
    boxes = [label.get_window_extent() for label in labels if label.get_text()]
    return [1 for one, other in itertools.pairwise(boxes) if one.overlaps(other)]


@pytest.mark.parametrize(("count", "named"), [(5, True), (40, True), (200, False)])
def test_labels_never_lie_on_each_other_and_stay_in_the_picture(count, named):
    loaded = build_instructed("t5-lora")
    bank = LoraBank(loaded.model.sites, LORA, [f"category {number}" for number in range(3)])
    found = look(loaded, count, bank=bank)
    for name in ("lora-cosines", "lora-teachers"):
        figure, axes = axes_of(found, name)
        labels = axes.get_yticklabels()
        assert ("train000" in labels[0].get_text()) is named
        assert overlapping(labels) == overlapping(axes.get_xticklabels()) == []
        frame = figure.bbox
        for text in (*labels, *axes.get_xticklabels(), axes.xaxis.label, axes.yaxis.label):
            box = text.get_window_extent()
            assert frame.x0 <= box.x0
            assert box.x1 <= frame.x1
            assert frame.y0 <= box.y0
            assert box.y1 <= frame.y1


def test_many_categories_go_on_several_pages_and_splits_are_never_mixed():
    samples = [
        Sample(InspectedTask(f"category {number}", split, f"{split}{number}"), "a", "b", ("b",))
        for split in ("train", "test")
        for number in range(31 if split == "train" else 2)
    ]
    pages = list(sample_pictures(samples))
    assert [page.name for page in pages] == ["scores-train-1", "scores-train-2", "scores-test"]
    shown = [label.get_text() for page in pages[:2] for label in page.figure.axes[0].get_yticklabels()]
    assert sorted(shown) == sorted(f"category {number} (1)" for number in range(31))


def test_the_page_holds_all_there_is_and_no_text_becomes_markup(tmp_path):
    found = look(build_instructed("t5"), 2)
    found.left_out["<b>this</b>"] = "a & b"
    page = write_page(tmp_path, "<i>", {"model": "<x>"}, found, [("answer",), ("<script>alert(1)</script>",)])
    text = page.read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*(f"{n}.png" for n in names(found)), "index.html"]
    )
    assert text.count("data:image/png;base64,") == len(found.pictures)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert "<script" not in text
    for escaped in ("&lt;script&gt;", "&lt;b&gt;this&lt;/b&gt;", "a &amp; b", "&lt;x&gt;", "<title>&lt;i&gt;"):
        assert escaped in text


def test_equal_models_give_equal_files():
    first, second = (look(build_instructed("t5"), 3) for _ in range(2))
    assert [to_png(picture.figure) for picture in first.pictures] == [to_png(p.figure) for p in second.pictures]
