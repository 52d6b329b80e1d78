"""
Log-probabilities of given answers, in one forward pass per prompt.

Prompts of one task begin alike ("The nurse said that", "The nurse was late because"). They are laid out as a trie:
each distinct prefix is computed once, a token attends to its own ancestors only, and its position is its depth. What
is read off is what each prompt alone would give.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import nn


# Tokens of one packed row. Attention costs the square of it, so that longer rows gain nothing.
ROW_TOKENS = 256


@dataclass(frozen=True)
class EncodedQuestion:
    """
    Token ids of one question.

    Args:
        prompt (`tuple[int, ...]`): at least one token.
        answers (`tuple[tuple[int, ...], ...]`): at least one token each, none equal to another; none at all where only
            the distribution after the prompt is asked for.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


def encode_question(tokenizer: Any, prompt: Any, answers: Sequence[str]) -> EncodedQuestion:
    """
    Tokenize a question. The answers are tokenized on their own, so that the prompt's tokens do not depend on them.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the model's tokenizer.
        prompt (`str` or `list[dict]`): plain text, or messages for the chat template.
        answers (`Sequence[str]`): as they follow the prompt, the leading space included.

    Returns:
        `EncodedQuestion`: the token ids.

    Raises:
        ValueError: the prompt is empty, an answer has no token, two answers have the same tokens, or the tokenizer has
            no chat template for messages.
    """
    if isinstance(prompt, str):
        ids = list(tokenizer(prompt)["input_ids"])
        if ids and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(tokenizer.eos_token or "\0"):
            ids.pop()  # a tokenizer that closes every text: the answer would stand after the end
    else:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "The prompt is a list of messages and the tokenizer has no chat template. Give plain text."
            )
        ids = list(
            tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=True)[
                "input_ids"
            ]
        )
    if not ids:
        raise ValueError(f"The prompt {prompt!r} has no token.")
    encoded = [tuple(tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in answers]
    for answer, tokens in zip(answers, encoded):
        if not tokens:
            raise ValueError(f"The answer {answer!r} has no token.")
    if len(set(encoded)) < len(encoded):
        raise ValueError(f"Two of the answers {list(answers)!r} have the same tokens.")
    return EncodedQuestion(tuple(ids), tuple(encoded))


@dataclass
class _Row:
    """A trie of token sequences: per node its token, its parent (-1 for none) and whether logits are read there."""

    tokens: list[int]
    parents: list[int]
    children: dict[tuple[int, int], int]
    scored: set[int]

    def insert(self, sequence: Sequence[int], scored_from: int) -> list[int]:
        """Add a sequence; returns the nodes whose logits are read, those from `scored_from` on."""
        node, path = -1, []
        for token in sequence:
            child = self.children.get((node, token))
            if child is None:
                child = len(self.tokens)
                self.children[node, token] = child
                self.tokens.append(token)
                self.parents.append(node)
            node = child
            path.append(node)
        self.scored.update(path[scored_from:])
        return path[scored_from:]


@dataclass
class PackedQuestions:
    """
    Questions laid out for one forward pass.

    Args:
        input_ids (`torch.Tensor`): shape `(rows, length)`.
        position_ids (`torch.Tensor`): shape `(rows, length)`.
        visible (`torch.Tensor`): bool, shape `(rows, 1, length, length)`: which token attends to which.
        keep (`int`): the last `keep` positions of each row hold everything that is read.
        decision (`torch.Tensor`): shape `(questions,)`: where each prompt ends, as an index into the kept positions of
            all rows laid end to end.
        reads (`torch.Tensor`): shape `(answer tokens, 4)`: question, answer, kept position, token to read there.
        answers (`int`): the largest number of answers of a question.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    visible: torch.Tensor
    keep: int
    decision: torch.Tensor
    reads: torch.Tensor
    answers: int


def pack(questions: Sequence[EncodedQuestion], row_tokens: int = ROW_TOKENS) -> PackedQuestions:
    """
    Lay questions out as tries of at most `row_tokens` tokens each (a longer question has a row of its own).

    Args:
        questions (`Sequence[EncodedQuestion]`): at least one.
        row_tokens (`int`): tokens per row.

    Returns:
        `PackedQuestions`: on the CPU.
    """
    rows: list[_Row] = []
    places: list[tuple[int, int, list[list[int]]]] = [(0, 0, [])] * len(questions)
    for number in sorted(range(len(questions)), key=lambda n: questions[n].prompt):
        question = questions[number]
        longest = len(question.prompt) + sum(len(answer) - 1 for answer in question.answers)
        if not rows or len(rows[-1].tokens) + _new_tokens(rows[-1], question) > max(row_tokens, longest):
            rows.append(_Row([], [], {}, set()))
        before = len(question.prompt) - 1
        (decided,) = rows[-1].insert(question.prompt, before)
        paths = [rows[-1].insert(question.prompt + answer[:-1], before) for answer in question.answers]
        places[number] = (len(rows) - 1, decided, paths)

    length = max(len(row.tokens) for row in rows)
    keep = max(len(row.scored) for row in rows)
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    position_ids = torch.zeros(len(rows), length, dtype=torch.long)
    visible = torch.eye(length, dtype=torch.bool).repeat(len(rows), 1, 1)
    columns: list[dict[int, int]] = []
    for index, trie in enumerate(rows):
        # Read positions last, so that logits_to_keep=keep covers them; a parent still comes before its own children.
        order = sorted(range(len(trie.tokens)), key=lambda node: (node in trie.scored, node))
        column = {node: length - len(order) + place for place, node in enumerate(order)}
        columns.append(column)
        for node, (token, parent) in enumerate(zip(trie.tokens, trie.parents)):
            here = column[node]
            input_ids[index, here] = token
            if parent >= 0:
                position_ids[index, here] = position_ids[index, column[parent]] + 1
                visible[index, here] |= visible[index, column[parent]]
    decision, reads = [], []
    for number, (row, decided, paths) in enumerate(places):
        offset = row * keep - (length - keep)
        decision.append(offset + columns[row][decided])
        for answer, (path, tokens) in enumerate(zip(paths, questions[number].answers)):
            reads += [(number, answer, offset + columns[row][node], token) for node, token in zip(path, tokens)]
    return PackedQuestions(
        input_ids,
        position_ids,
        visible[:, None],
        keep,
        torch.tensor(decision),
        torch.tensor(reads, dtype=torch.long).view(-1, 4),
        max(len(question.answers) for question in questions),
    )


def _new_tokens(row: _Row, question: EncodedQuestion) -> int:
    """How many nodes a question would add to a row, at the most."""
    node, shared = -1, 0
    for token in question.prompt:
        child = row.children.get((node, token))
        if child is None:
            break
        node, shared = child, shared + 1
    return len(question.prompt) - shared + sum(len(answer) - 1 for answer in question.answers)


@dataclass
class Scores:
    """
    What a model says to a batch of questions.

    Args:
        answers (`torch.Tensor`): log Pr[answer | prompt], shape `(questions, answers)`, -inf where a question has
            fewer
            answers than the widest.
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
    length = max(map(len, rows))
    keep = max(len(answer) for q in questions for answer in (*q.answers, (0,)))
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for sequence, row in rows.items():
        input_ids[row, length - len(sequence) :] = torch.tensor(sequence)
        attention_mask[row, length - len(sequence) :] = 1
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


@torch.no_grad()
def reads_tries(model: nn.Module, questions: Sequence[EncodedQuestion], tolerance: Optional[float] = None) -> bool:
    """
    Whether packing gives what the prompts alone give: tried on a few of the questions, because whether an architecture
    honours a mask and positions of one's own (a rotary model does, ALiBi does not) cannot be read off its config.

    Args:
        model (`nn.Module`): a causal language model.
        questions (`Sequence[EncodedQuestion]`): the questions to come.
        tolerance (`float`, *optional*): allowed difference of the log-probabilities, as a share of how much they
            differ
            between the questions (root mean squares); default 0.01, and 0.1 for a model in half precision.

    Returns:
        `bool`: `False` also when the model refuses such a mask.
    """
    if tolerance is None:
        tolerance = 0.01 if _compute_dtype(model) == torch.float32 else 0.1
    by_prompt = sorted(questions, key=lambda q: q.prompt)
    few = [*by_prompt[:3], by_prompt[-1], max(questions, key=lambda q: len(q.prompt))]
    try:
        packed = score_packed(model, pack(few)).decision
    except (ValueError, TypeError, RuntimeError, NotImplementedError):
        return False
    plain = score_plain(model, few).decision
    spread = (plain - plain.mean(0)).square().mean().sqrt()
    error = (packed - plain).square().mean().sqrt()
    return bool(error <= tolerance * spread + 1e-5)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off within the block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def batches(questions: Sequence[EncodedQuestion], tokens: int) -> Iterator[list[int]]:
    """Numbers of the questions in batches of about `tokens` prompt tokens, neighbours in the trie together."""
    batch: list[int] = []
    used = 0
    previous: tuple[int, ...] = ()
    for number in sorted(range(len(questions)), key=lambda n: questions[n].prompt):
        prompt = questions[number].prompt
        shared = next((i for i, (a, b) in enumerate(zip(prompt, previous)) if a != b), min(len(prompt), len(previous)))
        cost = len(prompt) - shared
        if batch and used + cost > tokens:
            yield batch
            batch, used, cost = [], 0, len(prompt)
        batch.append(number)
        used, previous = used + cost, prompt
    if batch:
        yield batch


def score(
    model: nn.Module,
    questions: Sequence[EncodedQuestion],
    *,
    packed: Optional[bool] = None,
    batch_tokens: int = 1024,
) -> Iterator[tuple[list[int], Scores]]:
    """
    Score questions batch by batch without gradient.

    Args:
        model (`nn.Module`): a causal language model.
        questions (`Sequence[EncodedQuestion]`): at least one.
        packed (`bool`, *optional*): whether to lay them out as tries; default: whether the model reads tries.
        batch_tokens (`int`): tokens per batch.

    Yields:
        The numbers of the questions of a batch and their `Scores`.

    Raises:
        ValueError: there is no question.
    """
    if not questions:
        raise ValueError("There is no question to score.")
    with evaluating(model), torch.no_grad():
        if packed is None:
            packed = reads_tries(model, questions)
        for numbers in batches(questions, batch_tokens):
            chosen = [questions[number] for number in numbers]
            yield numbers, score_packed(model, pack(chosen)) if packed else score_plain(model, chosen)
