import pytest
from byte_tokenizer import build_byte_tokenizer

from tagi_lightning.data.source import SourceError, find_source
from tagi_lightning.data.tokenizer import TokenizerError, check_tokenizer, load_tokenizer

CONFIG = ("config.json",)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.mark.parametrize("name", ["model", "./model", "a/model"])
def test_a_folder_that_holds_one_of_the_files_is_found(here, name):
    (here / name).mkdir(parents=True)
    with pytest.raises(SourceError, match=r"holds none of x\.json, config\.json"):
        find_source(name, ("x.json", *CONFIG))
    (here / name / "config.json").touch()
    assert (here / find_source(name, ("x.json", *CONFIG))).samefile(here / name)


@pytest.mark.parametrize("name", ["./absent", "/nowhere/at/all", "a/b/c", "~/no-such-folder", "file.gguf"])
def test_a_path_without_folder_never_asks_the_hub(here, name, monkeypatch):
    (here / "file.gguf").touch()
    monkeypatch.setattr("tagi_lightning.data.source.get_hf_file_metadata", lambda *_: pytest.fail("it asks"))
    with pytest.raises(SourceError, match="there is no folder"):
        find_source(name, CONFIG)


def test_what_is_cached_is_found_without_the_hub(here, monkeypatch):
    monkeypatch.setattr("tagi_lightning.data.source.try_to_load_from_cache", lambda *_: "cached/config.json")
    monkeypatch.setattr("tagi_lightning.data.source.get_hf_file_metadata", lambda *_: pytest.fail("it asks"))
    assert find_source("some/model", CONFIG) == "some/model"


def test_a_hub_out_of_reach_is_asked_once_and_told(here, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("it tries again"))
    with pytest.raises(SourceError, match=r"some/model is no folder here and not in the cache, and the .* hub"):
        find_source("some/model", CONFIG)


@pytest.mark.parametrize("name", ["./absent", "nobody/absent-model", "empty"])
def test_a_tokenizer_that_is_not_there_is_told_alike_wherever_it_is_looked_for(here, name):
    (here / "empty").mkdir()
    for look in (check_tokenizer, load_tokenizer):
        with pytest.raises(TokenizerError, match=r"no tokenizer: .*\nA tokenizer lies with its model: copy"):
            look(name)


def test_a_tokenizer_beside_a_model_is_found(here):
    build_byte_tokenizer().save_pretrained(here / "model")
    assert check_tokenizer("model") == "model"
    assert len(load_tokenizer("model")) == len(build_byte_tokenizer())
