"""Plain text for pretraining: a backbone's objectives, or the hypernetwork's a·b·c."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
from transformers import PreTrainedTokenizerFast

from data_modules.instruction import InstructionDataModule
from data_modules.loader import ResumableLoader
from tagi_lightning.data.causal_prompts import PromptKind
from tagi_lightning.data.epochs import EpochSampler
from tagi_lightning.data.pretraining import (
    MIN_LENGTH,
    DenoisingCollator,
    MixedCollator,
    MixedDataset,
    MixedSampler,
    SegmentCollator,
    sentinel_ids,
)
from tagi_lightning.data.ranges import check_range
from tagi_lightning.data.text import (
    DocumentUnit,
    TextBatchSampler,
    TextSequences,
    TokenizedText,
    load_or_tokenize_text,
    split_documents,
)
from tagi_lightning.data.tokenizer import load_tokenizer


class PlainTextDataModule(L.LightningDataModule):
    """Plain text cut into a·b·c (eq. 3): `TaskBatch` whose tasks are the examples themselves, T = B.

    The Trainer needs `use_distributed_sampler=False`, as with `InstructionDataModule`.
    """

    together: int = 1
    """Batches of training that the devices read at once."""

    def __init__(
        self,
        corpora: list[str],
        tokenizer: str,
        batch_size: int = 8,
        eval_batch_size: int = 32,
        max_length: int = 1024,
        document_unit: DocumentUnit = "paragraph",
        val_share: float = 0.01,
        max_val_sequences: int = 512,
        seed: int = 0,
        num_workers: int = 0,
        cache_dir: str = ".cache",
        pool_batches: int = 100,
        prompt: PromptKind = "t5",
    ) -> None:
        """Takes the settings; nothing is read before `prepare_data`.

        Args:
            corpora: Files of plain text (.txt, or .jsonl with a `text` in each row) or folders of them.
            tokenizer: Tokenizer folder or hub id.
            batch_size: Sequences in a training batch over all devices.
            eval_batch_size: Sequences in a validation batch over all devices.
            max_length: Tokens of a sequence at most; longer documents are cut into several.
            document_unit: What one document of a .txt file is: lines between blank ones, or the whole file.
            val_share: Share of the documents held out for validation, one at least.
            max_val_sequences: Sequences of the held-out documents that validation reads at most.
            seed: Decides what is held out, the order and all draws.
            num_workers: Processes that build batches; they change nothing but speed.
            cache_dir: Where the token cache lies.
            pool_batches: Batches among which sequences are sorted by length: more pads less, fewer mixes better.
            prompt: Whom segments are for: with t5 all end with EOS, with causal and chat only targets do.

        Raises:
            ValueError: If an option is out of its range.
        """
        super().__init__()
        check_range({"max_length": max_length}, least=MIN_LENGTH)
        check_range({"val_share": val_share}, above=0, below=1)
        counts = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "pool_batches": pool_batches}
        check_range(counts | {"max_val_sequences": max_val_sequences}, least=1)
        check_range({"num_workers": num_workers}, least=0)
        self.corpora, self.tokenizer_name = [Path(path) for path in corpora], tokenizer
        self.batch_size, self.eval_batch_size, self.max_length = batch_size, eval_batch_size, max_length
        self.document_unit, self.val_share, self.max_val_sequences = document_unit, val_share, max_val_sequences
        self.seed, self.num_workers, self.pool_batches = seed, num_workers, pool_batches
        self.cache_dir, self.prompt = Path(cache_dir), prompt

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer."""
        return load_tokenizer(self.tokenizer_name)

    @cached_property
    def text(self) -> TokenizedText:
        """All documents, tokenised."""
        return load_or_tokenize_text(self.corpora, self.tokenizer, self.cache_dir, self.document_unit)

    @cached_property
    def sequences(self) -> tuple[TextSequences, TextSequences]:
        """Training and validation sequences."""
        train, held_out = (
            TextSequences.cut(self.text, documents, self.max_length, MIN_LENGTH)
            for documents in split_documents(len(self.text), self.val_share, self.seed)
        )
        if not len(train) or not len(held_out):
            raise ValueError(
                f"the corpora give {len(train)} training and {len(held_out)} validation sequences of at least "
                f"{MIN_LENGTH} tokens; both are needed: add text or change val_share"
            )
        limit = self.max_val_sequences
        return train, TextSequences(self.text, held_out.starts[:limit], held_out.ends[:limit])

    def prepare_data(self) -> None:
        """Tokenises the corpora into the cache."""
        len(self.text)

    def setup(self, stage: str) -> None:
        """Opens what `prepare_data` tokenised.

        Args:
            stage: Any of Lightning's.
        """
        len(self.sequences)

    def train_dataloader(self) -> ResumableLoader:
        """Returns training batches, in an order by (seed, epoch)."""
        return self._train_loader(self.sequences[0], self._train_sampler, self._collator)

    def val_dataloader(self) -> ResumableLoader:
        """Returns batches of held-out documents, the same in every epoch."""
        sequences = self.sequences[1]
        sampler = TextBatchSampler(sequences.lengths, self.eval_batch_size, None, 1, *self._place)
        return self._loader(sequences, sampler, self._collator)

    @property
    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    @property
    def _train_sampler(self) -> EpochSampler:
        lengths = self.sequences[0].lengths
        return TextBatchSampler(lengths, self.batch_size, self.seed, self.pool_batches, *self._place)

    @property
    def _collator(self) -> Callable[[Any], Any]:
        tokenizer = self.tokenizer
        return SegmentCollator(tokenizer.pad_token_id, tokenizer.eos_token_id, self.seed, self.prompt == "t5")

    def _train_loader(self, dataset: Any, sampler: EpochSampler, collator: Callable[[Any], Any]) -> ResumableLoader:
        sampler.together = self.together
        return self._loader(dataset, sampler, collator)

    def _loader(self, dataset: Any, sampler: EpochSampler, collator: Callable[[Any], Any]) -> ResumableLoader:
        return ResumableLoader(dataset, batch_sampler=sampler, collate_fn=collator, num_workers=self.num_workers)


