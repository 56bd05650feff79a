from transformers import AutoTokenizer

from tagi_lightning.cli import main


def test_a_vocabulary_is_trained_on_text_and_loads_as_t5s(tmp_path, capsys):
    words = ["owl", "crow", "swan", "iron", "robin"]
    lines = (" ".join(words[(place + step) % 5] for step in range(4)) for place in range(60))
    (tmp_path / "text.txt").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    folder = tmp_path / "tokenizer"
    assert main(["vocabulary", "--corpora", f"[{tmp_path}]", "--folder", str(folder), "--size", "40"]) == 0
    assert str(folder) in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("swan iron owl").input_ids, skip_special_tokens=True) == "swan iron owl"
    assert tokenizer.convert_tokens_to_ids("<extra_id_0>") != tokenizer.unk_token_id
    assert main(["vocabulary", "--corpora", f"[{tmp_path}]", "--folder", str(folder)]) == 1
    assert "already there" in capsys.readouterr().err


def test_text_that_is_not_there_is_told(tmp_path, capsys):
    assert main(["vocabulary", "--corpora", f"[{tmp_path / 'absent'}]", "--folder", str(tmp_path / "t")]) == 1
    assert "absent" in capsys.readouterr().err
