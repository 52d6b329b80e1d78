"""
Log-probabilities of given answers, in one forward pass per prompt.

Prompts of one task begin alike ("The nurse said that", "The nurse was late because"). They are laid out as a trie:
each distinct prefix is computed once, a token attends to its own ancestors only, and its position is its depth. What
is read off is what each prompt alone would give.
"""

from __future__ import annotations

import inspect
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import nn


# Tokens of one packed row. Attention costs the square of it, so that longer rows gain nothing.
ROW_TOKENS = 256
# What a picture counts for in the size of a batch; how many tokens it takes is the processor's secret.
PICTURE_TOKENS = 64


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


@dataclass(frozen=True)
class PicturedQuestion(EncodedQuestion):
    """
    A question with pictures. They are prepared with the rest of a batch, by the processor.

    Args:
        prompt (`tuple[int, ...]`): the tokens of the text, a picture's placeholder not expanded.
        answers (`tuple[tuple[int, ...], ...]`): as in [`EncodedQuestion`].
        text (`str`): what the processor reads.
        images (`tuple`): the pictures.
        processor (`ProcessorMixin`): the model's.
    """

    text: str
    images: tuple[Any, ...]
    processor: Any


def check_reads_pictures(model: nn.Module) -> None:
    """
    Raises:
        ValueError: the model's config names no token that stands for a picture.
    """
    config = getattr(model, "config", None)
    names = ("image_token_id", "image_token_index")
    if all(getattr(config, name, None) is None for name in names):
        raise ValueError(
            f"There are rows with pictures, and {type(model).__name__} ({getattr(config, 'model_type', 'no config')}) "
            "has no image token: it reads text only. Use a vision-language model."
        )


def row_images(row: Mapping[str, Any]) -> list[Any]:
    """The pictures of a row, from its column `images` or `image`."""
    images = row.get("images")
    if images is None:
        images = [] if row.get("image") is None else [row["image"]]
    return list(images)


def encode_row(processor: Any, row: Mapping[str, Any]) -> EncodedQuestion:
    """A row of questions as [`encode_question`] encodes it; answers may be missing."""
    return encode_question(processor, row["prompt"], row.get("answers") or (), row_images(row))


