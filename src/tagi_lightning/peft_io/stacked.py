"""Many adapters in one folder: factors stacked into shards of safetensors with an index, each found by its name.

A shard holds A [N, r, in] and B [N, out, r] of every site for its N adapters, so that one adapter is a slice of it.
What PEFT cannot hold, fusion and memory, differs in length between instructions and stands beside it by row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tagi_lightning.data.files import file_digest
from tagi_lightning.data.instruction import Instruction, instruction_of_row, instruction_row
from tagi_lightning.data.json_text import parse_json
from tagi_lightning.data.report import shortened
from tagi_lightning.inference.instructed import InstructedAdapter, InstructedModel
from tagi_lightning.lora import LoraWeights
from tagi_lightning.peft_io.exporting import Exporter
from tagi_lightning.peft_io.folders import CARD, PREFIX, AdapterFolderError, location, new_folder
from tagi_lightning.peft_io.reading import adapter_from_rest
from tagi_lightning.peft_io.writing import rest_tensors

INDEX, INSTRUCTIONS = "adapters.safetensors.index.json", "instructions.jsonl"
SHARD_BYTES = 2**26
"""Bytes of the factors in a shard at most, and so of what is held in memory; a shard has one adapter at least."""
SAMPLE = 4
"""Adapters that are read back and compared once all are written."""

CARD_TEXT = """\
# {count} adapters generated from instructions

`{instructions}` has one instruction a line, and `{index}` tells each adapter's shard. Read one with
`tagi_lightning.peft_io.StackedAdapters`, or make a PEFT folder of it:

    tagi adapt --model DIR --stack THIS_FOLDER --name NAME --output FOLDER

Backbone {backbone}, weights {digest}; rank {rank}, updates scaled by {scale:g}.
"""


def factor_names(site: str) -> tuple[str, str]:
    """Returns PEFT's names of A and B of a site."""
    return f"{PREFIX}{site}.lora_A.weight", f"{PREFIX}{site}.lora_B.weight"


