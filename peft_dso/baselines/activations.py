"""
What the modules of a model say to texts: in float32, in evaluation mode, of real tokens only.

Texts of one length are run together, so that there is no padding whose effect would have to be taken away again: a
text's activations do not depend on the batch it stands in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import nn

from ..scoring import (
    EncodedQuestion,
    PicturedQuestion,
    encode_question,
    evaluating,
    on_model,
    pictured_inputs,
    row_images,
)
from ..scoring.reading import keeps_logits


@dataclass(frozen=True)
class Text:
    """
    A prompt, and what stands behind it.

    Args:
        question (`EncodedQuestion`): the prompt.
        behind (`tuple[int, ...]`): the tokens of an answer; empty for the prompt alone.
    """

    question: EncodedQuestion
    behind: tuple[int, ...] = ()

    @property
    def tokens(self) -> tuple[int, ...]:
        """The prompt's tokens and those behind it; pictures are not expanded."""
        return self.question.prompt + self.behind


def encode_text(processor: Any, row: Mapping[str, Any], answer: Optional[str] = None) -> Text:
    """
    A question's prompt, with an answer behind it or without, tokenized as [`~peft_dso.scoring.encode_question`] does.

    Args:
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): the model's.
        row (`Mapping`): a question.
        answer (`str`, *optional*): the text behind the prompt, the leading space included.

    Returns:
        `Text`: the token ids.

    Raises:
        ValueError: see [`~peft_dso.scoring.encode_question`].
    """
    question = encode_question(processor, row["prompt"], [] if answer is None else [answer], row_images(row))
    return Text(question, question.answers[0][0] if answer is not None else ())


