"""A LoRA trained further on a few examples, beside the same training from scratch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tagi_lightning.adapter import TaskAdapter
from tagi_lightning.data.batch import Tokens, pad_labels
from tagi_lightning.data.instruction import Instruction
from tagi_lightning.data.labelled import LabelledInput
from tagi_lightning.data.ranges import check_range
from tagi_lightning.evaluation.metrics import exact_match, rouge
from tagi_lightning.inference.instructed import InstructedAdapter, InstructedModel
from tagi_lightning.lora import LoraWeights, initial_a
from tagi_lightning.losses import prediction_loss
from tagi_lightning.markdown import aligned_table
from tagi_lightning.peft_io.exporting import pieces_besides_lora


@dataclass(frozen=True)
class FinetuneConfig:
    """How a LoRA is trained; the same from both starts."""

    steps: int = 100
    """Steps; 0 for none, which scores the starts."""
    lr: float = 1e-3
    """Learning rate of AdamW; it stays the same."""
    batch_size: int = 8
    """Examples a step."""
    held_out: float = 0.25
    """Share of the examples that are scored and not trained on."""
    seed: int = 0
    """Draws which examples are held out, their order, and the start from scratch."""

    def __post_init__(self) -> None:
        check_range({"steps": self.steps}, least=0)
        check_range({"batch_size": self.batch_size}, least=1)
        check_range({"lr": self.lr}, above=0)
        check_range({"held_out": self.held_out}, above=0, below=1)


@dataclass(frozen=True)
class Scores:
    """How an adapter does on the held-out examples.

    Attributes:
        loss: Mean cross entropy per example.
        exact_match: 0 to 100.
        rougeL: 0 to 100.
    """

    loss: float
    exact_match: float
    rougeL: float


@dataclass(frozen=True)
class FinetuneReport:
    """What training gave.

    Attributes:
        config: How it trained.
        trained_on: Examples that were trained on.
        held_out: Examples that were scored.
        rows: Scores by what was scored, in the order of a table.
    """

    config: FinetuneConfig
    trained_on: int
    held_out: int
    rows: dict[str, Scores]

    def to_json(self) -> dict[str, Any]:
        """Returns the report in JSON's types."""
        return asdict(self)

    def table(self) -> str:
        """Returns the rows as a table of Markdown."""
        lines = [["held out", "loss", "exact match", "ROUGE-L"]]
        for name, each in self.rows.items():
            lines.append([name, f"{each.loss:.3f}", f"{each.exact_match:.1f}", f"{each.rougeL:.1f}"])
        return aligned_table(lines)


