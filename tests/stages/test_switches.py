"""The switches that make the paper's other systems of one stage: what is read, what trains, whom L_kl follows."""

import functools

import pytest
import torch
from commands import STEPS, built_stage, command, copy_stages, interrupt_in_batch, same_tensors, tagi, weights

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.backbones import BackboneConfig, build_backbone, load_backbone
from tagi_lightning.backbones.loading import t5_config
from tagi_lightning.fusion import FusionConfig
from tagi_lightning.hypernetwork import HypernetworkConfig
from tagi_lightning.losses import prediction_loss
from tagi_lightning.model import TagiConfig, TagiModel
from tagi_lightning.stages.distill import Distillation
from tagi_lightning.storage.serialization import save_tagi

MODEL = "--model.init_args."
NO_LOSS_BUT_PRED = [f"{MODEL}loss.lambda1=0", f"{MODEL}loss.lambda2=0", f"{MODEL}teachers=none"]
FRESH = f"{MODEL}init_from=none"
BARE = [f"{MODEL}tagi.{each}=false" for each in ("hypernetwork.enabled", "fusion.enabled", "decoder_memory")]
PROMPT = f"{MODEL}tagi.reads=prompt"
TK_INSTRUCT = [*NO_LOSS_BUT_PRED, FRESH, *BARE, PROMPT, f"{MODEL}tagi.trained_backbone=all"]
FEED_FORWARD = f"{MODEL}tagi.trained_backbone=feed_forward"
UNCACHED = f"{MODEL}instruction_cache_mb=0"

built = functools.partial(built_stage, "distill")


def distill(run, task_set, *options, steps=STEPS):
    return tagi(command("distill", run, task_set, f"--trainer.max_steps={steps}", *options))


@pytest.fixture(scope="module")
def tk_instruct(chain, task_set, tmp_path_factory):
    """The run folder of a full fine-tuning on the concatenated prompt; not to be changed."""
    run = tmp_path_factory.mktemp("tk-instruct")
    copy_stages(chain, run, "pretrain-backbone")
    assert distill(run, task_set, *TK_INSTRUCT, "--trainer.val_check_interval=2", "--trainer.limit_val_batches=1") == 0
    return run


@pytest.fixture
def run(chain, tmp_path):
    copy_stages(chain, tmp_path / "run", "pretrain-backbone", "teachers", "pretrain")
    return tmp_path / "run"


def backbone_of(run):
    return load_backbone(BackboneConfig(str(run / "pretrain-backbone" / "model")))


def bare_logits(backbone, batch):
    with torch.no_grad():
        return backbone(batch.prompt, batch.labels, TaskAdapter(), batch.task_index)


def test_tk_instruct_trains_and_keeps_every_weight_of_the_backbone_and_nothing_else(chain, tk_instruct):
    found, start = weights(tk_instruct, "distill"), dict(backbone_of(chain).named_parameters())
    assert found.keys() == {f"backbone.{name}" for name in start}
    assert not any(torch.equal(found[f"backbone.{name}"], weight) for name, weight in start.items())


def test_a_trained_backbone_goes_on_from_its_checkpoint_to_the_same_bits(chain, task_set, tmp_path, monkeypatch):
    for name in ("whole", "halves"):
        copy_stages(chain, tmp_path / name, "pretrain-backbone")
    assert distill(tmp_path / "whole", task_set, *TK_INSTRUCT, steps=6) == 0
    interrupt_in_batch(monkeypatch, Distillation, 4)
    assert distill(tmp_path / "halves", task_set, *TK_INSTRUCT, steps=6) == 130
    monkeypatch.undo()
    assert distill(tmp_path / "halves", task_set, *TK_INSTRUCT, steps=6) == 0
    assert same_tensors(weights(tmp_path / "whole", "distill"), weights(tmp_path / "halves", "distill"))


def test_the_student_reads_the_prompt_and_says_so_where_there_is_none(run, task_set, monkeypatch, capsys):
    stage, batch = built(run, task_set, monkeypatch, *TK_INSTRUCT)
    assert stage.instruction_cache is None  # of what nothing uses
    loss = stage.loss_terms(batch, stage.model.adapt(batch.instruction))["pred"]
    torch.testing.assert_close(loss, prediction_loss(bare_logits(backbone_of(run), batch), batch.labels).mean())
    assert distill(run, task_set, *TK_INSTRUCT, "--data.init_args.with_prompt=false") == 1
    assert "tagi.reads=prompt" in capsys.readouterr().err


