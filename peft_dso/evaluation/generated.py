"""Answers that a model writes, read from its text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..answers import read_row
from ..scoring import (
    EncodedQuestion,
    PicturedQuestion,
    encode_row,
    evaluating,
    left_padded,
    on_model,
    pictured_inputs,
)


@torch.no_grad()
def generate_texts(
    model: nn.Module,
    processor: Any,
    encoded: Sequence[EncodedQuestion],
    max_new_tokens: int = 16,
    batch_size: int = 16,
    progress: Callable[[int], Any] = lambda n: None,
    **generate_kwargs: Any,
) -> list[str]:
    """
    What a model writes after each prompt, greedily unless told otherwise.

    Args:
        model (`nn.Module`): a model with `generate`.
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): its tokenizer or processor.
        encoded (`Sequence[EncodedQuestion]`): the prompts.
        max_new_tokens (`int`, defaults to 16): longest text.
        batch_size (`int`, defaults to 16): prompts per batch.
        progress (`Callable`): called with the number of prompts done.
        **generate_kwargs: further arguments of `generate`, such as `do_sample=True`.

    Returns:
        `list[str]`: the texts, in the order of the prompts.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    texts = [""] * len(encoded)
    kinds = (
        [n for n, q in enumerate(encoded) if not isinstance(q, PicturedQuestion)],
        [n for n, q in enumerate(encoded) if isinstance(q, PicturedQuestion)],
    )
    with evaluating(model):
        for pictured, numbers in enumerate(kinds):
            numbers = sorted(numbers, key=lambda n: len(encoded[n].prompt))
            for begin in range(0, len(numbers), batch_size):
                batch = numbers[begin : begin + batch_size]
                inputs: dict[str, Any]
                if pictured:
                    inputs = pictured_inputs(processor, [encoded[n] for n in batch])  # type: ignore[misc]
                else:
                    inputs = dict(
                        zip(
                            ("input_ids", "attention_mask"),
                            left_padded([encoded[n].prompt for n in batch], pad),
                            strict=True,
                        )
                    )
                inputs = on_model(inputs, model)
                settings = {"do_sample": False, "max_new_tokens": max_new_tokens, "pad_token_id": pad}
                written: Any = model.generate(**inputs, **{**settings, **generate_kwargs})  # type: ignore[operator]
                new = written[:, inputs["input_ids"].shape[1] :]
                for number, text in zip(batch, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                    texts[number] = text
                progress(len(batch))
    return texts


def generated_answers(
    model: nn.Module,
    processor: Any,
    rows: Sequence[Mapping[str, Any]],
    max_new_tokens: int = 16,
    progress: Callable[[int], Any] = lambda n: None,
) -> np.ndarray:
    """
    Which answers a model gives in words, in any of their forms.

    Args:
        model (`nn.Module`): a model with `generate`.
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): its tokenizer or processor.
        rows (`Sequence[Mapping]`): questions.
        max_new_tokens (`int`, defaults to 16): longest answer.
        progress (`Callable`): called with the number of questions done.

    Returns:
        `np.ndarray`: as log-probabilities, shape `(questions, answers)`: 0 for the answer given and -inf for the
        others; all -inf where none was given, or several.
    """
    return generated(model, processor, rows, max_new_tokens, progress)[0]


def generated(
    model: nn.Module,
    processor: Any,
    rows: Sequence[Mapping[str, Any]],
    max_new_tokens: int = 16,
    progress: Callable[[int], Any] = lambda n: None,
) -> tuple[np.ndarray, np.ndarray]:
    """
    [`generated_answers`], and which questions were answered by a named abstention.

    Returns:
        As log-probabilities, the answers, shape `(questions, answers)`, and the named abstentions, shape
        `(questions,)`.
    """
    encoded = [encode_row(processor, row) for row in rows]
    said = np.full((len(rows), max(len(row["answers"]) for row in rows)), -np.inf)
    abstained = np.full(len(rows), -np.inf)
    texts = generate_texts(model, processor, encoded, max_new_tokens, progress=progress)
    for number, (row, text) in enumerate(zip(rows, texts, strict=True)):
        given = read_row(text, row)
        if given == len(row["answers"]):
            abstained[number] = 0.0
        elif given is not None:
            said[number, given] = 0.0
    return said, abstained