class BackboneDataModule(PlainTextDataModule):
    """What a backbone is pretrained on, as `TextBatch`: plain text, and optionally tasks with their instruction."""

    def __init__(
        self,
        corpora: list[str],
        tokenizer: str,
        span_corruption: float = 1.0,
        prefix_lm: float = 1.0,
        instruct: float = 0.0,
        tasks: InstructionDataModule | None = None,
        **kwargs: Any,
    ) -> None:
        """Takes the settings; nothing is read before `prepare_data`.

        Args:
            corpora: Files of plain text (.txt, or .jsonl with a `text` in each row) or folders of them.
            tokenizer: Tokenizer folder or hub id.
            span_corruption: Weight of T5's denoising.
            prefix_lm: Weight of prefix language modelling.
            instruct: Weight of batches of training tasks with the instruction concatenated; where positive, an epoch
                is one pass through the tasks, with as many batches of text between them as the weights say.
            tasks: The tasks of `instruct`, with_prompt=true.
            **kwargs: As for plain text.
        """
        super().__init__(corpora, tokenizer, prompt="t5", **kwargs)
        check_range({"span_corruption": span_corruption, "prefix_lm": prefix_lm, "instruct": instruct}, least=0)
        if span_corruption + prefix_lm + instruct == 0:
            raise ValueError("span_corruption, prefix_lm and instruct are all 0: nothing would be trained")
        if instruct > 0 and (tasks is None or not tasks.with_prompt):
            raise ValueError("instruct needs tasks with tasks.with_prompt=true")
        self.text_weight, self.instruct, self.tasks = span_corruption + prefix_lm, instruct, tasks
        self.span_corruption_share = span_corruption / self.text_weight if self.text_weight else 1.0

    def prepare_data(self) -> None:
        """Tokenises the tasks, whose folder may hold the corpora, and the corpora into their caches."""
        if self.tasks is not None:
            self.tasks.prepare_data()
        super().prepare_data()

    def train_dataloader(self) -> ResumableLoader:
        """Returns training batches of text, mixed with batches of tasks."""
        if not self.instruct or self.tasks is None:
            return super().train_dataloader()
        tasks = self.tasks.train_dataloader()
        ratio = self.text_weight / self.instruct
        sampler = MixedSampler(tasks.batch_sampler, self._train_sampler, ratio, self.seed, *self._place)
        collator = MixedCollator(tasks.collate_fn, self._collator)
        return self._train_loader(MixedDataset(tasks.dataset, self.sequences[0]), sampler, collator)

    @property
    def _collator(self) -> Callable[[Any], Any]:
        tokenizer = self.tokenizer
        return DenoisingCollator(
            pad_id=tokenizer.pad_token_id,
            eos_id=tokenizer.eos_token_id,
            sentinels=tuple(sentinel_ids(tokenizer)),
            span_corruption_share=self.span_corruption_share,
            seed=self.seed,
        )
