"""Chat templates of tokenizers, damaged in every way."""

import pytest
from byte_tokenizer import CHATML, build_byte_tokenizer
from fuzzing import MARKS, OTHER, READ, REFUSED, damaged_bytes, fuzz, refused

from tagi_lightning.data.chat_template import ChatTurns
from tagi_lightning.data.tokenizer import load_tokenizer

pytestmark = MARKS


def test_chat_templates(record):
    tokenizer = build_byte_tokenizer()
    expected = ChatTurns.from_tokenizer(tokenizer)

    def attempt(content):
        tokenizer.chat_template = content.decode(errors="replace")
        found = refused(lambda: ChatTurns.from_tokenizer(tokenizer), ValueError, "take prompt=causal")
        if found is None:
            return REFUSED
        "".join((found.start, found.ending, found.opening, found.cue)).encode()
        return READ if found == expected else OTHER

    odd = ("{{ 1 / 0 }}", "{{ messages.x.y }}", "{{ [][3] }}", "{{ messages + 1 }}", "{{ " + "(" * 2_000 + "1")
    known = [each.encode() for each in odd]
    fuzz(record, "chat templates", damaged_bytes(CHATML.encode()), attempt, known)


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{", b"[1]", b'{"a": 1}'])
def test_files_of_a_tokenizer_are_refused_by_its_name_or_read(tmp_path, name, content):
    build_byte_tokenizer().save_pretrained(tmp_path)
    assert (tmp_path / name).is_file()
    (tmp_path / name).write_bytes(content)
    tokenizer = refused(lambda: load_tokenizer(str(tmp_path)), (ValueError, OSError), tmp_path)
    assert tokenizer is None or name != "tokenizer.json"
