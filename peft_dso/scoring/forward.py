"""One forward pass over questions: packed, plain, or with pictures."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .encode import EncodedQuestion, PicturedQuestion
from .pack import PackedQuestions


@dataclass
class Scores:
    """
    What a model says to a batch of questions.

    Args:
        answers (`torch.Tensor`): log Pr[answer | prompt], shape `(questions, answers)`, -inf where a question has
            fewer answers than the widest.
        decision (`torch.Tensor`): log-probabilities of the next token where the answer is decided, shape
            `(questions, vocabulary)`.
    """

    answers: torch.Tensor
    decision: torch.Tensor


def score_packed(model: nn.Module, packed: PackedQuestions) -> Scores:
    """
    One forward pass over packed questions; differentiable.

    Args:
        model (`nn.Module`): a causal language model.
        packed (`PackedQuestions`): from [`pack`].

    Returns:
        `Scores`: in float32, on the model's device.
    """
    device, dtype = next(model.parameters()).device, _compute_dtype(model)
    hidden = torch.zeros(packed.visible.shape, dtype=dtype).masked_fill(~packed.visible, torch.finfo(dtype).min)
    logits = model(
        input_ids=packed.input_ids.to(device),
        position_ids=packed.position_ids.to(device),
        attention_mask=hidden.to(device),
        use_cache=False,
        logits_to_keep=packed.keep,
    ).logits
    flat = logits.flatten(0, 1)
    places, inverse = torch.unique(torch.cat([packed.decision, packed.reads[:, 2]]), return_inverse=True)
    log_probs = flat[places.to(device)].float().log_softmax(-1)
    n = len(packed.decision)
    question, answer, _, token = packed.reads.to(device).unbind(1)
    read = log_probs[inverse[n:].to(device), token]
    answers = read.new_zeros(n, packed.answers).index_put((question, answer), read, accumulate=True)
    present = torch.zeros_like(answers, dtype=torch.bool).index_put(
        (question, answer), torch.tensor(True, device=device)
    )
    return Scores(answers.masked_fill(~present, -torch.inf), log_probs[inverse[:n].to(device)])


def _compute_dtype(model: nn.Module) -> torch.dtype:
    """The dtype that the attention mask must have: the model's own, also when its weights are quantised."""
    dtype = getattr(model, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else torch.float32


def score_plain(model: nn.Module, questions: Sequence[EncodedQuestion]) -> Scores:
    """
    The same as [`score_packed`] without packing: each prompt with each answer on its own, left-padded. For models that
    cannot read a trie, and to check that one can.
    """
    device = next(model.parameters()).device
    rows: dict[tuple[int, ...], int] = {}
    for q in questions:
        for sequence in [q.prompt, *(q.prompt + answer[:-1] for answer in q.answers)]:
            rows.setdefault(sequence, len(rows))
    keep = max(len(answer) for q in questions for answer in (*q.answers, (0,)))
    input_ids, attention_mask = left_padded(list(rows))
    logits = model(
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0).to(device),
        use_cache=False,
        logits_to_keep=keep,
    ).logits
    log_probs = logits.float().log_softmax(-1)
    widest = max(len(q.answers) for q in questions)
    answers = []
    for q in questions:
        values = []
        for answer in q.answers:
            places = torch.arange(keep - len(answer), keep, device=device)
            tokens = torch.tensor(answer, device=device)
            values.append(log_probs[rows[q.prompt + answer[:-1]], places, tokens].sum())
        values += [log_probs.new_tensor(-torch.inf)] * (widest - len(values))
        answers.append(torch.stack(values) if values else log_probs.new_empty(0))
    decisions = log_probs[[rows[q.prompt] for q in questions], -1]
    return Scores(torch.stack(answers), decisions)


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


def on_model(inputs: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """The tensors among some inputs, on the model's device, those of pictures in its dtype."""
    device, floating = next(model.parameters()).device, _compute_dtype(model)
    return {
        key: value.to(device, floating if value.is_floating_point() else None)
        for key, value in inputs.items()
        if isinstance(value, torch.Tensor)
    }


def left_padded(prompts: Sequence[Sequence[int]], pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences of tokens as `input_ids` and `attention_mask`, padded on the left, shape `(prompts, longest)`."""
    longest = max(map(len, prompts))
    input_ids = torch.full((len(prompts), longest), pad)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        attention_mask[row, longest - len(prompt) :] = 1
    return input_ids, attention_mask


def _keeps_logits(model: Any) -> bool:
    """Whether the model's forward can be told to compute the last logits only."""
    model = getattr(model, "module", model)  # of a wrapper for several devices
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def score_pictured(model: nn.Module, questions: Sequence[PicturedQuestion]) -> Scores:
    """
    The same as [`score_plain`] for questions with pictures: one row per question, and one more for each answer of
    several tokens.
    """
    rows: list[tuple[int, tuple[int, ...]]] = []  # question, what stands behind its prompt
    for number, q in enumerate(questions):
        rows += [(number, tokens) for tokens in dict.fromkeys([(), *(answer[:-1] for answer in q.answers)])]
    inputs = pictured_inputs(questions[0].processor, [questions[number] for number, _ in rows])
    shape, longest = inputs["input_ids"].shape, max(len(tokens) for _, tokens in rows)
    if longest:
        behind = torch.zeros(len(rows), longest, dtype=torch.long)
        there = torch.zeros_like(behind)
        for row, (_, tokens) in enumerate(rows):
            behind[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
            there[row, : len(tokens)] = 1
        more = {"input_ids": behind, "attention_mask": there}
        for key, value in inputs.items():
            if isinstance(value, torch.Tensor) and value.shape == shape:
                inputs[key] = torch.cat([value, more.get(key, torch.zeros_like(behind)).to(value.dtype)], 1)
    inputs = on_model(inputs, model)
    if _keeps_logits(model):  # a large vocabulary at every token of a picture would be most of the memory
        inputs["logits_to_keep"] = longest + 1
    log_probs = model(**inputs, use_cache=False).logits[:, -longest - 1 :].float().log_softmax(-1)
    row_of = {row: index for index, row in enumerate(rows)}
    widest = max(len(q.answers) for q in questions)
    answers = log_probs.new_full((len(questions), widest), -torch.inf)
    for number, q in enumerate(questions):
        for place, answer in enumerate(q.answers):
            read = log_probs[row_of[number, answer[:-1]], torch.arange(len(answer)), torch.tensor(answer)].sum()
            answers = answers.index_put((torch.tensor(number), torch.tensor(place)), read)
    return Scores(answers, log_probs[[row_of[number, ()] for number in range(len(questions))], 0])