def test_another_systems_checkpoint_teaches_as_it_answers(run, task_set, tk_instruct, monkeypatch):
    folder = tk_instruct / "distill" / "model"
    own = [f"{MODEL}logits_teacher={folder}", f"{MODEL}loss.lambda2=0"]
    stage, batch = built(run, task_set, monkeypatch, *own)
    assert stage.bank is None
    taught = backbone_of(run)
    found = {name.removeprefix("backbone."): tensor for name, tensor in weights(tk_instruct, "distill").items()}
    taught.load_state_dict(found, strict=False)  # names of tied weights are there once
    assert torch.equal(stage.teacher_logits(batch, None), bare_logits(taught, batch))
    assert not torch.equal(bare_logits(taught, batch), bare_logits(stage.backbone, batch))
    assert not any(parameter.requires_grad for parameter in stage.teacher_model.parameters())
    assert not any(name.startswith(("teacher_model", "backbone")) for name in stage.state_dict())
    assert distill(run, task_set, *own) == 0


def test_a_backbone_that_trained_teaches_a_student_that_is_stored_in_16_bits(run, task_set, tk_instruct, monkeypatch):
    own = [f"{MODEL}logits_teacher={tk_instruct / 'distill' / 'model'}", "--backbone.dtype=bfloat16"]
    stage, batch = built(run, task_set, monkeypatch, *own)
    assert {parameter.dtype for parameter in stage.teacher_model.backbone.parameters()} == {torch.bfloat16}
    taught = dict(stage.teacher_model.backbone.named_parameters())
    for name, tensor in weights(tk_instruct, "distill").items():
        assert torch.equal(taught[name.removeprefix("backbone.")], tensor.bfloat16())
    assert stage.teacher_logits(batch, None).isfinite().all()


def test_a_folder_of_transformers_teaches_where_its_vocabulary_is_the_students(run, task_set, tmp_path, monkeypatch):
    folder = run / "pretrain-backbone" / "model"
    stage, batch = built(run, task_set, monkeypatch, f"{MODEL}logits_teacher={folder}")
    assert torch.equal(stage.teacher_logits(batch, None), bare_logits(stage.backbone, batch))
    build_backbone(t5_config("tiny", 77), "other").model.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"vocabulary of 77 tokens .*student's tokenizer"):
        built(run, task_set, monkeypatch, f"{MODEL}logits_teacher={tmp_path / 'other'}")


def test_the_bare_backbone_teaches_beside_aligned_adapters(run, task_set, monkeypatch):
    stage, batch = built(run, task_set, monkeypatch, f"{MODEL}logits_teacher=backbone")
    calls, plain = [], stage.teacher_logits
    monkeypatch.setattr(stage, "teacher_logits", lambda *args: calls.append(args[1]) or plain(*args))
    assert set(stage.loss_terms(batch, stage.model.adapt(batch.instruction))) == {"pred", "kl", "ins"}
    assert calls == [None]
    assert torch.equal(plain(batch, None), bare_logits(stage.backbone, batch))


