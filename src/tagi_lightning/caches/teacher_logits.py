"""What the logits teacher says, kept on disk: the k likeliest tokens at every target token, and the mass of the rest.

One SQLite file holds what one backbone says at one k and temperature; an entry's key is a digest of the category's
adapter, the prompt's ids and the target's ids, so that whatever decides the teacher's answer decides the key. A batch
is written in one transaction: an entry is either whole or not there, whatever is interrupted, and several processes
and runs may share a file. An entry costs 8 bytes a target token and k.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from tagi_lightning.data.batch import IGNORE_INDEX, Tokens
from tagi_lightning.lora import LoraWeights
from tagi_lightning.losses import TopK, target_rows, top_k

LAYOUT_VERSION = 1
"""Raise it with every change of what an entry holds."""

SECONDS_TO_WAIT = 300.0
"""How long a process waits for another one that writes."""


class TeacherCache:
    """The `TopK` of examples by key, in one file that is made where it is absent."""

    def __init__(self, folder: Path, k: int, temperature: float, backbone: Mapping[str, Any]) -> None:
        """Opens the file of one teacher.

        Args:
            folder: Holds one file for each teacher, k and temperature; shared by any number of runs.
            k: Tokens kept of each distribution.
            temperature: Softens the distributions.
            backbone: What decides the answers besides adapter and prompt, in plain types: the digest of the
                weights, and how they are stored and computed with.

        Raises:
            ValueError: If the file is damaged.
        """
        self.k, self.temperature = k, temperature
        settings = {"layout": LAYOUT_VERSION, "k": k, "temperature": temperature, **backbone}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        self.path = folder / f"top{k}-{digest[:16]}.sqlite"
        folder.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(self.path, timeout=SECONDS_TO_WAIT)
        try:
            with self._connection:
                self._connection.execute("CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB)")
        except sqlite3.DatabaseError as error:
            raise ValueError(f"the teacher cache {self.path} cannot be used ({error}); remove it") from error

    def __len__(self) -> int:
        return int(self._connection.execute("SELECT count(*) FROM entries").fetchone()[0])

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    def find(self, keys: Sequence[bytes]) -> dict[bytes, TopK]:
        """Returns the entries that are there."""
        question = f"SELECT key, value FROM entries WHERE key IN ({','.join('?' * len(keys))})"
        return {key: TopK(**load(value)) for key, value in self._connection.execute(question, list(keys))}

    def add(self, entries: Mapping[bytes, TopK]) -> None:
        """Writes all of `entries` or, where it is interrupted, none; what another process wrote first stays."""
        rows = [(key, save(entry._asdict())) for key, entry in entries.items()]
        with self._connection:
            self._connection.executemany("INSERT OR IGNORE INTO entries VALUES (?, ?)", rows)

    def fill(self, keys: Sequence[bytes], labels: Tensor, compute: Callable[[Tensor], Tensor]) -> tuple[TopK, int]:
        """Returns a batch's distributions, running the teacher on examples that were never seen.

        What is computed passes through the same form as what is read, so a batch's loss is the same the first time.

        Args:
            keys: Key of each example.
            labels: Targets, padded by `IGNORE_INDEX` [B, O].
            compute: Returns the teacher's logits of examples `rows` [n], as [n, O, V].

        Returns:
            The `TopK` of the batch's target tokens, one example after another, and the number of examples found.
        """
        entries = self.find(keys)
        found = sum(key in entries for key in keys)
        if missing := [row for row, key in enumerate(keys) if key not in entries]:
            rows = torch.tensor(missing, device=labels.device)
            targets = labels[rows]
            answer = top_k(target_rows(compute(rows), targets), self.k, self.temperature)
            parts = _split(answer, (targets != IGNORE_INDEX).sum(-1).tolist())
            new = dict(zip((keys[row] for row in missing), parts, strict=True))
            self.add(new)
            entries |= new
        fields = zip(*(entries[key] for key in keys), strict=True)
        ids, log_probs, log_rest = (torch.cat(parts).to(labels.device) for parts in fields)
        return TopK(ids.long(), log_probs, log_rest), found


def _split(answer: TopK, lengths: Sequence[int]) -> list[TopK]:
    """Returns each example's part of a batch's answer, in the form that is stored."""
    columns = (answer.ids.to("cpu", torch.int32), answer.log_probs.cpu(), answer.log_rest.cpu())
    parts = zip(*(column.split(list(lengths)) for column in columns), strict=True)
    return [TopK(*(part.clone() for part in each)) for each in parts]


def adapter_digests(taught: LoraWeights) -> list[bytes]:
    """Returns the digest of each of K adapters."""
    digests = []
    for row in range(taught.num_tasks):
        sha = hashlib.sha256(str(taught.scale).encode())
        for site in sorted(taught.a):
            sha.update(site.encode())
            for factor in (taught.a[site], taught.b[site]):
                sha.update(factor[row].detach().to("cpu", torch.float32).contiguous().numpy().data)
        digests.append(sha.digest())
    return digests


def example_keys(prompt: Tokens, labels: Tensor, adapters: Sequence[bytes]) -> list[bytes]:
    """Returns the key of each example: a digest of its teacher's adapter, its prompt and its target.

    Args:
        prompt: Instruction and input concatenated [B, P]; padding does not count.
        labels: Targets, padded by `IGNORE_INDEX` [B, O].
        adapters: Digest of each example's adapter, empty for the bare backbone, B long.
    """
    ids, lengths, targets = prompt.ids.cpu(), prompt.mask.sum(-1).tolist(), labels.cpu()
    keys = []
    for row, (length, adapter) in enumerate(zip(lengths, adapters, strict=True)):
        target = targets[row][targets[row] != IGNORE_INDEX]
        text = json.dumps([adapter.hex(), ids[row, :length].tolist(), target.tolist()])
        keys.append(hashlib.sha256(text.encode()).digest())
    return keys
