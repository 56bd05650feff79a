"""Plain text to pretrain on, damaged in every way."""

from fuzzing import DEEP, MARKS, damaged_bytes, damaged_lines, fuzz_file, lines

from tagi_lightning.data.report import DataError
from tagi_lightning.data.text import read_documents

pytestmark = MARKS

ROWS = [{"text": "A cat sat."}, {"text": "Größe 😀\nzwei", "source": {"name": "x"}}]
PARAGRAPHS = "Größe 😀\nzwei\n\n\nThird one, of three lines\nand\nmore.\n \nlast".encode()


def fuzz_documents(record, reader, path, good, inputs, known=()):
    def check(found):
        assert all(text.strip() for text in found)
        "".join(found).encode()  # what a tokenizer does first

    fuzz_file(
        record, reader, path, inputs, lambda: list(read_documents(path)), DataError, good=good, known=known, check=check
    )


def test_rows_of_text(record, tmp_path):
    known = [b'{"text": ' + DEEP * b"[", b'{"text": "\\ud800"}', b'{"text": "a", "text": "b"}']
    fuzz_documents(record, "documents in JSON lines", tmp_path / "a.jsonl", lines(*ROWS), damaged_lines(*ROWS), known)


def test_paragraphs(record, tmp_path):
    fuzz_documents(record, "paragraphs of text", tmp_path / "a.txt", PARAGRAPHS + b"\n\n", damaged_bytes(PARAGRAPHS))
