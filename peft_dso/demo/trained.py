"""The adapter that comes along: the quick start's, trained, so that there is something to see at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import torch
from peft import PeftModel

from ..scoring import left_padded
from ..tuner import steering_strength
from .model import load_smollm2


ADAPTER = Path(__file__).parent / "adapter"
PROMPTS = (
    "The nurse said that",
    "The carpenter said that",
    "The secretary was late, so",
    "The manager left early because",
    "The nurse, who is a man, said that",
    "The carpenter is a woman. Today",
)
WORDS = ("he", "she", "they")
STRENGTHS = (0.0, 0.4, 1.0)


def demo_adapter() -> Path:
    """
    The folder of the adapter that comes with the package: trained on the pronoun task for SmolLM2-135M-Instruct by
    `benchmarks/demo_adapter.py`, with its card and its report.

    Returns:
        `Path`: a folder for `PeftModel.from_pretrained`.

    Raises:
        FileNotFoundError: the package was installed without it.
    """
    if not (ADAPTER / "adapter_config.json").is_file():
        raise FileNotFoundError(
            f"{ADAPTER} holds no adapter: the package was installed without its data. Install it again, or train one "
            "with: peft-dso quickstart"
        )
    return ADAPTER


def load_demo(cache_dir: Optional[str | os.PathLike[str]] = None) -> tuple[PeftModel, Any]:
    """
    SmolLM2-135M-Instruct with the adapter that comes with the package.

    Args:
        cache_dir (`str`, *optional*): see [`smollm2_folder`].

    Returns:
        The `PeftModel` in evaluation mode, and the tokenizer.

    Raises:
        ImportError: a package of the quick start is missing.
        FileNotFoundError: the adapter is missing.
    """
    adapter = demo_adapter()
    model, tokenizer = load_smollm2(cache_dir)
    return PeftModel.from_pretrained(model, adapter).eval(), tokenizer


@torch.no_grad()
def next_words(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str] = PROMPTS,
    words: Sequence[str] = WORDS,
    strengths: Sequence[float] = STRENGTHS,
) -> torch.Tensor:
    """
    How likely some words come next, at several strengths: one forward pass, in which each row has a strength of its
    own.

    Args:
        model (`nn.Module`): a model with an active DSO adapter; its strength is restored afterwards.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        prompts (`Sequence[str]`): the beginnings.
        words (`Sequence[str]`): words of one token each, without the leading space.
        strengths (`Sequence[float]`): the strengths.

    Returns:
        `torch.Tensor`: probabilities, shape `(prompts, words + 1, strengths)`; the last word is any other.

    Raises:
        ValueError: a word has more than one token.
    """
    tokens = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    for word, ids in zip(words, tokens, strict=False):
        if len(ids) != 1:
            raise ValueError(f"The word {word!r} has {len(ids)} tokens: give words of one token.")
    rows = [tokenizer(prompt)["input_ids"] for prompt in prompts for _ in strengths]
    input_ids, attention_mask = left_padded(rows)
    device = next(model.parameters()).device
    with steering_strength(model, list(strengths) * len(prompts)):
        logits = model(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0).to(device),
        ).logits
    p = logits[:, -1].float().softmax(-1)[:, [ids[0] for ids in tokens]].cpu()
    p = torch.cat([p, 1 - p.sum(-1, keepdim=True)], dim=1)
    return p.view(len(prompts), len(strengths), -1).transpose(1, 2)


def format_words(
    p: torch.Tensor,
    prompts: Sequence[str] = PROMPTS,
    words: Sequence[str] = WORDS,
    strengths: Sequence[float] = STRENGTHS,
) -> str:
    """
    What [`next_words`] found as text: a line per word, a column per strength.

    Args:
        p (`torch.Tensor`): of shape `(prompts, words + 1, strengths)`.
        prompts, words, strengths: as they were given to [`next_words`].

    Returns:
        `str`: several lines.
    """
    names = [*words, "other words"]
    left, middle = max(map(len, prompts)), max(map(len, names))
    columns = [f"w = {w:g}" for w in strengths]
    lines = [f"{'':{left}}  {'':{middle}}  " + "  ".join(f"{column:>7}" for column in columns)]
    for prompt, table in zip(prompts, p.tolist(), strict=False):
        for number, (name, values) in enumerate(zip(names, table, strict=False)):
            begin = prompt if number == 0 else ""
            lines.append(f"{begin:{left}}  {name:{middle}}  " + "  ".join(f"{value:7.3f}" for value in values))
    return "\n".join(lines)