def text_batches(texts: Sequence[Text], batch_tokens: int = 2048) -> list[list[int]]:
    """
    Numbers of texts that can be run together: of one length and within `batch_tokens` tokens; each text with pictures
    alone, because how many tokens a picture takes is the processor's secret.
    """
    by_length: dict[int, list[int]] = {}
    found = []
    for number, text in enumerate(texts):
        if isinstance(text.question, PicturedQuestion):
            found.append([number])
        else:
            by_length.setdefault(len(text.tokens), []).append(number)
    for length, numbers in sorted(by_length.items()):
        size = max(1, batch_tokens // length)
        found += [numbers[start : start + size] for start in range(0, len(numbers), size)]
    return found


def model_inputs(model: nn.Module, texts: Sequence[Text]) -> dict[str, Any]:
    """The arguments of `forward` for texts that [`text_batches`] put together; logits of the last token only."""
    more: dict[str, Any] = {"use_cache": False}
    if keeps_logits(model):
        more["logits_to_keep"] = 1
    if isinstance(texts[0].question, PicturedQuestion):
        return {**_pictured(model, texts[0]), **more}
    input_ids = torch.tensor([text.tokens for text in texts])
    return {**on_model({"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}, model), **more}


def _pictured(model: nn.Module, text: Text) -> dict[str, Any]:
    """A text with pictures, its answer put behind what the processor makes of the prompt."""
    question: Any = text.question
    inputs = pictured_inputs(question.processor, [question])
    shape, behind = inputs["input_ids"].shape, torch.tensor([text.behind], dtype=torch.long)
    ends = {"input_ids": behind, "attention_mask": torch.ones_like(behind)}
    for key, value in inputs.items():
        if isinstance(value, torch.Tensor) and value.shape == shape:
            inputs[key] = torch.cat([value, ends.get(key, torch.zeros_like(behind)).to(value.dtype)], 1)
    return on_model(inputs, model)


class _Seen(Exception):
    """Everything that was asked for has been seen: the rest of the forward pass is not needed."""


@contextmanager
def watching(
    modules: Mapping[str, nn.Module], see: Callable[[str, torch.Tensor], Any], side: str = "output"
) -> Iterator[None]:
    """
    Within the block, hand what comes out of some modules (or goes into them) to `see`, with the module's name.

    Args:
        modules (`Mapping[str, nn.Module]`): by name.
        see (`Callable`): gets the name and a tensor of shape `(batch, tokens, features)`, with its gradient.
        side (`str`, defaults to `"output"`): `"output"` or `"input"`.
    """

    def hook(name: str) -> Callable[..., None]:
        def on_output(module: nn.Module, args: Any, output: Any) -> None:
            see(name, output[0] if isinstance(output, (tuple, list)) else output)

        def on_input(module: nn.Module, args: Any) -> None:
            see(name, args[0])

        return on_output if side == "output" else on_input

    handles = [
        module.register_forward_hook(hook(name)) if side == "output" else module.register_forward_pre_hook(hook(name))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def summary(h: torch.Tensor, at: str, texts: int) -> torch.Tensor:
    """
    One vector per text in float32: of its `"last"` token, or the `"mean"` over its tokens.

    Args:
        h (`torch.Tensor`): shape `(texts, tokens, d)`, or laid end to end, as OPT feeds its second norm.
        at (`str`): `"last"` or `"mean"`.
        texts (`int`): how many.

    Returns:
        `torch.Tensor`: shape `(texts, d)`.
    """
    h = h.unflatten(0, (texts, -1)) if h.dim() == 2 else h
    return h[:, -1].float() if at == "last" else h.float().mean(1)


@torch.no_grad()
def read_activations(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    texts: Sequence[Text],
    *,
    at: str = "last",
    side: str = "output",
    batch_tokens: int = 2048,
    progress: Callable[[int], Any] = lambda n: None,
) -> dict[str, torch.Tensor]:
    """
    What modules say to texts.

    Args:
        model (`nn.Module`): the model.
        modules (`Mapping[str, nn.Module]`): modules of it by name.
        texts (`Sequence[Text]`): at least one.
        at (`str`, defaults to `"last"`): `"last"` token, or `"mean"` over the tokens (the start token included).
        side (`str`, defaults to `"output"`): `"output"` or `"input"`.
        batch_tokens (`int`, defaults to 2048): tokens per batch.
        progress (`Callable`): called with the number of texts done.

    Returns:
        `dict[str, torch.Tensor]`: by name, in the order in which the modules are run, shape `(texts, d)`, float32, on
        the CPU. The forward pass ends where the last of them has been seen.

    Raises:
        ValueError: a module takes no part in the forward pass, or says NaN or infinity.
    """
    found: dict[str, torch.Tensor] = {}
    with evaluating(model):
        for numbers in text_batches(texts, batch_tokens):
            seen: dict[str, torch.Tensor] = {}

            def see(name: str, h: torch.Tensor, seen: dict[str, torch.Tensor] = seen, n: int = len(numbers)) -> None:
                seen[name] = summary(h, at, n).cpu()
                if len(seen) == len(modules):
                    raise _Seen

            with watching(modules, see, side), suppress(_Seen):
                model(**model_inputs(model, [texts[number] for number in numbers]))
            missing = modules.keys() - seen.keys()
            if missing:
                raise ValueError(f"{sorted(missing)[0]!r} takes no part in reading the texts; leave it out.")
            for name, values in seen.items():
                whole = found.setdefault(name, torch.empty(len(texts), values.shape[1]))
                whole[numbers] = values
            progress(len(numbers))
    for name, values in found.items():
        if not values.isfinite().all():
            raise ValueError(f"{name!r} says NaN or infinity to the texts: load the model in float32 or bfloat16.")
    return found


def run_order(model: nn.Module, modules: Mapping[str, nn.Module], text: Text) -> list[str]:
    """The names of the modules in the order in which a forward pass runs them; those it does not run are left out."""
    order: list[str] = []
    with evaluating(model), torch.no_grad(), watching(modules, lambda name, h: order.append(name)):
        model(**model_inputs(model, [text]))
    return list(dict.fromkeys(order))
