"""What the trained model and its base say to the rows of a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Optional

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from transformers.utils import logging

from ..scoring import (
    EncodedQuestion,
    PicturedQuestion,
    Scores,
    check_readable,
    check_reads_pictures,
    encode_row,
    evaluating,
    reads_tries,
    row_images,
    score_batch,
)
from .reference import Reference


logger = logging.get_logger(__name__)


class Scorer:
    """
    Scores rows with the model in training and with its base.

    Args:
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): the model's.
        accelerator (`Accelerator`): of the trainer.
        half (`bool`): whether the model computes in half precision, which its weights alone do not tell.
        chat_template_kwargs (`Mapping`, *optional*): for the chat template, such as `{"enable_thinking": False}`.
    """

    def __init__(
        self,
        processor: Any,
        accelerator: Accelerator,
        half: bool = False,
        chat_template_kwargs: Optional[Mapping[str, Any]] = None,
    ) -> None:
        self.processor = processor
        self.accelerator = accelerator
        self.half = half
        self.options = {"chat_template_kwargs": dict(chat_template_kwargs)} if chat_template_kwargs else {}
        self.packs: Optional[bool] = None
        self.reference: Optional[Reference] = None

    def encode(self, row: Mapping[str, Any]) -> EncodedQuestion:
        """
        A row as token ids. Training asks for the answers alone: to follow every way of not answering to its end takes
        half of the time and most of the memory.
        """
        return encode_row(self.processor, row, **self.options).answers_only()

    def check(self, model: nn.Module, rows: Sequence[Mapping[str, Any]]) -> None:
        """
        Encode every row once, so that what cannot be read is said before the first step.

        Raises:
            ValueError: a row cannot be encoded, has pictures that the model cannot read, or is longer than its
                positions.
        """
        if any(row_images(row) for row in rows):
            check_reads_pictures(model)
        check_readable(model, [self.encode(row) for row in rows])

    def decide(self, model: nn.Module, rows: Sequence[Mapping[str, Any]]) -> None:
        """
        Find out, once and for all processes alike, whether text is laid out as tries.

        Args:
            model (`nn.Module`): as it is trained, perhaps wrapped for several devices.
            rows (`Sequence[Mapping]`): such as those to come; the same on every process.
        """
        text = [q for q in map(self.encode, rows) if not isinstance(q, PicturedQuestion)]
        mine = bool(text) and reads_tries(model, text, self.half or None)
        self.packs = all(gather_object([mine]))
        if text and not self.packs:
            logger.warning(
                "This model does not read several texts in one row (a mask and positions of their own): every text "
                "and every answer takes a row, several times the memory and the time. Smaller batches help."
            )

    def score(self, model: nn.Module, encoded: Sequence[EncodedQuestion]) -> Scores:
        """One differentiable forward pass."""
        return score_batch(model, encoded, bool(self.packs))

    def base(self, model: nn.Module, encoded: Sequence[EncodedQuestion]) -> Scores:
        """What the base (the adapter off) says, without gradient; computed once for each question."""
        if self.reference is None:
            # A forward pass of a sharded model is all processes' together.
            self.reference = Reference(lambda few: self.run_base(model, few), self.accelerator.num_processes == 1)
        return self.reference(encoded)

    @torch.no_grad()
    def run_base(self, model: nn.Module, encoded: Sequence[EncodedQuestion]) -> Scores:
        """One forward pass of the base."""
        with self.as_base(model):
            return self.score(model, encoded)

    @contextmanager
    def as_base(self, model: nn.Module) -> Iterator[None]:
        """While it is open the model is the base, in evaluation mode; gradients of its parameters are nobody's."""
        unwrapped: Any = self.accelerator.unwrap_model(model)
        with evaluating(unwrapped), unwrapped.disable_adapter(), self.accelerator.no_sync(model):
            yield
