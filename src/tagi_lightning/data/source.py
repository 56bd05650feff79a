"""Where a name of a model or tokenizer points: a Hugging Face folder here, or an id on the hub, which is asked once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError

from tagi_lightning.data.report import shortened


class SourceError(ValueError):
    """A name behind which nothing is found; the message says what was looked for."""


def find_source(name: str, files: Sequence[str]) -> str:
    """Returns the folder of a name, or the hub id that it is.

    Without a connection, Hugging Face's libraries try again for more than a minute; here the hub is asked once, and
    not at all for what is cached.

    Args:
        name: A folder or hub id.
        files: Files one of which is to be there.

    Raises:
        SourceError: If there is no such folder, it holds none of the files, or the hub gives no such repository.
    """
    path = Path(name).expanduser()
    if name.startswith((".", "/", "~")) or path.exists() or name.count("/") > 1:
        if not path.is_dir():
            raise SourceError(f"there is no folder {path}")
        if not any((path / file).is_file() for file in files):
            raise SourceError(f"{path} holds {'none of ' if len(files) > 1 else 'no '}{', '.join(files)}")
        return str(path)
    try:
        if not any(isinstance(try_to_load_from_cache(name, file), str) for file in files):
            get_hf_file_metadata(hf_hub_url(name, files[0]))
    except EntryNotFoundError:
        pass  # the hub is there and knows the repository
    except Exception as error:  # the hub's HTTP library has errors of its own, without a common base
        reason = shortened(" ".join(str(error).split()))
        raise SourceError(
            f"{name} is no folder here and not in the cache, and the Hugging Face hub does not give it: {reason}"
        ) from error
    return name