class StackWriter:
    """Writes the adapters of one model into a folder, holding one shard of them in memory."""

    def __init__(self, exporter: Exporter, shard_bytes: int | None = None) -> None:
        """Takes the model.

        Args:
            exporter: Writes the sample's PEFT folders, which are compared.
            shard_bytes: Bytes of the factors in a shard at most; None for the usual size.
        """
        self.exporter, self.shard_bytes = exporter, shard_bytes or SHARD_BYTES
        model = exporter.loaded.model
        self.sites, self.rank, self.scale = model.sites, model.config.lora.rank, model.config.lora.scale

    def write(self, instructions: Sequence[Instruction], folder: Path) -> Iterator[int]:
        """Writes the adapters of all instructions; yields how many are done, shard by shard.

        Args:
            instructions: The instructions; what the model does not read of them is left out, those that are then
                the same are taken once.
            folder: The folder to make.

        Raises:
            AdapterFolderError: If the folder is there, or does not give back what was written.
        """
        instructions = list(dict.fromkeys(map(self.exporter.loaded.shown, instructions)))
        per_adapter = 4 * sum(self.rank * (site.in_features + site.out_features) for site in self.sites)
        size = max(1, self.shard_bytes // per_adapter)
        starts = range(0, len(instructions), size)
        sampled = sample(len(instructions))
        kept: dict[int, InstructedAdapter] = {}
        weight_map: dict[str, str] = {}
        digests: dict[str, str] = {}
        with new_folder(folder, self.exporter.overwrite) as made:
            for shard, start in enumerate(starts, start=1):
                some = instructions[start : start + size]
                file = f"adapters-{shard:05d}-of-{len(starts):05d}.safetensors"
                adapters = self.exporter.loaded.adapt_all(some)
                kept |= self._write_shard(made / file, enumerate(adapters, start), start, len(some), sampled)
                digests[file] = file_digest(made / file)
                weight_map |= {each.folder_name: file for each in some}
                yield start + len(some)
            self._write_index(made, instructions, weight_map, digests)
            self._check(made, kept)

    def _write_shard(
        self,
        path: Path,
        adapters: Iterable[tuple[int, InstructedAdapter]],
        start: int,
        count: int,
        sampled: frozenset[int],
    ) -> dict[int, InstructedAdapter]:
        """Writes one shard; returns the adapters of it that are among `sampled`."""
        tensors: dict[str, Tensor] = {}
        for site in self.sites:
            a, b = factor_names(site.name)
            tensors[a] = torch.empty(count, self.rank, site.in_features)
            tensors[b] = torch.empty(count, site.out_features, self.rank)
        kept = {}
        for number, adapter in adapters:
            assert adapter.lora is not None
            for site in self.sites:
                a, b = factor_names(site.name)
                tensors[a][number - start] = adapter.lora.a[site.name][0]
                tensors[b][number - start] = adapter.lora.b[site.name][0]
            if self.exporter.loses:
                tensors |= {f"{number - start}.{name}": tensor for name, tensor in rest_tensors(adapter.prepared)}
            if number in sampled:
                kept[number] = adapter
        save_file(tensors, path)
        return kept

    def _write_index(
        self,
        folder: Path,
        instructions: Sequence[Instruction],
        weight_map: Mapping[str, str],
        digests: Mapping[str, str],
    ) -> None:
        backbone = self.exporter.loaded.model.backbone
        metadata: dict[str, Any] = {
            "total_size": sum((folder / file).stat().st_size for file in digests),
            "adapters": len(instructions),
            "backbone": location(backbone),
            "backbone_digest": self.exporter.writer.digest,
            "model_digest": self.exporter.loaded.model.digest(),
            "scale": self.scale,
            "has_rest": bool(self.exporter.loses),
            "sha256": dict(digests),
        }
        index = {"metadata": metadata, "weight_map": dict(weight_map)}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        with (folder / INSTRUCTIONS).open("w", encoding="utf-8") as file:
            for each in instructions:
                file.write(json.dumps(instruction_row(each), ensure_ascii=False) + "\n")
        facts = {"count": len(instructions), "instructions": INSTRUCTIONS, "index": INDEX}
        facts |= {"backbone": metadata["backbone"], "digest": metadata["backbone_digest"][:12]}
        facts |= {"rank": self.rank, "scale": self.scale}
        (folder / CARD).write_text(CARD_TEXT.format(**facts), encoding="utf-8")

    def _check(self, folder: Path, kept: Mapping[int, InstructedAdapter]) -> None:
        """Refuses a folder that gives other adapters than were generated, or whose adapters PEFT loads otherwise."""
        stack = StackedAdapters(folder, self.exporter.loaded)
        for number, expected in kept.items():
            found = stack.adapter(number)
            if found.instruction != expected.instruction or not _equal(found, expected):
                raise AdapterFolderError(f"{folder} was not written: it gives another adapter {number}; report this")
        if kept:
            lora = stack.adapter(max(kept)).lora
            assert lora is not None
            self.exporter.writer.check_loads(lora)


def sample(count: int) -> frozenset[int]:
    """Returns the numbers of a few of `count` adapters, spread evenly, the first and the last among them."""
    return frozenset(round(place * (count - 1) / (SAMPLE - 1)) for place in range(SAMPLE)) if count else frozenset()


def _equal(left: InstructedAdapter, right: InstructedAdapter) -> bool:
    pairs = zip(left.prepared.tensors(), right.prepared.tensors(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


class StackedAdapters:
    """The adapters of a folder that `StackWriter` wrote; each is read from the disk when it is asked for.

    Attributes:
        names: Their names, in order.
    """

    def __init__(self, folder: Path, loaded: InstructedModel) -> None:
        """Opens the folder.

        Args:
            folder: The folder.
            loaded: The model that made them.

        Raises:
            AdapterFolderError: If it is damaged, or another model or backbone made the adapters.
        """
        self.folder, self.loaded = folder, loaded
        try:
            index = parse_json((folder / INDEX).read_text(encoding="utf-8"))
            metadata: dict[str, Any] = index["metadata"]
            weight_map: dict[str, str] = index["weight_map"]
            rows = (folder / INSTRUCTIONS).read_text(encoding="utf-8").split("\n")[:-1]
            self._rows = dict(zip(weight_map, rows, strict=True))
            self._sha256 = dict(metadata["sha256"])
            digests = metadata["model_digest"], metadata["backbone_digest"]
            whole = metadata["adapters"] == len(rows) and set(weight_map.values()) == self._sha256.keys()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise AdapterFolderError(
                f"no stacked adapters in {folder}: {shortened(repr(error))}; make them: tagi adapt --stacked true"
            ) from error
        if digests[0] != loaded.model.digest():
            raise AdapterFolderError(f"{folder} was made by other weights than the present ones; run tagi adapt again")
        if digests[1] != loaded.model.backbone.digest():
            raise AdapterFolderError(f"{folder} was made for another backbone than {loaded.model.backbone.name}")
        if not whole or metadata.get("scale") != loaded.model.config.lora.scale:
            raise AdapterFolderError(f"{folder / INDEX} is damaged; make it again: tagi adapt --stacked true")
        self._places: dict[str, tuple[str, int]] = {}
        counts: dict[str, int] = {}
        for name, file in weight_map.items():
            self._places[name] = (file, counts.setdefault(file, 0))
            counts[file] += 1
        self.names = tuple(weight_map)
        self._checked: set[str] = set()

    def __len__(self) -> int:
        return len(self.names)

    def adapter(self, which: str | int) -> InstructedAdapter:
        """Returns one adapter, whole.

        Args:
            which: Its name or number.

        Raises:
            AdapterFolderError: If there is none, or its shard is damaged.
        """
        name = which if isinstance(which, str) else self._name(which)
        if name not in self._places:
            near = [each for each in self.names if each.startswith(name)]
            told = f"; there is {near[0]}" if near else f"; names such as {self.names[0]} stand in {INDEX}"
            raise AdapterFolderError(f"{self.folder} has no adapter {name}{told}")
        file, row = self._places[name]
        self._check_shard(file)
        instruction = self.instruction(name)
        try:
            with safe_open(self.folder / file, "pt", device=str(self.loaded.model.backbone.model.device)) as shard:
                lora = self._lora(shard, row)
                start = f"{row}."
                names = (each for each in shard.keys() if each.startswith(start))  # noqa: SIM118
                rest = {each.removeprefix(start): shard.get_tensor(each) for each in names}
        except SafetensorError as error:
            raise AdapterFolderError(f"{self.folder / file} does not hold {name}: {error}") from error
        prepared = adapter_from_rest(lora, rest, self.loaded.model, self.folder / file)
        return InstructedAdapter(self.loaded.shown(instruction), prepared)

    def instruction(self, name: str) -> Instruction:
        """Returns the instruction of an adapter.

        Raises:
            AdapterFolderError: If its line is damaged or of another one, as its digest, part of the name, tells.
        """
        try:
            found = instruction_of_row(parse_json(self._rows[name]))
        except ValueError as error:
            raise AdapterFolderError(
                f"{self.folder / INSTRUCTIONS} is damaged at {name}: {shortened(str(error))}"
            ) from error
        if found.folder_name != name:
            raise AdapterFolderError(f"{self.folder / INSTRUCTIONS} has another instruction at {name}; make it again")
        return found

    def _name(self, number: int) -> str:
        if not 0 <= number < len(self.names):
            raise AdapterFolderError(f"{self.folder} has no adapter {number}; it has {len(self.names)}, from 0")
        return self.names[number]

    def _lora(self, shard: Any, row: int) -> LoraWeights:
        a, b = {}, {}
        for site in self.loaded.model.sites:
            first, second = factor_names(site.name)
            a[site.name] = shard.get_slice(first)[row : row + 1]
            b[site.name] = shard.get_slice(second)[row : row + 1]
        return LoraWeights(a, b, self.loaded.model.config.lora.scale)

    def _check_shard(self, file: str) -> None:
        """Compares a shard with its digest, once."""
        if file in self._checked:
            return
        path = self.folder / file
        if not path.is_file() or file_digest(path) != self._sha256[file]:
            raise AdapterFolderError(f"{path} is missing or damaged; make it again: tagi adapt --stacked true")
        self._checked.add(file)