def test_a_teacher_that_is_not_there_or_of_another_backbone_is_refused(run, task_set, tk_instruct, tmp_path, capsys):
    assert distill(run, task_set, f"{MODEL}logits_teacher={tmp_path / 'absent'}") == 1
    assert "no logits teacher in" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{")
    assert distill(run, task_set, f"{MODEL}logits_teacher={tmp_path}") == 1
    assert f"{tmp_path / 'config.json'} is damaged" in capsys.readouterr().err
    backbone = build_backbone(t5_config("tiny", backbone_of(run).vocabulary_size), "other", seed=5).model
    backbone.save_pretrained(run / "pretrain-backbone" / "model")
    other = [*NO_LOSS_BUT_PRED, FRESH, f"{MODEL}loss.lambda1=1", f"{MODEL}loss.teacher_cache.enabled=false"]
    assert distill(run, task_set, *other, f"{MODEL}logits_teacher={tk_instruct / 'distill' / 'model'}") == 1
    assert "was trained on backbone" in capsys.readouterr().err


@pytest.mark.parametrize("teacher", ["category", "backbone"])
def test_a_backbone_that_trains_is_taught_by_a_copy_that_stays(run, task_set, monkeypatch, teacher):
    stage, batch = built(run, task_set, monkeypatch, FEED_FORWARD, UNCACHED, f"{MODEL}logits_teacher={teacher}")
    taught = stage.bank().index(batch.category) if teacher == "category" else None
    before = stage.teacher_logits(batch, taught)
    optimizer = torch.optim.SGD([p for p in stage.parameters() if p.requires_grad], lr=0.5)
    sum(stage.loss_terms(batch, stage.model.adapt(batch.instruction)).values()).backward()
    optimizer.step()
    assert torch.equal(stage.teacher_logits(batch, taught), before)
    assert not torch.equal(bare_logits(stage.backbone, batch), bare_logits(backbone_of(run), batch))


def test_states_of_instructions_are_not_kept_while_the_backbone_trains(run, task_set, capsys):
    assert distill(run, task_set, FEED_FORWARD) == 1
    assert "set instruction_cache_mb=0" in capsys.readouterr().err
    assert distill(run, task_set, FEED_FORWARD, UNCACHED) == 0
    kept = [name for name in weights(run, "distill") if name.startswith("backbone.")]
    assert kept
    assert not any("Attention." in name for name in kept)


def test_quantised_weights_do_not_train(run, task_set, capsys):
    assert distill(run, task_set, FEED_FORWARD, UNCACHED, "--backbone.quantization=int8") == 1
    assert "backbone.quantization=null" in capsys.readouterr().err


def test_a_teachers_answers_are_kept_apart_and_only_where_the_prompt_decides_them(
    chain, run, task_set, tk_instruct, tmp_path, monkeypatch
):
    kept = [f"{MODEL}loss.teacher_cache.{each}" for each in ("enabled=true", f"folder={tmp_path / 'cache'}")]
    paths = set()
    for teacher in ("category", "backbone", tk_instruct / "distill" / "model"):
        stage, batch = built(run, task_set, monkeypatch, *kept, f"{MODEL}logits_teacher={teacher}")
        stage.loss_terms(batch, stage.model.adapt(batch.instruction))
        paths.add(stage.teacher_cache.path)
        found = stage.teacher_cache
    # eq. 5's and the bare backbone's answers share a file, and differ by the adapter in their keys
    assert len(paths) == 2
    assert len(found) == len(batch)
    bare = {"fusion": FusionConfig(enabled=False), "decoder_memory": False}
    demonstrated = TagiConfig(hypernetwork=HypernetworkConfig(generator="constant"), reads="demonstrations", **bare)
    save_tagi(TagiModel(backbone_of(run), demonstrated), tmp_path / "demonstrated")
    for other in (chain / "distill" / "model", tmp_path / "demonstrated"):
        with pytest.raises(ValueError, match=r"set loss\.teacher_cache\.enabled=false"):
            built(run, task_set, monkeypatch, *kept, f"{MODEL}logits_teacher={other}")


def test_a_generated_prefix_trains_without_alignment(run, task_set, capsys):
    prefix = f"{MODEL}tagi.hypernetwork.writes=prefix"
    assert distill(run, task_set, prefix, FRESH) == 0
    assert any(name.startswith("hypernetwork.prefix_generator") for name in weights(run, "distill"))
    assert tagi(command("align", run, task_set, prefix, FRESH)) == 1
    assert "writes is prefix" in capsys.readouterr().err


def test_align_holds_still_all_but_what_writes_the_lora(chain, task_set, tmp_path, monkeypatch):
    copy_stages(chain, tmp_path, "pretrain-backbone", "teachers")
    options = [f"{MODEL}tagi.hypernetwork.writes=both", FEED_FORWARD, FRESH]
    stage, _ = built_stage("align", tmp_path, task_set, monkeypatch, *options)
    trains = {name for name, parameter in stage.model.named_parameters() if parameter.requires_grad}
    assert {name.rsplit(".")[1] for name in trains} == {"generator"}
    assert any(name.startswith("backbone.") for name in stage.model.trained_state())
    assert stage.instruction_cache is not None


def test_pretraining_keeps_a_out_of_what_the_backbone_reads(chain, task_set, tmp_path, capsys):
    copy_stages(chain, tmp_path, "pretrain-backbone")
    for reads in (PROMPT, f"{MODEL}tagi.reads=demonstrations"):
        assert tagi(command("pretrain", tmp_path, task_set, reads)) == 1
        assert "set tagi.reads=input" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["teachers=none"], ["tagi.hypernetwork.writes=prefix"]])
def test_an_alignment_without_anything_to_align_is_refused(run, task_set, capsys, options):
    alone = [f"{MODEL}loss.weight_pred=0", f"{MODEL}loss.lambda1=0"]
    assert distill(run, task_set, *alone, *(f"{MODEL}{each}" for each in options)) == 1
    assert "the loss is L_ins alone, and there is none" in capsys.readouterr().err


def test_a_folder_of_the_user_in_the_place_of_the_finished_model_stays(run, task_set, capsys):
    (run / "model").mkdir()
    (run / "model" / "mine").touch()
    assert distill(run, task_set, steps=1) == 0
    assert "is a folder of its own and stays as it is" in capsys.readouterr().out
    assert [path.name for path in (run / "model").iterdir()] == ["mine"]
    assert (run / "distill" / "model" / "config.json").is_file()