def with_images(messages: Sequence[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    """
    Messages in the structured form, with placeholders for pictures before the first user's text where there are none
    (as TRL's `prepare_multimodal_messages`, which the trainer uses for sampled rollouts).

    Raises:
        ValueError: there are placeholders already, and not as many as pictures.
    """
    found: list[dict[str, Any]] = []
    placeholders = 0
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            first_user = message["role"] == "user" and not any(m["role"] == "user" for m in found)
            content = [{"type": "image"}] * (count if first_user else 0) + [{"type": "text", "text": content}]
        placeholders += sum(part["type"] == "image" for part in content)
        found.append({**message, "content": content})
    if placeholders != count:
        raise ValueError(f"The prompt has {placeholders} places for pictures and the row {count} pictures.")
    return found


def encode_question(
    processor: Any, prompt: Any, answers: Sequence[str], images: Sequence[Any] = ()
) -> EncodedQuestion:
    """
    Tokenize a question. The answers are tokenized on their own, so that the prompt's tokens do not depend on them.

    Args:
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): the model's tokenizer or processor.
        prompt (`str` or `list[dict]`): plain text, or messages for the chat template.
        answers (`Sequence[str]`): as they follow the prompt, the leading space included.
        images (`Sequence`, *optional*): the pictures that belong to the prompt, which is a list of messages then.

    Returns:
        `EncodedQuestion`: the token ids; a [`PicturedQuestion`] if there are pictures.

    Raises:
        ValueError: the prompt is empty, an answer has no token, two answers have the same tokens, there is no chat
            template for messages, or there are pictures that are missing or that the model cannot read.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    text = None
    if images:
        text = _pictured_text(processor, prompt, images)
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    elif isinstance(prompt, str):
        ids = list(tokenizer(prompt)["input_ids"])
        if ids and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(tokenizer.eos_token or "\0"):
            ids.pop()  # a tokenizer that closes every text: the answer would stand after the end
    else:
        template = _chat_template(processor)
        if tokenizer is not processor:
            prompt = with_images(prompt, 0)
        encoding = tokenizer.apply_chat_template(
            prompt, chat_template=template, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        ids = list(encoding["input_ids"])
    if not ids:
        raise ValueError(f"The prompt {prompt!r} has no token.")
    encoded = [tuple(tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in answers]
    for answer, tokens in zip(answers, encoded):
        if not tokens:
            raise ValueError(f"The answer {answer!r} has no token.")
    if len(set(encoded)) < len(encoded):
        raise ValueError(f"Two of the answers {list(answers)!r} have the same tokens.")
    if text is not None:
        return PicturedQuestion(tuple(ids), tuple(encoded), text, tuple(images), processor)
    return EncodedQuestion(tuple(ids), tuple(encoded))


def _chat_template(processor: Any) -> str:
    template = getattr(processor, "chat_template", None) or getattr(
        getattr(processor, "tokenizer", None), "chat_template", None
    )
    if not template:
        raise ValueError(
            f"The prompt is a list of messages and {type(processor).__name__} has no chat template. Give plain text, "
            "or set its chat_template."
        )
    return str(template)


def _pictured_text(processor: Any, prompt: Any, images: Sequence[Any]) -> str:
    """What the processor reads for a prompt with pictures."""
    if getattr(processor, "image_processor", None) is None:
        raise ValueError(
            f"A row has {len(images)} pictures, and {type(processor).__name__} reads text only. Give the processor of "
            "a vision-language model."
        )
    if isinstance(prompt, str):
        raise ValueError(f"A prompt with pictures must be a list of messages, got {prompt!r}.")
    if any(image is None for image in images):
        raise ValueError(f"Picture {list(images).index(None)} of the prompt {prompt!r} is missing.")
    template = _chat_template(processor)
    messages = with_images(prompt, len(images))
    text: str = processor.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=True, tokenize=False
    )
    return text


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
    for run in batches(questions, row_tokens):
        rows.append(_Row([], [], {}, set()))
        for number in run:
            question = questions[number]
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


def batches(questions: Sequence[EncodedQuestion], tokens: int) -> list[list[int]]:
    """
    Numbers of the questions in runs of at most `tokens` tokens each, or of one question; neighbours in the trie
    together, in as few runs as that takes, and these as even as can be (rows of a batch are padded to the longest).

    Args:
        questions (`Sequence[EncodedQuestion]`): at least one.
        tokens (`int`): tokens of a run, at the most; a picture counts as 64.
    """
    order = sorted(range(len(questions)), key=lambda n: questions[n].prompt)
    first, further = [], []  # what each question adds to a run that it begins, and to one that holds its neighbour
    previous: tuple[int, ...] = ()
    for number in order:
        question = questions[number]
        prompt, pictures = question.prompt, len(getattr(question, "images", ()))
        own = sum(len(answer) - 1 for answer in question.answers) + pictures * PICTURE_TOKENS
        shared = next((i for i, (a, b) in enumerate(zip(prompt, previous)) if a != b), min(len(prompt), len(previous)))
        first.append(len(prompt) + own)
        further.append(len(prompt) + own - (0 if pictures else shared))
        previous = prompt

    def runs(limit: int) -> list[list[int]]:
        found: list[list[int]] = []
        used = 0
        for number, begin, add in zip(order, first, further):
            if found and used + add <= limit:
                found[-1].append(number)
                used += add
            else:
                found.append([number])
                used = begin
        return found

    fewest = len(runs(tokens))
    return runs(bisect_left(range(tokens), True, key=lambda limit: len(runs(limit)) <= fewest))


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


def score_batch(model: nn.Module, questions: Sequence[EncodedQuestion], packed: bool) -> Scores:
    """
    Score one batch, in which some questions may have pictures.

    Args:
        model (`nn.Module`): a causal language model, or a vision-language model.
        questions (`Sequence[EncodedQuestion]`): at least one.
        packed (`bool`): whether to lay text out as tries.

    Returns:
        `Scores`: in the order of the questions.
    """
    pictured = [n for n, q in enumerate(questions) if isinstance(q, PicturedQuestion)]
    text = [n for n, q in enumerate(questions) if not isinstance(q, PicturedQuestion)]
    parts: list[Scores] = []
    if text:
        chosen = [questions[n] for n in text]
        parts.append(score_packed(model, pack(chosen)) if packed else score_plain(model, chosen))
    if pictured:
        parts.append(score_pictured(model, [questions[n] for n in pictured]))  # type: ignore[misc]
    if len(parts) == 1:
        return parts[0]
    widest = max(part.answers.shape[1] for part in parts)
    answers = torch.cat(
        [nn.functional.pad(p.answers, (0, widest - p.answers.shape[1]), value=-torch.inf) for p in parts]
    )
    back = torch.tensor(text + pictured).argsort()
    return Scores(answers[back], torch.cat([part.decision for part in parts])[back])


@torch.no_grad()
def reads_tries(model: nn.Module, questions: Sequence[EncodedQuestion], tolerance: Optional[float] = None) -> bool:
    """
    Whether packing gives what the prompts alone give: tried on a few of the questions, because whether an architecture
    honours a mask and positions of one's own (a rotary model does, ALiBi does not) cannot be read off its config.

    Args:
        model (`nn.Module`): a causal language model.
        questions (`Sequence[EncodedQuestion]`): the questions to come.
        tolerance (`float`, *optional*): allowed difference of the log-probabilities, as a share of how much they
            differ between the questions (root mean squares); default 0.01, and 0.1 for a model in half precision.

    Returns:
        `bool`: `False` also when the model refuses such a mask.
    """
    questions = [q for q in questions if not isinstance(q, PicturedQuestion)]
    if not questions:
        return False
    if tolerance is None:
        tolerance = 0.01 if _compute_dtype(model) == torch.float32 else 0.1
    by_prompt = sorted(questions, key=lambda q: q.prompt)
    few = [*by_prompt[:3], by_prompt[-1], max(questions, key=lambda q: len(q.prompt))]
    try:
        packed = score_packed(model, pack(few)).decision
    except (ValueError, TypeError, RuntimeError, NotImplementedError):
        return False
    plain = score_plain(model, [EncodedQuestion(q.prompt, ()) for q in few]).decision
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
            yield numbers, score_batch(model, chosen, packed)
