import lightning as L
import pytest
from byte_tokenizer import build_byte_tokenizer
from commands import write_p3_set

from data_modules import P3DataModule, PlainTextDataModule, SyntheticDataModule
from tagi_lightning.data.synthetic import SyntheticConfig
from tagi_lightning.stages import HypernetworkPretraining

CONFIG = SyntheticConfig(train_instances=6, test_instances=2, documents_per_task=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthetic") / "data"
    SyntheticDataModule(str(path), synthetic=CONFIG).prepare_data()
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    build_byte_tokenizer().save_pretrained(path)
    return str(path)


def rows(tokens):
    return [ids[mask.bool()].tolist() for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]


def targets(batch):
    return [row[row >= 0].tolist() for row in batch.labels]


@pytest.mark.parametrize("prompt", ["causal", "chat"])
def test_a_batch_for_decoder_only_models_ends_targets_alone(folder, tokenizer, prompt):
    data = SyntheticDataModule(
        str(folder), tokenizer, CONFIG, prompt=prompt, setting="def+2pos", with_prompt=True, max_input_length=4096
    )
    data.prepare_data()
    batch = next(iter(data.train_dataloader()))
    stop = data.assembler.frame.stop
    instructions, eos = rows(batch.instruction), data.tokenizer.eos_token_id
    for row, task in enumerate(batch.task_index.tolist()):
        assert rows(batch.prompt)[row] == instructions[task] + rows(batch.input)[row]
        assert targets(batch)[row][-1] == stop
        assert eos not in rows(batch.prompt)[row] + targets(batch)[row][:-1]


def test_p3_reads_the_whole_prompt_and_ranks_words_with_their_space(tmp_path, tokenizer):
    folder = write_p3_set(tmp_path)
    data = P3DataModule(str(folder), tokenizer, subset=["glue_mrpc"], prompt="causal", with_prompt=True)
    data.allow_missing = True
    data.prepare_data()
    batch = next(iter(data.test_dataloader()))
    decode = data.tokenizer.batch_decode
    assert {text.strip() for text in decode(rows(batch.choices))} == {"no</s>", "yes</s>"}
    assert all(text.startswith(" ") for text in decode(rows(batch.choices)))
    assert all(text.startswith("cat ") and text.endswith(" ?") for text in decode(rows(batch.prompt)))
    assert all(text.endswith("\n\n") for text in decode(rows(batch.instruction)))


def test_segments_for_decoder_only_models_are_the_text_itself(tmp_path, tokenizer):
    (tmp_path / "corpus.txt").write_text("\n\n".join(f"say the word {n} " * 5 for n in range(40)), encoding="utf-8")
    options = {"val_share": 0.2, "cache_dir": str(tmp_path / "cache"), "batch_size": 4}
    for prompt, ends in (("t5", True), ("causal", False)):
        data = PlainTextDataModule([str(tmp_path / "corpus.txt")], tokenizer, prompt=prompt, **options)
        batch = next(iter(data.train_dataloader()))
        eos = data.tokenizer.eos_token_id
        read = [*rows(batch.instruction), *rows(batch.input)]
        assert [row[-1] == eos for row in read] == [ends] * len(read)
        assert all(row[-1] == eos for row in targets(batch))


@pytest.mark.parametrize("prompt", ["causal", "chat"])
def test_a_stage_refuses_prompts_of_the_other_family(tmp_path, backbone, prompt):
    stage = HypernetworkPretraining(str(tmp_path))
    stage.backbone = backbone
    stage.trainer = L.Trainer(logger=False, barebones=True, accelerator="cpu")
    stage.trainer.datamodule = PlainTextDataModule(["corpus.txt"], "tokenizer", prompt=prompt)
    with pytest.raises(ValueError, match=rf"prompt={prompt} does not go with .* a t5 model: set .*prompt=t5"):
        stage.check_prompts()
    stage.trainer.datamodule.prompt = "t5"
    stage.check_prompts()


def test_a_tokenizer_without_padding_is_told(folder, tmp_path):
    tokenizer = build_byte_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no padding token: name one as pad_token"):
        _ = SyntheticDataModule(str(folder), str(tmp_path), CONFIG, prompt="causal").tokenizer
