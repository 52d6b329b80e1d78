"""Text in two rows of one batch, token by token, with transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from queue import Queue
from threading import Event, Thread
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ..scoring import EncodedQuestion, PicturedQuestion, left_padded, on_model, pictured_inputs
from .turns import Strengths, Turns


class _Rows(BaseStreamer):
    """Puts the tokens of each step into a queue; transformers' own streamers take one row only."""

    def __init__(self) -> None:
        self.steps: Queue[Any] = Queue()
        self._prompts = True

    def put(self, value: torch.Tensor) -> None:
        if not self._prompts:
            self.steps.put(value.tolist())
        self._prompts = False

    def end(self) -> None:
        pass  # the thread says when it ends, also after an error


class _BetweenTokens(StoppingCriteria):
    """Stops when told to, and lets others have their turn where the model keeps nothing of a request."""

    def __init__(self, stop: Event, pass_on: Any) -> None:
        self._stop, self._pass_on = stop, pass_on

    def __call__(self, input_ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
        if not self._stop.is_set():
            self._pass_on()
        return torch.full((input_ids.shape[0],), self._stop.is_set(), device=input_ids.device)


def write(
    model: Any,
    processor: Any,
    turns: Turns,
    questions: Sequence[EncodedQuestion],
    strengths: Strengths,
    length: int,
    temperature: float,
) -> Iterator[tuple[str, str]]:
    """
    Continue two encoded prompts (see `SteeredModel.write`).

    Args:
        model (`nn.Module`): the model.
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): its tokenizer or processor.
        turns (`Turns`): at the model.
        questions (`Sequence[EncodedQuestion]`): two.
        strengths (`Mapping[str, Sequence[float]]`): by adapter, for two rows.
        length (`int`): tokens at most.
        temperature (`float`): 0 takes the likeliest.

    Yields:
        Both texts so far.
    """
    rows, stop = _Rows(), Event()
    tokenizer = getattr(processor, "tokenizer", processor)
    pictured = [q for q in questions if isinstance(q, PicturedQuestion)]
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature}

    def pass_on() -> None:
        # Models that read pictures keep the place of the text's end in themselves.
        if not pictured:
            turns.pass_on(strengths)

    def generate() -> None:
        try:
            with turns.take(strengths), torch.no_grad():
                if pictured:
                    inputs = on_model(pictured_inputs(processor, pictured), model)
                else:
                    ids, mask = left_padded([q.prompt for q in questions], tokenizer.pad_token_id or 0)
                    inputs = on_model({"input_ids": ids, "attention_mask": mask}, model)
                model.generate(
                    **inputs,
                    **sampling,
                    max_new_tokens=length,
                    pad_token_id=tokenizer.pad_token_id or 0,
                    streamer=rows,
                    stopping_criteria=StoppingCriteriaList([_BetweenTokens(stop, pass_on)]),
                )
            rows.steps.put(None)
        except Exception as error:  # it belongs to whoever reads
            rows.steps.put(error)

    thread = Thread(target=generate, daemon=True)
    thread.start()
    try:
        yield from _texts(rows.steps, model, tokenizer)
    finally:
        stop.set()


def _texts(steps: Queue[Any], model: Any, tokenizer: Any) -> Iterator[tuple[str, str]]:
    """Both texts after each step, each as far as its end."""
    ends = model.generation_config.eos_token_id
    ends = set(ends) if isinstance(ends, (list, tuple)) else {ends}
    written: tuple[list[int], list[int]] = ([], [])
    ended = [False, False]
    while (step := steps.get()) is not None:
        if isinstance(step, Exception):
            raise step
        for row, token in enumerate(step):
            ended[row] = ended[row] or token in ends
            if not ended[row]:
                written[row].append(token)
        # A character of several tokens shows as a replacement sign until it is whole.
        first, second = (tokenizer.decode(w, skip_special_tokens=True).rstrip("\ufffd") for w in written)
        yield first, second
