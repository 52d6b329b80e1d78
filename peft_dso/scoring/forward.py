"""One forward pass over questions: packed, plain, or with pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.functional import pad
from transformers import PaliGemmaProcessor

from .encode import EncodedQuestion, PicturedQuestion
from .pack import PackedQuestions
from .reading import compute_dtype, input_device, keeps_logits
from .terms import Reads, read_answers, read_branches, reads_at, terms_of
from .tokens import Tokens


@dataclass
class Scores:
    """
    What a model says to a batch of questions.

    Args:
        answers (`torch.Tensor`): log Pr[answer in any of its forms | prompt], shape `(questions, answers)`, -inf where
            a question has fewer answers than the widest. They exclude each other: their sum is at most 1.
        decision (`torch.Tensor`): log-probabilities of the next token where the prompt ends, shape
            `(questions, vocabulary)`.
        abstentions (`torch.Tensor`, *optional*): log-probability of all named ways of not answering, shape
            `(questions,)`, -inf where there are none; default none at all.
        branches (`torch.Tensor`, *optional*): what follows where a form has begun and more than one token decides
            the answer, shape `(questions, events, 2)` (see [`read_branches`]); default nothing.
    """

    answers: torch.Tensor
    decision: torch.Tensor
    abstentions: torch.Tensor = None  # type: ignore[assignment]
    branches: torch.Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.abstentions is None:
            self.abstentions = self.answers.new_full(self.answers.shape[:1], -torch.inf)
        if self.branches is None:
            self.branches = self.answers.new_zeros(len(self.answers), 0, 2)

    def __getitem__(self, questions: Any) -> Scores:
        """The scores of some of the questions: a slice, a list or a tensor of numbers."""
        return Scores(*(values[questions] for values in self._tensors()))

    def _tensors(self) -> tuple[torch.Tensor, ...]:
        return self.answers, self.decision, self.abstentions, self.branches

    def to(self, device: Any) -> Scores:
        """The same on a device."""
        return Scores(*(values.to(device) for values in self._tensors()))

    @staticmethod
    def joined(parts: Sequence[Scores]) -> Scores:
        """The scores of several batches, one behind the other."""
        answers, events = (max(part._tensors()[n].shape[1] for part in parts) for n in (0, 3))
        return Scores(
            torch.cat([pad(p.answers, (0, answers - p.answers.shape[1]), value=-torch.inf) for p in parts]),
            torch.cat([part.decision for part in parts]),
            torch.cat([part.abstentions for part in parts]),
            torch.cat([pad(p.branches, (0, 0, 0, events - p.branches.shape[1]), value=-torch.inf) for p in parts]),
        )


class Layout(Protocol):
    """Questions laid out for one forward pass."""

    @property
    def reads(self) -> Reads:
        """What is read of the kept positions of all rows, laid end to end."""

    @property
    def keep(self) -> int | torch.Tensor:
        """The kept positions of every row: the last so many, or their indices, counted from the end (-1 the last)."""

    def inputs(self, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """What the model's forward takes."""


