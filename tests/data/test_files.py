import hashlib
import subprocess
import sys

import pytest

from tagi_lightning.data.files import file_digest, replace_file, replace_text


@pytest.mark.parametrize("shared", [False, True])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, shared):
    def write(stream):
        stream.write(b"half of")
        raise OSError("the disk is full")

    path = tmp_path / "new" / "file"
    replace_text(path, "one\n")
    with pytest.raises(OSError, match="full"):
        replace_file(path, write, shared=shared)
    assert path.read_bytes() == b"one\n"
    assert list(path.parent.iterdir()) == [path]


def test_the_former_file_is_kept_where_one_asks(tmp_path):
    path, kept = tmp_path / "last", tmp_path / "previous"
    for text in ("one", "two", "three"):
        replace_file(path, lambda stream, text=text: stream.write(text.encode()), keep=kept)
    assert (path.read_text(), kept.read_text()) == ("three", "two")


def test_processes_that_write_one_file_at_once_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "note"
    code = "import sys, pathlib; from tagi_lightning.data.files import replace_text\n"
    code += "replace_text(pathlib.Path(sys.argv[1]), 'theirs', shared=True)"

    def write(stream):
        stream.write(b"ours, ")
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)
        assert path.read_text() == "theirs"
        stream.write(b"whole")

    replace_file(path, write, shared=True)
    assert path.read_text() == "ours, whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_known_by_its_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    assert file_digest(tmp_path / "file") == hashlib.sha256(b"content").hexdigest()