class Finetuner:
    """Trains the LoRA of one instruction on the backbone alone, without fusion and memory, as PEFT will run it."""

    def __init__(self, loaded: InstructedModel, config: FinetuneConfig = FinetuneConfig()) -> None:
        """Takes the model, whose way of decoding its answers are scored by, and how to train."""
        self.loaded, self.config = loaded, config

    def run(self, adapter: InstructedAdapter, examples: Sequence[LabelledInput]) -> tuple[LoraWeights, FinetuneReport]:
        """Trains from the generated LoRA and from scratch; returns the former with the report of both.

        Args:
            adapter: What an instruction became.
            examples: The examples.

        Raises:
            ValueError: If there are too few examples to hold any out, or nothing is generated to start from.
        """
        if adapter.lora is None:
            raise ValueError("this model generates no LoRA to start from")
        train, held_out = split_examples(examples, self.config)
        instruction, start = adapter.instruction, adapter.lora
        scratch = self.scratch(start)
        trained = self.train(start, instruction, train)
        from_scratch = self.train(scratch, instruction, train)
        measured: dict[str, TaskAdapter] = {"backbone, no adapter": TaskAdapter()}
        if pieces_besides_lora(self.loaded.model):
            measured["generated, with all that belongs to it"] = adapter.prepared
        measured |= {
            "generated LoRA": TaskAdapter(start),
            f"generated LoRA, {self.config.steps} steps": TaskAdapter(trained),
            f"from scratch, {self.config.steps} steps": TaskAdapter(from_scratch),
        }
        rows = {name: self.score(each, instruction, held_out) for name, each in measured.items()}
        return trained, FinetuneReport(self.config, len(train), len(held_out), rows)

    def scratch(self, like: LoraWeights) -> LoraWeights:
        """Returns PEFT's start in the shapes of `like`: a random A and B = 0."""
        model = self.loaded.model
        device = model.backbone.model.device
        a = {site.name: initial_a(site, model.config.lora)[None].to(device) for site in model.sites}
        return LoraWeights(a, {site: torch.zeros_like(factor) for site, factor in like.b.items()}, like.scale)

    def train(self, start: LoraWeights, instruction: Instruction, examples: Sequence[LabelledInput]) -> LoraWeights:
        """Returns `start` after the steps; the batches are the same from every start."""
        a, b = ({site: factor.clone().requires_grad_() for site, factor in each.items()} for each in (start.a, start.b))
        optimizer = torch.optim.AdamW([*a.values(), *b.values()], self.config.lr)
        adapter = TaskAdapter(LoraWeights(a, b, start.scale))
        for batch in self._batches(examples):
            loss = self._losses(adapter, instruction, batch).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert adapter.lora is not None
        return adapter.lora.detach()

    def _batches(self, examples: Sequence[LabelledInput]) -> Iterator[Sequence[LabelledInput]]:
        """Yields one batch a step, epoch after epoch, each in an order of its own."""
        size = min(self.config.batch_size, len(examples))
        queue: list[LabelledInput] = []
        for step in range(self.config.steps):
            if len(queue) < size:
                order = random.Random(f"{self.config.seed}/{step}/finetune").sample(examples, len(examples))
                queue += order
            yield queue[:size]
            del queue[:size]

    def _losses(self, adapter: TaskAdapter, instruction: Instruction, batch: Sequence[LabelledInput]) -> Tensor:
        """Returns the cross entropy of each example's first reference [B]."""
        loaded, device = self.loaded, self.loaded.model.backbone.model.device
        rows = loaded.input_rows([instruction] * len(batch), [each.input for each in batch])
        pad_id = loaded.tokenizer.pad_token_id
        assert isinstance(pad_id, int)
        inputs = Tokens.pad(rows, pad_id).to(device)
        labels = pad_labels(loaded.prompts.targets(loaded.tokenizer, [each.references[0] for each in batch])).to(device)
        tasks = torch.zeros(len(batch), dtype=torch.long, device=device)
        return prediction_loss(loaded.model(inputs, labels, adapter, tasks), labels)

    @torch.no_grad()
    def score(self, adapter: TaskAdapter, instruction: Instruction, examples: Sequence[LabelledInput]) -> Scores:
        """Returns how an adapter does on examples."""
        losses: list[float] = []
        texts: list[str] = []
        size = self.config.batch_size
        for start in range(0, len(examples), size):
            batch = examples[start : start + size]
            losses += self._losses(adapter, instruction, batch).tolist()
            tasks, inputs = [0] * len(batch), [each.input for each in batch]
            texts += self.loaded.answer(adapter, [instruction], tasks, inputs, self.loaded.generation).texts
        pairs = list(zip(texts, (each.references for each in examples), strict=True))
        return Scores(
            sum(losses) / len(losses),
            100 * sum(exact_match(text, references) for text, references in pairs) / len(pairs),
            100 * sum(rouge(text, references)["rougeL"] for text, references in pairs) / len(pairs),
        )


def split_examples(
    examples: Sequence[LabelledInput], config: FinetuneConfig
) -> tuple[list[LabelledInput], list[LabelledInput]]:
    """Returns which examples are trained on and which are held out.

    Raises:
        ValueError: If there are fewer than two.
    """
    if len(examples) < 2:
        raise ValueError(f"finetuning needs two examples at least, one of them to be held out; got {len(examples)}")
    order = random.Random(f"{config.seed}/held out").sample(examples, len(examples))
    count = min(max(1, round(config.held_out * len(order))), len(order) - 1)
    return order[count:], order[:count]