@dataclass
class PlainQuestions:
    """
    Questions laid out in rows of their own.

    Args:
        input_ids (`torch.Tensor`): shape `(rows, length)`, padded on the right: what stands behind a token changes
            nothing there in any causal model, also in one with a recurrent state, which padding before it would.
        attention_mask (`torch.Tensor`): of the same shape.
        keep (`torch.Tensor`): the positions of which something is read in any row, counted from the end, so that they
            hold where an adapter puts tokens of its own before the row.
        reads (`Reads`): what is read there.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    keep: torch.Tensor
    reads: Reads

    def inputs(self, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        return {"input_ids": self.input_ids.to(device), "attention_mask": self.attention_mask.to(device)}


@dataclass
class PicturedQuestions:
    """
    Questions with pictures as the processor prepares them, what stands behind their prompts added.

    Args:
        tensors (`dict[str, torch.Tensor]`): what the processor makes, padded on the left.
        keep (`int`): the last `keep` positions of each row hold everything that is read.
        reads (`Reads`): what is read there.
    """

    tensors: dict[str, torch.Tensor]
    keep: int
    reads: Reads

    def inputs(self, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        return _moved(self.tensors, device, dtype)


def score_layout(model: nn.Module, layout: Layout) -> Scores:
    """
    One forward pass over laid out questions; differentiable.

    Args:
        model (`nn.Module`): a causal language model, or a vision-language model.
        layout (`Layout`): from [`pack`], [`lay_out`] or [`lay_out_pictured`].

    Returns:
        `Scores`: in float32, on the model's device.
    """
    keep, device = layout.keep, input_device(model)
    inputs: dict[str, Any] = layout.inputs(device, compute_dtype(model))
    if keeps_logits(model):  # a large vocabulary at every token would be most of the memory
        inputs["logits_to_keep"] = keep if isinstance(keep, int) else keep.to(device)
    logits = model(**inputs, use_cache=False).logits
    if isinstance(keep, int):  # some models take `logits_to_keep` and return all of them
        logits = logits[:, -keep:]
    elif logits.shape[1] != len(keep):
        logits = logits[:, keep.to(logits.device)]
    reads = layout.reads
    log_probs = logits.flatten(0, 1)[reads.places.to(logits.device)].float().log_softmax(-1)
    answers = read_answers(log_probs, reads)
    decision = log_probs[reads.decision.to(log_probs.device)]
    return Scores(answers[:, :-1], decision, answers[:, -1], read_branches(log_probs, reads))


def score_packed(model: nn.Module, packed: PackedQuestions) -> Scores:
    """One forward pass over packed questions; differentiable. See [`score_layout`]."""
    return score_layout(model, packed)


def score_plain(model: nn.Module, questions: Sequence[EncodedQuestion]) -> Scores:
    """
    The same as [`score_packed`] without packing, each prompt with each answer on its own. For models that cannot read
    a trie, and to check that one can.
    """
    return score_layout(model, lay_out(questions))


def score_pictured(model: nn.Module, questions: Sequence[PicturedQuestion]) -> Scores:
    """
    The same as [`score_plain`] for questions with pictures: one row per question, and one more for each further answer
    of several tokens.
    """
    return score_layout(model, lay_out_pictured(questions))


def _rows(questions: Sequence[EncodedQuestion]) -> list[tuple[int, Tokens]]:
    """Question and what stands behind its prompt, of every row that takes: a place that begins another needs none."""
    rows = []
    for number, question in enumerate(questions):
        places = terms_of(question).places
        begun = {place[:-1] for place in places if place}
        rows += [(number, place) for place in places if place not in begun]
    return rows


def _kept(
    questions: Sequence[EncodedQuestion], rows: Sequence[tuple[int, Tokens]], position: Any
) -> list[dict[Tokens, int]]:
    """Of each question the kept position of each place: `position(row, question, length of the place)`."""
    kept: list[dict[Tokens, int]] = [{} for _ in questions]
    for row, (number, place) in enumerate(rows):
        for length in range(len(place) + 1):
            kept[number].setdefault(place[:length], position(row, number, length))
    return kept


def lay_out(questions: Sequence[EncodedQuestion]) -> PlainQuestions:
    """
    Lay questions out each in rows of its own.

    Args:
        questions (`Sequence[EncodedQuestion]`): at least one.

    Returns:
        `PlainQuestions`: on the CPU.
    """
    rows = _rows(questions)
    sequences = [questions[number].prompt + place for number, place in rows]
    input_ids = torch.zeros(len(rows), max(map(len, sequences)), dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    read = {}
    for row, ((number, _), sequence) in enumerate(zip(rows, sequences, strict=True)):
        input_ids[row, : len(sequence)] = torch.tensor(sequence)
        attention_mask[row, : len(sequence)] = 1
        read.update(dict.fromkeys(range(len(questions[number].prompt) - 1, len(sequence))))
    column = {position: index for index, position in enumerate(sorted(read))}

    def position(row: int, number: int, length: int) -> int:
        return row * len(column) + column[len(questions[number].prompt) - 1 + length]

    return PlainQuestions(
        input_ids,
        attention_mask,
        torch.tensor(list(column)) - input_ids.shape[1],
        reads_at(questions, _kept(questions, rows, position)),
    )


def lay_out_pictured(questions: Sequence[PicturedQuestion]) -> PicturedQuestions:
    """
    Lay questions with pictures out as their processor prepares them.

    Args:
        questions (`Sequence[PicturedQuestion]`): at least one, all of one processor.

    Returns:
        `PicturedQuestions`: on the CPU.
    """
    rows = _rows(questions)
    processor = questions[0].processor
    inputs = pictured_inputs(processor, [questions[number] for number, _ in rows])
    inputs.pop("labels", None)  # PaliGemma's processor adds them
    shape, longest = inputs["input_ids"].shape, max(len(place) for _, place in rows)
    if longest:
        behind = torch.zeros(len(rows), longest, dtype=torch.long)
        there = torch.zeros_like(behind)
        for row, (_, place) in enumerate(rows):
            behind[row, : len(place)] = torch.tensor(place, dtype=torch.long)
            there[row, : len(place)] = 1
        more = {"input_ids": behind, "attention_mask": there}
        if isinstance(processor, PaliGemmaProcessor):  # which marks what is read at once with 0, what is said with 1
            more["token_type_ids"] = torch.ones_like(behind)
        for key, value in inputs.items():
            if isinstance(value, torch.Tensor) and value.shape == shape:
                inputs[key] = torch.cat([value, more.get(key, torch.zeros_like(behind)).to(value.dtype)], 1)
    kept = _kept(questions, rows, lambda row, number, length: row * (longest + 1) + length)
    tensors = {key: value for key, value in inputs.items() if isinstance(value, torch.Tensor)}
    return PicturedQuestions(tensors, longest + 1, reads_at(questions, kept))


def pictured_inputs(processor: Any, questions: Sequence[PicturedQuestion]) -> dict[str, Any]:
    """What the processor makes of some questions with pictures, padded on the left."""
    side, processor.tokenizer.padding_side = processor.tokenizer.padding_side, "left"
    try:
        return dict(
            processor(
                text=[question.text for question in questions],
                images=[list(question.images) for question in questions],
                padding=True,
                return_tensors="pt",
                add_special_tokens=False,  # the chat template has put them there
            )
        )
    finally:
        processor.tokenizer.padding_side = side


def left_padded(prompts: Sequence[Sequence[int]], pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences of tokens as `input_ids` and `attention_mask`, padded on the left, shape `(prompts, longest)`."""
    longest = max(map(len, prompts))
    input_ids = torch.full((len(prompts), longest), pad)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        attention_mask[row, longest - len(prompt) :] = 1
    return input_ids, attention_mask


def on_model(inputs: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """The tensors among some inputs, on the model's device, those of pictures in its dtype."""
    return _moved(inputs, input_device(model), compute_dtype(model))


def _moved(inputs: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    return {
        key: value.to(device, dtype if value.is_floating_point() else None)
        for key, value in inputs.items()
        if isinstance(value, torch.Tensor)
    }
